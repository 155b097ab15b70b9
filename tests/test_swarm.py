"""One node of the swarm, without I/O: the messages of several delivered in any order.

A small scheduler owns the nodes, a fake clock and the mail. It picks at random what happens next:
a message arrives, a node polls, a model trains. What must hold is that the mean of all models,
counted as their communication copies, stays where it is, whatever the order.
"""

import logging

import numpy as np
import pytest
import tensorflow as tf

from swarm_tf import codec as codecs
from swarm_tf.codec import BLOCK
from swarm_tf.protocol import wire
from swarm_tf.protocol.gate import State
from swarm_tf.protocol.messages import Kind, Message, Reason
from swarm_tf.protocol.node import Node

FINGERPRINT = 0x5EED


class Post:
    """Messages as bytes on their way; delivers any of them, and does harm on request."""

    def __init__(self, rng, drop=0.0, duplicate=0.0, corrupt=0.0, in_order=False):
        self.rng, self.drop, self.duplicate, self.corrupt = rng, drop, duplicate, corrupt
        self.in_order = in_order  # of each pair of nodes, as MPI keeps it
        self.bag = []
        self.harmed = {"drop": 0, "duplicate": 0, "corrupt": 0}

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
        self.harmed[what] += happens
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


def _flat(term, length):
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
        harm=None,
        **options,
    ):
        self.size, self.mode, self.now = size, mode, 0.0
        self.rng = np.random.default_rng(seed)
        self.post = Post(self.rng, **(harm or {}))
        self.lengths = [BLOCK + 100 if chunks == 1 else BLOCK] * chunks
        if harm:
            options.setdefault("retry_seconds", 1.0)
        self.nodes = [
            Node(r, size, self.lengths, codec, mode, seed=seed, clock=lambda: self.now, **options)
            for r in range(size)
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
                    _flat(term, length).astype(np.float64)
                    for node in self.nodes
                    for term in node.published.terms(c)
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
        for x, correction in zip(self.models[rank], node.published.take(), strict=True):
            exact = x.astype(np.float64)
            if correction is not None:
                exact += _flat(correction, len(x))
                x[:] = exact
            with np.errstate(invalid="ignore"):  # Inf, in the tests of it
                rounding.append(x - exact)
        node.published.publish([tf.constant(x) for x in self.models[rank]])
        # The one thing that may move the mean: float32 holds the sum of two numbers rounded.
        self.expected += self.unpublished[rank] + np.concatenate(rounding)
        self.unpublished[rank][:] = 0

    def ask(self, rank, partner=None):
        if partner is None:
            partner = int(self.rng.choice(self.neighbors[rank]))
        self.nodes[rank].ask(partner, self.steps[rank])

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
            if not self.post.bag and not any(n.owed() for n in self.nodes):
                return
            while self.post.bag:
                self.deliver()
            self.now += 0.5 if any(n._retry for n in self.nodes) else 0.0
        raise AssertionError("no end")

    def count(self, name):
        return sum(getattr(n.counters, name) for n in self.nodes)

    def run(self, exchanges, noise):
        """Non-blocking nodes in a random interleaving, until so many exchanges happened."""
        while self.count("exchanges") < exchanges:
            self.now += 0.05
            rank = int(self.rng.integers(self.size))
            match int(self.rng.integers(6)):
                case 0 if noise:
                    self.train(rank, noise)
                case 1 if self.nodes[rank].asked_at is None:
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
HARM = {"drop": 0.05, "duplicate": 0.05, "corrupt": 0.05}
# Corrections that wait together are summed in float32, hardly more. One that is lost or applied
# twice moves the mean by a thousand times as much.
ROUNDING = 2e-8


# The law of the mean.


@pytest.mark.parametrize("name", CODECS)
def test_mean_stays_over_a_thousand_exchanges(name):
    swarm = Swarm(8, codecs.build(*CODECS[name]), seed=8)
    # The formats that differ most get the long run.
    exchanges = 1000 if name in ("float32", "bfloat16", "lattice8", "lattice4", "lattice2") else 300
    swarm.run(exchanges, noise=0.003)
    assert swarm.drift() < ROUNDING
    assert swarm.count("exchanges") >= exchanges
    assert swarm.count("exchanges_failed") == 0
    assert swarm.count("exchanges") == swarm.count("exchanges_served")


@pytest.mark.parametrize("name", ["float32", "bfloat16", "lattice16", "lattice8", "lattice4"])
def test_mean_stays_with_loss_doubles_disorder_and_damage(name):
    swarm = Swarm(4, codecs.build(*CODECS[name]), seed=1, harm=HARM)
    swarm.run(400, noise=0.003)
    assert min(swarm.post.harmed.values()) > 30
    assert swarm.drift() < ROUNDING
    assert swarm.distance() < 0.05


@pytest.mark.parametrize("name", ["float32", "lattice4"])
@pytest.mark.parametrize("harm", [None, HARM], ids=["calm", "harm"])
def test_mean_stays_with_several_chunks(name, harm):
    swarm = Swarm(3, codecs.build(*CODECS[name]), seed=2, chunks=7, harm=harm)
    swarm.run(60, noise=0.003)
    assert swarm.drift() < ROUNDING
    assert swarm.distance() < 0.05


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("name", ["float32", "lattice4"])
def test_mean_stays_at_any_moment(size, name):
    swarm = Swarm(size, codecs.build(*CODECS[name]), seed=3)
    for _ in range(25):
        swarm.run(swarm.count("exchanges") + 3, noise=0.003)
        assert swarm.drift() < ROUNDING


def test_deadlines_that_pass_do_not_move_the_mean():
    # The mail is slower than the timeout: many exchanges are given up, and end late.
    swarm = Swarm(4, codecs.build("lattice", 4), seed=4, timeout_seconds=0.2)
    given_up = 0
    for _ in range(10):
        swarm.run(swarm.count("exchanges") + 20, noise=0.003)
        given_up += sum(e.overdue for n in swarm.nodes for e in n.take_finished())
        assert swarm.drift() < ROUNDING
    assert given_up > 3


@pytest.mark.parametrize("name", CODECS)
def test_models_meet_without_noise(name):
    swarm = Swarm(4, codecs.build(*CODECS[name]), seed=5)
    before = swarm.distance()
    swarm.run(150, noise=0)
    # 16-bit floats round on a grid of 2^-8 and 2^-11 of a weight; few bits take longer.
    coarse = {"bfloat16": 20, "float16": 100, "lattice3": 50, "lattice2": 2}.get(name, 10_000)
    assert swarm.distance() < before / coarse


# Single exchanges.


def _pair(codec="float32", mode="nonblocking", **options):
    return Swarm(2, codecs.build(codec), mode, **options)


def _even(swarm):
    """Give the nodes even integers as models, so that halves are exact."""
    for rank, model in enumerate(swarm.models):
        for x in model:
            x[:] = 2 * swarm.rng.integers(-1000, 1000, size=x.shape)
        swarm.apply(rank)
    swarm.expected = swarm.total()
    return [np.concatenate(m) for m in swarm.models]


@pytest.mark.parametrize("chunks", [1, 5])
def test_an_exchange_is_the_exact_average(chunks):
    swarm = _pair(chunks=chunks)
    a, b = _even(swarm)
    swarm.ask(0, 1)
    swarm.settle()
    for rank in (0, 1):
        swarm.apply(rank)
        np.testing.assert_array_equal(np.concatenate(swarm.models[rank]), (a + b) / 2)


def test_crossed_requests_average_once():
    for seed in range(20):
        swarm = _pair(seed=seed, harm={"in_order": True})
        a, b = _even(swarm)
        for rank in (0, 1):
            swarm.ask(rank, 1 - rank)
            swarm.poll(rank)
        swarm.settle()
        for rank in (0, 1):
            swarm.apply(rank)
            np.testing.assert_array_equal(np.concatenate(swarm.models[rank]), (a + b) / 2)
        assert swarm.count("exchanges") == swarm.count("exchanges_served") == 1
        assert swarm.count("exchanges_failed") == 0
        assert len(swarm.nodes[0].take_finished()) == 1
        assert swarm.nodes[1].take_finished() == []
        assert swarm.nodes[1].asked_at is None


def test_crossed_requests_in_any_order_keep_the_mean():
    for seed in range(20):
        swarm = _pair(seed=seed)
        before = swarm.distance()
        for rank in (0, 1):
            swarm.ask(rank, 1 - rank)
            swarm.poll(rank)
        swarm.settle()
        assert swarm.drift() < ROUNDING
        for rank in (0, 1):
            swarm.apply(rank)
        # A reply that overtakes a request lets both happen; never worse than before.
        assert swarm.distance() <= before * 1.000001


@pytest.mark.parametrize("mode", ["nonblocking", "blocking"])
def test_a_late_answer_still_applies(mode, caplog):
    swarm = _pair(mode=mode, timeout_seconds=10)
    a, b = _even(swarm)
    initiator = swarm.nodes[0]
    if mode == "blocking":
        swarm.nodes[1].finish(0)  # free to serve
    swarm.ask(0, 1)
    swarm.poll(0)
    swarm.now += 11
    with caplog.at_level(logging.WARNING, "swarm_tf"):
        swarm.poll(0)
    assert "rank 0 waited 10 s for rank 1" in caplog.text
    assert initiator.asked_at is None, "another exchange may start"
    assert initiator.wait(0)
    assert initiator.owed() == [1]
    assert (initiator.counters.exchanges, initiator.counters.exchanges_failed) == (0, 1)
    if mode == "blocking":
        initiator.leave()
    swarm.settle()
    assert initiator.owed() == []
    assert (initiator.counters.exchanges, initiator.counters.exchanges_failed) == (1, 0)
    for rank in (0, 1):
        swarm.apply(rank)
        np.testing.assert_array_equal(np.concatenate(swarm.models[rank]), (a + b) / 2)
    assert [e.overdue for e in initiator.take_finished()] == [True]


def test_an_owing_partner_is_not_asked_again():
    swarm = _pair(timeout_seconds=10)
    swarm.ask(0, 1)
    swarm.poll(0)
    swarm.now += 11
    swarm.poll(0)
    swarm.ask(0, 1)
    swarm.poll(0)
    (failed,) = swarm.nodes[0].take_finished()
    assert "rank 1 has not answered" in failed.failure
    swarm.settle()
    assert swarm.count("exchanges") == 1


def test_a_doubled_request_is_answered_twice_and_applied_once():
    swarm = _pair(retry_seconds=1.0)
    a, b = _even(swarm)
    swarm.ask(0, 1)
    swarm.poll(0)
    (to, head, payload) = swarm.post.bag[0]
    swarm.post.bag += [(to, head, payload.copy())] * 3
    swarm.settle()
    for rank in (0, 1):
        swarm.apply(rank)
        np.testing.assert_array_equal(np.concatenate(swarm.models[rank]), (a + b) / 2)
    # And a copy that comes after the next exchange.
    swarm.ask(0, 1)
    swarm.settle()
    swarm.post.bag.append((to, head, payload.copy()))
    swarm.settle()
    assert swarm.drift() == 0


def test_staleness_and_payload_are_told():
    swarm = _pair(chunks=3)
    swarm.steps[0] = 17
    swarm.ask(0, 1)
    swarm.settle()
    (exchange,) = swarm.nodes[0].take_finished()
    assert (exchange.partner, exchange.step, exchange.failure) == (1, 17, "")
    assert exchange.payload_bytes == 4 * sum(swarm.lengths)
    assert (exchange.blocks, exchange.blocks_skipped) == (3, 0)
    assert swarm.nodes[0].counters.payload_bytes == exchange.payload_bytes


# Refusals.


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("ill", [0, 1], ids=["initiator", "responder"])
@pytest.mark.parametrize("mode", ["nonblocking", "pull"])
def test_nan_is_refused_with_the_reason_and_nothing_changes(bad, ill, mode):
    swarm = _pair("lattice", mode)
    swarm.models[ill][0][BLOCK + 5] = bad
    swarm.apply(ill)
    healthy = swarm.models[1 - ill][0].copy()
    swarm.ask(0, 1)
    swarm.settle()
    (exchange,) = swarm.nodes[0].take_finished()
    assert exchange.failure == f"the weights of rank {ill} contain NaN or Inf"
    assert (swarm.count("exchanges"), swarm.count("exchanges_failed")) == (0, 1)
    swarm.apply(1 - ill)
    np.testing.assert_array_equal(swarm.models[1 - ill][0], healthy)


@pytest.mark.parametrize("ill", [0, 1], ids=["initiator", "responder"])
def test_nan_in_a_later_chunk_leaves_that_chunk_and_the_mean_as_they_were(ill):
    """Chunks before it may have been averaged: on both sides."""
    swarm = _pair(chunks=4)
    swarm.models[ill][2][5] = np.nan
    swarm.apply(ill)
    before = [[chunk.copy() for chunk in model] for model in swarm.models]
    swarm.ask(0, 1)
    swarm.settle()
    (exchange,) = swarm.nodes[0].take_finished()
    assert exchange.failure == f"the weights of rank {ill} contain NaN or Inf"
    assert (swarm.count("exchanges"), swarm.count("exchanges_failed")) == (0, 1)
    for rank in range(2):
        swarm.apply(rank)
    healthy = 1 - ill
    np.testing.assert_array_equal(swarm.models[healthy][2], before[healthy][2])
    for chunk in (0, 1, 3):
        mean = (before[0][chunk] + before[1][chunk]) / 2
        after = (swarm.models[0][chunk] + swarm.models[1][chunk]) / 2
        np.testing.assert_allclose(after, mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("ill", [0, 1], ids=["initiator", "responder"])
def test_nan_in_a_later_chunk_does_not_hold_the_responder(ill):
    """Blocking: the exchange is over for the initiator, so it must be for the responder."""
    swarm = _pair(mode="blocking", chunks=4)
    swarm.models[ill][2][5] = np.nan
    swarm.apply(ill)
    swarm.ask(0, 1)
    swarm.poll(0)
    swarm.nodes[1].finish(0)
    swarm.settle()
    assert swarm.nodes[0].wait(0)
    assert swarm.nodes[1]._admission.state is State.FREE


def test_a_request_that_comes_after_the_cancellation_is_refused():
    """On a network that reorders: it must not hold a node that serves one partner at a time."""
    swarm = _pair(mode="blocking", chunks=4)
    swarm.nodes[1].finish(0)
    swarm.ask(0, 1)
    swarm.poll(0)
    while (taken := swarm.post.take())[1].kind is not Kind.REQUEST:
        pass
    request = taken[1]
    cancel = Message(Kind.CANCEL, 0, request.exchange, 1, reason=Reason.NOT_FINITE)
    ((_, acknowledged),) = swarm.nodes[1].handle(cancel)
    assert (acknowledged.kind, acknowledged.chunk) == (Kind.REFUSE, 1)
    ((to, answer),) = swarm.nodes[1].handle(request)
    assert (to, answer.kind, answer.reason) == (0, Kind.REFUSE, Reason.NOT_FINITE)
    assert swarm.nodes[1]._admission.state is State.FREE


def test_a_cancellation_that_is_lost_is_repeated():
    """Otherwise its responder would stay with the exchange until the deadline."""
    swarm = _pair(mode="blocking", chunks=4, retry_seconds=1.0)
    swarm.models[0][2][5] = np.nan
    swarm.apply(0)
    swarm.nodes[1].finish(0)
    swarm.ask(0, 1)
    lost = 0
    for _ in range(200):
        for rank in range(2):
            swarm.poll(rank)
        while swarm.post.bag:
            to, message = swarm.post.take()
            if message.kind is Kind.CANCEL and lost < 3:
                lost += 1
                continue
            swarm.post.send(swarm.nodes[to].handle(message))
        if not swarm.nodes[0].owed():
            break
        swarm.now += 0.5
    assert lost == 3
    assert swarm.now < 10 < swarm.nodes[1]._timeout
    assert swarm.nodes[1]._admission.state is State.FREE
    (exchange,) = swarm.nodes[0].take_finished()
    assert exchange.failure == "the weights of rank 0 contain NaN or Inf"


# A node whose model is not finite takes that of a neighbour.


@pytest.mark.parametrize("mode", ["nonblocking", "blocking", "pull"])
@pytest.mark.parametrize("harm", [None, {"drop": 0.2, "duplicate": 0.2, "corrupt": 0.2}])
@pytest.mark.parametrize("codec", ["lattice", "float32"])
def test_a_node_that_is_not_finite_adopts_a_model(mode, harm, codec):
    swarm = Swarm(2, codecs.build(codec), mode, chunks=3, harm=harm)
    swarm.models[0][1][7] = np.nan
    swarm.apply(0)
    swarm.ask(0, 1)
    swarm.nodes[1].finish(0)
    swarm.settle()
    assert swarm.nodes[0].ill
    swarm.nodes[0].leave()
    swarm.nodes[0].ask(1, 1, adopt=True)
    swarm.settle()
    adopted = swarm.nodes[0].take_adopted()
    assert swarm.nodes[0].take_adopted() is None
    for chunk, model in enumerate(adopted):
        shown = sum(_flat(t, BLOCK) for t in swarm.nodes[1].published.terms(chunk))
        np.testing.assert_array_equal(model, shown)
    assert swarm.nodes[0].counters.adoptions == 1
    assert not any(n.counters.exchanges for n in swarm.nodes)


def test_nobody_adopts_a_model_that_is_not_finite():
    swarm = _pair()
    for rank in range(2):
        swarm.models[rank][0][7] = np.inf
        swarm.apply(rank)
    swarm.nodes[0].ask(1, 1, adopt=True)
    swarm.settle()
    assert swarm.nodes[0].take_adopted() is None
    (exchange,) = swarm.nodes[0].take_finished()
    assert exchange.failure == "the weights of rank 1 contain NaN or Inf"


# A node that leaves in the middle of it all.


@pytest.mark.parametrize("reason", [Reason.FAILED, Reason.LEFT])
@pytest.mark.parametrize("mode", ["nonblocking", "blocking", "pull"])
def test_one_that_parts_is_waited_for_by_nobody(mode, reason):
    swarm = Swarm(3, codecs.build("float32"), mode)
    for rank in (0, 1):
        swarm.ask(rank, 2)
        swarm.poll(rank)
    swarm.nodes[2].part(reason)
    assert not swarm.nodes[2].has_told
    swarm.settle()
    assert swarm.nodes[2].has_told
    for rank in (0, 1):
        node = swarm.nodes[rank]
        assert node.failed | node.left == {2}
        assert node.wait(0)
        assert node.owed() == []
        assert 2 in node.done
        (exchange,) = node.take_finished()
        assert exchange.failure
        node.leave()
        swarm.apply(rank)
        swarm.ask(rank, 2)
        swarm.poll(rank)
        assert node.wait(0), "an exchange with it is over at once"
    before = swarm.now
    for rank in (0, 1):
        swarm.nodes[rank].finish(1)
    swarm.nodes[0].leave()
    swarm.ask(0, 1)
    swarm.settle()
    assert swarm.now == before
    assert swarm.count("exchanges") >= 1


def test_a_signal_that_comes_while_one_waits_for_others_reaches_them():
    swarm = _pair()
    swarm.nodes[0].finish(5)
    swarm.settle()
    assert not swarm.nodes[1].asked
    swarm.nodes[0].end_by_signal()
    swarm.settle()
    assert swarm.nodes[1].asked


def test_nan_heals():
    swarm = _pair()
    swarm.models[1][0][7] = np.nan
    swarm.apply(1)
    swarm.ask(0, 1)
    swarm.settle()
    swarm.models[1][0][7] = 0.0
    swarm.apply(1)
    swarm.ask(0, 1)
    swarm.settle()
    assert swarm.count("exchanges") == 1


@pytest.mark.parametrize("mode", ["nonblocking", "blocking", "pull"])
def test_a_closed_node_refuses_at_once(mode):
    swarm = _pair(mode=mode)
    swarm.nodes[1].close()
    swarm.ask(0, 1)
    swarm.poll(0)
    swarm.settle(turns=3)
    (exchange,) = swarm.nodes[0].take_finished()
    assert exchange.failure == "rank 1 is shutting down"
    assert swarm.nodes[0].wait(0)
    assert swarm.drift() == 0


def test_closing_refuses_those_who_wait():
    swarm = _pair(mode="blocking")
    swarm.ask(0, 1)
    swarm.poll(0)
    swarm.deliver()
    assert not swarm.nodes[0].wait(0), "rank 1 trains: rank 0 waits"
    swarm.nodes[1].close()
    swarm.settle(turns=3)
    (exchange,) = swarm.nodes[0].take_finished()
    assert exchange.failure == "rank 1 is shutting down"


def test_another_codec_is_refused():
    # The first exchange of a lattice is exact, so the codecs differ from the second on.
    swarm = _pair("lattice")
    swarm.ask(0, 1)
    swarm.settle()
    swarm.nodes[1].averaging.codec = codecs.build("lattice", 7)
    swarm.nodes[0].take_finished()
    swarm.ask(0, 1)
    swarm.settle()
    (exchange,) = swarm.nodes[0].take_finished()
    assert exchange.failure == Reason.OTHER_CODEC.sentence(1)
    assert swarm.drift() < ROUNDING


@pytest.mark.parametrize("lengths", [[BLOCK], [BLOCK + 100, 7]])
def test_another_model_is_refused(lengths):
    swarm = _pair()
    stranger = Node(0, 2, lengths, codecs.build("float32"))
    stranger.published.publish([tf.zeros([n]) for n in lengths])
    stranger.ask(1, 0)
    _, request = stranger.poll()[0]
    if len(lengths) > 1:  # of one chunk, 1 is that once more
        request = Message(Kind.REQUEST, 0, 1, chunk=2, encoded=request.encoded)
    ((to, answer),) = swarm.nodes[1].handle(request)
    assert (to, answer.kind, answer.reason) == (0, Kind.REFUSE, Reason.OTHER_MODEL)
    assert swarm.drift() == 0


def test_weights_that_a_float_cannot_hold_are_left_out():
    """And not sent once more: that is for what a lattice cannot read."""
    swarm = _pair("float16")
    for rank, model in enumerate(swarm.models):
        model[0] *= np.float32(1e6)
        swarm.apply(rank)
    swarm.ask(0, 1)
    swarm.settle()
    (exchange,) = swarm.nodes[0].take_finished()
    assert not exchange.failure
    assert exchange.blocks_skipped == exchange.blocks > 0


# A rank that is far from the others: it stood still, or they did.


def _exchange(swarm, rank, partner):
    """A whole one; returns what its initiator says of it."""
    swarm.ask(rank, partner)
    if swarm.mode == "blocking":  # the partner has to come to its boundary too
        swarm.ask(partner, rank)
    swarm.settle()
    for each in (rank, partner):
        swarm.nodes[each].leave()
        swarm.apply(each)
    (exchange,) = (e for each in (rank, partner) for e in swarm.nodes[each].take_finished())
    return exchange


@pytest.mark.parametrize("mode", ["nonblocking", "blocking", "pull"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("chunks", [1, 5])
def test_what_is_too_far_to_be_read_is_averaged_exactly_at_once(mode, bits, chunks):
    swarm = Swarm(2, codecs.build("lattice", bits), mode, chunks=chunks)
    for _ in range(3):
        for rank in (0, 1):
            swarm.train(rank, 1e-3)
        usual = _exchange(swarm, 0, 1)
    swarm.train(1, 1.0)
    swarm.apply(1)
    a, b = (np.concatenate(m) for m in swarm.models)
    far = _exchange(swarm, 0, 1)
    for model, kept in zip(swarm.models, (None, b if mode == "pull" else None), strict=True):
        expected = (a + b) / 2 if kept is None else kept
        np.testing.assert_allclose(np.concatenate(model), expected, atol=1e-6)
    assert not far.failure
    assert far.blocks == usual.blocks
    assert far.blocks_skipped == 0
    # Both attempts travelled.
    assert far.payload_bytes == usual.payload_bytes * (1 + 32 // bits)
    if mode != "pull":
        assert swarm.count("exchanges_served") == swarm.count("exchanges") == 4
        assert swarm.drift() < ROUNDING


@pytest.mark.parametrize(("bits", "way", "farther"), [(4, 0.1, 3), (4, 1.0, 15), (8, 1.0, 5)])
def test_a_rank_that_stood_still_does_not_disturb_the_others_for_long(bits, way, farther):
    """Were its distance taken for the usual one, they would be 4.5, 58 and 8.5 times as far."""
    factors = []
    for seed in range(9):
        swarm = Swarm(4, codecs.build("lattice", bits), seed=seed)
        swarm.run(200, noise=0.003)
        usual = []
        for _ in range(6):
            swarm.run(swarm.count("exchanges") + 5, noise=0.003)
            usual.append(swarm.distance())
        moved = way * swarm.rng.normal(size=swarm.lengths[0])
        for rank in (1, 2, 3):
            swarm.models[rank][0] += moved.astype(np.float32)
            swarm.apply(rank)
        swarm.expected = swarm.total()
        swarm.run(swarm.count("exchanges") + 20, noise=0.003)  # ten for each rank, asking or asked
        factors.append(swarm.distance() / np.mean(usual))
        assert swarm.drift() < 3 * ROUNDING
    assert np.median(factors) < farther


@pytest.mark.parametrize("chunks", [1, 5])
def test_mean_stays_where_ranks_leap_amid_loss_doubles_disorder_and_damage(chunks):
    swarm = Swarm(3, codecs.build("lattice", 4), seed=11, chunks=chunks, harm=HARM)
    swarm.run(20, noise=0.003)
    repeated = 0
    for leap in range(12):
        before = swarm.count("payload_bytes"), swarm.count("exchanges")
        swarm.train(leap % 3, 1.0)
        swarm.run(swarm.count("exchanges") + 6, noise=0.003)
        assert swarm.drift() < 3 * ROUNDING  # corrections as large as the weights
        sent = swarm.count("payload_bytes") - before[0]
        usual = sum(codecs.blocks_of(n) for n in swarm.lengths) * BLOCK // 2
        repeated += sent > 2 * usual * (swarm.count("exchanges") - before[1])
    assert repeated > 3  # then longer ranges reach as far
    swarm.run(swarm.count("exchanges") + 40, noise=0.003)
    assert swarm.distance() < 0.1


# Pull.


@pytest.mark.parametrize("codec", ["float32", "lattice"])
@pytest.mark.parametrize("chunks", [1, 4])
def test_pull_changes_only_the_initiator(codec, chunks):
    swarm = _pair(codec, "pull", chunks=chunks)
    for _ in range(3):
        a, b = (np.concatenate(m) for m in swarm.models)
        swarm.ask(0, 1)
        swarm.settle()
        for rank in (0, 1):
            swarm.apply(rank)
        np.testing.assert_array_equal(np.concatenate(swarm.models[1]), b)
        np.testing.assert_allclose(np.concatenate(swarm.models[0]), (a + b) / 2, atol=0.004)
        assert np.abs(np.concatenate(swarm.models[0]) - a).max() > 0.001
    # The answer's model counts; a lattice begins with an exact exchange.
    bytes_a_weight = 4 + 4 + 4 if codec == "float32" else 4 + 1 + 1
    blocks = sum(codecs.blocks_of(length) for length in swarm.lengths)
    assert swarm.count("payload_bytes") == bytes_a_weight * blocks * BLOCK


def test_pull_with_harm_is_still_an_average():
    swarm = Swarm(4, codecs.build("lattice", 8), "pull", seed=6, harm=HARM)
    before = swarm.distance()
    swarm.run(300, noise=0)
    assert swarm.distance() < before / 1000


# Life signs.


def test_a_finished_node_tells_all_and_asks_after_the_missing():
    swarm = Swarm(3, codecs.build("float32"))
    swarm.nodes[0].finish(5)
    out = swarm.nodes[0].poll()
    assert [(to, m.kind) for to, m in out] == [(1, Kind.DONE), (2, Kind.DONE)]
    assert swarm.nodes[0].poll() == []
    swarm.nodes[1].handle(out[0][1])
    assert swarm.nodes[1].done == {0}
    swarm.nodes[1].step = 7
    swarm.now += 2
    for to, message in swarm.nodes[0].poll():
        assert message.kind is Kind.PING
        for _, pong in swarm.nodes[to].handle(message):
            assert pong.kind is Kind.PONG
            swarm.nodes[0].handle(pong)
    assert swarm.nodes[0].heard[1] == (2.0, 7)


def test_a_lost_done_is_asked_for():
    swarm = Swarm(2, codecs.build("float32"))
    for node in swarm.nodes:
        node.finish(1)
        node.poll()  # lost
    swarm.now += 2
    swarm.settle()
    assert [n.done for n in swarm.nodes] == [{0, 1}, {0, 1}]


@pytest.mark.parametrize("told", ["at once", "when asked for"])
def test_a_signal_to_one_ends_all(told):
    swarm = Swarm(3, codecs.build("float32"))
    swarm.nodes[0].finish(5, asked=True)
    if told == "when asked for":
        swarm.nodes[0].poll()  # lost
        for node in swarm.nodes[1:]:
            node.finish(6)
            node.poll()
            swarm.now += 2
    swarm.settle()
    assert all(node.asked for node in swarm.nodes)


def test_who_is_done_ends_nobody_else():
    swarm = Swarm(3, codecs.build("float32"))
    swarm.nodes[0].finish(5)
    swarm.settle()
    assert not any(node.asked for node in swarm.nodes)


@pytest.mark.parametrize("name", ["float32", "lattice8"])
@pytest.mark.parametrize("chunks", [1, 5])
def test_one_that_ended_earlier_follows_and_holds_nobody_back(name, chunks):
    swarm = Swarm(2, codecs.build(*CODECS[name]), chunks=chunks)
    a, b = (np.concatenate(m) for m in swarm.models)
    swarm.nodes[1].finish(50)
    swarm.settle()  # node 0 is told
    far = np.abs(a - b).max()
    for step in (51, 60, 70, 80, 90):
        swarm.steps[0] = step
        assert not _exchange(swarm, 0, 1).failure
        np.testing.assert_array_equal(np.concatenate(swarm.models[0]), a)
        now = np.abs(np.concatenate(swarm.models[1]) - a).max()
        assert now < 0.6 * far
        far = now


def test_one_that_ended_later_weighs_as_any_other():
    swarm = _pair()
    a, b = _even(swarm)
    swarm.nodes[1].finish(50)
    swarm.settle()
    swarm.steps[0] = 50
    _exchange(swarm, 0, 1)
    for model in swarm.models:
        np.testing.assert_array_equal(np.concatenate(model), (a + b) / 2)


# Blocking.


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
        elif node.wait(0):
            if node.averaged:
                node.leave()
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
        states = [n._admission.state.name for n in self.nodes]
        raise AssertionError(f"no progress: {states}, left {self.left}")


def _ring(swarm):
    n = swarm.size
    swarm.neighbors = {r: sorted({(r + 1) % n, (r - 1) % n}) for r in range(n)}


@pytest.mark.parametrize("chunks", [1, 4])
@pytest.mark.parametrize("who", ["first", "second", "both"])
def test_blocking_leaves_both_with_the_exact_average(chunks, who):
    for seed in range(10):
        swarm = Swarm(2, codecs.build("float32"), "blocking", chunks=chunks, seed=seed)
        a, b = _even(swarm)
        order = {"first": [0, 1], "second": [1, 0], "both": [0, 1]}[who]
        for rank in order:
            swarm.ask(rank, 1 - rank)
            swarm.poll(rank)
            if who != "both":
                for _ in range(len(swarm.post.bag)):
                    swarm.deliver()
                if rank == order[0]:
                    assert not swarm.nodes[rank].wait(0), "waits for the pair"
        swarm.settle()
        for rank in (0, 1):
            node = swarm.nodes[rank]
            assert node.wait(0)
            if not node.averaged:  # was told that the other waited itself, then served it
                pytest.fail("rank was left without an average")
            node.leave()
            swarm.apply(rank)
            np.testing.assert_array_equal(np.concatenate(swarm.models[rank]), (a + b) / 2)
        assert swarm.count("exchanges") == swarm.count("exchanges_served") == 1


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("ring", [False, True], ids=["complete", "ring"])
@pytest.mark.parametrize("seed", range(3))
def test_blocking_never_deadlocks(size, ring, seed):
    swarm = Blocking(size, codecs.build("float32"), seed=seed)
    if ring:
        _ring(swarm)
    swarm.run()
    assert swarm.drift() < ROUNDING
    assert swarm.count("exchanges_failed") == 0
    assert swarm.count("exchanges") == swarm.count("exchanges_served") > 0


@pytest.mark.parametrize("size", [3, 4, 8])
@pytest.mark.parametrize("seed", range(5))
def test_blocking_cycle_all_at_once(size, seed):
    """Everybody asks the next one on a ring, all requests cross, then random orders."""
    swarm = Blocking(size, codecs.build("float32"), seed=seed, boundaries=3)
    _ring(swarm)
    for rank in range(size):
        swarm.train(rank, 0.003)
        swarm.apply(rank)
        swarm.nodes[rank].ask((rank + 1) % size, 1)
        swarm.stands[rank] = True
    for rank in range(size):
        swarm.poll(rank)
    assert len(swarm.post.bag) == size
    swarm.run()
    assert swarm.drift() < ROUNDING


@pytest.mark.parametrize("seed", range(3))
def test_blocking_with_uneven_speeds(seed):
    weights = np.array([1.0, 1.0, 0.1, 1.0])
    swarm = Blocking(4, codecs.build("float32"), seed=seed)
    _ring(swarm)
    swarm.run(weights=weights / weights.sum())
    assert swarm.drift() < ROUNDING


@pytest.mark.parametrize("name", ["float32", "lattice8", "lattice4"])
@pytest.mark.parametrize("harm", [None, HARM], ids=["calm", "harm"])
def test_blocking_with_several_chunks(name, harm):
    swarm = Blocking(
        4, codecs.build(*CODECS[name]), seed=3, chunks=5, harm=harm, retry_seconds=0.01
    )
    swarm.run()
    assert swarm.drift() < ROUNDING


def test_blocking_node_serves_nobody_while_it_trains():
    swarm = _pair(mode="blocking")
    swarm.ask(0, 1)
    swarm.poll(0)
    swarm.deliver()
    for _ in range(5):
        swarm.poll(1)
    assert not swarm.post.bag
    assert len(swarm.nodes[1].published.terms(0)) == 1
    assert swarm.nodes[1]._admission.state is State.TRAINING


def test_blocking_node_stays_at_its_boundary_while_it_serves():
    """Leaving while a request is being read, it would train on without its half."""
    over = []

    class Watching(codecs.Codec):
        """float32 that looks whether the training thread would go, when rank 1 encodes."""

        def __init__(self):
            self.inner = codecs.build("float32")
            self.wire_id, self.dtype = self.inner.wire_id, self.inner.dtype
            self.words, self.width = self.inner.words, self.inner.width

        def encode(self, terms, *rest):
            over.append(swarm.nodes[1].wait(0))
            return self.inner.encode(terms, *rest)

        def _read(self, *sides):
            return self.inner._read(*sides)

    swarm = Swarm(3, codecs.build("float32"), "blocking")
    swarm.nodes[1].averaging.codec = Watching()
    swarm.nodes[2].finish(0)
    swarm.poll(2)
    # Rank 1 asks rank 2; meanwhile rank 0 asks rank 1, and waits.
    for rank, partner in ((1, 2), (0, 1)):
        swarm.ask(rank, partner)
        swarm.poll(rank)
    over.clear()
    swarm.settle()
    assert over, "rank 1 did serve rank 0"
    assert not any(over)


def test_blocking_averages_once_a_boundary():
    """A quick partner's next request waits for the next boundary, though the training thread of
    this node has not woken up yet; else two nodes do not take turns as Algorithm 1 does."""
    swarm = _pair(mode="blocking")
    for rank in (0, 1):
        swarm.ask(rank, 1 - rank)
        swarm.poll(rank)
    swarm.settle()
    # Rank 0 is quick: it leaves, trains and stands at its next boundary.
    assert swarm.nodes[0].wait(0)
    swarm.nodes[0].leave()
    swarm.train(0, 0.1)
    swarm.apply(0)
    ahead = swarm.models[0][0].copy()
    swarm.ask(0, 1)
    swarm.poll(0)
    while swarm.post.bag:
        swarm.deliver()
    assert not swarm.nodes[0].wait(0), "rank 1 has not taken its local step yet"
    # Only now rank 1 wakes up.
    assert swarm.nodes[1].wait(0)
    swarm.nodes[1].leave()
    swarm.apply(1)
    swarm.train(1, 0.1)
    swarm.apply(1)
    behind = swarm.models[1][0].copy()
    swarm.ask(1, 0)
    swarm.settle()
    for rank in (0, 1):
        swarm.nodes[rank].leave()
        swarm.apply(rank)
        np.testing.assert_allclose(swarm.models[rank][0], (ahead + behind) / 2, atol=1e-6)


def test_blocking_gives_up_a_partner_that_falls_silent(caplog):
    swarm = _pair(mode="blocking", chunks=8, timeout_seconds=10)
    swarm.ask(1, 0)
    swarm.poll(1)
    while swarm.post.bag:
        swarm.deliver()
    swarm.ask(0, 1)
    swarm.poll(0)
    assert swarm.nodes[0]._admission.state is State.PAIRED
    swarm.post.bag.clear()  # rank 1 is gone
    assert not swarm.nodes[0].wait(0)
    swarm.now += 11
    with caplog.at_level(logging.WARNING, "swarm_tf"):
        swarm.poll(0)
    assert "rank 1" in caplog.text
    swarm.poll(0)
    assert swarm.nodes[0].wait(0)


def test_pull_both_read_when_both_ask_at_once():
    """Each read changes its reader only, so none can stand for both."""
    swarm = _pair(mode="pull")
    before = swarm.models[1][0] - swarm.models[0][0]
    for rank in (0, 1):
        swarm.ask(rank, 1 - rank)
        swarm.poll(rank)
    swarm.settle()
    for rank in (0, 1):
        swarm.apply(rank)
    assert swarm.count("exchanges") == 2
    # The first to read stands in the middle; the second reads it there, or where it was.
    after = swarm.models[1][0] - swarm.models[0][0]
    assert np.all(np.abs(after) <= np.abs(before) / 4 + 1e-6)
