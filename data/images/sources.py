"""Reads image classification sets (scikit-learn's digits, or TFDS), as arrays or as records."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow_datasets as tfds

from data import prepared
from swarm_tf.errors import UsageError

# Bytes. Every rank holds a whole set up to this size in memory, where selection by index is fast.
# A larger set, or one whose images vary in size, is streamed from disk.
MEMORY_LIMIT = 1 << 30

# The test split of the digits (a fifth) does not depend on the seed of a run.
_DIGITS_SEED = 0
_DIGITS_TEST = 360

_FRAME = 16  # bytes around each record of a TFRecord file

_READ_BATCH = 1024  # images per call; one image per call would be slower


@dataclass(frozen=True)
class Split:
    """uint8 images [n, height, width, channels] and int32 labels [n]."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Records:
    """A split in TFRecord files of TFDS.

    Attributes:
      paths: of the files.
      counts: number of records in each file.
      features: the features of a record.
      keys: names of the image and of the label among the features.
    """

    paths: tuple[str, ...]
    counts: tuple[int, ...]
    features: tfds.features.FeaturesDict
    keys: tuple[str, str]

    def parse(self, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """A record's image, still encoded (a scalar string), and its label (int32)."""
        image, label = self.keys
        example = self._features_of(image, label).deserialize_example(
            record, decoders={image: tfds.decode.SkipDecoding()}
        )
        return example[image], tf.cast(example[label], tf.int32)

    def parse_label(self, record: tf.Tensor) -> tf.Tensor:
        """A record's label (int32), without copying its image."""
        label = self.keys[1]
        return tf.cast(self._features_of(label).deserialize_example(record)[label], tf.int32)

    def _features_of(self, *keys: str) -> tfds.features.FeaturesDict:
        return tfds.features.FeaturesDict({key: self.features[key] for key in keys})


@dataclass(frozen=True)
class Source:
    """A whole set, the same on every rank: both splits as arrays, or both as records.

    Attributes:
      augmentable: whether an image keeps its class when it is flipped and shifted by a few pixels.
    """

    train: Split | Records
    test: Split | Records
    classes: int
    augmentable: bool = True


def read(name: str, data_dir: str | None) -> Source:
    """The set `name`: one of `SETS`, or a set that TFDS prepared in `data_dir`.

    Nothing is ever downloaded. If data_dir is None, the default directory of TFDS is used.

    Raises:
      UsageError: if the name is unknown; if the set is missing, damaged, or has no uint8 images
        with class labels; or if it must be streamed and its files are not TFRecord files.
    """
    return SETS[name]() if name in SETS else _tfds(name, data_dir)


def _digits() -> Source:
    """1,797 images 8 x 8 of 0..16, contained in scikit-learn: 1,437 to train, 360 to test."""
    # Imported here because the import takes a second, which other sets do not need.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = digits.images.astype(np.uint8)[..., np.newaxis]
    labels = digits.target.astype(np.int32)
    train, test = train_test_split(
        np.arange(len(labels)),
        test_size=_DIGITS_TEST,
        stratify=labels,
        random_state=_DIGITS_SEED,
    )
    return Source(
        Split(images[train], labels[train]),
        Split(images[test], labels[test]),
        classes=10,
        augmentable=False,
    )


def _tfds(name: str, data_dir: str | None) -> Source:
    builder = prepared.builder(name, data_dir, embedded=SETS)
    info = builder.info
    keys = _image_and_label(name, info)
    test = prepared.test_split(name, info)
    read_split = _arrays if _fits_memory(name, info, keys[0], ("train", test)) else _records
    return Source(
        read_split(builder, "train", keys),
        read_split(builder, test, keys),
        classes=info.features[keys[1]].num_classes,
    )


def _image_and_label(name: str, info: Any) -> tuple[str, str]:
    if isinstance(info.features, tfds.features.FeaturesDict) and info.supervised_keys:
        features = dict(info.features.items())
        kinds = (tfds.features.Image, tfds.features.ClassLabel)
        found = [
            key
            for key, kind in zip(info.supervised_keys, kinds, strict=False)
            if isinstance(key, str) and isinstance(features.get(key), kind)
        ]
        if len(found) == 2:
            return found[0], found[1]
    raise UsageError(
        f"data.name={name} is not a set of images with a class each; "
        "use digits, fashion_mnist, cifar10 or another of that kind"
    )


def _fits_memory(name: str, info: Any, image_key: str, splits: tuple[str, str]) -> bool:
    feature = info.features[image_key]
    if feature.np_dtype != np.uint8:
        raise UsageError(
            f"data.name={name} has {np.dtype(feature.np_dtype)} images; only uint8 images can be "
            "read, so choose another set"
        )
    if None in feature.shape:
        return False
    total = sum(info.splits[split].num_examples for split in splits) * math.prod(feature.shape)
    return total <= MEMORY_LIMIT


def _records(builder: Any, split: str, keys: tuple[str, str]) -> Records:
    info = builder.info
    paths, counts = prepared.record_files(info, split)
    # Detects truncated files before training reads them. TFDS counts bytes without frames.
    expected = int(info.splits[split].num_bytes or 0) + _FRAME * sum(counts)
    missing = expected - sum(map(os.path.getsize, paths))
    if missing > 0:
        why = f"the files of split {split} are truncated: {missing} bytes are missing"
        raise prepared.unreadable(info.name, info.data_dir, why)
    return Records(paths, counts, info.features, keys)


def _arrays(builder: Any, split: str, keys: tuple[str, str]) -> Split:
    image, label = keys
    stored = builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders=tfds.decode.PartialDecoding({image: True, label: True}),
        read_config=tfds.ReadConfig(try_autocache=False),
    )
    with prepared.reading(builder.info.full_name, builder.info.data_dir):
        batches = list(stored.batch(_READ_BATCH).as_numpy_iterator())
    return Split(
        np.concatenate([batch[image] for batch in batches]),
        np.concatenate([batch[label] for batch in batches]).astype(np.int32),
    )


SETS: dict[str, Callable[[], Source]] = {"digits": _digits}
"""Name -> function that returns a set that is not in TFDS."""
