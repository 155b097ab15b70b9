"""SwarmSGD in NumPy: n nodes minimize quadratic functions and average in pairs, without waiting.

    python examples/swarmsgd_in_numpy.py

The update rule is the one in swarm_tf/swarmsgd.py (arXiv 1910.12308); tests/test_examples.py
compares it with the real protocol.
"""

import numpy as np


class Node:
    """A model x, its replica y that others average with, and the pending correction c."""

    def __init__(self, x):
        self.x, self.y, self.c = x.copy(), x.copy(), np.zeros_like(x)

    def local_step(self, gradient, rate):
        self.x = self.x - rate * gradient

    def boundary(self):
        """Adds the correction to the model, and publishes the model as replica."""
        self.x = self.x + self.c
        self.c = np.zeros_like(self.c)
        self.y = self.x.copy()


def quantized(x, step_size, dither):
    """The lattice point below or above x, chosen by the dither: unbiased over random dithers."""
    return step_size * np.floor(x / step_size + dither)


def exchange(i, j, step_size=None, rng=None):
    """Nodes i and j average their replicas; each model is corrected at its next boundary."""
    d = j.y - i.y
    if step_size is not None:
        dither = rng.random(d.shape)  # the same for both nodes
        d = quantized(j.y, step_size, dither) - quantized(i.y, step_size, dither)
    for node, half in ((i, d / 2), (j, -d / 2)):
        node.c = node.c + half
        node.y = node.y + half


def swarm(targets, local_steps=4, boundaries=400, rate=0.05, step_size=None, seed=0):
    """Each node minimizes |x - target|^2 / 2 from x = 0; returns the models [n, dimension]."""
    rng = np.random.default_rng(seed)
    nodes = [Node(np.zeros(targets.shape[1])) for _ in targets]
    for _ in range(boundaries):
        i = int(rng.integers(len(nodes)))
        for _ in range(local_steps):
            nodes[i].local_step(nodes[i].x - targets[i], rate)
        nodes[i].boundary()
        j = int(rng.choice([other for other in range(len(nodes)) if other != i]))
        exchange(nodes[i], nodes[j], step_size, rng)
    for node in nodes:
        node.boundary()
    return np.stack([node.x for node in nodes])


if __name__ == "__main__":
    targets = np.random.default_rng(1).normal(size=(8, 1000))
    for name, step_size in (("exact", None), ("quantized", 0.1)):
        models = swarm(targets, step_size=step_size)
        mean = models.mean(axis=0)
        print(
            f"{name}: distance of the mean to the optimum "
            f"{np.sqrt(np.mean((mean - targets.mean(axis=0)) ** 2)):.3f}, "
            f"of the nodes to their mean {np.sqrt(np.mean((models - mean) ** 2)):.3f}"
        )
