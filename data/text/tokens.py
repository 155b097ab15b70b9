"""Tokenized sets on disk: tokenizing WMT17 takes minutes, so one rank does it, once.

A set is a folder of NumPy files that all ranks map into memory, beside the vocabulary that made
them. Its name holds a hash of all that decides what is in it, and it appears complete or not at
all: whoever finds it may use it.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece

from data.text import vocabulary
from data.text.texts import Corpus
from swarm_tf.errors import UsageError

SPLITS = ("train", "test")

# Sentences from which the vocabulary is learnt, at most; more would change few pieces.
_SAMPLE = 1_000_000
_SAMPLE_SEED = 0

_VOCABULARY = "vocabulary.model"


@dataclass(frozen=True)
class Sentences:
    """Sentences end to end: number i is ids[starts[i] : starts[i + 1]], with EOS at its end."""

    ids: npt.NDArray[np.integer]
    starts: npt.NDArray[np.int64]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens in each sentence, with EOS."""
        return np.diff(self.starts)

    def rows(self, which: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int32]:
        """[len(which), width]: a sentence a row, padded; what is beyond `width` is cut off."""
        columns = np.arange(width)
        first = self.starts[which]
        held = columns < (self.starts[which + 1] - first)[:, np.newaxis]
        filled = np.full(held.shape, vocabulary.PADDING, np.int32)
        filled[held] = self.ids[(first[:, np.newaxis] + columns)[held]]
        return filled


def folder(corpus: Corpus, languages: Sequence[str], size: int, within: str) -> Path:
    """Where the tokens of these languages lie with a vocabulary of `size`, in either direction."""
    decides = [corpus.identity, sorted(languages), size, _SAMPLE, sentencepiece.__version__]
    digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
    return Path(within) / f"tokens-{digest[:16]}"


def write(corpus: Corpus, languages: Sequence[str], size: int, place: Path) -> None:
    """Learns the vocabulary and tokenizes both splits into the folder `place`, unless it is there.

    Raises:
      UsageError: if there can be no vocabulary of `size`.
      OSError: if the folder cannot be written.
    """
    if place.exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        unfinished = Path(scratch) / place.name
        unfinished.mkdir()
        model = vocabulary.train(_sample(corpus, sorted(languages)), size)
        (unfinished / _VOCABULARY).write_bytes(model)
        learnt = vocabulary.load(model)
        for split in SPLITS:
            _tokenize(corpus, split, languages, learnt, unfinished)
        try:
            unfinished.rename(place)
        except OSError:
            if not place.exists():  # else another run was quicker
                raise


def read_vocabulary(place: Path) -> vocabulary.Vocabulary:
    """The vocabulary that `write` learnt.

    Raises:
      UsageError: if the folder is not there.
    """
    if not place.exists():
        raise UsageError(
            f"{place}, which rank 0 wrote, is not seen by this rank; data.cache_dir, or without it "
            "--workdir, must be on a file system that all ranks share"
        )
    return vocabulary.load((place / _VOCABULARY).read_bytes())


def read(place: Path, split: str, language: str) -> Sentences:
    """The sentences of a split, mapped: what is not used is not read."""
    mapped = (np.load(path, mmap_mode="r") for path in _paths(place, split, language))
    # As plain arrays: indexing numpy's memmap costs several times as much.
    return Sentences(*map(np.asarray, mapped))


def _tokenize(
    corpus: Corpus,
    split: str,
    languages: Sequence[str],
    learnt: vocabulary.Vocabulary,
    place: Path,
) -> None:
    kind = np.uint16 if learnt.get_piece_size() <= 2**16 else np.int32
    threads = len(os.sched_getaffinity(0))  # the other ranks wait
    ids: dict[str, list[npt.NDArray[np.integer]]] = {language: [] for language in languages}
    lengths: dict[str, list[int]] = {language: [] for language in languages}
    for texts in corpus.read(split):
        for language in languages:
            encoded = learnt.encode(texts[language], add_eos=True, num_threads=threads)
            lengths[language] += map(len, encoded)
            ids[language].append(np.fromiter(chain.from_iterable(encoded), kind))
    for language in languages:
        ids_path, starts_path = _paths(place, split, language)
        np.save(ids_path, np.concatenate(ids[language]))
        np.save(starts_path, np.cumsum([0, *lengths[language]]))


def _sample(corpus: Corpus, languages: Sequence[str]) -> Iterator[bytes]:
    """Training sentences of all languages, evenly drawn, `_SAMPLE` at most."""
    count, wanted = corpus.examples("train"), _SAMPLE // len(languages)
    drawn = np.ones(count, bool)
    if count > wanted:
        drawn[:] = False
        drawn[np.random.default_rng(_SAMPLE_SEED).choice(count, wanted, replace=False)] = True
    at = 0
    for texts in corpus.read("train"):
        for language in languages:
            yield from (
                texts[language][i] for i in np.flatnonzero(drawn[at : at + len(texts[language])])
            )
        at += len(texts[languages[0]])


def _paths(place: Path, split: str, language: str) -> tuple[Path, Path]:
    return place / f"{split}.{language}.ids.npy", place / f"{split}.{language}.starts.npy"
