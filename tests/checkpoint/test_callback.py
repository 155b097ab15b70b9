"""`swarm_tf.Checkpoint` in one process; tests/mpi has several ranks, tests/runner whole runs."""

import logging
import shutil
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from swarm_tf import Checkpoint, SwarmCallback, Trainer, UsageError
from swarm_tf.baselines.single import Single
from testbed.small_disk import SmallDisk

PER_EPOCH, STOPPED = 10, 14


def data(endless=False):
    x = np.random.default_rng(0).normal(size=(PER_EPOCH * 4, 3)).astype(np.float32)
    found = tf.data.Dataset.from_tensor_slices((x, x.sum(1, keepdims=True))).batch(4)
    return found.repeat() if endless else found


def model(width=6):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(width, activation="tanh"), keras.layers.Dropout(0.3)]
    made = keras.Sequential([keras.Input((3,)), *layers, keras.layers.Dense(1)])
    made.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"], jit_compile=False)
    return made


class At(keras.callbacks.Callback):
    """Does something after a step."""

    def __init__(self, step, action):
        super().__init__()
        self.step, self.action, self.seen = step, action, 0

    def on_train_batch_end(self, batch, logs=None):
        self.seen += 1
        if self.seen == self.step:
            self.action()


class Killed(Exception):
    pass


def kill():
    time.sleep(0.5)  # until the last checkpoint is on disk, which a thread writes
    raise Killed


def by_fit(made, checkpoint, *others, epochs=3, algorithm=None):
    callbacks = [algorithm or SwarmCallback(), checkpoint, *others]
    rest = checkpoint.rest_of(data())
    return made.fit(rest, epochs=epochs, verbose=0, callbacks=callbacks)


def by_fit_with_steps(made, checkpoint, *others):
    callbacks = [checkpoint, SwarmCallback(), *others]  # their order does not matter
    rest = checkpoint.rest_of(data(endless=True))
    made.fit(rest, epochs=30, steps_per_epoch=1, verbose=0, callbacks=callbacks)


def by_trainer(made, checkpoint, *others):
    callbacks = [SwarmCallback(), checkpoint, *others]
    first = checkpoint.first_step()
    rest = checkpoint.rest_of(data())
    return Trainer(made, longest_block=1).fit(
        rest, steps=30, steps_per_epoch=PER_EPOCH, first_step=first, callbacks=callbacks
    )


@pytest.mark.parametrize("train", [by_fit, by_fit_with_steps, by_trainer])
def test_a_training_that_failed_goes_on_as_if_it_had_not(tmp_path, train):
    whole = model()
    train(whole, Checkpoint(tmp_path / "whole", steps=1000))
    broken = model()
    stop = At(STOPPED + 2, kill)
    with pytest.raises(Killed):
        train(broken, Checkpoint(tmp_path / "broken", steps=STOPPED), stop)
    resumed = model()
    train(resumed, Checkpoint(tmp_path / "broken", resume="must"))
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert whole.optimizer.iterations.numpy() == resumed.optimizer.iterations.numpy() == 30


@pytest.mark.parametrize("train", [by_fit, by_trainer])
def test_the_logs_of_later_epochs_are_the_same(tmp_path, train):
    """With `Trainer` also those of the interrupted one: its metrics are built before training."""
    whole = train(model(), Checkpoint(tmp_path / "whole", steps=1000)).history
    stop = At(STOPPED + 2, kill)
    with pytest.raises(Killed):
        train(model(), Checkpoint(tmp_path / "broken", steps=STOPPED), stop)
    rest = train(model(), Checkpoint(tmp_path / "broken")).history
    begins = 1 if train is by_trainer else 2
    for name, values in whole.items():
        assert rest[name][begins - 1 :] == values[begins:]


