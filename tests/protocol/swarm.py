"""A swarm of nodes without I/O: messages of several delivered in any order.

A small scheduler owns the nodes, a virtual clock and the mail. It picks at random what happens
next: a message arrives, a node polls, a model trains. What must hold is that the mean of all
models, counted as their communication copies, stays where it is, whatever the order.
"""

import logging

import numpy as np
import tensorflow as tf

from swarm_tf import codec as codecs
from swarm_tf.codec import BLOCK
from swarm_tf.events import Counters, ExchangeEnded, log_line
from swarm_tf.protocol import wire
from swarm_tf.protocol.node import Node

FINGERPRINT = 0x5EED


class Post:
    """Messages as bytes on their way; delivers any of them, and injects faults on request."""

    def __init__(self, rng, drop=0.0, duplicate=0.0, corrupt=0.0, in_order=False):
        self.rng, self.drop, self.duplicate, self.corrupt = rng, drop, duplicate, corrupt
        self.in_order = in_order  # of each pair of nodes, as MPI keeps it
        self.bag = []
        self.injected = {"drop": 0, "duplicate": 0, "corrupt": 0}

    def send(self, outbox):
        for to, message in outbox:
            head, payload = wire.pack(message, FINGERPRINT)
            self.bag.append((to, head, payload.copy()))

    def take(self):
        """One message, or None if it was lost: (receiver, Message)."""
        at = int(self.rng.integers(len(self.bag)))
        if self.in_order:
            road = self._road(at)
            at = next(k for k in range(len(self.bag)) if self._road(k) == road)
        to, head, payload = self.bag[at]
        if self._happens("duplicate", self.duplicate):
            payload = payload.copy()
        else:
            del self.bag[at]
        if self._happens("drop", self.drop):
            return None
        if self._happens("corrupt", self.corrupt):
            head, payload = self._damaged(head, payload)
        try:
            message, size = wire.unpack(head, FINGERPRINT)
            assert size == len(payload)
            return to, wire.attach(message, payload)
        except wire.Unreadable:
            return None

    def _road(self, at):
        to, head, _ = self.bag[at]
        return to, wire.unpack(head, FINGERPRINT)[0].sender

    def _happens(self, what, probability):
        happens = self.rng.random() < probability
        self.injected[what] += happens
        return happens

    def _damaged(self, head, payload):
        # Mostly the payload: damage to the head is seen at once.
        if len(payload) and self.rng.random() < 0.9:
            payload = payload.copy()
            for _ in range(int(self.rng.integers(1, 4))):
                payload[self.rng.integers(len(payload))] ^= np.uint8(1 << self.rng.integers(8))
            return head, payload
        head = bytearray(head)
        head[self.rng.integers(len(head))] ^= 1 << int(self.rng.integers(8))
        return bytes(head), payload


def channels(codec, lengths):
    return [codec.channel(length) for length in lengths]


class Observed(Node):
    """A node on a clock, whose events are counted and logged as its driver does."""

    def __init__(self, *args, clock=lambda: 0.0, **options):
        self.clock, self.counters, self._ended = clock, Counters(), []
        self.timeout_seconds = options.get("timeout_seconds", 60.0)
        self.repeat_seconds = options.get("repeat_seconds")
        super().__init__(*args, now=clock(), **options)

    def poll(self):
        return self._observed(super().poll(self.clock()))

    def handle(self, message):
        return self._observed(super().handle(message, self.clock()))

    def finish(self, step, **options):
        super().finish(step, self.clock(), **options)

    def take_ended(self):
        ended, self._ended = self._ended, []
        return ended

    def _observed(self, out):
        for event in self.take_events():
            self.counters = self.counters.after(event)
            if isinstance(event, ExchangeEnded) and not event.harmless:
                self._ended.append(event)
            if line := log_line(self.rank, event):
                logging.getLogger("swarm_tf").log(*line)
        return out


def flat(term, length):
    """The weights of a term, which is flat or in blocks."""
    return np.asarray(term).reshape(-1)[:length]


