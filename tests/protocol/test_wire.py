"""Messages as bytes and back."""

import pickle

import numpy as np
import pytest
import tensorflow as tf

from swarm_tf import codec as codecs
from swarm_tf.codec import BLOCK, blocks_of
from swarm_tf.protocol import wire
from swarm_tf.protocol.messages import Kind, Message, Reason

FINGERPRINT = 2**64 - 5
CODECS = codecs.variants()


def _encoded(name="lattice", bits=8, length=2 * BLOCK + 17):
    x = tf.constant(np.random.default_rng(0).normal(size=length).astype(np.float32))
    scales = np.linspace(0.01, 0.02, blocks_of(length)).astype(np.float32)
    return codecs.build(name, bits).encode((x,), 2**62 - 1, scales)


def _made_up(codec, length):
    """Random bytes in the form of an encoding, since a codec would be compiled for each length.

    Real ones travel in tests/codec/laws.py.
    """
    rng, blocks = np.random.default_rng(0), blocks_of(length)
    numbers = rng.integers(256, size=[blocks, codec.row_length * codec.dtype.size], dtype=np.uint8)
    payload = tf.constant(numbers.view(codec.dtype.as_numpy_dtype))
    checksums = rng.integers(2**32, size=[codec.words, blocks], dtype=np.uint32)
    scales = np.ones(blocks if codec.name == "lattice" else 0, np.float32)
    return codecs.Encoded(codec.wire_name, length, 7, scales, checksums, payload)


def _request(**options):
    return Message(Kind.REQUEST, 3, 2**40, 5, 2**33, encoded=_encoded(**options))


def _reply():
    accepted = np.array([True, False, True])
    return Message(Kind.REPLY, 65535, 7, 1, 9, encoded=_encoded(), accepted=accepted)


def _round_trip(message):
    head, payload = wire.pack(message, FINGERPRINT)
    assert isinstance(head, bytes)
    assert payload.dtype == np.uint8
    arrived, size = wire.unpack(head, FINGERPRINT)
    assert size == len(payload)
    return wire.attach(arrived, payload.copy())


def _assert_same(a, b):
    for name in ("kind", "sender", "exchange", "chunk", "step", "reason"):
        assert getattr(a, name) == getattr(b, name), name
    if a.accepted is None:
        assert b.accepted is None
    else:
        np.testing.assert_array_equal(a.accepted, b.accepted)
    if a.encoded is None:
        assert b.encoded is None
        return
    for name in ("codec", "length", "seed", "payload_bytes"):
        assert getattr(a.encoded, name) == getattr(b.encoded, name), name
    np.testing.assert_array_equal(a.encoded.scales, b.encoded.scales)
    np.testing.assert_array_equal(a.encoded.checksums, b.encoded.checksums)
    sent, arrived = np.asarray(a.encoded.payload), np.asarray(b.encoded.payload)
    assert sent.dtype == arrived.dtype
    assert sent.tobytes() == arrived.tobytes()


@pytest.mark.parametrize(
    "message",
    [
        *(Message(kind, sender, step=step) for kind in Kind for sender, step in [(0, 0), (9, 77)]),
        *(Message(Kind.REFUSE, 1, 2, 3, reason=reason) for reason in Reason),
        _request(),
        _reply(),
    ],
    ids=lambda m: f"{m.kind.name}-{m.sender}-{m.reason.name}",
)
def test_every_kind_of_message_survives_the_wire(message):
    _assert_same(message, _round_trip(message))


@pytest.mark.parametrize(("name", "bits"), CODECS)
@pytest.mark.parametrize("length", [1, BLOCK, 3 * BLOCK + 1, 9 * BLOCK])
def test_messages_of_every_codec_survive_the_wire(name, bits, length):
    message = Message(Kind.REQUEST, 3, 1, encoded=_made_up(codecs.build(name, bits), length))
    _assert_same(message, _round_trip(message))


def test_accepted_survives_the_wire_for_any_number_of_blocks():
    rng = np.random.default_rng(0)
    for blocks in (1, 7, 8, 9, 64, 65):
        encoded = _made_up(codecs.build("lattice", 8), blocks * BLOCK)
        accepted = rng.random(blocks) < 0.5
        message = Message(Kind.REPLY, 0, encoded=encoded, accepted=accepted)
        np.testing.assert_array_equal(_round_trip(message).accepted, accepted)


