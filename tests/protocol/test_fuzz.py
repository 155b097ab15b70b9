"""Messages with a valid CRC and bad fields are dropped and counted; the thread goes on."""

import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from swarm_tf import codec as codecs
from swarm_tf.codec import BLOCK
from swarm_tf.driver import CommunicationThread, Driver
from swarm_tf.protocol import wire
from swarm_tf.protocol.messages import Kind, Message, Reason
from swarm_tf.transport.local import LocalNetwork

FINGERPRINT = 7
LENGTHS = [2 * BLOCK, BLOCK]
EDGE_VALUES = [0, 1, 2, 3, 7, 255, 2**16 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1]
FIELDS = {  # of the header: place, bytes
    "version": (4, 1), "kind": (5, 1), "reason": (6, 1), "codec": (7, 1), "words": (8, 1),
    "dtype": (9, 1), "sender": (10, 2), "exchange": (12, 8), "chunk": (20, 4), "scales": (24, 4),
    "step": (28, 8), "length": (36, 8), "seed": (44, 8), "payload": (60, 4), "accepted": (64, 4),
}  # fmt: skip


def _model(scale):
    return [tf.constant(np.full(n, scale, np.float32)) for n in LENGTHS]


def _driver(transport, scale, codec, fingerprint=FINGERPRINT):
    channels = [codecs.build(*codec).channel(length) for length in LENGTHS]
    driver = Driver(channels, transport, fingerprint=fingerprint)
    driver.replica.publish(_model(scale))
    return driver


def _copy(driver):
    """The communication copy as one vector."""
    return np.concatenate(
        [
            np.sum([np.asarray(t).reshape(-1)[:n] for t in driver.replica.terms(c)], axis=0)
            for c, n in enumerate(LENGTHS)
        ]
    )


@pytest.fixture
def victim():
    """A network of three ranks, and the driver of rank 1, which gets the bad messages."""
    network = LocalNetwork(3)
    driver = _driver(network[1], 1.0, ("lattice", 8))
    driver.start()
    yield network, driver
    driver.stop()


def _lattice(**fields):
    encoded = codecs.build("lattice", 8).encode(
        (_model(1.01)[0],), 5, np.full(2, fields.pop("scale", 1e-3), np.float32)
    )
    return replace(encoded, **fields)


def _settle(driver, handled):
    deadline = time.monotonic() + 60
    while not handled():
        assert time.monotonic() < deadline, driver.counters
        time.sleep(0.01)


BAD = {
    "one scale of two": lambda e: replace(e, scales=e.scales[:1]),
    "a third of the payload": lambda e: replace(e, payload=e.payload[:, :512]),
    "length 2^40": lambda e: replace(e, length=2**40),
    "scale inf": lambda e: _lattice(scale=np.inf),
    "scale NaN": lambda e: _lattice(scale=np.nan),
    "scale negative": lambda e: replace(e, scales=-e.scales),
    "scale 0": lambda e: replace(e, scales=0 * e.scales),
    "another type": lambda e: replace(e, payload=tf.cast(e.payload, tf.float32)),
    "no payload": lambda e: replace(e, payload=e.payload[:, :0]),
    "seed 2^63": lambda e: replace(e, seed=2**63),
    "checksums twice": lambda e: replace(e, checksums=np.concatenate([e.checksums] * 2)),
}


@pytest.mark.parametrize("kind", [Kind.REQUEST, Kind.REPLY])
@pytest.mark.parametrize("what", BAD)
def test_a_bad_field_changes_nothing(victim, what, kind):
    network, driver = victim
    accepted = np.ones(2, np.bool_) if kind is Kind.REPLY else None
    if kind is Kind.REPLY:
        driver.request(0, 3)
        _settle(driver, lambda: driver.view.unanswered)
    message = Message(kind, 0, 1, 0, encoded=BAD[what](_lattice()), accepted=accepted)
    head, payload = wire.pack(message, FINGERPRINT)
    before = _copy(driver)
    network[0].send(1, head, payload)
    network[0].send(1, *wire.pack(Message(Kind.PING, 0), FINGERPRINT))
    _settle(driver, lambda: any(wire.unpack(h, FINGERPRINT)[0].kind is Kind.PONG
                              for _, h, _ in network[0].receive()))  # fmt: skip
    driver.check()
    np.testing.assert_array_equal(_copy(driver), before)


def test_a_message_with_a_wrong_sender_is_dropped(victim):
    network, driver = victim
    done = Message(Kind.DONE, 2, reason=Reason.LEFT)
    network[0].send(1, *wire.pack(done, FINGERPRINT))
    _settle(driver, lambda: driver.counters.messages_dropped == 1)
    network[0].send(1, *wire.pack(replace(done, sender=60_000), FINGERPRINT))
    _settle(driver, lambda: driver.counters.messages_dropped == 2)
    assert driver.view.left == set()
    network[2].send(1, *wire.pack(done, FINGERPRINT))
    _settle(driver, lambda: driver.view.left == {2})
    driver.check()