def test_a_finished_training_can_be_prolonged(tmp_path):
    whole = model()
    by_fit(whole, Checkpoint(tmp_path / "whole"), epochs=5)
    prolonged = model()
    by_fit(prolonged, Checkpoint(tmp_path / "some"), epochs=3)
    checkpoint = Checkpoint(tmp_path / "some")
    made = model()
    by_fit(made, checkpoint, epochs=5)
    for one, other in zip(whole.get_weights(), made.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert checkpoint.found().step == 30


def test_without_rest_of_the_interrupted_epoch_begins_anew(tmp_path):
    with pytest.raises(Killed):
        by_fit(model(), Checkpoint(tmp_path / "run", steps=STOPPED), At(STOPPED + 2, kill))
    made, checkpoint = model(), Checkpoint(tmp_path / "run")
    made.fit(data(), epochs=3, verbose=0, callbacks=[SwarmCallback(), checkpoint])
    assert made.optimizer.iterations.numpy() == STOPPED + 2 * PER_EPOCH


def saved_steps(directory):
    return sorted(int(path.name[5:14]) for path in directory.glob("*/*/step-*.npz"))


def test_a_full_disk_costs_checkpoints_and_not_the_training(tmp_path, caplog):
    with SmallDisk(tmp_path / "disk") as disk:
        directory = disk.path / "run"
        made = model(width=1000)
        callbacks = [At(5, disk.fill), At(15, disk.free)]
        by_fit(made, Checkpoint(directory, steps=4), *callbacks, epochs=2)
        assert made.optimizer.iterations.numpy() == 20
        assert "cannot be written (" in caplog.text
        assert "training goes on" in caplog.text
        assert saved_steps(directory)[-1] == 20


def test_a_directory_that_vanishes_is_made_again(tmp_path):
    directory = tmp_path / "run"

    def vanish():
        time.sleep(0.5)
        shutil.rmtree(directory)

    by_fit(model(), Checkpoint(directory, steps=4), At(9, vanish))
    assert saved_steps(directory)[-1] == 30


def test_a_place_that_cannot_be_written_costs_only_warnings(caplog):
    made = model()
    by_fit(made, Checkpoint("/proc/none", steps=10))
    assert made.optimizer.iterations.numpy() == 30
    assert "/proc/none cannot be written" in caplog.text


def test_weights_that_are_not_finite_are_not_saved(tmp_path, caplog):
    made = model()

    def spoil():
        made.layers[0].kernel.assign(np.full((3, 6), np.nan))

    by_fit(made, Checkpoint(tmp_path, steps=4), At(9, spoil))
    assert 4 <= saved_steps(tmp_path)[-1] < 9
    assert "NaN or Inf" in caplog.text


def test_to_begin_anew_keeps_the_earlier_checkpoints(tmp_path):
    directory = tmp_path / "run"
    by_fit(model(), Checkpoint(directory))
    made = model()
    by_fit(made, Checkpoint(directory, resume="never"), epochs=1)
    assert made.optimizer.iterations.numpy() == PER_EPOCH
    assert saved_steps(directory) == [PER_EPOCH]
    assert saved_steps(tmp_path / "run-1") == [30]


def test_a_job_that_was_started_again_goes_on_though_it_had_to_begin_anew(tmp_path, monkeypatch):
    with pytest.raises(Killed):
        by_fit(model(), Checkpoint(tmp_path, steps=4, resume="never"), At(9, kill))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert 4 <= Checkpoint(tmp_path, resume="never").first_step() <= 8


REFUSED = {
    "another model": (lambda made, c: by_fit(model(width=7), c), "kernel float32 (3, 7) here"),
    "another algorithm": (
        lambda made, c: by_fit(made, c, algorithm=Single()),
        "of algorithm=swarm, not single",
    ),
    "no algorithm": (lambda made, c: made.fit(data(), callbacks=[c]), "needs a SwarmCallback"),
    "not built": (
        lambda made, c: by_fit(unbuilt(), c),
        "is not built, so its checkpoint cannot be restored",
    ),
}


def unbuilt():
    made = keras.Sequential([keras.layers.Dense(6), keras.layers.Dense(1)])
    made.compile("adam", "mse")
    return made


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_go_on_is_refused_in_one_line(tmp_path, case):
    by_fit(model(), Checkpoint(tmp_path), epochs=1)
    action, words = REFUSED[case]
    with pytest.raises(UsageError) as refusal:
        action(model(), Checkpoint(tmp_path))
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0.0}, "Checkpoint.every=0.0 must be above 0"),
        ({"steps": 0}, "Checkpoint.steps=0 must be 1 or more"),
        ({"keep": True}, "Checkpoint.keep=True must be a whole number"),
        ({"resume": "yes"}, "Checkpoint.resume=yes must be one of auto, must, never"),
    ],
)
def test_options_are_checked(tmp_path, options, words):
    with pytest.raises(UsageError) as refusal:
        Checkpoint(tmp_path, **options)
    assert words in str(refusal.value)


def test_nothing_is_logged_of_a_training_without_faults(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "swarm_tf"):
        by_fit(model(), Checkpoint(tmp_path, steps=4))
    assert [record.message for record in caplog.records] == [
        "one rank, no launcher: training alone; mpirun -n N starts several"
    ]
