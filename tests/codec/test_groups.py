"""A kernel that runs group by group gives the same as in one call."""

import numpy as np
import pytest
import tensorflow as tf

from swarm_tf.codec.groups import GROUP, in_groups


@pytest.mark.parametrize("blocks", [1, GROUP, GROUP + 1, 3 * GROUP, 3 * GROUP - 1])
@pytest.mark.parametrize("onto", [False, True])
def test_a_kernel_in_groups_gives_the_same_as_in_one_call(blocks, onto):
    rng = np.random.default_rng(blocks)
    x = rng.integers(0, 2**32, (blocks, 8), np.uint32)
    y = rng.integers(0, 2**32, blocks, np.uint32)
    z = x[::-1].copy() if onto else None

    def kernel(x, y, z):
        scaled = x * y[:, None] + (0 if z is None else z)
        return tf.cast(scaled, tf.uint8), tf.reduce_sum(scaled, axis=1)

    compiled = tf.function(lambda *a: in_groups(kernel, *a), jit_compile=True, autograph=False)
    low, total = compiled(x, y, z)
    scaled = x * y[:, None] + (0 if z is None else z)
    np.testing.assert_array_equal(low, scaled.astype(np.uint8))
    np.testing.assert_array_equal(total, scaled.sum(axis=1, dtype=np.uint32))
