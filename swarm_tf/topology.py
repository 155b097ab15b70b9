"""Which ranks may average with each other: connected undirected graphs, and their spectral gap."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np

from swarm_tf.errors import UsageError
from swarm_tf.options import Options, at_least, one_of, option

# A random regular graph of degree >= 3 is connected with probability 1 - O(1/size^2), so a
# handful of draws is enough; degree 2 (a union of cycles) may need all of them.
_DRAWS = 100


def build(name: str, size: int, *, degree: int = 4, seed: int = 0) -> nx.Graph:
    """The graph of a named family on the nodes 0..size-1; one node and no edge for size 1.

    Args:
      name: one of `TOPOLOGIES`. `torus` has rows x columns ranks, where rows is the largest
        divisor of size that is at most sqrt(size); `exponential` connects i with i + 2^k and
        i - 2^k modulo size.
      size: number of ranks, at least 1.
      degree: neighbours of every rank, for `random_regular` only.
      seed: for `random_regular` only; ranks with the same seed build the same graph.

    Raises:
      UsageError: if the name is unknown, or the family has no graph of this size.
    """
    if name not in TOPOLOGIES:
        raise UsageError(f"topology={name} is unknown; use one of {', '.join(TOPOLOGIES)}")
    if size < 1:
        raise UsageError(f"topology={name} needs at least 1 rank, got {size}")
    if size == 1:
        return nx.empty_graph(1)
    return TOPOLOGIES[name](size, degree, seed)


def resolve(graph: str | nx.Graph, size: int, *, degree: int = 4, seed: int = 0) -> nx.Graph:
    """Builds the graph if `graph` is a name; validates it if it is a networkx.Graph.

    Raises:
      UsageError: see `build` and `validate`.
    """
    if isinstance(graph, str):
        return build(graph, size, degree=degree, seed=seed)
    validate(graph, size)
    return graph


def validate(graph: nx.Graph, size: int) -> None:
    """Checks that ranks can exchange along the edges of a graph.

    Raises:
      UsageError: unless the graph is undirected, has exactly the nodes 0..size-1, no edge
        from a node to itself, and is connected.
    """
    if graph.is_directed():
        raise UsageError(
            "topology is a directed graph, but an exchange changes both sides; "
            "use graph.to_undirected()"
        )
    if set(graph) != set(range(size)):
        raise UsageError(
            f"topology has {len(graph)} nodes {_abridged(graph)}, but must have exactly "
            f"the ranks 0..{size - 1}; see networkx.convert_node_labels_to_integers"
        )
    if loops := sorted(nx.nodes_with_selfloops(graph)):
        raise UsageError(
            f"topology joins rank {loops[0]} with itself, but an exchange needs two ranks; "
            "remove the edge"
        )
    if not nx.is_connected(graph):
        island = min(nx.connected_components(graph), key=len)
        raise UsageError(
            f"topology is not connected: no other rank can reach {_abridged(island)}; "
            "add an edge from these ranks to another one"
        )


def neighbors(graph: nx.Graph, rank: int) -> list[int]:
    """The ranks that `rank` may average with, in ascending order."""
    return sorted(graph.neighbors(rank))


def spectral_gap(graph: nx.Graph) -> float:
    """1 - the second largest eigenvalue modulus of W, the expected averaging matrix [n, n].

    One exchange multiplies the models by W_ij = I - (e_i - e_j)(e_i - e_j)^T / 2. A node i drawn
    uniformly and its neighbour j drawn uniformly give, with P_ij = 1/degree(i) on the edges,

        W = E[W_ij] = I - D/(2n) + (P + P^T)/(2n),    D = diag(sum_j (P_ij + P_ji))

    (Boyd, Ghosh, Prabhakar, Shah 2006, "Randomized gossip algorithms"). W_ij is a
    projection, so E[W_ij^T W_ij] = W too: without training, the expected squared distance to the
    mean shrinks at least by the factor 1 - gap per exchange. The gap is 1/(n-1) on the complete
    graph, which is the maximum; for one node it is defined as 1.
    """
    n = len(graph)
    if n == 1:
        return 1.0
    adjacency = nx.to_numpy_array(graph, nodelist=sorted(graph), weight=None)
    step = adjacency / adjacency.sum(axis=1, keepdims=True)
    both = step + step.T
    expected = np.eye(n) - np.diag(both.sum(axis=1)) / (2 * n) + both / (2 * n)
    modulus = np.sort(np.abs(np.linalg.eigvalsh(expected)))
    return float(1.0 - modulus[-2])


def _torus(size: int, degree: int, seed: int) -> nx.Graph:
    rows = max(d for d in range(1, math.isqrt(size) + 1) if size % d == 0)
    if rows == 1 and size > 2:
        # A 1 x n torus is a ring, not what the user requested.
        raise UsageError(
            f"topology=torus needs rows x columns of ranks, got the prime {size}; "
            "use ring, complete or exponential, or another number of ranks"
        )
    grid = nx.grid_2d_graph(rows, size // rows, periodic=size > 2)
    return nx.convert_node_labels_to_integers(grid, ordering="sorted")


def _hypercube(size: int, degree: int, seed: int) -> nx.Graph:
    if size & (size - 1):
        raise UsageError(
            f"topology=hypercube needs a power of two of ranks, got {size}; "
            "use ring, complete or exponential"
        )
    cube = nx.hypercube_graph(size.bit_length() - 1)
    return nx.convert_node_labels_to_integers(cube, ordering="sorted")


def _exponential(size: int, degree: int, seed: int) -> nx.Graph:
    return nx.circulant_graph(size, [1 << k for k in range((size - 1).bit_length())])


def _random_regular(size: int, degree: int, seed: int) -> nx.Graph:
    if not 1 <= degree < size or size * degree % 2:
        raise UsageError(
            f"topology=random_regular with degree={degree} on {size} ranks does not "
            f"exist: the degree must be from 1 to {size - 1}, and {size} x degree even; "
            "use complete or ring"
        )
    rng = np.random.default_rng(seed)
    for _ in range(_DRAWS):
        graph = nx.empty_graph(size)  # nx.random_regular_graph adds nodes in random order
        graph.add_edges_from(nx.random_regular_graph(degree, size, seed=rng).edges)
        if nx.is_connected(graph):
            return graph
    raise UsageError(
        f"topology=random_regular with degree={degree} on {size} ranks was not "
        f"connected in {_DRAWS} draws; use a degree of 3 or more, or ring"
    )


def _abridged(nodes: Iterable[object], most: int = 8) -> str:
    """The first nodes of a set, as text for an error message."""
    names = sorted(map(str, nodes), key=lambda s: (len(s), s))
    return "{" + ", ".join(names[:most]) + (", ...}" if len(names) > most else "}")


TOPOLOGIES: dict[str, Callable[[int, int, int], nx.Graph]] = {
    "complete": lambda size, degree, seed: nx.complete_graph(size),
    "ring": lambda size, degree, seed: nx.cycle_graph(size),
    "torus": _torus,
    "hypercube": _hypercube,
    "exponential": _exponential,
    "random_regular": _random_regular,
}
"""Name -> function (size, degree, seed) -> graph, for size 2 or more."""


def topology_option(default: str) -> Any:
    """The option `topology` with the default `default`."""
    return option(
        default,
        one_of(TOPOLOGIES),
        "which ranks may average with each other; constructors also accept a networkx.Graph",
        or_type=nx.Graph,
    )


@dataclass(kw_only=True)
class GraphOptions(Options):
    """Options of algorithms that average along the edges of a graph."""

    topology: str = topology_option("complete")
    degree: int = option(4, at_least(1), "for topology=random_regular: neighbours of each rank")

    def graph(self, ranks: int, seed: int) -> nx.Graph:
        """The graph on `ranks` ranks.

        Raises:
          UsageError: see `resolve`.
        """
        return resolve(self.topology, ranks, degree=self.degree, seed=seed)

    def check(self, name: str, *, ranks: int, seed: int, common: Any) -> None:
        """See `Options`; the graph must also exist for this number of ranks."""
        super().check(name, ranks=ranks, seed=seed, common=common)
        if ranks > 1:
            try:
                self.graph(ranks, seed)
            except UsageError as error:
                raise UsageError(f"{name}.{error}") from None
