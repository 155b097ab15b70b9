"""Two ranks of an MPI job against the reference of tests/test_golden.py."""

import numpy as np
import tensorflow as tf

import swarm_tf
from tests import test_golden as golden

RANK = swarm_tf.rank()
assert swarm_tf.size() == 2


def two_ranks_fit_like_the_reference():
    data = tf.data.Dataset.from_tensor_slices(golden._data(RANK))
    model = golden._model(RANK)
    callback = swarm_tf.SwarmCallback(1, codec="float32", mode="blocking", average_at_end=False)
    model.fit(data, verbose=0, shuffle=False, callbacks=[callback])
    for got, expected in zip(model.get_weights(), golden._reference()[RANK], strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


CHECKS = (two_ranks_fit_like_the_reference,)
