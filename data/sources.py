"""Images and labels as arrays: scikit-learn's digits, or a TFDS image classification set."""

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from swarm_tf.errors import UsageError

# What every rank may hold of a set. Sharding by index is exact and fast that way; a larger set
# (ImageNet) needs a source that reads its shard from disk, beside `_tfds` and with its result.
MEMORY_LIMIT = 1 << 30

# The held-out fifth of the digits is the same for everybody, whatever the seed of a run.
_DIGITS_SEED = 0
_DIGITS_TEST = 360

_TEST_SPLITS = ("test", "validation")  # in this order; ImageNet's labelled one is validation

_READ_BATCH = 1024  # batches cost less to hand over than images one by one


@dataclass(frozen=True)
class Split:
    """uint8 images [n, height, width, channels] and int32 labels [n]."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Source:
    """A whole set, the same on every rank.

    `augmentable` says whether an image keeps its class when it is mirrored and shifted by a few
    pixels.
    """

    train: Split
    test: Split
    classes: int
    augmentable: bool = True


def read(name: str, data_dir: str | None) -> Source:
    """The set `name`: "digits", or a set that TFDS prepared under `data_dir`.

    Nothing is ever downloaded. None for data_dir is the place TFDS itself uses.

    Raises:
      UsageError: if the name is unknown, the set is not there or not one of classified images
        of one size, or takes more than `MEMORY_LIMIT` bytes.
    """
    if name == "digits":
        return _digits()
    return _tfds(name, data_dir)


def _digits() -> Source:
    """1,797 images 8 x 8 of 0..16 from scikit-learn's wheel: 1,437 to train, 360 to test."""
    # Here, not above: importing scikit-learn takes a second that other sets need not pay.
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
    builder = _prepared(name, data_dir)
    info = builder.info
    keys = _image_and_label(name, info)
    test = next((s for s in _TEST_SPLITS if s in info.splits), None)
    if "train" not in info.splits or test is None:
        raise UsageError(
            f"data.name={name} has the splits {', '.join(info.splits) or 'none'}, but needs train "
            "and test or validation; choose another set"
        )
    _fits(name, info, keys[0], ("train", test))
    return Source(
        _read_split(builder, "train", keys),
        _read_split(builder, test, keys),
        classes=info.features[keys[1]].num_classes,
    )


def _prepared(name: str, data_dir: str | None) -> Any:
    """The builder of a set that lies on disk; from its files alone, whatever version they are."""
    try:
        return read_only_builder.builder_from_files(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError):
        pass
    where = f"data.data_dir={data_dir or tfds.core.constants.DATA_DIR}"
    if re.split("[:/]", name)[0] not in tfds.list_builders(with_community_datasets=False):
        raise UsageError(
            f"data.name={name} is unknown: neither digits, nor a set in {where}, nor one of TFDS; "
            "see tensorflow.org/datasets/catalog"
        )
    call = f"tensorflow_datasets.load('{name}', data_dir={data_dir!r})"
    raise UsageError(
        f"data.name={name} is not in {where}: prepare it with "
        f'python -c "import tensorflow_datasets; {call}" on a machine with network, '
        "or set data.data_dir"
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


def _fits(name: str, info: Any, image_key: str, splits: tuple[str, str]) -> None:
    feature = info.features[image_key]
    if None in feature.shape or feature.np_dtype != np.uint8:
        raise UsageError(
            f"data.name={name} has {np.dtype(feature.np_dtype)} images of shape {feature.shape}; "
            "only uint8 images of one size can be read yet, choose a set of those"
        )
    total = sum(info.splits[split].num_examples for split in splits) * math.prod(feature.shape)
    if total > MEMORY_LIMIT:
        raise UsageError(
            f"data.name={name} takes {total / 2**30:.1f} GiB a rank, but only sets up to "
            f"{MEMORY_LIMIT / 2**30:.1f} GiB can be read yet; choose a smaller set"
        )


def _read_split(builder: Any, split: str, keys: tuple[str, str]) -> Split:
    image, label = keys
    stored = builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders=tfds.decode.PartialDecoding({image: True, label: True}),
        read_config=tfds.ReadConfig(try_autocache=False),
    )
    batches = list(stored.batch(_READ_BATCH).as_numpy_iterator())
    return Split(
        np.concatenate([batch[image] for batch in batches]),
        np.concatenate([batch[label] for batch in batches]).astype(np.int32),
    )
