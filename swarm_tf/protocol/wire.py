"""Messages as bytes: a fixed binary header, the small arrays, the payload. Nothing is unpickled.

    header   magic, version, kind, reason, codec, checksum words; ids, lengths; fingerprint; CRC-32
    arrays   scales float32 [blocks], checksums uint32 [words, blocks], accepted 1 bit a block
    payload  the codec's bytes, sent separately, from and to a buffer of their own

The CRC covers header and arrays; damage to the payload shows in the codec's checksums.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import tensorflow as tf

from swarm_tf import buffers
from swarm_tf.buffers import Bytes
from swarm_tf.codec import NAME_BYTES, SEEDS, Encoded, blocks_of
from swarm_tf.protocol.messages import Kind, Message, Reason

VERSION = 3
EXCHANGES = 2**48
"""No node counts so far. If a larger number were accepted, real ones after it would look old."""

_HEADER = struct.Struct(f"<4sBBB{NAME_BYTES}sBBHQIIQQQQII")
_FINGERPRINT = 14  # its place in the header
_MAGIC = b"swtf"
_CRC = struct.Struct("<I")
_NUMBER_TYPES = {
    *(tf.uint8, tf.uint16, tf.uint32, tf.uint64),
    *(tf.int8, tf.int16, tf.int32, tf.int64),
    *(tf.bfloat16, tf.float16, tf.float32, tf.float64),
}


class Unreadable(Exception):
    """The bytes are no valid message: damaged, or from another model or version."""


def pack(message: Message, fingerprint: int) -> tuple[bytes, Bytes]:
    """The head (header and arrays) and the payload, uint8 [bytes] (empty without one).

    The payload is a view of the tensor's memory where that is on the host.
    """
    encoded, accepted = message.encoded, message.accepted
    arrays, payload, dtype = b"", np.zeros(0, np.uint8), tf.uint8
    if encoded is not None:
        dtype = tf.as_dtype(encoded.payload.dtype)
        payload = np.asarray(encoded.payload).reshape(-1).view(np.uint8)
        arrays = encoded.scales.tobytes() + encoded.checksums.tobytes()
    if accepted is not None:
        arrays += np.packbits(accepted).tobytes()
    header = _HEADER.pack(
        _MAGIC,
        VERSION,
        message.kind,
        message.reason,
        encoded.codec.encode("ascii") if encoded else b"",
        encoded.checksums.shape[0] if encoded else 0,
        dtype.as_datatype_enum,
        message.sender,
        message.exchange,
        message.chunk,
        len(encoded.scales) if encoded else 0,
        message.step,
        encoded.length if encoded else 0,
        encoded.seed if encoded else 0,
        fingerprint,
        len(payload),
        accepted is not None,
    )
    head = header + arrays
    return head + _CRC.pack(zlib.crc32(head)), payload


def read(source: int, head: bytes, payload: Bytes, fingerprint: int) -> Message:
    """The message that arrived from rank `source` as `head` and `payload`, uint8 [bytes].

    Raises:
      Unreadable: it is damaged, the sender's version or model is another one, or the sender is not
        who it claims to be.
    """
    message, payload_bytes = unpack(head, fingerprint)
    if payload_bytes != len(payload):
        raise Unreadable("payload cut short")
    if message.sender != source:
        raise Unreadable(f"rank {source} claims to be rank {message.sender}")
    return attach(message, payload)


def unpack(head: bytes, fingerprint: int) -> tuple[Message, int]:
    """The message without its payload, and the payload's size in bytes.

    Raises:
      Unreadable: the head is damaged, or the sender's version or model is another one.
    """
    if len(head) < _HEADER.size + _CRC.size or head[:4] != _MAGIC:
        raise Unreadable("not a message")
    if zlib.crc32(head[: -_CRC.size]) != _CRC.unpack(head[-_CRC.size :])[0]:
        raise Unreadable("damaged header")
    (_, version, kind, reason, name, words, dtype, sender, exchange, chunk, n_scales, step,
     length, seed, theirs, payload_bytes, has_accepted) = _HEADER.unpack_from(head)  # fmt: skip
    if version != VERSION or theirs != fingerprint:
        raise Unreadable(f"rank {sender} runs another version, model or configuration")
    try:
        kind, reason, dtype = Kind(kind), Reason(reason), _number_type(dtype)
        codec = name.rstrip(b"\0").decode("ascii")
    except (ValueError, TypeError):
        raise Unreadable(f"rank {sender} sent an unknown kind, reason or type") from None
    if seed >= SEEDS or exchange >= EXCHANGES:
        raise Unreadable(f"rank {sender} sent a seed or an exchange number that is too large")
    blocks, at = blocks_of(length), _HEADER.size
    arrays = 4 * (n_scales + words * blocks) if codec else 0
    arrays += -(-blocks // 8) if has_accepted else 0
    if at + arrays + _CRC.size != len(head):  # nothing is allocated by what a header says
        raise Unreadable(f"rank {sender} sent lengths that do not fit its message")
    encoded = accepted = None
    if codec:
        scales = np.frombuffer(head, np.float32, n_scales, at)
        at += scales.nbytes
        sums = np.frombuffer(head, np.uint32, words * blocks, at).reshape(words, blocks)
        at += sums.nbytes
        payload = np.zeros((0, 0), dtype.as_numpy_dtype)
        encoded = Encoded(codec, length, seed, scales, sums, payload)
    if has_accepted:
        bits = np.frombuffer(head, np.uint8, -(-blocks // 8), at)
        accepted = np.unpackbits(bits, count=blocks).astype(np.bool_)
    message = Message(kind, sender, exchange, chunk, step, reason, encoded, accepted)
    return message, payload_bytes


def _number_type(value: int) -> tf.DType:
    """Raises TypeError or ValueError if it is not the type of a payload."""
    dtype = tf.as_dtype(value)
    if dtype not in _NUMBER_TYPES:
        raise ValueError(value)
    return dtype


def fingerprint_of(head: bytes) -> int | None:
    """The fingerprint in a head; None if the head is too short."""
    if len(head) < _HEADER.size:
        return None
    return int(_HEADER.unpack_from(head)[_FINGERPRINT])


def attach(message: Message, payload: Bytes) -> Message:
    """Give the message the payload that arrived for it, uint8 [bytes]."""
    if message.encoded is not None:
        dtype = tf.as_dtype(message.encoded.payload.dtype)
        blocks = message.encoded.checksums.shape[1]
        if payload.nbytes % (dtype.size * max(blocks, 1)) or (payload.nbytes and not blocks):
            raise Unreadable("payload cut short")
        rows = payload.reshape(blocks, -1 if blocks else 0)
        message.encoded.payload = _as_tensor(rows, dtype)
    return message


def _as_tensor(rows: Bytes, dtype: tf.DType) -> tf.Tensor:
    """uint8 [blocks, bytes] as numbers [blocks, n], without a copy if the memory is aligned."""
    same_size = rows.view(f"u{dtype.size}")
    if rows.size and buffers.is_aligned(rows):
        tensor = tf.experimental.dlpack.from_dlpack(same_size.__dlpack__())
    else:
        tensor = tf.convert_to_tensor(same_size)
    return tensor if tensor.dtype == dtype else tf.bitcast(tensor, dtype)
