"""Sets that TFDS has prepared, as their files on disk are; nothing is ever downloaded."""

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

_TEST_SPLITS = ("test", "validation")  # in this order; ImageNet's labelled one is validation


def builder(name: str, data_dir: str | None, *, embedded: Collection[str]) -> Any:
    """The builder of a set that lies on disk; from its files alone, whatever version they are.

    Args:
      embedded: the set that needs no files, for the refusal.

    Raises:
      UsageError: if the set is not there; says how to get it. Or what is wrong with its files.
    """
    place = data_dir or tfds.core.constants.DATA_DIR
    where = f"data.data_dir={place}"
    family = re.split("[:/]", name)[0]  # "wmt17_translate" of "wmt17_translate/de-en"
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
            "nor one of TFDS; see tensorflow.org/datasets/catalog"
        )
    # Of ImageNet, for one: archives that its owners hand out to registered users only.
    by_hand = " ".join((tfds.builder_cls(family).MANUAL_DOWNLOAD_INSTRUCTIONS or "").split())
    if by_hand:
        by_hand = f"; before that, in its downloads/manual (manual_dir): {by_hand}"
    call = f"tensorflow_datasets.load('{name}', data_dir={data_dir!r})"
    raise UsageError(
        f"data.name={name} is not in {where}: prepare it with "
        f'python -c "import tensorflow_datasets; {call}" on a machine with network, '
        f"or set data.data_dir{by_hand}"
    )


@contextmanager
def reading(name: str, place: str) -> Iterator[None]:
    """Within it, files of a set that are missing or damaged are refused in one line.

    Args:
      name: of the set.
      place: where its files lie.

    Raises:
      UsageError: says what is wrong with which file.
    """
    try:
        yield
    except (tfds.core.DatasetNotFoundError, UsageError):
        raise
    except (OSError, ValueError, KeyError, json_format.Error, tf.errors.OpError) as error:
        # Without what TensorFlow puts around it.
        text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", " ".join(str(error).split())).strip()
        raise unreadable(name, place, text) from error


def unreadable(name: str, place: str | Path, why: str) -> UsageError:
    """The refusal of a set whose files cannot be used."""
    return UsageError(
        f"data.name={name} cannot be read from {place} ({why}); prepare the set again, or set "
        "data.data_dir to another directory"
    )


def test_split(name: str, info: Any) -> str:
    """The split to test on, of a set that has one and also the split train."""
    test = next((split for split in _TEST_SPLITS if split in info.splits), None)
    if "train" not in info.splits or test is None:
        raise UsageError(
            f"data.name={name} has the splits {', '.join(info.splits) or 'none'}, but needs train "
            "and test or validation; choose another set"
        )
    return test


def record_files(info: Any, split: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The paths of a split's TFRecord files, and how many records each holds."""
    if info.file_format is not FileFormat.TFRECORD:
        raise UsageError(
            f"data.name={info.name} is streamed, and for that must lie in files of format "
            f"tfrecord, not {info.file_format.value}; prepare it again with "
            "tensorflow_datasets.builder(..., file_format='tfrecord')"
        )
    files = info.splits[split].file_instructions
    for file in files:
        if not os.path.exists(file.filename):
            raise unreadable(info.name, info.data_dir, f"{Path(file.filename).name} is missing")
    return tuple(file.filename for file in files), tuple(file.examples_in_shard for file in files)
