"""Small TFDS sets on disk, written by the real builders and read by the real code.

`tfds.testing.mock_data` would be shorter, but it ignores splits.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "tfds"


def write(
    name: str,
    data_dir: str,
    example: Callable[[int], Any],
    splits: dict[str, int],
    *,
    shards: int | None = None,
    **builder_options: str,
) -> None:
    """Prepares the set `name` under data_dir with example(0), example(1), ... in each split.

    Each split goes into `shards` files; None lets TFDS choose their number.
    """
    builder = tfds.builder(name, data_dir=data_dir, **builder_options)
    builder._split_generators = lambda *_: {
        split: ((i, example(i)) for i in range(count)) for split, count in splits.items()
    }
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False, num_shards=shards)
    )


def images(shape: tuple[int, int, int], classes: int, **more: str) -> Callable[[int], Any]:
    """Examples whose pixels follow from their index and whose label is index modulo classes."""

    def example(i: int) -> dict[str, Any]:
        pixels = np.random.default_rng(i).integers(0, 256, shape, np.uint8)
        return {**more, "image": pixels, "label": i % classes}

    return example


def colour(i: int) -> Any:
    """The colour of `coloured(...)(i)`, float [3] of 0..255."""
    return np.random.default_rng(i).uniform(0, 255, 3).round()


def coloured(sides: tuple[int, int], **more: str) -> Callable[[int], Any]:
    """Images of one colour each, which survives JPEG; sizes vary; the label is the index itself."""

    def example(i: int) -> dict[str, Any]:
        height, width = np.random.default_rng(i).integers(*sides, 2)
        pixels = np.broadcast_to(colour(i), (height, width, 3)).astype(np.uint8)
        return {**more, "image": pixels, "label": i}

    return example


def sentences(i: int) -> dict[str, str]:
    """A German and an English sentence of 2 to 62 invented words; the first is the number i.

    Some hold what a vocabulary might lose: rare characters, spaces at the ends and in a row.
    """
    rng = np.random.default_rng(i)
    words = rng.integers(0, 300, 1 + int(rng.lognormal(2.3, 0.7)) % 60)
    more = rng.integers(0, 300, rng.integers(0, 3))
    odd = ("", "", "", f" {chr(0x4E00 + i)} ", "  «Übergröße»\t", "½ ﬁ …")[i % 6]
    return {
        "de": " ".join(f"wört{w:x}er" for w in [i, *words, *more]) + odd,
        "en": " ".join(f"word{w:x}s" for w in [i, *words]) + odd,
    }


def random_words(i: int) -> dict[str, str]:
    """A pair of 30 random words each: 600 pairs give a vocabulary of any size that tests use."""
    rng = np.random.default_rng(i)

    def word() -> str:
        return bytes(rng.integers(ord("a"), ord("z") + 1, rng.integers(4, 10), np.uint8)).decode()

    return {language: " ".join(word() for _ in range(30)) for language in ("de", "en")}


def fashion_mnist(data_dir: str) -> str:
    """A directory with the set fashion_mnist: the real one if this machine has it.

    Looks at SWARM_TF_TFDS_DIR, then beside the repository; else writes 600 + 100 random images
    under data_dir.
    """
    found = _real("fashion_mnist")
    if found is None:
        write("fashion_mnist", data_dir, images((28, 28, 1), 10), {"train": 600, "test": 100})
    return found or data_dir


def libreoffice_help(data_dir: str) -> str:
    """A directory with the set libreoffice_help, sentence pairs "de" and "en".

    Found as in `fashion_mnist`, else 3,000 + 200 pairs of `sentences`. TFDS has no builder for it.
    """
    found = _real("libreoffice_help")
    if found is None:
        features = tfds.features.Translation(("de", "en"))
        write_own("libreoffice_help", data_dir, features, {"train": 3000, "test": 200}, sentences)
    return found or data_dir


def write_own(
    name: str,
    data_dir: str,
    features: tfds.features.FeaturesDict,
    splits: dict[str, int],
    example: Callable[[int], Any],
) -> None:
    """As `write`, for a set that TFDS has no builder for."""
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        data_dir=data_dir,
        features=features,
        split_datasets={
            split: [(i, example(i)) for i in range(count)] for split, count in splits.items()
        },
    )


def _real(name: str) -> str | None:
    for place in (os.environ.get("SWARM_TF_TFDS_DIR"), _SHARED):
        if place and (Path(place) / name).is_dir():
            return str(place)
    return None
