"""Numbers in words, English and German: a translation set that needs no files.

    one hundred and five  ->  einhundertfünf

German puts the ones before the tens and writes a number as one word, so a word-by-word translation
is not enough, but a small model learns the task in minutes. The package num2words makes the words.
"""

import functools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from swarm_tf.errors import UsageError

LIMIT = 1_000_000  # all numbers are below this one

_SEGMENTS = 20  # numbers in a document: n, n + 1, ...
_TRAINED, _TESTED = 500, 25  # default number of training documents; number of test documents
_TEST_SHARE = 1 / 20  # share of all documents from which the test documents are drawn

# The test split does not depend on the seed of a run.
_TEST_SEED = 0


@dataclass(frozen=True)
class NumberWords:
    """A `texts.Corpus` of numbers; the test split has 500 pairs.

    The numbers below `LIMIT` are divided into documents of 20 consecutive numbers. A hash decides
    which documents are reserved for tests, so no test number is ever trained on, with any seed. The
    training documents are drawn with `seed` from the others, with a higher probability for small
    numbers: with equal probabilities nearly all would have six digits.

    Attributes:
      seed: of the training documents.
      documents: number of training documents.
    """

    seed: int
    documents: int = _TRAINED

    languages = ("en", "de")
    segments = _SEGMENTS

    @property
    def identity(self) -> str:
        """Differs for different texts."""
        return f"number_words/{self.seed}/{self.documents}"

    def examples(self, split: str) -> int:
        """The number of pairs in a split."""
        return self._count(split) * _SEGMENTS

    def read(self, split: str) -> Iterator[dict[str, list[bytes]]]:
        """The pairs of a split, one document at a time, as UTF-8 by language."""
        for numbers in self.numbers(split):
            yield {
                language: [_words(int(n), language) for n in numbers] for language in self.languages
            }

    def numbers(self, split: str) -> np.ndarray:
        """int64 [documents, segments] of 0..LIMIT-1, all different."""
        available = _available(split)
        weights = 1 / (available + 1)
        seed = _TEST_SEED if split == "test" else self.seed
        drawn = np.random.default_rng(seed).choice(
            available, self._count(split), replace=False, p=weights / weights.sum()
        )
        return drawn[:, np.newaxis] * _SEGMENTS + np.arange(_SEGMENTS)

    def _count(self, split: str) -> int:
        return _TESTED if split == "test" else self.documents


@functools.cache  # the same texts are read for the vocabulary and again for the tokens
def _words(number: int, language: str) -> bytes:
    # Imported here because other sets do not need it.
    from num2words import num2words

    return num2words(number, lang=language).encode()


def training_documents(examples: int | None) -> int:
    """The number of documents that contain `examples` pairs; for None the default number.

    Raises:
      UsageError: if no number of training documents contains exactly `examples` pairs.
    """
    if examples is None:
        return _TRAINED
    most = len(_available("train")) * _SEGMENTS
    if examples % _SEGMENTS or not 0 < examples <= most:
        raise UsageError(
            f"data.train_examples={examples} must be a multiple of {_SEGMENTS}, the pairs in a "
            f"document of number_words, from {_SEGMENTS} to {most}, all that are not for tests"
        )
    return examples // _SEGMENTS


def _available(split: str) -> np.ndarray:
    """The numbers of the documents from which a split is drawn, int64."""
    documents = np.arange(LIMIT // _SEGMENTS)
    tested = np.array([zlib.crc32(b"%d" % d) < _TEST_SHARE * 2**32 for d in documents])
    return documents[tested if split == "test" else ~tested]
