"""Sets of sentence pairs: number_words, or a translation set of TFDS; texts, not yet tokens."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import tensorflow as tf
import tensorflow_datasets as tfds

from data import prepared
from data.text.number_words import NumberWords, training_documents
from swarm_tf.errors import UsageError

_READ_BATCH = 8192  # pairs; parsed together, they cost a thirtieth of what they do one by one


class Corpus(Protocol):
    """A set of sentences, each in several languages, with the splits train and test.

    Attributes:
      identity: the set's name and whatever else decides what `read` gives.
      languages: the first two are source and target, unless the user says otherwise.
      segments: if the set consists of documents, the consecutive sentences in each; else None.
    """

    @property
    def identity(self) -> str: ...

    @property
    def languages(self) -> tuple[str, ...]: ...

    @property
    def segments(self) -> int | None: ...

    def examples(self, split: str) -> int:
        """How many pairs the split holds."""
        ...

    def read(self, split: str) -> Iterator[Mapping[str, Sequence[bytes]]]:
        """The sentences in a fixed order, some at a time, by language, as UTF-8."""
        ...


@dataclass(frozen=True)
class _Tfds:
    """A set that TFDS prepared; `held_out` is its split for tests.

    `read` refuses damaged files with a UsageError.
    """

    info: Any
    languages: tuple[str, ...]
    held_out: str

    segments = None

    @property
    def identity(self) -> str:
        sizes = [(s.num_examples, int(s.num_bytes)) for s in map(self._stored, ("train", "test"))]
        return f"{self.info.full_name} {sizes}"

    def examples(self, split: str) -> int:
        return self._stored(split).num_examples

    def read(self, split: str) -> Iterator[Mapping[str, Sequence[bytes]]]:
        paths, _ = prepared.record_files(self.info, self._stored(split).name)
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

    def _stored(self, split: str) -> Any:
        return self.info.splits[self.held_out if split == "test" else split]


def find(name: str, data_dir: str | None, seed: int, train_examples: int | None = None) -> Corpus:
    """The set `name`: one of `SETS`, or a translation set that TFDS prepared under `data_dir`.

    Nothing is ever downloaded. None for data_dir is the place TFDS itself uses.

    Args:
      seed: decides which numbers number_words has.
      train_examples: pairs to make, for one of `SETS`; None: its own choice.

    Raises:
      UsageError: if the name is unknown, the set is not there, is not one of sentence pairs or has
        no split for tests, or lies in files of another kind than TFRecord; or number_words cannot
        have so many examples.
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
    """The languages from and to which is translated; what is None follows from the set.

    Raises:
      UsageError: if the set has not got a language, or both are the same.
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
    """The keys of the features that are texts, those of the supervised order first."""
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
"""Name -> set(seed, train_examples): the sets of sentence pairs that are not of TFDS."""
