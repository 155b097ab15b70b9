"""Keras' own callbacks on several ranks, and ours that make them decide the same on all."""

import logging
import tempfile
import threading
import time
from pathlib import Path

import keras
import numpy as np
import pytest

import swarm_tf
from swarm_tf.baselines.allreduce import AllReduce
from swarm_tf.callbacks import AverageMetrics, ConsensusCheckpoint, on_rank_zero
from swarm_tf.cluster import world
from swarm_tf.weights import FlatWeights

mpi = world.transport()
RANK, SIZE = swarm_tf.rank(), swarm_tf.size()
LOG_LINES = []


class KeepLines(logging.Handler):
    def emit(self, record):
        LOG_LINES.append(record.getMessage())


logging.getLogger("swarm_tf").addHandler(KeepLines())


def gathered(value):
    """The values of all ranks."""
    return world.gather(value, "a value")


def examples(rows, rank=RANK):
    x = np.random.default_rng(rank).normal(size=[rows, 4]).astype(np.float32)
    return x, (x.sum(axis=1, keepdims=True) + rank).astype(np.float32)


def model():
    keras.utils.set_random_seed(RANK)
    net = keras.Sequential([keras.Input([4]), keras.layers.Dense(8), keras.layers.Dense(1)])
    net.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"], jit_compile=False)
    return net


def fit(*callbacks, epochs=6, rows=80, validation=40, **options):
    net = model()
    held_back = examples(validation, 100 + RANK) if validation else None
    history = net.fit(
        *examples(rows), batch_size=8, epochs=epochs, verbose=0, callbacks=list(callbacks),
        validation_data=held_back, **options,
    )  # fmt: skip
    return net, history


def assert_equal_on_ranks(net):
    every = mpi.gather(b"".join(w.tobytes() for w in net.get_weights()), "weights", 60)
    assert len(set(every)) == 1


def swarm():
    return swarm_tf.SwarmCallback(4, timeout_seconds=30)


def metrics_become_the_mean_over_examples():
    """Compared with the weighted mean of each rank's metrics; numbers of examples differ."""
    own = []
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: own.append(dict(logs)))
    rows, tested = 80 + 40 * RANK, 16 * (RANK + 1)
    _, history = fit(look, AverageMetrics(), swarm(), epochs=3, rows=rows, validation=tested)
    every = gathered([[logs[k] for k in sorted(logs)] for logs in own])
    weights = gathered([tested if k.startswith("val_") else rows for k in sorted(own[0])])
    for epoch in range(3):
        expected = np.average([one[epoch] for one in every], axis=0, weights=weights)
        got = [history.history[k][epoch] for k in sorted(own[0])]
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert len({str(h) for h in gathered(history.history)}) == 1


def validation_metrics_of_one_rank_reach_all():
    net = model()
    seen = []
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda e, logs: seen.append(dict(logs)))
    net.fit(
        *examples(80), batch_size=8, epochs=2, verbose=0,
        callbacks=[AverageMetrics(), look, swarm()],
        validation_data=examples(16) if RANK == 0 else None,
    )  # fmt: skip
    assert all("val_loss" in logs for logs in seen)
    assert len({str(s) for s in gathered([logs["val_loss"] for logs in seen])}) == 1


def early_stopping_stops_all_ranks_at_once():
    for make in (swarm, AllReduce):
        stopping = keras.callbacks.EarlyStopping("val_loss", min_delta=0.3, patience=0)
        net, history = fit(AverageMetrics(), stopping, make(), epochs=50)
        assert len(set(gathered(len(history.epoch)))) == 1
        assert len(history.epoch) < 50
        assert_equal_on_ranks(net)


def learning_rates_fall_on_all_ranks_at_once():
    falling = keras.callbacks.ReduceLROnPlateau("val_loss", min_delta=0.5, patience=0, factor=0.5)
    net, _ = fit(AverageMetrics(), falling, swarm(), epochs=6)
    rates = gathered(float(net.optimizer.learning_rate))
    assert len(set(rates)) == 1
    assert rates[0] < 0.01


def a_rank_that_ends_before_the_others_is_left_out():
    net, history = fit(AverageMetrics(timeout_seconds=60), swarm(), epochs=2 + 2 * RANK)
    assert len(history.epoch) == 2 + 2 * RANK
    assert_equal_on_ranks(net)


