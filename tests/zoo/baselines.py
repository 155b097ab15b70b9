"""The other algorithms, each with a plain model, a GAN and float16."""

import keras
from keras import layers

from swarm_tf.baselines.adpsgd import ADPSGD
from swarm_tf.baselines.allreduce import AllReduce
from swarm_tf.baselines.diloco import DiLoCo
from swarm_tf.baselines.dpsgd import DPSGD
from swarm_tf.baselines.local_sgd import LocalSGD
from swarm_tf.baselines.noloco import NoLoCo
from swarm_tf.baselines.sgp import SGP
from zoo.specimens import BATCH, INPUTS, numbers, refused, specimen
from zoo.train_steps import fit_gan
from zoo.watch import watched

ALGORITHMS = {
    "allreduce": lambda: watched(AllReduce)(),
    "local_sgd": lambda: watched(LocalSGD)(4),
    "dpsgd": lambda: watched(DPSGD)(),
    "adpsgd": lambda: watched(ADPSGD)(),
    "diloco": lambda: watched(DiLoCo)(8),
    "noloco": lambda: watched(NoLoCo)(8),
    "sgp": lambda: watched(SGP)(),
    "sgp_overlap": lambda: watched(SGP)(overlap=True),
}


def fit(callback):
    model = keras.Sequential(
        [
            keras.Input([INPUTS]),
            layers.Dense(8, "relu"),
            layers.BatchNormalization(),
            layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    x, y = numbers()
    model.fit(x, y, batch_size=BATCH, epochs=2, verbose=0, callbacks=[callback])


# One that averages gradients, and one that is refused. The others are slow.
QUICK = {"allreduce_gan", "local_sgd_float16"}


def _specimens(name):
    def plain():
        fit(ALGORITHMS[name]())

    def gan():
        fit_gan(ALGORITHMS[name]())

    def float16():
        keras.config.set_dtype_policy("mixed_float16")
        callback = ALGORITHMS[name]()
        if callback.synchronous and callback.own_gradients:
            with refused(f"mixed_float16 with algorithm={callback.name}"):
                fit(callback)
        else:
            fit(callback)

    # Other tests of each algorithm have a plain model too.
    for function, words in (
        (plain, "a plain model"),
        (gan, "a GAN of two optimizers"),
        (float16, "mixed_float16, where each rank skips other steps: refused if ranks are in step"),
    ):
        function.__name__ = f"{name}_{function.__name__}"
        function.__doc__ = f"{name}: {words}."
        specimen(function, slow=function.__name__ not in QUICK)


for _name in ALGORITHMS:
    _specimens(_name)
