"""Numbers in words are correct and consecutive; test numbers are never trained on."""

import zlib

import numpy as np
from num2words import num2words

from data.text.number_words import LIMIT, NumberWords, training_documents

SEEDS = range(4)


def _pairs(split, seed=0):
    read = list(NumberWords(seed).read(split))
    return [pair for some in read for pair in zip(some["en"], some["de"], strict=True)]


def test_words_are_those_of_the_numbers():
    numbers = NumberWords(0).numbers("train").ravel()
    pairs = dict(zip(numbers.tolist(), _pairs("train"), strict=True))
    assert pairs[7] == (b"seven", b"sieben")
    assert pairs[115] == (b"one hundred and fifteen", "einhundertfünfzehn".encode())
    for n in np.random.default_rng(0).choice(numbers, 200):
        expected = tuple(num2words(int(n), lang=language).encode() for language in ("en", "de"))
        assert pairs[n] == expected


def test_tested_numbers_are_never_trained_on():
    tested = NumberWords(0).numbers("test")
    for seed in SEEDS:
        trained = NumberWords(seed).numbers("train")
        assert not np.isin(trained, tested).any()
        np.testing.assert_array_equal(NumberWords(seed).numbers("test"), tested)


def test_the_training_numbers_depend_on_the_seed():
    for a, b in zip(_pairs("test"), _pairs("test"), strict=True):
        assert a == b
    np.testing.assert_array_equal(NumberWords(1).numbers("train"), NumberWords(1).numbers("train"))
    drawn = [frozenset(NumberWords(seed).numbers("train").ravel().tolist()) for seed in SEEDS]
    assert len(set(drawn)) == len(SEEDS)


def test_documents_count_up_and_no_number_comes_twice():
    for split in ("train", "test"):
        numbers = NumberWords(3).numbers(split)
        assert (np.diff(numbers, axis=1) == 1).all()
        assert numbers.size == NumberWords(3).examples(split) == len(np.unique(numbers))
        assert numbers.min() >= 0
        assert numbers.max() < LIMIT


def test_the_training_set_has_the_requested_size():
    assert training_documents(None) == NumberWords(0).documents == 500
    usual, few, all_numbers = (
        NumberWords(0, training_documents(count)) for count in (None, 40, 949_260)
    )
    assert len({usual.identity, few.identity, all_numbers.identity}) == 3
    assert few.examples("train") == few.numbers("train").size == 40
    np.testing.assert_array_equal(few.numbers("test"), usual.numbers("test"))
    trained = all_numbers.numbers("train")
    assert trained.size == len(np.unique(trained)) == all_numbers.examples("train") == 949_260
    assert not np.isin(trained, usual.numbers("test")).any()
    documents = range(LIMIT // 20)
    tested = [n for n in documents if zlib.crc32(str(n).encode()) / 2**32 < 0.05]
    assert sorted({*documents} - {*tested}) == sorted(trained[:, 0] // 20)


def test_numbers_of_all_lengths_are_trained_and_tested():
    for split in ("train", "test"):
        digits = np.char.str_len(NumberWords(0).numbers(split).ravel().astype(str))
        counts = np.bincount(digits, minlength=7)
        assert (counts[4:] > 0.1 * counts.sum()).all()