class Swarm:
    """Nodes with models, and a scheduler."""

    def __init__(
        self,
        size,
        codec,
        mode="nonblocking",
        *,
        chunks=1,
        seed=0,
        spread=0.05,
        faults=None,
        **options,
    ):
        self.size, self.mode, self.now = size, mode, 0.0
        self.rng = np.random.default_rng(seed)
        self.post = Post(self.rng, **(faults or {}))
        self.lengths = [BLOCK + 100 if chunks == 1 else BLOCK] * chunks
        if faults:
            options.setdefault("repeat_seconds", 1.0)
        options |= {"seed": seed, "clock": lambda: self.now}
        self.nodes = [
            Observed(r, size, channels(codec, self.lengths), mode, **options) for r in range(size)
        ]
        common = [self.rng.normal(size=n) for n in self.lengths]
        self.models: list[list[np.ndarray]] = [
            [(c + spread * self.rng.normal(size=c.shape)).astype(np.float32) for c in common]
            for _ in range(size)
        ]
        self.steps = [0] * size
        self.neighbors = {r: [o for o in range(size) if o != r] for r in range(size)}
        # Float64 [weights]: local steps since the last boundary, and what the models should sum to.
        self.unpublished = [np.zeros(sum(self.lengths)) for _ in range(size)]
        self.expected = np.zeros(sum(self.lengths))
        for rank in range(size):
            self.apply(rank)
        self.expected = self.total()

    def total(self):
        """Sum over all nodes of their communication copies: float64, one vector."""
        parts = [
            np.sum(
                [
                    flat(term, length).astype(np.float64)
                    for node in self.nodes
                    for term in node.replica.terms(c)
                ],
                axis=0,
            )
            for c, length in enumerate(self.lengths)
        ]
        return np.concatenate(parts)

    def drift(self):
        """How far the mean is from where the local steps put it, over the largest weight."""
        largest = max(np.abs(x).max() for model in self.models for x in model)
        return float(np.abs(self.total() - self.expected).max() / largest / self.size)

    def distance(self):
        """Root mean square distance of the models from their mean."""
        flat = np.stack([np.concatenate(m) for m in self.models]).astype(np.float64)
        return float(np.sqrt(np.mean((flat - flat.mean(axis=0)) ** 2)))

    def train(self, rank, scale):
        """A local step; it belongs to the mean from now on, though published later."""
        before = np.concatenate(self.models[rank]).astype(np.float64)
        for x in self.models[rank]:
            x += (scale * self.rng.normal(size=x.shape)).astype(np.float32)
        self.unpublished[rank] += np.concatenate(self.models[rank]) - before
        self.steps[rank] += 1

    def apply(self, rank):
        """What `Member` does at a boundary: corrections into the model, and publish it."""
        node = self.nodes[rank]
        rounding = []
        for x, correction in zip(self.models[rank], node.replica.take(), strict=True):
            exact = x.astype(np.float64)
            if correction is not None:
                exact += flat(correction, len(x))
                x[:] = exact
            with np.errstate(invalid="ignore"):  # Inf, in the tests of it
                rounding.append(x - exact)
        node.replica.publish([tf.constant(x) for x in self.models[rank]])
        # The one thing that may move the mean: float32 holds the sum of two numbers rounded.
        self.expected += self.unpublished[rank] + np.concatenate(rounding)
        self.unpublished[rank][:] = 0

    def ask(self, rank, partner=None):
        if partner is None:
            partner = int(self.rng.choice(self.neighbors[rank]))
        self.nodes[rank].request(partner, self.steps[rank])

    def poll(self, rank):
        self.post.send(self.nodes[rank].poll())

    def deliver(self):
        taken = self.post.take()
        if taken:
            to, message = taken
            self.post.send(self.nodes[to].handle(message))

    def settle(self, turns=10_000):
        """Everything that is under way, to its end."""
        for _ in range(turns):
            for rank in range(self.size):
                self.poll(rank)
            if not self.post.bag and not any(n.view.unanswered for n in self.nodes):
                return
            while self.post.bag:
                self.deliver()
            self.now += 0.5 if any(n.repeat_seconds for n in self.nodes) else 0.0
        raise AssertionError("no end")

    def count(self, name):
        return sum(getattr(n.counters, name) for n in self.nodes)

    def run(self, exchanges, noise):
        """Non-blocking nodes in a random interleaving, until so many exchanges happened."""
        assert self.mode != "blocking", "see Blocking"
        while self.count("exchanges") < exchanges:
            self.now += 0.05
            rank = int(self.rng.integers(self.size))
            match int(self.rng.integers(6)):
                case 0 if noise:
                    self.train(rank, noise)
                case 1 if self.nodes[rank].view.pending_step is None:
                    self.apply(rank)
                    self.ask(rank)
                case 2:
                    self.poll(rank)
                case _ if self.post.bag:
                    self.deliver()
                case _:
                    self.poll(rank)
        self.settle()
        for rank in range(self.size):
            self.apply(rank)


