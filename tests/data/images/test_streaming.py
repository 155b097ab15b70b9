"""Laws of sets that are streamed from files: one rank reads each record, once an epoch."""

import hashlib
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import data.images
from data.images import sources, streaming
from swarm_tf.config import DataConfig
from swarm_tf.errors import UsageError
from testbed import tfds_standin
from tests import other_process
from tests.data import same_batches

EXAMPLES = 200
SIDE = 16


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    """imagenet2012 as JPEG in 7 files, caltech101 as PNG in 100."""
    path = str(tmp_path_factory.mktemp("tfds"))
    tfds_standin.write(
        "imagenet2012",
        path,
        tfds_standin.coloured((20, 60), file_name="x"),
        {"train": EXAMPLES, "validation": 11},
        shards=7,
    )
    tfds_standin.write(
        "caltech101",
        path,
        lambda i: tfds_standin.images((20 + i % 7, 30, 3), 102, **{"image/file_name": "x"})(i),
        {"train": 300, "test": 100},
        shards=100,
    )
    return path


def _load(where, name="imagenet2012", *, rank=0, size=1, batch_size=1, seed=0, **keys):
    keys = {"augment": True, "image_size": SIDE} | keys
    config = DataConfig(name=name, data_dir=where, **keys)
    return data.images.load(config, rank=rank, size=size, batch_size=batch_size, seed=seed)


def _epochs(part, count):
    """The labels of whole epochs, from batches of one; here the label is the example's number."""
    labels = (int(label[0]) for _, label in part.train)
    return [list(itertools.islice(labels, part.shard_examples)) for _ in range(count)]


