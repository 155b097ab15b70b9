"""Numbers in words, English and German: a translation set that needs no file.

    one hundred and five  ->  einhundertfünf

German says the ones before the tens, and writes a number in one word; so translating is more than
replacing words one by one, yet a small model learns it in minutes. Words are num2words'.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

LIMIT = 1_000_000  # all numbers are below

_SEGMENTS = 20  # numbers in a document: n, n + 1, ...
_DOCUMENTS = {"train": 500, "test": 25}
_TEST_SHARE = 1 / 20  # of all documents

# The tested numbers are the same for everybody, whatever the seed of a run.
_TEST_SEED = 0


@dataclass(frozen=True)
class NumberWords:
    """Sentence pairs as `texts.Corpus`: 10,000 to train, drawn by the seed, and 500 to test.

    The numbers below `LIMIT` are cut into documents of 20 consecutive ones. A hash says which
    documents are for tests: whatever the seed, no number of these is ever trained on. Small
    numbers are drawn more often than large ones, about as many of one digit as of six.
    """

    seed: int

    languages = ("en", "de")
    segments = _SEGMENTS

    @property
    def identity(self) -> str:
        """Differs whenever what is read differs."""
        return f"number_words/{self.seed}"

    def examples(self, split: str) -> int:
        """How many pairs the split holds."""
        return _DOCUMENTS[split] * _SEGMENTS

    def read(self, split: str) -> Iterator[dict[str, list[bytes]]]:
        """The pairs of a split, a document at a time, by language, as UTF-8."""
        # Here, not above: other sets need not have it.
        from num2words import num2words

        for numbers in self.numbers(split):
            yield {
                language: [num2words(int(n), lang=language).encode() for n in numbers]
                for language in self.languages
            }

    def numbers(self, split: str) -> np.ndarray:
        """int64 [documents, segments] of 0..LIMIT-1, all different."""
        documents = np.arange(LIMIT // _SEGMENTS)
        tested = np.array([zlib.crc32(b"%d" % d) < _TEST_SHARE * 2**32 for d in documents])
        offered = documents[tested if split == "test" else ~tested]
        likely = 1 / (offered + 1)
        seed = _TEST_SEED if split == "test" else self.seed
        drawn = np.random.default_rng(seed).choice(
            offered, _DOCUMENTS[split], replace=False, p=likely / likely.sum()
        )
        return drawn[:, np.newaxis] * _SEGMENTS + np.arange(_SEGMENTS)