def test_a_request_without_payload_survives_the_wire():
    encoded = _encoded(name="bfloat16")
    message = Message(Kind.REQUEST, 0, 1, encoded=encoded.without_payload())
    _, payload = wire.pack(message, FINGERPRINT)
    assert len(payload) == 0
    _assert_same(message, _round_trip(message))


def test_a_received_payload_is_decoded():
    codec, encoded = codecs.build("lattice", 4), _encoded(bits=4)
    arrived = _round_trip(Message(Kind.REQUEST, 0, encoded=encoded)).encoded
    decoded = codec.decode(encoded, arrived)
    accepted, spread = decoded.accepted, decoded.spread
    assert accepted.all()
    assert not spread.any()


@pytest.mark.parametrize("message", [_request(), _reply(), Message(Kind.DONE, 1)])
def test_every_truncated_head_is_unreadable(message):
    head, _ = wire.pack(message, FINGERPRINT)
    for length in range(len(head)):
        with pytest.raises(wire.Unreadable):
            wire.unpack(head[:length], FINGERPRINT)
    with pytest.raises(wire.Unreadable):
        wire.unpack(head + b"\0", FINGERPRINT)


def test_every_flipped_bit_of_the_head_is_unreadable():
    head, _ = wire.pack(_reply(), FINGERPRINT)
    for at in range(len(head)):
        for bit in range(8):
            damaged = bytearray(head)
            damaged[at] ^= 1 << bit
            with pytest.raises(wire.Unreadable):
                wire.unpack(bytes(damaged), FINGERPRINT)


def test_random_bytes_are_unreadable():
    rng = np.random.default_rng(0)
    for _ in range(500):
        with pytest.raises(wire.Unreadable):
            wire.unpack(b"swtf" + rng.bytes(int(rng.integers(0, 300))), FINGERPRINT)


@pytest.mark.parametrize("other", [0, FINGERPRINT - 1, FINGERPRINT ^ 2**63])
def test_a_message_with_another_fingerprint_is_unreadable(other):
    head, _ = wire.pack(_request(), FINGERPRINT)
    with pytest.raises(wire.Unreadable, match=r"rank 3 .*another version, model or configuration"):
        wire.unpack(head, other)


def test_a_message_of_another_version_is_unreadable(monkeypatch):
    monkeypatch.setattr(wire, "VERSION", wire.VERSION + 1)
    head, _ = wire.pack(_request(), FINGERPRINT)
    monkeypatch.undo()
    with pytest.raises(wire.Unreadable):
        wire.unpack(head, FINGERPRINT)


def test_a_truncated_payload_is_unreadable():
    head, payload = wire.pack(_request(name="float32"), FINGERPRINT)
    message, size = wire.unpack(head, FINGERPRINT)
    assert size == len(payload)
    for length in (1, len(payload) - 1, len(payload) - 3):
        with pytest.raises(wire.Unreadable):
            wire.attach(message, payload[:length])


def test_nothing_is_unpickled(monkeypatch):
    def bomb(*_args, **_kwargs):
        raise AssertionError("unpickled")

    dangerous = pickle.dumps({"no": "message"})
    for name in ("loads", "load", "Unpickler"):
        monkeypatch.setattr(pickle, name, bomb)
    monkeypatch.setattr(np, "load", bomb)
    _assert_same(_reply(), _round_trip(_reply()))
    with pytest.raises(wire.Unreadable):
        wire.unpack(dangerous, FINGERPRINT)
    head, _ = wire.pack(_request(name="float32", length=64), FINGERPRINT)
    message, size = wire.unpack(head, FINGERPRINT)
    block = np.zeros(size, np.uint8)
    block[: len(dangerous)] = np.frombuffer(dangerous, np.uint8)
    assert wire.attach(message, block).encoded.payload.dtype == np.float32


def test_the_header_is_small():
    for kind in (Kind.DONE, Kind.PING, Kind.REFUSE):
        head, payload = wire.pack(Message(kind, 1), FINGERPRINT)
        assert len(head) <= 128
        assert len(payload) == 0