@pytest.mark.parametrize(
    "partition", ["iid", pytest.param("static", marks=pytest.mark.slow), "dirichlet"]
)
@pytest.mark.parametrize(
    "size", [3, pytest.param(1, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_ranks_together_see_every_example_once_an_epoch(where, partition, size):
    parts = [_load(where, rank=rank, size=size, partition=partition) for rank in range(size)]
    seen = [_epochs(part, 2) for part in parts]
    for epoch in zip(*seen, strict=True):
        assert sorted(itertools.chain(*epoch)) == list(range(EXAMPLES))
    for first, second in seen:
        assert first != second
        assert size == 1 or (set(first) == set(second)) == (partition != "iid")
    sizes = [part.shard_examples for part in parts]
    assert partition == "dirichlet" or max(sizes) - min(sizes) <= 1
    assert {part.steps_per_pass for part in parts} == {EXAMPLES / size}


def test_batches_have_the_documented_form(where):
    part = _load(where, batch_size=64, size=4)
    assert [(s.shape.as_list(), s.dtype) for s in part.train.element_spec] == [
        ([64, SIDE, SIDE, 3], tf.float32),
        ([64], tf.int32),
    ]
    assert part.input_shape == (SIDE, SIDE, 3)
    assert part.classes == 1000
    assert part.train_examples == EXAMPLES
    assert part.shard_examples == 50  # so every batch straddles two epochs
    labels = np.concatenate([label for _, label in part.train.take(4).as_numpy_iterator()])
    assert [len(set(labels[at : at + 50])) for at in range(0, 250, 50)] == [50] * 5


@pytest.mark.parametrize("augment", [True, False])
def test_labels_stay_with_their_images(where, augment):
    part = _load(where, batch_size=8, augment=augment)
    for images, labels in [*part.train.take(6), *part.test]:
        pixels = images * streaming.SCALE.deviation + streaming.SCALE.mean
        for image, label in zip(pixels.numpy(), labels.numpy(), strict=True):
            colour = tfds_standin.colour(label)
            np.testing.assert_allclose(image, np.broadcast_to(colour, image.shape), atol=4)


def test_test_split_is_whole(where):
    batches = [labels.numpy() for _, labels in _load(where, batch_size=4).test]
    assert [len(labels) for labels in batches] == [4, 4, 3]
    assert sorted(np.concatenate(batches)) == list(range(11))


def test_labels_are_read_in_the_order_of_the_records(where):
    split = sources.read("imagenet2012", where).train
    stored = tf.data.Dataset.from_tensor_slices(list(split.paths)).flat_map(tf.data.TFRecordDataset)
    expected = [int(split.parse(record)[1]) for record in stored]
    assert list(streaming.labels(split)) == expected


@pytest.mark.parametrize("partition", ["iid", "static"])
def test_records_of_a_file_are_shuffled(where, partition):
    stored = list(streaming.labels(sources.read("imagenet2012", where).train))
    for epoch in _epochs(_load(where, partition=partition), 2):
        places = np.array([stored.index(label) for label in epoch])
        assert abs(np.corrcoef(places, np.arange(EXAMPLES))[0, 1]) < 0.25
        assert np.mean(np.abs(np.diff(places)) == 1) < 0.05


# --- determinism ----------------------------------------------------------------------------------


def _digest(where, **keys):
    part = _load(where, "caltech101", batch_size=16, **keys)
    tensors = [t.numpy().tobytes() for batch in part.train.take(3) for t in batch]
    return hashlib.sha256(b"".join(tensors)).hexdigest()


@pytest.mark.slow
def test_batches_depend_on_the_seed_but_not_on_the_number_of_threads(where):
    program = """
import sys
from tests.data.images import test_streaming
print(test_streaming._digest(sys.argv[1]))
"""
    assert _digest(where) == _digest(where) == other_process.last_word(program, where)
    assert len({_digest(where), _digest(where, seed=1), _digest(where, rank=1, size=2)}) == 3


@pytest.mark.parametrize("global_seed", [0, 1])
def test_batches_do_not_depend_on_the_global_seed(where, global_seed):
    expected = _digest(where)
    tf.random.set_seed(global_seed)
    assert _digest(where) == expected


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
@pytest.mark.parametrize("first", [1, 13, 40])
def test_a_resumed_run_begins_at_any_batch(where, partition, first):
    """Batch 13 of 8 is in the third epoch of 50 records, and a batch has records of two epochs."""
    part = _load(where, batch_size=8, rank=1, size=4, partition=partition)
    same_batches.assert_begins_at(part, first)


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
def test_each_record_is_used_once_an_epoch_though_the_number_of_ranks_changes(where, partition):
    keys = {"partition": partition, "augment": False, "batch_size": 1}
    parts = [_load(where, rank=rank, size=3, **keys) for rank in range(3)]
    counts = [
        part.shard_examples * share // 8 for share, part in zip((1, 5, 7), parts, strict=True)
    ]
    left = set(range(EXAMPLES))
    for part, count in zip(parts, counts, strict=True):
        left -= {int(label[0]) for _, label in part.train.take(count)}
    assert len(left) == EXAMPLES - sum(counts)
    first, second = (
        [int(label[0]) for _, label in part.train_from(0, [counts]).take(len(left))]
        for part in (_load(where, rank=rank, size=2, **keys) for rank in range(2))
    )
    splits = range(len(left) + 1)
    assert any({*first[:at], *second[: len(left) - at]} == left for at in splits)


def test_crops_and_flips_differ_between_epochs(where):
    part = _load(where, "caltech101", partition="static", size=100, rank=5)
    assert part.shard_examples == 3
    images = [image.numpy().tobytes() for image, _ in part.train.take(30)]
    assert len(set(images)) == 30
    plain = _load(where, "caltech101", partition="static", size=100, rank=5, augment=False)
    assert len({image.numpy().tobytes() for image, _ in plain.train.take(30)}) == 3


def test_half_of_the_training_images_are_flipped(tmp_path):
    # Dark on the left, bright on the right: a flip shows in every crop.
    ramp = np.broadcast_to(np.linspace(0, 255, 40, dtype=np.uint8)[:, None], (30, 40, 3))
    example = lambda i: {"file_name": "x", "image": ramp, "label": i}  # noqa: E731
    tfds_standin.write("imagenet2012", str(tmp_path), example, {"train": 10, "validation": 1})
    images = next(iter(_load(str(tmp_path), batch_size=500).train))[0].numpy()
    flipped = images[:, :, 0].mean((1, 2)) > images[:, :, -1].mean((1, 2))
    assert flipped.mean() == pytest.approx(1 / 2, abs=0.1)  # deviation 0.022


# --- other sets, and refusals ---------------------------------------------------------------------


def test_a_set_too_large_to_hold_is_streamed(tmp_path, monkeypatch):
    where = str(tmp_path)
    example = tfds_standin.images((32, 32, 3), 10, id="x")
    tfds_standin.write("cifar10", where, example, {"train": 50, "test": 20})
    held = _load(where, "cifar10", batch_size=10, augment=False)
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 1000)
    streamed = _load(where, "cifar10", batch_size=10, augment=False, image_size=28)
    assert held.input_shape == (32, 32, 3)
    assert streamed.input_shape == (28, 28, 3)
    # 28 is 224/256 of 32: the centre crop needs no resizing. The order may differ.
    images, labels = next(iter(streamed.test))
    pixels = images * streaming.SCALE.deviation + streaming.SCALE.mean
    originals = [example(i) for i in range(20)]
    for image, label in zip(pixels.numpy(), labels.numpy(), strict=True):
        assert any(
            o["label"] == label and np.allclose(o["image"][2:30, 2:30], image, atol=1e-2)
            for o in originals
        )


def test_few_files_are_open_at_a_time(where):
    stream = iter(_load(where, "caltech101").train)
    opened = []
    for _ in range(100):
        next(stream)
        links = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
        opened.append(sum("caltech101" in link for link in links))
    assert max(opened) <= 20


def test_a_missing_imagenet_is_refused_with_the_files_that_it_needs(tmp_path):
    with pytest.raises(UsageError) as refusal:
        _load(str(tmp_path))
    line = str(refusal.value)
    assert f"data.name=imagenet2012 is not in data.data_dir={tmp_path}: prepare it with" in line
    assert "downloads/manual" in line
    assert "ILSVRC2012_img_train.tar" in line
    assert "\n" not in line


def test_files_other_than_tfrecord_are_refused(tmp_path):
    tfds_standin.write(
        "imagenet2012",
        str(tmp_path),
        tfds_standin.coloured((20, 60), file_name="x"),
        {"train": 8, "validation": 4},
        file_format="array_record",
    )
    with pytest.raises(UsageError, match=r"imagenet2012 .* tfrecord, not array_record; prepare"):
        _load(str(tmp_path))


def test_more_ranks_than_examples_are_refused_at_once(where):
    with pytest.raises(UsageError, match="200 examples among 201 ranks"):
        _load(where, size=201, partition="dirichlet")