def ranks_end_equal_with_callbacks_in_any_order():
    """Callbacks that set weights at the start or the end stand before ours and after it."""
    with tempfile.TemporaryDirectory() as directory:
        for order in (1, -1):
            restoring = keras.callbacks.EarlyStopping(
                "val_loss", patience=1, restore_best_weights=True
            )
            backup = keras.callbacks.BackupAndRestore(f"{directory}/{order}/{RANK}")
            net, _ = fit(*[swarm(), restoring, backup][::order], epochs=8)
            assert_equal_on_ranks(net)


def training_resumes_from_a_backup_of_each_rank():
    """The second training starts from the first one's weights, though ours precedes the backup."""
    with tempfile.TemporaryDirectory() as directory:
        losses = []

        class Crash(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                losses.append(logs["loss"])
                if epoch == 4:
                    raise RuntimeError("as of a crash")

        def backup():
            return keras.callbacks.BackupAndRestore(f"{directory}/{RANK}")

        with pytest.raises(RuntimeError, match="as of a crash"):
            fit(swarm(), backup(), Crash(), epochs=9)
        net, history = fit(swarm(), backup(), epochs=9)
        assert (
            history.history["loss"][0] < 0.7 * losses[0]
        )  # every rank starts from rank 0's weights
        assert_equal_on_ranks(net)


def only_rank_zero_writes():
    directory = Path(gathered(tempfile.mkdtemp())[0])
    calls = []
    writing = keras.callbacks.ModelCheckpoint(directory / "all.weights.h5", save_weights_only=True)
    table = keras.callbacks.CSVLogger(directory / "all.csv")
    hooks = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: calls.append(1))
    net, _ = fit(swarm(), *map(on_rank_zero, (writing, table, hooks)), epochs=2)
    assert len(calls) == (RANK == 0)
    mpi.gather(b"", "the files", 60)
    assert len((directory / "all.csv").read_text().splitlines()) == 3
    net.load_weights(directory / "all.weights.h5")


class RecordedCheckpoint(ConsensusCheckpoint):
    """Records the chunks that this rank gives for each mark."""

    def _started(self):
        means = super()._started()
        if not hasattr(self, "given"):
            self.given, give, end = {}, means.give, means.end

            def give_and_record(chunks):
                self.given[means.mark] = [chunk.copy() for chunk in chunks]
                give(chunks)

            def end_and_record(chunks, passed):
                for mark in range(1, passed + 1):
                    self.given.setdefault(mark, [chunk.copy() for chunk in chunks])
                end(chunks, passed)

            means.give, means.end = give_and_record, end_and_record
        return means


def the_mean_is_written_while_all_train():
    """The file of each mark holds the mean of what the ranks gave for it."""
    slow = keras.callbacks.LambdaCallback(on_train_batch_end=lambda b, logs: time.sleep(0.02))
    for every, name, marks in (("epoch", "epoch", 3), (5, "step", 6)):
        directory = Path(gathered(tempfile.mkdtemp())[0])
        writing = RecordedCheckpoint(directory / f"{{{name}}}.weights.h5", every)
        net, _ = fit(swarm(), slow, writing, epochs=3)
        assert_equal_on_ranks(net)
        assert list(writing.given) == list(range(1, marks + 1))
        mpi.gather(b"", "the files", 60)
        for mark, own in writing.given.items():
            ranks = gathered([chunk.tolist() for chunk in own])
            net.load_weights(directory / f"{mark if every == 'epoch' else 5 * mark}.weights.h5")
            for got, *given in zip(FlatWeights(net.weights).copy(), *ranks, strict=True):
                np.testing.assert_allclose(got, np.mean(given, axis=0), rtol=1e-5, atol=1e-6)


