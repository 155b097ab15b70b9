"""A swarm of nodes without I/O, whose messages are delivered in any order.

A small scheduler owns the nodes, a virtual clock and the messages in flight. It picks at random
what happens next: a message arrives, a node polls, a model trains. Whatever the order, no exchange
may move the mean of all models, which is computed from their communication copies.
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


class Network:
    """Messages in flight, as bytes. It delivers any of them, and injects faults on request."""

    def __init__(self, rng, drop=0.0, duplicate=0.0, corrupt=0.0, in_order=False):
        self.rng, self.drop, self.duplicate, self.corrupt = rng, drop, duplicate, corrupt
        self.in_order = in_order  # between two nodes, as MPI guarantees
        self.in_flight = []
        self.injected = {"drop": 0, "duplicate": 0, "corrupt": 0}

    def send(self, outbox):
        for to, message in outbox:
            head, payload = wire.pack(message, FINGERPRINT)
            self.in_flight.append((to, head, payload.copy()))

    def take(self):
        """Delivers one message: (receiver, Message), or None if it was lost."""
        at = int(self.rng.integers(len(self.in_flight)))
        if self.in_order:
            link = self._link(at)
            at = next(k for k in range(len(self.in_flight)) if self._link(k) == link)
        to, head, payload = self.in_flight[at]
        if self._happens("duplicate", self.duplicate):
            payload = payload.copy()
        else:
            del self.in_flight[at]
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

    def _link(self, at):
        to, head, _ = self.in_flight[at]
        return to, wire.unpack(head, FINGERPRINT)[0].sender

    def _happens(self, what, probability):
        happens = self.rng.random() < probability
        self.injected[what] += happens
        return happens

    def _damaged(self, head, payload):
        # Mostly the payload, since damage to the head is always detected.
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
    """A node with a clock; it counts and logs events as the driver does."""

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
    """The weights of a term that may be flat or in blocks."""
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
        self.network = Network(self.rng, **(faults or {}))
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
        """How far exchanges have moved the mean, relative to the largest weight."""
        largest = max(np.abs(x).max() for model in self.models for x in model)
        return float(np.abs(self.total() - self.expected).max() / largest / self.size)

    def distance(self):
        """Root mean square distance of the models from their mean."""
        flat = np.stack([np.concatenate(m) for m in self.models]).astype(np.float64)
        return float(np.sqrt(np.mean((flat - flat.mean(axis=0)) ** 2)))

    def train(self, rank, scale):
        """A local step, which counts for the expected mean once it is published."""
        before = np.concatenate(self.models[rank]).astype(np.float64)
        for x in self.models[rank]:
            x += (scale * self.rng.normal(size=x.shape)).astype(np.float32)
        self.unpublished[rank] += np.concatenate(self.models[rank]) - before
        self.steps[rank] += 1

    def apply(self, rank):
        """What `Member` does at a boundary: apply corrections to the model and publish it."""
        node = self.nodes[rank]
        rounding = []
        for x, correction in zip(self.models[rank], node.replica.take(), strict=True):
            exact = x.astype(np.float64)
            if correction is not None:
                exact += flat(correction, len(x))
                x[:] = exact
            with np.errstate(invalid="ignore"):  # some tests have Inf
                rounding.append(x - exact)
        node.replica.publish([tf.constant(x) for x in self.models[rank]])
        # Only rounding may move the mean: float32 rounds the sum of two numbers.
        self.expected += self.unpublished[rank] + np.concatenate(rounding)
        self.unpublished[rank][:] = 0

    def request(self, rank, partner=None):
        if partner is None:
            partner = int(self.rng.choice(self.neighbors[rank]))
        self.nodes[rank].request(partner, self.steps[rank])

    def poll(self, rank):
        self.network.send(self.nodes[rank].poll())

    def deliver(self):
        taken = self.network.take()
        if taken:
            to, message = taken
            self.network.send(self.nodes[to].handle(message))

    def settle(self, turns=10_000):
        """Runs until no message is in flight and no exchange is unanswered."""
        for _ in range(turns):
            for rank in range(self.size):
                self.poll(rank)
            if not self.network.in_flight and not any(n.view.unanswered for n in self.nodes):
                return
            while self.network.in_flight:
                self.deliver()
            self.now += 0.5 if any(n.repeat_seconds for n in self.nodes) else 0.0
        raise AssertionError("the exchanges do not end")

    def count(self, name):
        return sum(getattr(n.counters, name) for n in self.nodes)

    def run(self, exchanges, noise):
        """Runs non-blocking nodes in a random interleaving, until so many exchanges are counted."""
        assert self.mode != "blocking", "use Blocking"
        while self.count("exchanges") < exchanges:
            self.now += 0.05
            rank = int(self.rng.integers(self.size))
            match int(self.rng.integers(6)):
                case 0 if noise:
                    self.train(rank, noise)
                case 1:  # a boundary, as in `Member`; an exchange under way may be late
                    self.apply(rank)
                    view = self.nodes[rank].view
                    late = view.outstanding < 2 and self.rng.random() < 0.3
                    free = [r for r in self.neighbors[rank] if r not in view.unanswered]
                    if free and (view.pending_step is None or late):
                        self.request(rank, int(self.rng.choice(free)))
                case 2:
                    self.poll(rank)
                case _ if self.network.in_flight:
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
# Pending corrections are summed in float32, which rounds a little. A correction that is lost or
# applied twice moves the mean a thousand times as far.
ROUNDING = 2e-8


def pair(codec="float32", mode="nonblocking", **options):
    return Swarm(2, codecs.build(codec), mode, **options)


def even_models(swarm):
    """Gives the nodes even integers as weights, so that halves are exact; returns the models."""
    for rank, model in enumerate(swarm.models):
        for x in model:
            x[:] = 2 * swarm.rng.integers(-1000, 1000, size=x.shape)
        swarm.apply(rank)
    swarm.expected = swarm.total()
    return [np.concatenate(m) for m in swarm.models]


def run_exchange(swarm, rank, partner):
    """Runs one exchange to its end; returns the initiator's ExchangeEnded."""
    swarm.request(rank, partner)
    if swarm.mode == "blocking":  # the partner must be at its boundary too
        swarm.request(partner, rank)
    swarm.settle()
    for each in (rank, partner):
        swarm.nodes[each].leave_boundary()
        swarm.apply(each)
    (exchange,) = (e for each in (rank, partner) for e in swarm.nodes[each].take_ended())
    return exchange


