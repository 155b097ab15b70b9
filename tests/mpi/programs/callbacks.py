"""Keras' own callbacks on several ranks, and ours that let them decide alike."""

import logging
import tempfile
from pathlib import Path

import checks
import keras
import numpy as np
import pytest

import swarm_tf
from swarm_tf import world
from swarm_tf.baselines.allreduce import AllReduce
from swarm_tf.callbacks import AverageMetrics, on_rank_zero

mpi = world.transport()
RANK, SIZE = swarm_tf.rank(), swarm_tf.size()
SAID = []


class Listening(logging.Handler):
    def emit(self, record):
        SAID.append(record.getMessage())


logging.getLogger("swarm_tf").addHandler(Listening())


def everywhere(value):
    return world.gather(value, "a value")


def examples(rows, rank=RANK):
    x = np.random.default_rng(rank).normal(size=[rows, 4]).astype(np.float32)
    return x, (x.sum(axis=1, keepdims=True) + rank).astype(np.float32)


def model():
    keras.utils.set_random_seed(RANK)
    net = keras.Sequential([keras.Input([4]), keras.layers.Dense(8), keras.layers.Dense(1)])
    net.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
    return net


def fit(*callbacks, epochs=6, rows=80, validation=40, **options):
    net = model()
    held_back = examples(validation, 100 + RANK) if validation else None
    history = net.fit(
        *examples(rows), batch_size=8, epochs=epochs, verbose=0, callbacks=list(callbacks),
        validation_data=held_back, **options,
    )  # fmt: skip
    return net, history


def ends_equal(net):
    every = mpi.gather(b"".join(w.tobytes() for w in net.get_weights()), "weights", 60)
    assert len(set(every)) == 1


def swarm():
    return swarm_tf.SwarmCallback(4, timeout_seconds=30)


def metrics_become_the_mean_over_examples():
    """Against what each rank had alone, weighted by hand; ranks have other numbers of examples."""
    own = []
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: own.append(dict(logs)))
    rows, tested = 80 + 40 * RANK, 16 * (RANK + 1)
    _, history = fit(look, AverageMetrics(), swarm(), epochs=3, rows=rows, validation=tested)
    every = everywhere([[logs[k] for k in sorted(logs)] for logs in own])
    weights = everywhere([tested if k.startswith("val_") else rows for k in sorted(own[0])])
    for epoch in range(3):
        expected = np.average([one[epoch] for one in every], axis=0, weights=weights)
        got = [history.history[k][epoch] for k in sorted(own[0])]
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert len({str(h) for h in everywhere(history.history)}) == 1


def what_one_rank_has_all_get():
    net = model()
    seen = []
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda e, logs: seen.append(dict(logs)))
    net.fit(
        *examples(80), batch_size=8, epochs=2, verbose=0,
        callbacks=[AverageMetrics(), look, swarm()],
        validation_data=examples(16) if RANK == 0 else None,
    )  # fmt: skip
    assert all("val_loss" in logs for logs in seen)
    assert len({str(s) for s in everywhere([logs["val_loss"] for logs in seen])}) == 1


def ranks_stop_together():
    for make in (swarm, AllReduce):
        stopping = keras.callbacks.EarlyStopping("val_loss", min_delta=0.3, patience=0)
        net, history = fit(AverageMetrics(), stopping, make(), epochs=50)
        assert len(set(everywhere(len(history.epoch)))) == 1
        assert len(history.epoch) < 50
        ends_equal(net)


def rates_fall_together():
    falling = keras.callbacks.ReduceLROnPlateau("val_loss", min_delta=0.5, patience=0, factor=0.5)
    net, _ = fit(AverageMetrics(), falling, swarm(), epochs=6)
    rates = everywhere(float(net.optimizer.learning_rate))
    assert len(set(rates)) == 1
    assert rates[0] < 0.01


def a_rank_that_ends_before_the_others_is_left_out():
    net, history = fit(AverageMetrics(timeout_seconds=60), swarm(), epochs=2 + 2 * RANK)
    assert len(history.epoch) == 2 + 2 * RANK
    ends_equal(net)


def ranks_end_equal_in_any_order():
    """Callbacks that set weights at the start or the end, before ours and after."""
    with tempfile.TemporaryDirectory() as directory:
        for order in (1, -1):
            restoring = keras.callbacks.EarlyStopping(
                "val_loss", patience=1, restore_best_weights=True
            )
            backup = keras.callbacks.BackupAndRestore(f"{directory}/{order}/{RANK}")
            net, _ = fit(*[swarm(), restoring, backup][::order], epochs=8)
            ends_equal(net)


def a_backup_of_each_rank_goes_on_from_there():
    """The second training starts from the first one's weights, though ours stands before it."""
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
        assert history.history["loss"][0] < 0.7 * losses[0]  # of rank 0's weights, here
        ends_equal(net)


def only_rank_zero_writes():
    directory = Path(everywhere(tempfile.mkdtemp())[0])
    calls = []
    writing = keras.callbacks.ModelCheckpoint(directory / "all.weights.h5", save_weights_only=True)
    table = keras.callbacks.CSVLogger(directory / "all.csv")
    hooks = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: calls.append(1))
    net, _ = fit(swarm(), *map(on_rank_zero, (writing, table, hooks)), epochs=2)
    assert len(calls) == (RANK == 0)
    mpi.gather(b"", "the files", 60)
    assert len((directory / "all.csv").read_text().splitlines()) == 3
    net.load_weights(directory / "all.weights.h5")


def what_must_be_everywhere_is_refused():
    for callback in (
        keras.callbacks.EarlyStopping(), keras.callbacks.ReduceLROnPlateau(), swarm(),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate),
    ):  # fmt: skip
        with pytest.raises(swarm_tf.UsageError, match="must be on all ranks"):
            on_rank_zero(callback)


def a_wrong_place_is_told():
    with pytest.raises(swarm_tf.UsageError, match="AverageMetrics stands after SwarmCallback"):
        fit(swarm(), AverageMetrics(), epochs=1)
    SAID.clear()
    fit(keras.callbacks.EarlyStopping("loss", patience=99), AverageMetrics(), swarm(), epochs=2)
    told = [line for line in SAID if "stands after EarlyStopping" in line]
    assert len(told) == (RANK == 0)


if __name__ == "__main__":
    checks.run(
        metrics_become_the_mean_over_examples, what_one_rank_has_all_get, ranks_stop_together,
        rates_fall_together, a_rank_that_ends_before_the_others_is_left_out,
        ranks_end_equal_in_any_order, a_backup_of_each_rank_goes_on_from_there,
        only_rank_zero_writes, what_must_be_everywhere_is_refused, a_wrong_place_is_told,
    )  # fmt: skip
