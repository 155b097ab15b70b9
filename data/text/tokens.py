"""Tokenized sets on disk: tokenizing WMT17 takes minutes, so one rank does it once for all.

A tokenized set is a directory with the vocabulary and with NumPy files that all ranks map into
memory. Its name contains a hash of everything on which its content depends. It is created
atomically, so a set that exists is complete.
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

# Largest number of sentences from which the vocabulary is learned; more would change few pieces.
_SAMPLE = 1_000_000
_SAMPLE_SEED = 0

_VOCABULARY = "vocabulary.model"


@dataclass(frozen=True)
class Sentences:
    """Concatenated sentences: sentence i is ids[starts[i] : starts[i + 1]] and ends with EOS."""

    ids: npt.NDArray[np.integer]
    starts: npt.NDArray[np.int64]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens in each sentence, including EOS."""
        return np.diff(self.starts)

    def rows(self, which: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int32]:
        """One sentence per row, padded or truncated to `width`: [len(which), width]."""
        columns = np.arange(width)
        first = self.starts[which]
        real = columns < (self.starts[which + 1] - first)[:, np.newaxis]
        padded = np.full(real.shape, vocabulary.PADDING, np.int32)
        padded[real] = self.ids[(first[:, np.newaxis] + columns)[real]]
        return padded


def folder(corpus: Corpus, languages: Sequence[str], size: int, within: str) -> Path:
    """The directory for the tokens of these languages (in any order), with `size` pieces."""
    content = [corpus.identity, sorted(languages), size, _SAMPLE, sentencepiece.__version__]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return Path(within) / f"tokens-{digest[:16]}"


def write(corpus: Corpus, languages: Sequence[str], size: int, place: Path) -> None:
    """Learns the vocabulary and tokenizes both splits into directory `place`, unless it exists.

    Raises:
      UsageError: if a vocabulary of `size` pieces is not possible.
      OSError: if the directory cannot be written.
    """
    if place.exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        unfinished = Path(scratch) / place.name
        unfinished.mkdir()
        model = vocabulary.train(_sample(corpus, sorted(languages)), size)
        (unfinished / _VOCABULARY).write_bytes(model)
        tokenizer = vocabulary.load(model)
        for split in SPLITS:
            _tokenize(corpus, split, languages, tokenizer, unfinished)
        try:
            unfinished.rename(place)
        except OSError:
            if not place.exists():  # otherwise another run has written it first
                raise


def read_vocabulary(place: Path) -> vocabulary.Vocabulary:
    """The vocabulary that `write` learned.

    Raises:
      UsageError: if the directory does not exist on this rank.
    """
    if not place.exists():
        raise UsageError(
            f"{place} was written by rank 0, but is not seen by this rank; data.cache_dir, or "
            "--workdir without it, must be on a file system that all ranks share"
        )
    return vocabulary.load((place / _VOCABULARY).read_bytes())


def read(place: Path, split: str, language: str) -> Sentences:
    """The sentences of a split in one language, memory-mapped, so that only used ones are read."""
    mapped = (np.load(path, mmap_mode="r") for path in _paths(place, split, language))
    # np.asarray, because indexing a numpy.memmap is several times slower.
    return Sentences(*map(np.asarray, mapped))


def _tokenize(
    corpus: Corpus,
    split: str,
    languages: Sequence[str],
    tokenizer: vocabulary.Vocabulary,
    place: Path,
) -> None:
    kind = np.uint16 if tokenizer.get_piece_size() <= 2**16 else np.int32
    threads = len(os.sched_getaffinity(0))  # all of them, since the other ranks wait
    ids: dict[str, list[npt.NDArray[np.integer]]] = {language: [] for language in languages}
    lengths: dict[str, list[int]] = {language: [] for language in languages}
    for texts in corpus.read(split):
        for language in languages:
            encoded = tokenizer.encode(texts[language], add_eos=True, num_threads=threads)
            lengths[language] += map(len, encoded)
            ids[language].append(np.fromiter(chain.from_iterable(encoded), kind))
    for language in languages:
        ids_path, starts_path = _paths(place, split, language)
        np.save(ids_path, np.concatenate(ids[language]))
        np.save(starts_path, np.cumsum([0, *lengths[language]]))


def _sample(corpus: Corpus, languages: Sequence[str]) -> Iterator[bytes]:
    """At most `_SAMPLE` training sentences, drawn at random, equally many for each language."""
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