class Blocking(Swarm):
    """Nodes that train, wait at each boundary until it is settled, and train on."""

    def __init__(self, size, *args, boundaries=10, **options):
        super().__init__(size, *args, mode="blocking", **options)
        self.boundaries_left = [boundaries] * size
        self.at_boundary = [False] * size

    def turn(self, rank, noise):
        """What the training thread of `rank` does next."""
        node = self.nodes[rank]
        if not self.boundaries_left[rank]:
            return
        if not self.at_boundary[rank]:
            self.train(rank, noise)
            self.apply(rank)
            self.request(rank)
            self.at_boundary[rank] = True
        elif node.view.may_go_on:
            if node.view.settled:
                node.leave_boundary()
                self.apply(rank)
                self.at_boundary[rank] = False
                self.boundaries_left[rank] -= 1
                if not self.boundaries_left[rank]:
                    node.finish(self.steps[rank])
            else:
                self.request(rank)

    def run(self, noise=0.003, most=200_000, weights=None):
        """Runs until all nodes have passed all their boundaries."""
        for _ in range(most):
            self.now += 1e-4  # so slow that no deadline can pass: 200,000 turns are 20 s
            rank = int(self.rng.choice(self.size, p=weights))
            match int(self.rng.integers(4)):
                case 0:
                    self.turn(rank, noise)
                case 1:
                    self.poll(rank)
                case _ if self.network.in_flight:
                    self.deliver()
            if not any(self.boundaries_left):
                self.settle()
                for r in range(self.size):
                    self.apply(r)
                return
        states = [n.gate.state.name for n in self.nodes]
        raise AssertionError(f"no progress: {states}, left {self.boundaries_left}")


def on_a_ring(swarm):
    """Lets nodes exchange with their neighbours on a ring only."""
    n = swarm.size
    swarm.neighbors = {r: sorted({(r + 1) % n, (r - 1) % n}) for r in range(n)}
