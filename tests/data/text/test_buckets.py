"""Laws of the buckets: few widths, the least padding, no example lost or repeated."""

import itertools

import numpy as np
import pytest

from data.text.buckets import Buckets, best_widths
from swarm_tf.errors import UsageError


def _positions(lengths, widths):
    return sum(min(w for w in widths if w >= length) for length in lengths)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_widths_pad_less(count, seed):
    lengths = np.random.default_rng(seed).geometric(0.2, 40).clip(max=12)
    found = best_widths(lengths, count)
    assert found == sorted(set(found))
    possible = itertools.combinations(range(1, 13), count)
    best = min(_positions(lengths, w) for w in possible if w[-1] >= lengths.max())
    assert _positions(lengths, found) == best
    assert len(found) == count


def test_if_there_are_few_lengths_they_are_the_widths():
    assert best_widths(np.array([7, 3, 3, 9]), 12) == [3, 7, 9]
    assert best_widths(np.array([4]), 12) == [4]


def test_less_than_a_fifth_is_padding_for_lengths_as_in_wmt():
    """Lengths are log-normal, 30 tokens on average; source and target differ by about a fifth."""
    rng = np.random.default_rng(0)
    mean = rng.normal(3.15, 0.65, 50_000)
    both = np.exp(mean + rng.normal(0, 0.18, (2, 50_000))).round().astype(int) + 1
    both = both[:, both.max(axis=0) <= 256]
    longest = both.max(axis=0)
    buckets = Buckets.fit(longest, 12, 25_000)
    padded = 2 * np.array(buckets.widths)[buckets.of(longest)].sum()
    assert 1 - both.sum() / padded < 0.2


def _example(count=500, positions=100):
    lengths = np.random.default_rng(1).integers(1, 40, count)
    return lengths, Buckets.fit(lengths, 5, positions)


def _epochs(examples, seed=0):
    return (
        np.random.default_rng((seed, epoch)).permutation(examples) for epoch in itertools.count()
    )


@pytest.mark.parametrize("part", [500, 60, 1])
def test_batches_drop_and_repeat_nothing(part):
    """Each bucket gives the examples that the epochs put into it, in the same order."""
    lengths, buckets = _example()
    assert min(buckets.rows) >= 2  # else no batch would straddle two epochs
    batches = list(itertools.islice(buckets.train(lengths, _epochs(part)), 300))
    stream = np.concatenate(list(itertools.islice(_epochs(part), 300 * 100 // part)))
    for k, (width, rows) in enumerate(zip(buckets.widths, buckets.rows, strict=True)):
        own = [members for of, members in batches if of == width]
        assert {len(members) for members in own} <= {rows}
        came = np.concatenate([np.empty(0, int), *own])
        np.testing.assert_array_equal(came, stream[buckets.of(lengths[stream]) == k][: len(came)])


def test_an_epoch_is_almost_complete_before_the_next_one_begins():
    """When epoch 1 begins, epoch 0 lacks less than a batch of each bucket."""
    lengths, buckets = _example()
    seen = []
    for _, members in buckets.train(lengths, _epochs(500)):
        seen += list(members)
        if len(set(seen)) < len(seen):
            break
    assert len(set(seen)) > 500 - sum(buckets.rows)


def test_a_batch_holds_its_sentences_and_fits_the_limit_of_positions():
    lengths, buckets = _example()
    for width, members in itertools.islice(buckets.train(lengths, _epochs(500)), 200):
        assert 100 - width < width * len(members) <= 100
        assert lengths[members].max() <= width


def test_buckets_come_in_random_order():
    lengths, buckets = _example(5000)
    count = round(buckets.batches_per_pass(lengths))
    widths = [w for w, _ in itertools.islice(buckets.train(lengths, _epochs(5000)), count)]
    places = {w: np.flatnonzero(np.array(widths) == w) / count for w in buckets.widths}
    assert all(abs(place.mean() - 0.5) < 0.1 for place in places.values())
    same = np.mean([a == b for a, b in itertools.pairwise(widths)])
    assert same < 1.5 * sum(len(place) ** 2 for place in places.values()) / count**2


def test_batches_per_pass_is_their_number_in_the_long_run():
    lengths, buckets = _example()
    batches = itertools.islice(buckets.train(lengths, _epochs(500)), 5000)
    passes = sum(len(members) for _, members in batches) / 500
    assert 5000 / passes == pytest.approx(buckets.batches_per_pass(lengths), rel=0.005)


def test_every_example_is_tested_once():
    lengths, buckets = _example()
    batches = list(buckets.test(lengths))
    together = np.concatenate([members for _, members in batches])
    assert sorted(together) == list(range(500))
    assert all(lengths[members].max() <= width for width, members in batches)
    assert len(batches) <= buckets.batches_per_pass(lengths) + len(buckets.widths)


def test_a_batch_too_small_for_the_longest_pair_is_refused():
    with pytest.raises(UsageError, match=r"train.batch_size=39 .* at least 40, the longest"):
        Buckets.fit(np.array([3, 40]), 5, 39)
    assert Buckets.fit(np.array([3, 40]), 5, 40).rows == (13, 1)


def test_with_even_rows_all_widths_have_the_rows_of_the_widest():
    lengths, buckets = _example()
    even = Buckets.fit(lengths, 5, 100, even_rows=True)
    assert even.widths == buckets.widths
    assert even.rows == (100 // lengths.max(),) * 5
    with pytest.raises(UsageError, match=r"train.batch_size=38 .* at least 39, the longest"):
        Buckets.fit(lengths, 5, 38, even_rows=True)
