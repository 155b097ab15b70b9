"""Reads the texts of sentence pairs: number_words, or a translation set of TFDS."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import tensorflow as tf
import tensorflow_datasets as tfds

from data import prepared
from data.text.number_words import NumberWords, training_documents
from swarm_tf.errors import UsageError

_READ_BATCH = 8192  # pairs per parse call; 30 times as fast as one pair per call


class Corpus(Protocol):
    """A set of sentences in several languages, with the splits train and test.

    Attributes:
      identity: the set's name and everything else on which the result of `read` depends.
      languages: the first two are the default source and target language.
      segments: number of consecutive sentences in a document; None if the set has no documents.
    """

    @property
    def identity(self) -> str: ...

    @property
    def languages(self) -> tuple[str, ...]: ...

    @property
    def segments(self) -> int | None: ...

    def examples(self, split: str) -> int:
        """The number of pairs in a split."""
        ...

    def read(self, split: str) -> Iterator[Mapping[str, Sequence[bytes]]]:
        """The sentences of a split in a fixed order, several at a time, as UTF-8 by language."""
        ...


@dataclass(frozen=True)
class _Tfds:
    """A `Corpus` that TFDS prepared; `held_out` is the name of its test split.

    `read` raises UsageError for damaged files.
    """

    info: Any
    languages: tuple[str, ...]
    held_out: str

    segments = None

    @property
    def identity(self) -> str:
        sizes = [
            (s.num_examples, int(s.num_bytes)) for s in map(self._split_info, ("train", "test"))
        ]
        return f"{self.info.full_name} {sizes}"

    def examples(self, split: str) -> int:
        return self._split_info(split).num_examples

    def read(self, split: str) -> Iterator[Mapping[str, Sequence[bytes]]]:
        paths, _ = prepared.record_files(self.info, self._split_info(split).name)
        features = {language: tf.io.FixedLenFeature([], tf.string) for language in self.languages}
        with tf.device("CPU:0"):
            stored = tf.data.TFRecordDataset(paths).batch(_READ_BATCH)
            parsed = stored.map(lambda records: tf.io.parse_example(records, features))
            batches = parsed.prefetch(1).as_numpy_iterator()
            while True:
                with prepared.reading(self.info.full_name, self.info.data_dir):
                    batch = next(batches, None)
                if batch is None:
                    break
                yield {language: texts.tolist() for language, texts in batch.items()}

    def _split_info(self, split: str) -> Any:
        return self.info.splits[self.held_out if split == "test" else split]


def find(name: str, data_dir: str | None, seed: int, train_examples: int | None = None) -> Corpus:
    """The set `name`: one of `SETS`, or a translation set that TFDS prepared in `data_dir`.

    Nothing is ever downloaded. If data_dir is None, the default directory of TFDS is used.

    Args:
      seed: selects the training numbers of number_words.
      train_examples: number of training pairs, only for one of `SETS`; None: its default.

    Raises:
      UsageError: if the name is unknown; if the set is missing, has no sentence pairs or no test
        split, or is not stored as TFRecord; or if `train_examples` is not possible for the set.
    """
    if name in SETS:
        return SETS[name](seed, train_examples)
    if train_examples is not None:
        raise UsageError(
            f"data.train_examples={train_examples} has no effect on data.name={name}; "
            "leave it at None"
        )
    info = prepared.builder(name, data_dir, embedded=SETS).info
    return _Tfds(info, _languages(name, info), prepared.test_split(name, info))


def direction(
    name: str, languages: Sequence[str], source: str | None, target: str | None
) -> tuple[str, str]:
    """The source and the target language; for None, the first other language of the set.

    Raises:
      UsageError: if the set does not have a language, or both are the same.
    """
    for key, language in (("source", source), ("target", target)):
        if language is not None and language not in languages:
            raise UsageError(
                f"data.{key}={language} is no language of data.name={name}; "
                f"use one of {', '.join(languages)}"
            )
    source = source or next(one for one in languages if one != target)
    target = target or next(one for one in languages if one != source)
    if source == target:
        raise UsageError(f"data.source={source} and data.target={target} must be two languages")
    return source, target


def _languages(name: str, info: Any) -> tuple[str, ...]:
    """The names of the features that are texts, those of `supervised_keys` first."""
    if isinstance(info.features, tfds.features.FeaturesDict):
        texts = sorted(
            key
            for key, feature in info.features.items()
            if isinstance(feature, tfds.features.Text) and feature.tf_dtype == tf.string
        )
        first = [key for key in info.supervised_keys or () if key in texts]
        found = tuple(dict.fromkeys([*first, *texts]))
        if len(found) >= 2 and len(found) == len(info.features):
            return found
    raise UsageError(
        f"data.name={name} is not a set of sentence pairs; "
        "use number_words, wmt17_translate/de-en or another of that kind"
    )


def _number_words(seed: int, train_examples: int | None) -> Corpus:
    return NumberWords(seed, training_documents(train_examples))


SETS: dict[str, Callable[[int, int | None], Corpus]] = {"number_words": _number_words}
"""Name -> function (seed, train_examples) that returns a corpus that is not in TFDS."""
