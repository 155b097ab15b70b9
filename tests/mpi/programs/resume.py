"""A training that goes on from a checkpoint ends like one that was never interrupted."""

import hashlib

import keras
import numpy as np
import tensorflow as tf
from checks import REPORT

import swarm_tf
from swarm_tf import config, state
from swarm_tf.checkpoint import model_state
from swarm_tf.cluster import world

RANK, SIZE = swarm_tf.rank(), swarm_tf.size()
STEPS, SAVED, PER_EPOCH = 30, 17, 12

OPTIONS = {
    "swarm": {"local_steps": 3, "mode": "blocking", "codec": "float32"},
    "local_sgd": {"local_steps": 4},
    "diloco": {"local_steps": 4},
    "noloco": {"local_steps": 4},
    "sgp": {"overlap": True, "local_steps": 4},
}


def batches():
    rng = np.random.default_rng(RANK)
    x = rng.normal(size=(PER_EPOCH * 8, 6)).astype(np.float32)
    y = (x.sum(axis=1, keepdims=True) + RANK).astype(np.float32)
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(8)


def model():
    keras.utils.set_random_seed(RANK)
    made = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.Dropout(0.2),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(1),
        ]
    )
    rate = keras.optimizers.schedules.CosineDecay(0.05, STEPS)
    made.compile(keras.optimizers.Adam(rate), "mse", jit_compile=False)
    return made


class Seen(keras.callbacks.Callback):
    """A digest of everything after each step."""

    def __init__(self):
        super().__init__()
        self.after = {}

    def on_train_batch_begin(self, batch, logs=None):
        if not self.after:
            self.note()

    def on_train_batch_end(self, batch, logs=None):
        np.random.random()
        self.note()

    def note(self):
        step = int(self.model.optimizer.iterations.numpy())
        whole = hashlib.blake2b(state.digest(model_state.variables(self.model)).encode())
        whole.update(repr(np.random.get_state()).encode())
        self.after[step] = whole.hexdigest()


def train(name, directory, how, **options):
    """The digests by step, of a training that saves after step SAVED, or goes on from there."""
    algorithm = config.algorithms()[name](**OPTIONS.get(name, {}))
    checkpoint = swarm_tf.Checkpoint(directory, **options)
    made, seen = model(), Seen()
    if how == "trainer":
        swarm_tf.Trainer(made, longest_block=1).fit(
            batches().repeat().skip(checkpoint.first_step()),
            steps=STEPS,
            steps_per_epoch=PER_EPOCH,
            first_step=checkpoint.first_step(),
            callbacks=[algorithm, checkpoint, seen],
        )
    else:
        made.fit(
            checkpoint.rest_of(batches()),
            epochs=3,
            verbose=0,
            callbacks=[algorithm, checkpoint, seen],
        )
    return seen.after


def keep_only(directory, step):
    """As if the job had been killed soon after that step."""
    for path in directory.glob(f"*/rank-{RANK:05d}/step-*.npz"):
        if int(path.name.split("-")[1]) != step:
            path.unlink()
    world.gather(None, "the files that are kept")


def resumes(name, how):
    directory = REPORT / f"{name}-{how}"
    whole = train(name, directory, how, steps=SAVED, keep=9)
    keep_only(directory, SAVED)
    rest = train(name, directory, how, steps=1000)
    assert min(rest) == SAVED, sorted(rest)
    # Which exchange comes first is not the same twice if ranks do not wait for each other.
    steps = [SAVED] if name == "adpsgd" else rest
    differ = [step for step in steps if rest[step] != whole[step]]
    assert not differ, f"{name}, {how}: steps {differ} differ"
    assert max(rest) == max(whole)


def every_algorithm_goes_on_exactly():
    for name in config.algorithms():
        if name != "single":
            resumes(name, "trainer")


def model_fit_goes_on_exactly():
    resumes("swarm", "fit")


CHECKS = (every_algorithm_goes_on_exactly, model_fit_goes_on_exactly)