def _mutated(rng, head, payload):
    """A valid message of which some fields or bytes are changed, with a valid CRC again."""
    head = bytearray(head[:-4])
    for _ in range(int(rng.integers(1, 4))):
        if rng.random() < 0.7:
            place, size = FIELDS[str(rng.choice(list(FIELDS)))]
            value = EDGE_VALUES[rng.integers(len(EDGE_VALUES))] % 2 ** (8 * size)
            head[place : place + size] = value.to_bytes(size, "little")
        else:
            head[rng.integers(len(head))] = int(rng.integers(256))
    if rng.random() < 0.2:
        head = head[: int(rng.integers(len(head) + 1))]
    if rng.random() < 0.1:
        head += bytes(int(rng.integers(1, 200)))
    if rng.random() < 0.2:
        payload = payload[: int(rng.integers(len(payload) + 1))]
    return bytes(head) + zlib.crc32(head).to_bytes(4, "little"), payload


@pytest.mark.parametrize("nodes", [100, pytest.param(250, marks=pytest.mark.slow)])
def test_mutated_messages_are_dropped_or_change_little(nodes):
    """This thread handles them as the communication thread does, so that the test takes seconds.

    After every few hundred messages a new node takes over, since a node that has seen a high
    exchange number ignores all lower numbers of that sender.
    """
    rng = np.random.default_rng(0)
    dropped = averaged = 0
    for _ in range(nodes):
        driver = _mutated_messages(rng, 400)
        dropped += driver.counters.messages_dropped
        averaged += driver.counters.exchanges + driver.counters.exchanges_served
    assert dropped > 200 * nodes
    assert averaged > 0.4 * nodes, "too few of the harmless changes were averaged"


def _mutated_messages(rng, count):
    network = LocalNetwork(3)
    driver = _driver(network[1], 1.0, ("lattice", 8))
    thread = CommunicationThread(network[1])
    thread._drivers = {FINGERPRINT: driver}
    accepted = np.ones(2, np.bool_)
    float32 = codecs.build("float32").encode((_model(1.01)[0],), 5, np.zeros(0, np.float32))
    seeds = [
        *(Message(kind, 0, 1, 0, step=3) for kind in Kind),
        Message(Kind.REQUEST, 0, 1, 0, encoded=_lattice()),
        Message(Kind.REQUEST, 0, 1, 0, encoded=float32),
        Message(Kind.REPLY, 0, 1, 0, encoded=float32, accepted=accepted),
        Message(Kind.DONE, 0),
    ]
    heads = [wire.pack(message, FINGERPRINT) for message in seeds]
    driver.request(0, 3)
    for number in range(count):
        head, payload = heads[rng.integers(len(heads))]
        # Most messages are refused by their header, which is cheap; the network copies payloads.
        network[0].send(1, *_mutated(rng, head, payload))
        if number % 100 == 99:
            thread.turn()
            network[0].receive()
            driver.check()
    y = _copy(driver)
    assert np.isfinite(y).all()
    assert np.abs(y - 1).max() < 0.1, "further than a real exchange would move it"
    # Then a normal exchange works, with a rank that has sent nothing yet.
    other = _driver(network[2], 3.0, ("lattice", 8))
    before = _copy(driver) + _copy(other)
    other.request(1, 1)
    second = CommunicationThread(network[2])
    second._drivers = {FINGERPRINT: other}
    for _ in range(50):
        second.turn()
        thread.turn()
    other.check()
    driver.check()
    assert other.counters.exchanges == 1
    np.testing.assert_allclose(_copy(other), _copy(driver), rtol=0, atol=1e-5)
    np.testing.assert_allclose(_copy(driver) + _copy(other), before, rtol=1e-6)
    return driver


def test_two_trainings_on_one_transport_get_only_their_own_messages():
    """As with two callbacks in one list, or two models in one loop."""
    network = LocalNetwork(2)
    drivers = {
        (rank, f): _driver(network[rank], 1.0 + rank + f, ("float32", 8), fingerprint=f)
        for rank in (0, 1)
        for f in (1, 2)
    }
    for driver in drivers.values():
        driver.start()
    for f in (1, 2):
        drivers[0, f].request(1, 1)
    for f in (1, 2):
        assert drivers[0, f].wait(60)
        np.testing.assert_allclose(_copy(drivers[0, f]), 1.5 + f)
        np.testing.assert_allclose(_copy(drivers[1, f]), 1.5 + f)
    drivers[0, 1].stop()
    drivers[1, 2].request(0, 2)
    assert drivers[1, 2].wait(60), "the other training of the transport goes on"
    for at in ((0, 2), (1, 1), (1, 2)):
        drivers[at].stop()
    assert sum(driver.counters.messages_dropped for driver in drivers.values()) == 0
