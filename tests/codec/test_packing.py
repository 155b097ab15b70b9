"""Laws of packing: nothing is lost, nothing is wasted, and the bytes are the documented ones."""

import numpy as np
import pytest
import reference
import tensorflow as tf

from swarm_tf.codec import packing

BITS = range(1, 9)


def _values(bits):
    values = np.random.default_rng(bits).integers(0, 2**bits, (7, reference.BLOCK), np.uint8)
    values[0], values[1] = 0, 2**bits - 1
    values[2] = np.arange(reference.BLOCK) % 2**bits
    return values


@pytest.mark.parametrize("bits", BITS)
def test_unpack_inverts_pack(bits):
    values = _values(bits)
    packed = packing.pack(tf.constant(values), bits)
    np.testing.assert_array_equal(packing.unpack(packed, bits), values)


@pytest.mark.parametrize("bits", BITS)
def test_pack_inverts_unpack(bits):
    """Every string of bytes is a packing: no bit of the payload is unused."""
    shape = (7, reference.BLOCK * bits // 8)
    packed = np.random.default_rng(bits).integers(0, 256, shape, np.uint8)
    values = packing.unpack(tf.constant(packed), bits)
    assert int(tf.reduce_max(values)) < 2**bits
    np.testing.assert_array_equal(packing.pack(values, bits), packed)


@pytest.mark.parametrize("bits", BITS)
def test_bytes_are_those_of_the_reference(bits):
    values = _values(bits)
    packed = packing.pack(tf.constant(values), bits)
    assert packed.shape[1] == reference.BLOCK * bits // 8
    np.testing.assert_array_equal(packed, reference.pack(values, bits))
