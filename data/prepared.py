"""Reads data sets that TFDS has prepared on disk; nothing is ever downloaded."""

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds
from google.protobuf import json_format
from tensorflow_datasets.core import read_only_builder
from tensorflow_datasets.core.file_adapters import FileFormat

from swarm_tf.errors import UsageError

_TEST_SPLITS = (
    "test",
    "validation",
)  # in order of preference; the labelled test images of ImageNet are `validation`


def builder(name: str, data_dir: str | None, *, embedded: Collection[str]) -> Any:
    """The TFDS builder of a set on disk, read from its files, for any version of the set.

    Args:
      name: as in TFDS: "cifar10", "wmt17_translate/de-en".
      data_dir: the directory of TFDS; None for its default.
      embedded: names of sets that need no files, for the error message.

    Raises:
      UsageError: if the set is missing (the message says how to prepare it), or its files are
        damaged.
    """
    place = data_dir or tfds.core.constants.DATA_DIR
    where = f"data.data_dir={place}"
    family = re.split("[:/]", name)[0]  # "wmt17_translate/de-en" gives "wmt17_translate"
    if Path(place).is_file():
        raise UsageError(f"{where} is a file; name the directory that holds {family}/")
    try:
        with reading(name, f"{place}/{family}"):
            return read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        for found in sorted(Path(place, family).rglob("dataset_info.json")):
            if not (found.parent / "features.json").exists():
                raise unreadable(name, found.parent, "it has no features.json") from None
    except UsageError:
        if family.isidentifier() and Path(place, family).exists():
            raise
    if family not in tfds.list_builders(with_community_datasets=False):
        raise UsageError(
            f"data.name={name} is unknown: neither {', '.join(embedded)}, nor a set in {where}, "
            "nor a TFDS set; see tensorflow.org/datasets/catalog"
        )
    # Some archives, such as those of ImageNet, must be downloaded by hand after registration.
    manual = " ".join((tfds.builder_cls(family).MANUAL_DOWNLOAD_INSTRUCTIONS or "").split())
    if manual:
        manual = f"; before that, fill its downloads/manual (manual_dir) as follows: {manual}"
    call = f"tensorflow_datasets.load('{name}', data_dir={data_dir!r})"
    raise UsageError(
        f"data.name={name} is not in {where}: prepare it with "
        f'python -c "import tensorflow_datasets; {call}" on a machine with network, '
        f"or set data.data_dir{manual}"
    )


@contextmanager
def reading(name: str, place: str) -> Iterator[None]:
    """A context in which errors of missing or damaged files become a UsageError of one line.

    Args:
      name: the name of the set.
      place: the directory of its files.

    Raises:
      UsageError: one line that says what is wrong with which file.
    """
    try:
        yield
    except (tfds.core.DatasetNotFoundError, UsageError):
        raise
    except (OSError, ValueError, KeyError, json_format.Error, tf.errors.OpError) as error:
        # Remove the text that TensorFlow adds around the message.
        text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", " ".join(str(error).split())).strip()
        raise unreadable(name, place, text) from error


def unreadable(name: str, place: str | Path, why: str) -> UsageError:
    """The error for a set whose files cannot be read."""
    return UsageError(
        f"data.name={name} cannot be read from {place} ({why}); prepare the set again, or set "
        "data.data_dir to another directory"
    )


def test_split(name: str, info: Any) -> str:
    """The name of the test split.

    Raises:
      UsageError: if the set has no such split, or no split train.
    """
    test = next((split for split in _TEST_SPLITS if split in info.splits), None)
    if "train" not in info.splits or test is None:
        raise UsageError(
            f"data.name={name} has the splits {', '.join(info.splits) or 'none'}, but needs train "
            "and test or validation; choose another set"
        )
    return test


def record_files(info: Any, split: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The paths of a split's TFRecord files, and the number of records in each.

    Raises:
      UsageError: if the files have another format or one is missing.
    """
    if info.file_format is not FileFormat.TFRECORD:
        raise UsageError(
            f"data.name={info.name} is streamed, so its files must have the format "
            f"tfrecord, not {info.file_format.value}; prepare it again with "
            "tensorflow_datasets.builder(..., file_format='tfrecord')"
        )
    files = info.splits[split].file_instructions
    for file in files:
        if not os.path.exists(file.filename):
            raise unreadable(info.name, info.data_dir, f"{Path(file.filename).name} is missing")
    return tuple(file.filename for file in files), tuple(file.examples_in_shard for file in files)
