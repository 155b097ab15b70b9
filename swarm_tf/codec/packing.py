"""Small integers in bytes: 1 to 8 bits a weight, without gaps.

The bits are cut into pieces of 8, 4, 2 and 1 (7 = 4 + 2 + 1), since each divides a byte. A byte of
a w-bit piece holds 8/w weights from 8/w different stretches of the block, so packing is shifts
of whole contiguous stretches and vectorises.
"""

from __future__ import annotations

import tensorflow as tf

from swarm_tf.codec.kernels import BLOCK


def _pieces(bits: int) -> list[int]:
    return [width for width in (8, 4, 2, 1) if bits & width]


def _u8(value: int) -> tf.Tensor:
    return tf.constant(value, tf.uint8)


def pack(values: tf.Tensor, bits: int) -> tf.Tensor:
    """uint8 [blocks, BLOCK], each below 2**bits -> uint8 [blocks, BLOCK * bits // 8]."""
    packed, low = [], 0
    for width in _pieces(bits):
        stretch = BLOCK * width // 8
        piece = tf.bitwise.right_shift(values, _u8(low)) if low else values
        if width < 8:
            piece = tf.bitwise.bitwise_and(piece, _u8(2**width - 1))
        byte = piece[:, :stretch]
        for i in range(1, 8 // width):
            shifted = tf.bitwise.left_shift(
                piece[:, i * stretch : (i + 1) * stretch], _u8(i * width)
            )
            byte = tf.bitwise.bitwise_or(byte, shifted)
        packed.append(byte)
        low += width
    return tf.concat(packed, axis=1)


def unpack(packed: tf.Tensor, bits: int) -> tf.Tensor:
    """The inverse of `pack`: uint8 [blocks, BLOCK * bits // 8] -> uint8 [blocks, BLOCK]."""
    values, low, at = None, 0, 0
    for width in _pieces(bits):
        stretch = BLOCK * width // 8
        byte = packed[:, at : at + stretch]
        if width < 8:
            mask = _u8(2**width - 1)
            byte = tf.concat(
                [
                    tf.bitwise.bitwise_and(tf.bitwise.right_shift(byte, _u8(i * width)), mask)
                    for i in range(8 // width)
                ],
                axis=1,
            )
        if low:
            byte = tf.bitwise.left_shift(byte, _u8(low))
        values = byte if values is None else tf.bitwise.bitwise_or(values, byte)
        low += width
        at += stretch
    return values
