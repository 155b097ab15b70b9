"""A rank whose weights become NaN takes a neighbour's model; the result is finite on all ranks."""

import logging

import keras
import numpy as np

import swarm_tf
from swarm_tf.baselines.allreduce import AllReduce
from swarm_tf.baselines.local_sgd import LocalSGD
from swarm_tf.cluster import world

mpi = world.transport()
RANK, SIZE = swarm_tf.rank(), swarm_tf.size()
BAD_RANK = 1
LOG_LINES = []


class KeepLines(logging.Handler):
    def emit(self, record):
        LOG_LINES.append(record.getMessage())


logging.getLogger("swarm_tf").addHandler(KeepLines())


def fit(callback, bad_batch, optimizer=None):
    """Whether this rank's weights were finite after each batch; and the model."""
    LOG_LINES.clear()
    keras.utils.set_random_seed(RANK)
    layers = [keras.layers.Dense(8, activation="tanh"), keras.layers.BatchNormalization()]
    model = keras.Sequential([keras.Input([4]), *layers, keras.layers.Dense(1)])
    model.compile(optimizer or keras.optimizers.Adam(0.01), "mse", jit_compile=False)
    x = np.random.default_rng(RANK).normal(size=[320, 4]).astype(np.float32)
    y = x.sum(axis=1, keepdims=True)
    if RANK == BAD_RANK:
        x[8 * bad_batch] = np.inf
    finite = []
    look = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: finite.append(
            bool(all(np.isfinite(w).all() for w in model.get_weights()))
        )
    )
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[callback, look])
    weights = model.get_weights()
    assert all(np.isfinite(w).all() for w in weights)
    trained = [np.asarray(v) for v in model.trainable_variables]
    every = mpi.gather(b"".join(w.tobytes() for w in trained), "weights", 60)
    assert len(set(every)) == 1
    return finite, model


def a_rank_with_nan_recovers_during_training():
    for mode, statistics in [("nonblocking", True), ("blocking", True), ("pull", False)]:
        callback = swarm_tf.SwarmCallback(
            2, mode=mode, average_statistics=statistics, timeout_seconds=30
        )
        finite, model = fit(callback, bad_batch=10)
        warnings = [line for line in LOG_LINES if "NaN or Inf after step" in line]
        if RANK == BAD_RANK:
            assert not all(finite), "the rank must have had NaN"
            assert finite[-1], "the rank must be finite again before the end"
            assert callback.counters.adoptions >= 1
            assert len(warnings) == 1, LOG_LINES
            assert f"rank {BAD_RANK}: its weights" in warnings[0]
            slots = [v for v in model.optimizer.variables if "float" in str(v.dtype)]
            assert all(np.isfinite(np.asarray(v)).all() for v in slots)
        else:
            assert all(finite)
            assert callback.counters.adoptions == 0
            assert warnings == []


def a_rank_with_nan_is_left_out_of_the_last_mean():
    for make in (lambda: swarm_tf.SwarmCallback(4, timeout_seconds=30), lambda: LocalSGD(100)):
        finite, _ = fit(make(), bad_batch=39)
        assert finite[-1] == (RANK != BAD_RANK)
        warnings = [
            line
            for line in LOG_LINES
            if f"the weights of rank {BAD_RANK} contain NaN or Inf" in line
        ]
        assert bool(warnings) == (RANK == 0) or RANK, LOG_LINES


def local_sgd_goes_on_without_a_rank_with_nan():
    finite, _ = fit(LocalSGD(4), bad_batch=9)
    if RANK == BAD_RANK:
        assert not all(finite)
    assert finite[-1]


def an_allreduce_spreads_nan_to_all_ranks():
    """All ranks step by the same gradients, so no rank has a finite model to take."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.full([8, 4], np.inf if RANK == BAD_RANK else 1.0, np.float32)
    LOG_LINES.clear()
    model.fit(x, x[:, :1], batch_size=4, verbose=0, callbacks=[AllReduce()])
    assert not np.isfinite(model.get_weights()[0]).any()
    if RANK == 0:
        assert any("the mean of all ranks' weights is not finite" in line for line in LOG_LINES), (
            LOG_LINES
        )


CHECKS = (a_rank_with_nan_recovers_during_training,)
SLOW = (
    a_rank_with_nan_is_left_out_of_the_last_mean,
    local_sgd_goes_on_without_a_rank_with_nan,
    an_allreduce_spreads_nan_to_all_ranks,
)
