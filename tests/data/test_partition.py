"""Laws of the partitions: disjoint, complete, repeatable, and as skewed as alpha says."""

import itertools

import numpy as np
import pytest

from data import partition
from swarm_tf.errors import UsageError

LABELS = np.random.default_rng(0).integers(0, 10, 1003)


def _epochs(kind, rank, size, count=3, seed=5, labels=LABELS, alpha=0.3):
    numbered = partition.epochs(kind, labels, rank=rank, size=size, alpha=alpha, seed=seed)
    stream = (part for _, part in numbered)
    return list(itertools.islice(stream, count))


@pytest.mark.parametrize("kind", partition.PARTITIONS)
@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_parts_are_disjoint_and_complete_in_every_epoch(kind, size):
    for parts in zip(*(_epochs(kind, rank, size) for rank in range(size)), strict=True):
        together = np.sort(np.concatenate(parts))
        np.testing.assert_array_equal(together, np.arange(len(LABELS)))


@pytest.mark.parametrize("kind", partition.PARTITIONS)
def test_the_partition_depends_on_the_seed(kind):
    for a, b in zip(_epochs(kind, 1, 4), _epochs(kind, 1, 4), strict=True):
        np.testing.assert_array_equal(a, b)
    assert set(_epochs(kind, 1, 4, seed=6)[0]) != set(_epochs(kind, 1, 4, seed=5)[0])


@pytest.mark.parametrize("kind", partition.PARTITIONS)
def test_every_epoch_has_its_own_order(kind):
    first, second, third = _epochs(kind, 0, 4)
    assert list(first) != list(second) != list(third) != list(first)


def test_iid_gives_other_examples_each_epoch():
    first, second, _ = map(set, _epochs("iid", 0, 4))
    # Each epoch draws a quarter of the set, so about a quarter of it comes again.
    assert 0.1 < len(first & second) / len(first) < 0.4


@pytest.mark.parametrize("kind", ["static", "dirichlet"])
def test_fixed_parts_keep_their_examples(kind):
    first, second, third = map(set, _epochs(kind, 0, 4))
    assert first == second == third


@pytest.mark.parametrize("kind", ["iid", "static"])
def test_equal_parts_differ_by_one_at_most(kind):
    sizes = [len(_epochs(kind, rank, 7, count=1)[0]) for rank in range(7)]
    assert max(sizes) - min(sizes) <= 1


def _skew(alpha, seed):
    """Mean total variation distance between a rank's class frequencies and the whole set's."""
    frequencies = [
        np.bincount(LABELS[part], minlength=10) / len(part)
        for part in partition.dirichlet(LABELS, 8, alpha, seed)
    ]
    whole = np.bincount(LABELS, minlength=10) / len(LABELS)
    return np.mean([np.abs(f - whole).sum() / 2 for f in frequencies])


def test_skew_grows_as_alpha_falls():
    skews = [np.mean([_skew(alpha, s) for s in range(5)]) for alpha in (1e4, 10, 1, 0.1, 0.01)]
    assert skews == sorted(skews)
    assert skews[0] < 0.05
    assert skews[-1] > 0.7


@pytest.mark.parametrize("alpha", [1e-6, 0.01, 0.3])
@pytest.mark.parametrize("size", [16, 50])
def test_dirichlet_leaves_no_rank_empty(alpha, size):
    labels = LABELS[:50]
    parts = partition.dirichlet(labels, size, alpha, seed=0)
    assert min(map(len, parts)) >= 1
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(50))


def test_dirichlet_shares_have_the_mean_and_variance_of_the_distribution():
    """Share of one rank in a class: mean 1/n, variance (n - 1) / (n^2 (n alpha + 1))."""
    labels, size, alpha = np.zeros(4000, int), 4, 0.5
    shares = np.array(
        [[len(p) for p in partition.dirichlet(labels, size, alpha, s)] for s in range(400)]
    )
    shares = shares / len(labels)
    variance = (size - 1) / (size**2 * (size * alpha + 1))
    np.testing.assert_allclose(shares.mean(axis=0), 1 / size, atol=4 * np.sqrt(variance / 400))
    np.testing.assert_allclose(shares.var(axis=0), variance, rtol=0.3)


@pytest.mark.parametrize(
    ("kind", "size", "alpha", "words"),
    [
        ("sorted", 4, 1.0, "data.partition=sorted is unknown; use one of iid, static, dirichlet"),
        ("static", 1004, 1.0, "cannot divide 1003 examples among 1004 ranks; use fewer ranks"),
        ("dirichlet", 4, 0.0, r"data.dirichlet_alpha=0.0 must be above 0"),
        ("dirichlet", 4, float("nan"), "data.dirichlet_alpha=nan must be above 0"),
    ],
)
def test_impossible_partitions_are_refused_at_the_call(kind, size, alpha, words):
    with pytest.raises(UsageError, match=words):
        partition.epochs(kind, LABELS, rank=0, size=size, alpha=alpha, seed=0)


