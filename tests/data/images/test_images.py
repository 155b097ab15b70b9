"""Laws of a rank's data: batches hold the whole set, each example as often as it should be."""

import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf

import data.images
from data.images import pipeline, sources
from swarm_tf.config import DataConfig
from swarm_tf.errors import UsageError
from testbed import tfds_standin
from tests.data import same_batches


def _config(name="digits", data_dir=None, **keys):
    return DataConfig(name=name, data_dir=data_dir, **keys)


def _load(config=None, *, rank=0, size=1, batch_size=32, seed=0):
    return data.images.load(
        config or _config(), rank=rank, size=size, batch_size=batch_size, seed=seed
    )


def _take(dataset, count):
    batches = [(x.numpy(), y.numpy()) for x, y in dataset.take(count)]
    return [np.concatenate(part) for part in zip(*batches, strict=True)]


def _multiset(images, labels):
    return sorted((y, x.tobytes()) for x, y in zip(images, labels, strict=True))


@pytest.fixture(scope="session")
def fashion_dir(tmp_path_factory):
    return tfds_standin.fashion_mnist(str(tmp_path_factory.mktemp("fashion")))


@pytest.fixture(scope="session")
def standin_dir(tmp_path_factory):
    """cifar10, cifar100, sentence pairs, and a set without a test split."""
    where = str(tmp_path_factory.mktemp("tfds"))
    write = tfds_standin.write
    write("cifar10", where, tfds_standin.images((32, 32, 3), 10, id="x"), {"train": 50, "test": 20})
    fine = tfds_standin.images((32, 32, 3), 100, id="x")
    coarse = lambda i: fine(i) | {"coarse_label": i % 20}  # noqa: E731
    write("cifar100", where, coarse, {"train": 150, "test": 20})
    write(
        "wmt17_translate/de-en",
        where,
        lambda i: {"de": f"Das ist Satz {i}.", "en": f"This is sentence {i}."},
        {"train": 8, "test": 4},
    )
    write("mnist", where, tfds_standin.images((28, 28, 1), 10), {"train": 8})
    return where


# --- digits -------------------------------------------------------------------------------------


def test_the_splits_of_digits_hold_every_image_once():
    source = sources.read("digits", None)
    from sklearn.datasets import load_digits

    images = np.concatenate([source.train.images, source.test.images])[..., 0]
    labels = np.concatenate([source.train.labels, source.test.labels])
    whole = load_digits()
    assert _multiset(images, labels) == _multiset(whole.images.astype(np.uint8), whole.target)
    assert len(source.test.labels) == 360
    counts = np.bincount(source.test.labels)
    np.testing.assert_allclose(counts, np.bincount(whole.target) * 360 / 1797, atol=1)


def test_digits_split_ignores_the_seed():
    images = [_take(_load(seed=seed).test, 100)[0] for seed in (0, 1)]
    np.testing.assert_array_equal(*images)


def test_batches_have_the_documented_form():
    digits = _load(batch_size=50, size=3)
    spec = digits.train.element_spec
    assert [(s.shape.as_list(), s.dtype) for s in spec] == [
        ([50, 8, 8, 1], tf.float32),
        ([50], tf.int32),
    ]
    assert digits.input_shape == (8, 8, 1)
    assert digits.classes == 10
    assert digits.train_examples == 1437
    assert digits.shard_examples == 479
    assert digits.steps_per_pass == 1437 / 150


def test_train_pixels_have_mean_zero_and_deviation_one():
    digits = _load(batch_size=1437)
    images, _ = _take(digits.train, 1)
    assert images.mean() == pytest.approx(0, abs=1e-5)
    assert images.std() == pytest.approx(1, abs=1e-5)


