"""While rank 0 evaluates, rank 1 takes all its steps: rank 1 must not wait for it."""

import time

import keras
import numpy as np
import tensorflow as tf
from checks import REPORT

import swarm_tf
from swarm_tf import config as c
from swarm_tf.runner.run import Run

RANK, SIZE = swarm_tf.rank(), swarm_tf.size()
assert SIZE == 2
STEPS, PER_EPOCH, BATCH = 200, 20, 4
WORKDIR = REPORT / "evaluate"
WORKDIR.mkdir(exist_ok=True)
DONE, EVALUATED = WORKDIR / "rank 1 has its last batch", WORKDIR / "rank 0 has evaluated"


def batches(count):
    rng = np.random.default_rng(RANK)
    for _ in range(count):
        x = rng.normal(size=[BATCH, 6]).astype(np.float32)
        yield x, (x.sum(axis=1) > 0).astype(np.int32)


def train():
    yield from batches(STEPS)
    if RANK == 1:
        DONE.touch()
    yield from batches(STEPS)  # for pipelines that read ahead


def test():
    if RANK == 0:
        deadline = time.monotonic() + 60
        while not DONE.exists():
            assert time.monotonic() < deadline, "rank 1 waits for rank 0, which evaluates"
            time.sleep(0.01)
        EVALUATED.touch()
    yield from batches(3)


def dataset(generator):
    signature = tf.TensorSpec([BATCH, 6], tf.float32), tf.TensorSpec([BATCH], tf.int32)
    return tf.data.Dataset.from_generator(generator, output_signature=signature)


def an_evaluation_delays_no_other_rank():
    model = keras.Sequential([keras.Input([6]), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"], jit_compile=False)
    config = c.RunConfig(
        model=c.ModelConfig(name="linear"),
        data=c.DataConfig(name="noise"),
        train=c.TrainConfig(epochs=STEPS / PER_EPOCH, batch_size=BATCH),
        optimizer=c.OptimizerConfig(learning_rate=0.1),
    )
    run = Run(
        config,
        str(WORKDIR / "run"),
        model,
        train_from=lambda *_: dataset(train),
        test=dataset(test),
        examples=SIZE * BATCH * PER_EPOCH,
        steps=STEPS,
        steps_per_pass=PER_EPOCH,
    )
    summary = run()
    assert EVALUATED.exists()
    assert summary.exchanges_failed == 0
    assert summary.exchanges > 2


CHECKS = (an_evaluation_delays_no_other_rank,)