# --- ranges of records ----------------------------------------------------------------------------

FILES = (13, 1, 400, 7, 582)


def _range_epochs(kind, rank, size, count=3, seed=5):
    numbered = partition.range_epochs(kind, FILES, rank=rank, size=size, seed=seed)
    stream = (part for _, part in numbered)
    return list(itertools.islice(stream, count))


def _records(ranges):
    return np.concatenate([np.arange(first, first + count) for first, count in ranges])


@pytest.mark.parametrize("kind", ["iid", "static"])
@pytest.mark.parametrize("size", [1, 3, 4, 50])
def test_ranges_are_disjoint_and_complete_in_every_epoch(kind, size):
    shares = [_range_epochs(kind, rank, size) for rank in range(size)]
    sizes = [[len(_records(part)) for part in epochs] for epochs in shares]
    assert all(len(set(of_rank)) == 1 for of_rank in sizes)
    assert np.ptp(sizes) <= 1
    for parts in zip(*shares, strict=True):
        together = np.sort(np.concatenate([_records(part) for part in parts]))
        np.testing.assert_array_equal(together, np.arange(sum(FILES)))


def test_dirichlet_ranks_read_all_records_in_different_orders():
    orders = [_records(part) for rank in range(2) for part in _range_epochs("dirichlet", rank, 2)]
    assert len({order.tobytes() for order in orders}) == 6
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(sum(FILES)))


@pytest.mark.parametrize("kind", partition.PARTITIONS)
def test_no_range_crosses_the_end_of_a_file(kind):
    ends = np.cumsum(FILES)
    for first, count in np.concatenate(_range_epochs(kind, 1, 3)):
        assert np.searchsorted(ends, first, "right") == np.searchsorted(
            ends, first + count - 1, "right"
        )


def test_there_are_many_ranges_but_no_more_than_records():
    assert len(partition.ranges(FILES, 4)) >= 32
    assert len(partition.ranges([1250] * 1024, 8)) == 1024  # ImageNet: files stay whole
    assert len(partition.ranges([1250] * 1024, 64)) == 2048
    assert len(partition.ranges([5], 4)) == 5


def test_iid_draws_new_ranges_each_epoch_and_static_keeps_its_ranges():
    iid, static = ([set(_records(e)) for e in _range_epochs(k, 0, 4)] for k in ("iid", "static"))
    assert 0.1 < len(iid[0] & iid[1]) / len(iid[0]) < 0.4
    assert static[0] == static[1] == static[2] == iid[0]


@pytest.mark.parametrize("kind", partition.PARTITIONS)
def test_the_ranges_depend_on_the_seed(kind):
    for a, b in zip(_range_epochs(kind, 1, 4), _range_epochs(kind, 1, 4), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(_range_epochs(kind, 1, 4, 1), _range_epochs(kind, 1, 4, 1, seed=6))


def test_more_ranks_than_records_are_refused_at_the_call():
    with pytest.raises(UsageError, match="1003 examples among 1004 ranks"):
        partition.range_epochs("iid", FILES, rank=0, size=1004, seed=0)


# --- other numbers of ranks -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["iid", "static", "dirichlet"])
def test_each_example_is_used_once_an_epoch_though_the_number_of_ranks_changes(kind):
    """Ranks of the first two stages are up to two epochs apart when their stage ends."""
    examples, batch = len(LABELS), 7

    def epochs(rank, size, used):
        return partition.epochs(kind, LABELS, rank=rank, size=size, alpha=0.3, seed=5, used=used)

    def batches(rank, size, used):
        tagged = (epoch * examples + part for epoch, part in epochs(rank, size, used))
        rest = np.empty(0, np.int64)
        for part in tagged:
            rest = np.append(rest, part)
            while len(rest) >= batch:
                yield rest[:batch]
                rest = rest[batch:]

    per_epoch = examples // batch
    stages = [[per_epoch // 2, per_epoch // 4, per_epoch], [0, 3, 5, per_epoch // 3]]
    used = partition.used_by(stages, examples, batches)
    count = used.first * examples + sum(mask.sum() for mask in used.masks.values())
    assert count == batch * sum(sum(counts) for counts in stages)
    parts = [list(itertools.islice(epochs(rank, 2, used), 6)) for rank in range(2)]
    assert len(used.masks) > 1
    for mine, other in zip(*parts, strict=True):
        assert mine[0] == other[0]
        before = np.flatnonzero(used.masks.get(mine[0], np.zeros(examples, bool)))
        everything = [*before, *mine[1], *other[1]]
        assert sorted(everything) == list(range(examples))
    assert parts[0][0][0] == used.first
