"""Files of checkpoints: each is whole or not there, whatever happens while it is written."""

import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from swarm_tf.checkpoint import store
from swarm_tf.checkpoint.store import DamagedError, Stage, Store

STAGE = Stage(1, 4)


def state(step=0):
    rng = np.random.default_rng(step)
    return {
        "weights": [rng.normal(size=(30, 7)).astype(np.float32), np.zeros((0, 3))],
        "half": rng.normal(size=5).astype(ml_dtypes.bfloat16),
        "count": np.array(step),
        "random": random.Random(step).getstate(),
        "numpy": np.random.default_rng(step).bit_generator.state,  # has integers of 128 bits
        "nothing": None,
        "flags": np.array([True, False]),
        "complex": np.array([1 + 2j]),
    }


def assert_same(found, wanted):
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_same(found[key], wanted[key])
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)
    elif isinstance(wanted, np.ndarray):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        assert found.tobytes() == wanted.tobytes()
    else:
        assert found == wanted


def test_what_is_read_is_what_was_written(tmp_path):
    written = Store(tmp_path, STAGE, 3)
    written.write(12, state(12))
    assert written.steps() == [12]
    assert_same(Store(tmp_path, STAGE, 3).read(12), state(12))
    assert store.stages(tmp_path) == [STAGE]
    assert store.ranks(tmp_path, STAGE) == [3]


def test_the_last_files_are_kept_in_the_order_of_steps_not_of_clocks(tmp_path):
    written = Store(tmp_path, STAGE, 0, keep=2)
    for step in (100, 200, 1000):
        path = written.write(step, state(step))
        os.utime(path, (0, 1e9 - step))  # each is older than the one before
    assert written.steps() == [1000, 200]
    assert len(list(written.path.iterdir())) == 2


def test_a_training_that_went_back_replaces_what_it_takes_again(tmp_path):
    """Else its new files would be removed as older ones, or an old one of the same step be read."""
    written = Store(tmp_path, STAGE, 0, keep=3)
    for step in (10, 60, 70):
        written.write(step, state(step))
    written.write(52, state(52))
    assert written.steps() == [52, 10]
    for number in range(20):  # whichever digest comes first
        written.write(60, state(number))
        assert_same(written.read(60), state(number))
    assert written.steps() == [60, 52, 10]


def test_a_newer_stage_comes_last_and_others_can_be_removed(tmp_path):
    stages = [Stage(1, 4), Stage(2, 16), Stage(10, 2)]
    for stage in stages:
        Store(tmp_path, stage, 1).write(1, state())
    (tmp_path / "stage-011-of-3-ranks").mkdir()  # no file of any rank
    assert store.stages(tmp_path) == stages
    store.remove_other_stages(tmp_path, stages[1])
    assert store.stages(tmp_path) == [stages[1]]


def flip(path, data):
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "cut short": lambda path, data: path.write_bytes(data[: len(data) // 2]),
    "empty": lambda path, data: path.write_bytes(b""),
    "a bit flipped": flip,
    "longer": lambda path, data: path.write_bytes(data + b"\0"),
    "another file": lambda path, data: path.write_bytes(b"not a checkpoint" * 100),
    "gone": lambda path, data: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_never_read(tmp_path, damage):
    written = Store(tmp_path, STAGE, 0)
    written.write(1, state(1))
    path = written.write(2, state(2))
    DAMAGES[damage](path, bytearray(path.read_bytes()))
    with pytest.raises(DamagedError, match="step"):
        written.read(2)
    assert_same(written.read(1), state(1))


def test_a_file_of_the_right_digest_that_is_no_checkpoint_is_refused(tmp_path):
    written = Store(tmp_path, STAGE, 0)
    path = written.write(1, state(1))
    with open(path, "wb") as file:
        np.savez(file, weights=np.zeros(3))
    with open(path, "rb") as file:
        path.rename(path.with_name(f"step-000000001-{store._digest(file)}.npz"))
    with pytest.raises(DamagedError, match="facts"):
        written.read(1)


def test_killed_at_any_moment_of_writing_one_whole_file_is_left(tmp_path):
    """In a process that is small, since it is forked for every kill."""
    program = Path(__file__).with_name("killed_while_writing.py")
    done = subprocess.run(
        [sys.executable, program, tmp_path], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 250


@pytest.mark.parametrize("fails", ["open", "write", "fsync", "replace"])
def test_a_full_disk_leaves_the_earlier_files(tmp_path, monkeypatch, fails):
    written = Store(tmp_path, STAGE, 0)
    written.write(1, state(1))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    where = {
        "open": ("builtins.open", full),
        "write": ("numpy.savez", full),
        "fsync": ("os.fsync", full),
        "replace": ("pathlib.Path.replace", full),
    }
    with monkeypatch.context() as patched:
        patched.setattr(*where[fails])
        with pytest.raises(OSError, match="No space left"):
            written.write(2, state(2))
    assert written.steps() == [1]
    assert len(list(written.path.iterdir())) == 1
    assert_same(written.read(1), state(1))


def test_facts_are_json(tmp_path):
    path = Store(tmp_path, STAGE, 0).write(1, {"config": {"bits": np.int64(8)}})
    with np.load(path) as arrays:
        assert json.loads(arrays["facts"].tobytes()) == {"config": {"bits": 8}}
