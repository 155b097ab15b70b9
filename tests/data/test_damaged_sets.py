"""TFDS sets that are damaged or incomplete: one line that says where and what, on every rank."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from data.images import sources
from data.text import texts
from swarm_tf.errors import UsageError
from testbed import tfds_standin

ROOT = Path(__file__).parents[2]
SWARMRUN = str(Path(sys.executable).parent / "swarmrun")


def cut(pattern, length):
    """Cuts the first file that matches to its first `length` bytes."""

    def damage(version):
        file = next(version.glob(pattern))
        file.write_bytes(file.read_bytes()[:length])

    return damage


def remove(pattern):
    return lambda version: next(version.glob(pattern)).unlink()


def zeros(version):
    file = next(version.glob("*-train.tfrecord*"))
    content = bytearray(file.read_bytes())
    content[2000:2100] = bytes(100)
    file.write_bytes(content)


def empty(version):
    shutil.rmtree(version)
    version.mkdir()


def a_file(version):
    """Puts a file in place of the directory of the set."""
    shutil.rmtree(version.parent)
    version.parent.write_text("x")


def a_file_for_data_dir(version):
    """Puts a file in place of data_dir."""
    shutil.rmtree(version.parent.parent)
    version.parent.parent.write_text("x")


DAMAGES = {
    "no features": (remove("features.json"), "no features.json"),
    "features cut off": (cut("features.json", 50), "features|JSON|property"),
    "no info": (remove("dataset_info.json"), "dataset_info.json"),
    "info cut off": (cut("dataset_info.json", 60), "JSON"),
    "info empty": (cut("dataset_info.json", 0), "JSON"),
    "no shard": (remove("*-train.tfrecord*"), "train.tfrecord"),
    "no shard to test on": (remove("*-test.tfrecord*"), "test.tfrecord"),
    "shard cut off": (cut("*-train.tfrecord*", 3001), "truncated record"),
    "shard overwritten": (zeros, "corrupted record"),
    "empty directory": (empty, "prepare it"),
    "a file for the set": (a_file, "Not a directory"),
    "a file for data_dir": (a_file_for_data_dir, "is a file"),
}


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    where = tmp_path_factory.mktemp("intact")
    images = tfds_standin.images((28, 28, 1), 10)
    tfds_standin.write("mnist", str(where), images, {"train": 20, "test": 10})
    return where


@pytest.fixture
def version(intact, tmp_path):
    """The version directory in a copy of the set, for a test to damage."""
    shutil.copytree(intact, tmp_path / "data")
    return next((tmp_path / "data" / "mnist").glob("*"))


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_set_of_images_is_refused_in_one_line(version, damage, words):
    data_dir = version.parent.parent
    damage(version)
    with pytest.raises(UsageError, match=words) as refusal:
        sources.read("mnist", str(data_dir))
    for part in (str(data_dir), "data.data_dir"):
        assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "{{" not in str(refusal.value)


@pytest.mark.parametrize("name", ["shard cut off", "no shard"])
def test_a_damaged_streamed_set_is_refused_in_one_line(version, name, monkeypatch):
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 1000)
    damage, words = DAMAGES[name]
    damage(version)
    words = "split train are truncated: [0-9]+ bytes" if name == "shard cut off" else words
    with pytest.raises(UsageError, match=words):
        sources.read("mnist", str(version.parent.parent))


@pytest.mark.parametrize("name", ["shard cut off", "no shard"])
def test_a_damaged_set_of_texts_is_refused_in_one_line(tmp_path, name):
    pairs = tfds.features.Translation(("de", "en"))
    splits = {"train": 300, "test": 20}
    tfds_standin.write_own("pairs", str(tmp_path), pairs, splits, tfds_standin.sentences)
    damage, words = DAMAGES[name]
    damage(next(tmp_path.rglob("*-train.tfrecord*")).parent)
    corpus = texts.find("pairs", str(tmp_path), seed=0)
    with pytest.raises(UsageError, match=words):
        list(corpus.read("train"))


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_damaged_set_ends_all_ranks_with_one_line(version, tmp_path, ranks):
    remove("*-train.tfrecord*")(version)
    start = [sys.executable] if ranks == 1 else [SWARMRUN, "-n", str(ranks)]
    done = subprocess.run(
        [
            *(*start, "train.py", "--config=configs/digits_resnet.py", "--config.data.name=mnist"),
            *(f"--config.data.data_dir={version.parent.parent}", f"--workdir={tmp_path / 'run'}"),
            *(["--config.algorithm=single"] if ranks == 1 else []),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("train.py: ")]
    assert len(lines) == 1
    assert "train.tfrecord" in lines[0]
    assert "Traceback" not in done.stderr
