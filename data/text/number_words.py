"""Numbers in words, English and German: a translation set without a file.

    one hundred and five  ->  einhundertfünf

German says the ones before the tens, and writes a number in one word; so translating is more than
replacing words one by one, yet a small model learns it in minutes. Words are num2words'.
"""

import functools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from swarm_tf.errors import UsageError

LIMIT = 1_000_000  # all numbers are below

_SEGMENTS = 20  # numbers in a document: n, n + 1, ...
_TRAINED, _TESTED = 500, 25  # documents; the former unless the user says otherwise
_TEST_SHARE = 1 / 20  # of all documents

# The tested numbers are the same for everybody, whatever the seed of a run.
_TEST_SEED = 0


@dataclass(frozen=True)
class NumberWords:
    """Sentence pairs as `texts.Corpus`: as many to train as wanted, and 500 to test.

    The numbers below `LIMIT` are cut into documents of 20 consecutive ones. A hash says which
    documents are for tests: whatever the seed, no number of these is ever trained on. The others
    are drawn by the seed, small numbers rather than large ones: else nearly all would have six
    digits.

    Attributes:
      documents: to train on, from 1 to as many as are not for tests.
    """

    seed: int
    documents: int = _TRAINED

    languages = ("en", "de")
    segments = _SEGMENTS

    @property
    def identity(self) -> str:
        """Differs whenever what is read differs."""
        return f"number_words/{self.seed}/{self.documents}"

    def examples(self, split: str) -> int:
        """How many pairs the split holds."""
        return self._count(split) * _SEGMENTS

    def read(self, split: str) -> Iterator[dict[str, list[bytes]]]:
        """The pairs of a split, a document at a time, by language, as UTF-8."""
        for numbers in self.numbers(split):
            yield {
                language: [_words(int(n), language) for n in numbers] for language in self.languages
            }

    def numbers(self, split: str) -> np.ndarray:
        """int64 [documents, segments] of 0..LIMIT-1, all different."""
        offered = _offered(split)
        likely = 1 / (offered + 1)
        seed = _TEST_SEED if split == "test" else self.seed
        drawn = np.random.default_rng(seed).choice(
            offered, self._count(split), replace=False, p=likely / likely.sum()
        )
        return drawn[:, np.newaxis] * _SEGMENTS + np.arange(_SEGMENTS)

    def _count(self, split: str) -> int:
        return _TESTED if split == "test" else self.documents


@functools.cache  # the vocabulary and the tokens are made of the same texts, one after the other
def _words(number: int, language: str) -> bytes:
    # Imported here, since other sets do not need it.
    from num2words import num2words

    return num2words(number, lang=language).encode()


def training_documents(examples: int | None) -> int:
    """In how many documents so many examples are; None is the usual number.

    Raises:
      UsageError: unless there are documents that have exactly so many.
    """
    if examples is None:
        return _TRAINED
    most = len(_offered("train")) * _SEGMENTS
    if examples % _SEGMENTS or not 0 < examples <= most:
        raise UsageError(
            f"data.train_examples={examples} must be a multiple of {_SEGMENTS}, a document of "
            f"number_words, from {_SEGMENTS} to {most}, which are all that are not for tests"
        )
    return examples // _SEGMENTS


def _offered(split: str) -> np.ndarray:
    """int64, the documents that the split may have."""
    documents = np.arange(LIMIT // _SEGMENTS)
    tested = np.array([zlib.crc32(b"%d" % d) < _TEST_SHARE * 2**32 for d in documents])
    return documents[tested if split == "test" else ~tested]
