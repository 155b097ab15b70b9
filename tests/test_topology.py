"""Laws of the graphs: which ranks are neighbours, what is refused, how fast models mix."""

import networkx as nx
import numpy as np
import pytest

from swarm_tf import topology
from swarm_tf.errors import UsageError

SIZES = range(1, 18)


def _existing():
    for name in topology.TOPOLOGIES:
        for size in SIZES:
            try:
                graph = topology.build(name, size)
            except UsageError:
                assert name in ("torus", "hypercube", "random_regular")
            else:
                yield name, size, graph


def test_every_graph_is_valid():
    for name, size, graph in _existing():
        assert list(graph) == list(range(size)), (name, size)
        topology.validate(graph, size)


@pytest.mark.parametrize("name", topology.TOPOLOGIES)
def test_one_rank_has_no_neighbours(name):
    graph = topology.build(name, 1)
    assert list(graph) == [0]
    assert graph.number_of_edges() == 0


@pytest.mark.parametrize("name", topology.TOPOLOGIES)
def test_two_ranks_are_neighbours(name):
    graph = topology.build(name, 2, degree=1)
    assert topology.neighbors(graph, 0) == [1]
    assert topology.neighbors(graph, 1) == [0]


def test_neighbours_are_mutual_sorted_and_without_the_rank_itself():
    for name, size, graph in _existing():
        for i in range(size):
            near = topology.neighbors(graph, i)
            assert near == sorted(set(near) - {i}), name
            assert all(i in topology.neighbors(graph, j) for j in near), name


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("complete", 5, [1, 2, 3, 4]),
        ("ring", 5, [1, 4]),
        ("torus", 12, [1, 3, 4, 8]),  # 3 rows x 4 columns
        ("hypercube", 8, [1, 2, 4]),
        ("exponential", 16, [1, 2, 4, 8, 12, 14, 15]),
        ("exponential", 6, [1, 2, 4, 5]),
    ],
)
def test_neighbours_of_rank_zero(name, size, expected):
    assert topology.neighbors(topology.build(name, size), 0) == expected


@pytest.mark.parametrize(("size", "degree"), [(10, 3), (20, 4), (7, 2)])
def test_random_regular_is_regular_and_follows_the_seed(size, degree):
    graph = topology.build("random_regular", size, degree=degree, seed=3)
    assert {d for _, d in graph.degree} == {degree}
    same = topology.build("random_regular", size, degree=degree, seed=3)
    assert nx.utils.graphs_equal(graph, same)


def test_random_regular_differs_between_seeds():
    graphs = [topology.build("random_regular", 20, seed=s) for s in (0, 1)]
    assert set(graphs[0].edges) != set(graphs[1].edges)


@pytest.mark.parametrize(
    ("name", "size", "degree", "words"),
    [
        ("star", 4, 4, "topology=star is unknown; use one of complete, ring"),
        ("ring", 0, 4, "needs at least 1 rank, got 0"),
        ("hypercube", 6, 4, "hypercube needs a power of two of ranks, got 6; use ring"),
        ("torus", 7, 4, "torus needs rows x columns of ranks, got the prime 7; use ring"),
        (
            "random_regular",
            4,
            4,
            "degree=4 on 4 ranks does not exist: the degree must be from 1 to 3",
        ),
        ("random_regular", 5, 3, "degree=3 on 5 ranks does not exist: .* 5 x degree even"),
        ("random_regular", 8, 1, "degree=1 on 8 ranks was not connected in 100 draws"),
    ],
)
def test_impossible_graphs_are_refused_by_name(name, size, degree, words):
    with pytest.raises(UsageError, match=words) as refusal:
        topology.build(name, size, degree=degree)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (nx.cycle_graph(3), r"has 3 nodes \{0, 1, 2\}, but must have exactly the ranks 0..3"),
        (nx.relabel_nodes(nx.path_graph(4), {3: "x"}), "exactly the ranks 0..3"),
        (nx.Graph([(0, 1), (2, 3)]), r"not connected: no other rank can reach \{0, 1\}"),
        (nx.Graph([(0, 1), (1, 2), (2, 3), (3, 3)]), "joins rank 3 with itself"),
        (nx.cycle_graph(4, create_using=nx.DiGraph), "directed graph"),
    ],
)
def test_invalid_graphs_of_the_user_are_refused(graph, words):
    with pytest.raises(UsageError, match=words):
        topology.validate(graph, 4)


def test_a_valid_graph_of_the_user_is_accepted():
    topology.validate(nx.star_graph(3), 4)


@pytest.mark.parametrize("size", [2, 3, 5, 16])
def test_spectral_gap_of_the_complete_graph(size):
    gap = topology.spectral_gap(topology.build("complete", size))
    np.testing.assert_allclose(gap, 1 / (size - 1))


@pytest.mark.parametrize("size", [4, 5, 16])
def test_spectral_gap_of_the_ring(size):
    """W is circulant: I - (2 I - S - S^T)/(2 n), where S is the shift."""
    gap = topology.spectral_gap(topology.build("ring", size))
    np.testing.assert_allclose(gap, (1 - np.cos(2 * np.pi / size)) / size)


def test_the_spectral_gap_is_positive_and_largest_for_the_complete_graph():
    for name, size, graph in _existing():
        gap = topology.spectral_gap(graph)
        assert 0 < gap <= 1 / max(size - 1, 1) + 1e-12, (name, size)


def test_better_connected_graphs_mix_faster():
    order = ("ring", "torus", "hypercube", "exponential", "complete")
    gaps = [topology.spectral_gap(topology.build(name, 16)) for name in order]
    # A 4 x 4 torus is the 4-dimensional hypercube.
    np.testing.assert_allclose(gaps[1], gaps[2])
    assert gaps[0] < gaps[1] < gaps[3] < gaps[4]


def test_the_spectral_gap_bounds_the_mean_contraction_of_an_exchange():
    """Computed exactly, over all pairs of an irregular graph."""
    graph = nx.lollipop_graph(4, 3)
    n = len(graph)
    x = np.random.default_rng(0).normal(size=n)
    x -= x.mean()
    expected = 0.0
    for i in graph:
        near = topology.neighbors(graph, i)
        for j in near:
            y = x.copy()
            y[[i, j]] = (x[i] + x[j]) / 2
            expected += np.sum(y**2) / (n * len(near))
    assert expected <= (1 - topology.spectral_gap(graph)) * np.sum(x**2) + 1e-12