def test_the_scale_is_mean_and_deviation_of_each_channel():
    images = np.random.default_rng(0).integers(0, 200, (50, 4, 5, 3)).astype(np.uint8)
    images[..., 1] = 7
    scale = pipeline.scale_of(images)
    np.testing.assert_allclose(scale.mean, images.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(scale.deviation[[0, 2]], images.std((0, 1, 2))[[0, 2]], rtol=1e-6)
    assert scale.deviation[1] > 0  # a channel without contrast must not divide by zero


def test_test_split_is_whole_and_in_order():
    digits = _load(batch_size=100)
    sizes = [len(labels) for _, labels in digits.test]
    assert sizes == [100, 100, 100, 60]
    labels = _take(digits.test, 100)[1]
    np.testing.assert_array_equal(labels, sources.read("digits", None).test.labels)


# --- the stream of batches ------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 7, 25])
def test_batches_drop_and_repeat_nothing(batch_size):
    epochs = [np.random.default_rng(e).permutation(10) for e in range(50)]
    cut = list(itertools.islice(pipeline.batches(iter(epochs), batch_size), 20))
    assert {len(batch) for batch in cut} == {batch_size}
    stream = np.concatenate(epochs)
    np.testing.assert_array_equal(np.concatenate(cut), stream[: 20 * batch_size])


@pytest.mark.parametrize("partition", ["iid", "static", "dirichlet"])
def test_ranks_together_see_the_set_once_an_epoch(partition):
    config = _config(partition=partition)
    seen = []
    for rank in range(3):
        # Batches of one, so that each rank's own epoch ends on a batch's end.
        part = _load(config, rank=rank, size=3, batch_size=1)
        seen += _multiset(*_take(part.train, part.shard_examples))
    assert sorted(seen) == _multiset(*_take(_load(batch_size=1437).train, 1))


def test_shards_add_up_to_the_set():
    parts = [_load(_config(partition="dirichlet"), rank=rank, size=5) for rank in range(5)]
    assert sum(part.shard_examples for part in parts) == 1437
    assert len({part.steps_per_pass for part in parts}) == 1


def test_training_batches_never_end():
    part = _load(rank=0, size=100, batch_size=64)
    assert part.shard_examples < 64
    assert sum(1 for _ in part.train.take(10)) == 10


# --- TFDS -----------------------------------------------------------------------------------------


def test_arrays_read_from_tfds_are_the_examples_of_the_set(standin_dir):
    source = sources.read("cifar10", standin_dir)
    assert source.train.images.shape == (50, 32, 32, 3)
    assert source.test.labels.dtype == np.int32
    assert source.classes == 10
    example = tfds_standin.images((32, 32, 3), 10)
    expected = _multiset(*zip(*(example(i).values() for i in range(50)), strict=True))
    assert _multiset(source.train.images, source.train.labels) == expected


def test_cifar100_has_its_hundred_classes(standin_dir):
    source = sources.read("cifar100", standin_dir)
    assert source.classes == 100
    assert set(source.train.labels) == set(range(100))


def test_tfds_order_is_the_same_on_every_rank(standin_dir):
    first, second = (sources.read("cifar10", standin_dir).train for _ in range(2))
    np.testing.assert_array_equal(first.images, second.images)


@pytest.mark.slow
def test_fashion_mnist_from_disk_to_batches(fashion_dir, monkeypatch):
    # Decoding the real set takes seconds, so it is read once only.
    monkeypatch.setattr(sources, "read", functools.cache(sources.read))
    config = _config("fashion_mnist", fashion_dir, augment=True)
    first, again, other = (_load(config, rank=r, size=2, batch_size=16) for r in (0, 0, 1))
    assert first.input_shape == (28, 28, 1)
    assert first.shard_examples == other.shard_examples == first.train_examples // 2
    images, labels = _take(first.train, 5)
    for a, b in zip((images, labels), _take(again.train, 5), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (images != _take(other.train, 5)[0]).any()
    assert np.isfinite(images).all()


# --- augmentation ---------------------------------------------------------------------------------


def _is_crop_of(actual, image):
    """Whether `actual` is one of the 2 x 9 x 9 flipped crops of the padded image."""
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    height, width = image.shape[:2]
    crops = [
        padded[row : row + height, column : column + width] for row, column in np.ndindex(9, 9)
    ]
    return any(np.array_equal(actual, c) or np.array_equal(actual, c[:, ::-1]) for c in crops)


def test_augmented_images_are_flipped_crops():
    images = np.random.default_rng(0).normal(size=(40, 6, 5, 2)).astype(np.float32)
    actual = pipeline.crop_and_flip(tf.constant(images), tf.constant([1, 2])).numpy()
    assert all(_is_crop_of(a, image) for a, image in zip(actual, images, strict=True))
    assert len({a.tobytes() for a in actual}) == len(actual)


def test_every_crop_and_flip_is_about_equally_frequent():
    position = np.arange(1, 10 * 10 + 1, dtype=np.float32).reshape(1, 10, 10, 1)
    draws = 16_200
    images = tf.tile(tf.constant(position), [draws, 1, 1, 1])
    centres = pipeline.crop_and_flip(images, tf.constant([0, 0])).numpy()[:, 4:6, 4:6, 0]
    kinds, counts = np.unique(centres.reshape(draws, 4), axis=0, return_counts=True)
    assert len(kinds) == 2 * 9 * 9
    assert counts.min() > 50  # mean 100, deviation 10
    assert counts.max() < 150


def test_augmentation_differs_between_steps_and_ranks_only():
    split = sources.Split(np.full((1, 9, 9, 1), 5, np.uint8), np.zeros(1, np.int32))
    split.images[0, 3, 4] = 9

    def train(rank):
        indices = lambda: itertools.repeat(np.zeros(64, np.int64))  # noqa: E731
        scale = pipeline.scale_of(split.images)
        return _take(pipeline.train(split, scale, indices, augment=(0, rank)), 2)[0]

    np.testing.assert_array_equal(train(0), train(0))
    assert (train(0) != train(1)).any()
    assert (train(0)[:64] != train(0)[64:]).any()


@pytest.mark.parametrize("first", [1, 300])
def test_a_resumed_run_begins_at_any_batch(standin_dir, first):
    part = _load(_config("cifar10", standin_dir, augment=True), rank=1, size=2, batch_size=4)
    same_batches.assert_begins_at(part, first)


def test_digits_are_never_augmented():
    with pytest.raises(UsageError, match=r"data.augment=True .* data.name=digits; set"):
        _load(_config(augment=True))


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "svhn_cropped",
            r"data.name=svhn_cropped is not in data.data_dir=.*: prepare it with python -c ",
        ),
        (
            "nosuchset",
            r"data.name=nosuchset is unknown: neither digits, nor a set in data.data_dir",
        ),
        ("huggingface:some/set", "is unknown"),
        ("../cifar10", "is unknown"),
        ("", "is unknown"),
        ("wmt17_translate/de-en", "is not a set of images with a class each; use digits"),
        ("mnist", "has the splits train, but needs train and test or validation"),
    ],
)
def test_sets_that_cannot_be_used_are_refused_in_one_line(standin_dir, name, words):
    with pytest.raises(UsageError, match=words) as refusal:
        _load(_config(name, standin_dir))
    assert "\n" not in str(refusal.value)


def test_a_missing_data_dir_is_refused():
    with pytest.raises(UsageError, match=r"cifar10 is not in data.data_dir=/nowhere: prepare it"):
        _load(_config("cifar10", "/nowhere"))


@pytest.mark.parametrize(
    ("config", "size", "words"),
    [
        (_config(partition="dirichlet", dirichlet_alpha=-1.0), 2, "dirichlet_alpha=-1.0"),
        (_config(), 2000, "1437 examples among 2000 ranks"),
    ],
)
def test_impossible_partitions_are_refused(config, size, words):
    with pytest.raises(UsageError, match=words):
        _load(config, size=size)