CODECS = {
    "float32": ("float32", 8),
    "bfloat16": ("bfloat16", 8),
    "float16": ("float16", 8),
    "lattice16": ("lattice", 16),
    "lattice8": ("lattice", 8),
    "lattice4": ("lattice", 4),
    "lattice3": ("lattice", 3),
    "lattice2": ("lattice", 2),
}
FAULTS = {"drop": 0.05, "duplicate": 0.05, "corrupt": 0.05}
# Corrections that wait together are summed in float32, hardly more. One that is lost or applied
# twice moves the mean by a thousand times as much.
ROUNDING = 2e-8


def pair(codec="float32", mode="nonblocking", **options):
    return Swarm(2, codecs.build(codec), mode, **options)


def even(swarm):
    """Give the nodes even integers as models, so that halves are exact."""
    for rank, model in enumerate(swarm.models):
        for x in model:
            x[:] = 2 * swarm.rng.integers(-1000, 1000, size=x.shape)
        swarm.apply(rank)
    swarm.expected = swarm.total()
    return [np.concatenate(m) for m in swarm.models]


def exchange_of(swarm, rank, partner):
    """A whole one; returns what its initiator says of it."""
    swarm.ask(rank, partner)
    if swarm.mode == "blocking":  # the partner has to come to its boundary too
        swarm.ask(partner, rank)
    swarm.settle()
    for each in (rank, partner):
        swarm.nodes[each].leave_boundary()
        swarm.apply(each)
    (exchange,) = (e for each in (rank, partner) for e in swarm.nodes[each].take_ended())
    return exchange


class Blocking(Swarm):
    """Each node trains, stands at its boundary until the node says it is over, and trains on."""

    def __init__(self, size, *args, boundaries=10, **options):
        super().__init__(size, *args, mode="blocking", **options)
        self.left = [boundaries] * size
        self.stands = [False] * size

    def turn(self, rank, noise):
        """What the training thread of `rank` does next."""
        node = self.nodes[rank]
        if not self.left[rank]:
            return
        if not self.stands[rank]:
            self.train(rank, noise)
            self.apply(rank)
            self.ask(rank)
            self.stands[rank] = True
        elif node.view.may_go_on:
            if node.view.settled:
                node.leave_boundary()
                self.apply(rank)
                self.stands[rank] = False
                self.left[rank] -= 1
                if not self.left[rank]:
                    node.finish(self.steps[rank])
            else:
                self.ask(rank)

    def run(self, noise=0.003, most=200_000, weights=None):
        """Until all have passed all their boundaries."""
        for _ in range(most):
            self.now += 1e-4  # no deadline may help: 200,000 turns are 20 s
            rank = int(self.rng.choice(self.size, p=weights))
            match int(self.rng.integers(4)):
                case 0:
                    self.turn(rank, noise)
                case 1:
                    self.poll(rank)
                case _ if self.post.bag:
                    self.deliver()
            if not any(self.left):
                self.settle()
                for r in range(self.size):
                    self.apply(r)
                return
        states = [n.gate.state.name for n in self.nodes]
        raise AssertionError(f"no progress: {states}, left {self.left}")


def on_a_ring(swarm):
    n = swarm.size
    swarm.neighbors = {r: sorted({(r + 1) % n, (r - 1) % n}) for r in range(n)}
