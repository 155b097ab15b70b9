"""Ranks as threads of this process."""

import threading

import keras
import numpy as np

from swarm_tf import codec as codecs
from swarm_tf.member import Member
from swarm_tf.weights import FlatWeights

HANG = 120.0


def in_threads(size, action, hang=HANG):
    """`action(rank)` on each rank, all at once; the results, or the first rank's exception."""
    results, errors = [None] * size, [None] * size

    def run(rank):
        try:
            results[rank] = action(rank)
        except BaseException as error:
            errors[rank] = error

    threads = [threading.Thread(target=run, args=(r,), daemon=True) for r in range(size)]
    for thread in threads:
        thread.start()
    for rank, thread in enumerate(threads):
        thread.join(hang)
        assert not thread.is_alive(), f"rank {rank} hangs"
    for error in errors:
        if error is not None:
            raise error
    return results


class Quadratic:
    """A member that minimizes |x - target|^2 / 2; every rank has another target."""

    def __init__(self, transport, codec=("float32", 8), mode="nonblocking", size=3000, **options):
        self.rng = np.random.default_rng([7, transport.rank])
        self.variables = [
            keras.Variable(np.zeros([size - 11, 1], np.float32)),
            keras.Variable(np.zeros([11], np.float32)),
        ]
        self.target = self.rng.normal(size=size).astype(np.float32)
        options.setdefault("timeout_seconds", 30)
        self.member = Member(
            FlatWeights(self.variables), transport, codecs.build(*codec), mode, **options
        )
        self.moved = np.zeros(size)  # by own steps, as the variables took them

    @property
    def x(self):
        return np.concatenate([np.ravel(np.asarray(v)) for v in self.variables])

    def step(self, rate=0.05):
        before = self.x
        after = before - np.float32(rate) * (before - self.target)
        self.variables[0].assign(after[:-11, None])
        self.variables[1].assign(after[-11:])
        self.moved += self.x.astype(np.float64) - before