def the_mean_is_over_ranks_that_train_and_are_finite():
    """Rank 0 ends early, then the mean is rank 1's model. A rank that is not finite is left out."""
    directory = Path(gathered(tempfile.mkdtemp())[0])
    last = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            last.append(self.model.get_weights())

    # No exchange in between, so that ranks differ.
    callback = swarm_tf.SwarmCallback(10_000, timeout_seconds=30)
    writing = ConsensusCheckpoint(directory / "{epoch}.weights.h5")
    pause = keras.callbacks.LambdaCallback(on_train_batch_end=lambda b, logs: time.sleep(0.01))
    fit(Look(), writing, pause, callback, epochs=1 + 2 * RANK)
    mpi.gather(b"", "the files", 60)
    rank = gathered(np.concatenate([w.ravel() for w in last[-1]]).tolist())[1]
    reading = model()
    reading.load_weights(directory / "3.weights.h5")
    np.testing.assert_allclose(
        np.concatenate([w.ravel() for w in reading.get_weights()]), rank, rtol=1e-5, atol=1e-6
    )

    class Break(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if RANK == 1 and epoch == 0:
                self.model.layers[-1].bias.assign([np.nan])

    writing = ConsensusCheckpoint(directory / "whole.weights.h5")
    callback = swarm_tf.SwarmCallback(10_000, timeout_seconds=30)
    fit(Break(), writing, pause, callback, epochs=1)
    mpi.gather(b"", "the files", 60)
    reading.load_weights(directory / "whole.weights.h5")
    assert all(np.isfinite(w).all() for w in reading.get_weights())


def a_rank_without_batches_delays_no_mean():
    directory = Path(gathered(tempfile.mkdtemp())[0])
    fit(swarm(), ConsensusCheckpoint(directory / "{step}.weights.h5", 4), rows=40 if RANK else 0)
    mpi.gather(b"", "the files", 60)
    assert (directory / "28.weights.h5").exists()


def a_mean_that_cannot_be_written_is_logged():
    LOG_LINES.clear()
    net, _ = fit(swarm(), ConsensusCheckpoint("/proc/none/mean.weights.h5"), epochs=2)
    warnings = [line for line in LOG_LINES if "cannot be written" in line]
    assert len(warnings) == (2 if RANK == 0 else 0)
    assert_equal_on_ranks(net)


def a_training_that_failed_leaves_no_unfinished_mean():
    directory = Path(gathered(tempfile.mkdtemp())[0])

    class Crash(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise RuntimeError("as of a crash")

    writing = ConsensusCheckpoint(directory / "mean.weights.h5", 3)
    with pytest.raises(RuntimeError, match="as of a crash"):
        fit(swarm(), writing, Crash())
    net, _ = fit(swarm(), writing, epochs=2)
    assert_equal_on_ranks(net)
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if "checkpoints" in name]
    mpi.gather(b"", "the files", 60)
    assert (directory / "mean.weights.h5").exists()


def on_rank_zero_refuses_callbacks_that_all_ranks_need():
    for callback in (
        ConsensusCheckpoint("mean.weights.h5"),
        keras.callbacks.EarlyStopping(), keras.callbacks.ReduceLROnPlateau(), swarm(),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate),
    ):  # fmt: skip
        with pytest.raises(swarm_tf.UsageError, match="must be on all ranks"):
            on_rank_zero(callback)


def callbacks_in_a_wrong_order_are_reported():
    with pytest.raises(swarm_tf.UsageError, match="AverageMetrics stands after SwarmCallback"):
        fit(swarm(), AverageMetrics(), epochs=1)
    LOG_LINES.clear()
    fit(keras.callbacks.EarlyStopping("loss", patience=99), AverageMetrics(), swarm(), epochs=2)
    warnings = [line for line in LOG_LINES if "stands after EarlyStopping" in line]
    assert len(warnings) == (RANK == 0)


CHECKS = (
    metrics_become_the_mean_over_examples,
    early_stopping_stops_all_ranks_at_once,
    only_rank_zero_writes,
    the_mean_is_written_while_all_train,
    on_rank_zero_refuses_callbacks_that_all_ranks_need,
)
SLOW = (
    validation_metrics_of_one_rank_reach_all,
    learning_rates_fall_on_all_ranks_at_once,
    a_rank_that_ends_before_the_others_is_left_out,
    ranks_end_equal_with_callbacks_in_any_order,
    training_resumes_from_a_backup_of_each_rank,
    the_mean_is_over_ranks_that_train_and_are_finite,
    a_rank_without_batches_delays_no_mean,
    a_mean_that_cannot_be_written_is_logged,
    a_training_that_failed_leaves_no_unfinished_mean,
    callbacks_in_a_wrong_order_are_reported,
)
