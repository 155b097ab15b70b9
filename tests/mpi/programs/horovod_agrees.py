"""The two backends of all-reduce give the same weights; Horovod is the real one."""

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf

import swarm_tf
from swarm_tf.baselines.allreduce import AllReduce
from swarm_tf.cluster import world
from swarm_tf.trainer import Trainer

mpi = world.transport()
RANK = swarm_tf.rank()
STEPS = 10


def trained(backend, fit):
    keras.utils.set_random_seed(RANK)
    layers = [keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input([5]), *layers])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    rng = np.random.default_rng(RANK)
    data = tf.data.Dataset.from_tensor_slices(
        (rng.normal(size=[STEPS, 8, 5]), rng.normal(size=[STEPS, 8, 3]))
    )
    callback = AllReduce(backend, average_at_end=False)
    if fit:
        model.fit(data, verbose=0, callbacks=[callback])
    else:
        Trainer(model).fit(data, steps=STEPS, steps_per_epoch=STEPS, callbacks=[callback])
    assert callback.counters.exchanges == STEPS
    return model.get_weights(), callback.counters.bytes_sent


def backends_agree():
    for fit in (True, False):
        (ours, sent), (theirs, computed) = trained("mpi", fit), trained("horovod", fit)
        assert hvd.size() == swarm_tf.size()
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
        every = mpi.gather(b"%d" % sent, "bytes", 60)
        assert abs(computed - np.mean([int(n) for n in every])) < 0.01 * computed


CHECKS = (backends_agree,)
