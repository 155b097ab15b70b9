"""Which variables of a model have which role."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from swarm_tf import UsageError, state


def _dense(**options):
    return keras.Sequential([keras.Input([3]), keras.layers.Dense(2, **options)])


class Adversaries(keras.Model):
    """Two networks, and optimizers kept in three ways: in a tuple, a dictionary and a model."""

    def __init__(self):
        super().__init__()
        self.one, self.other = _dense(), _dense()
        self.pair = keras.optimizers.Adam(), keras.optimizers.SGD()
        self.named = {"third": keras.optimizers.SGD(momentum=0.9)}
        self.one.compile(keras.optimizers.RMSprop(), "mse")


def test_every_optimizer_that_the_model_holds_is_found():
    model = Adversaries()
    model.compile()
    found = state.optimizers(model)
    assert next(iter(found)) == "optimizer"
    assert found["optimizer"] is model.optimizer
    kinds = [type(one).__name__ for one in found.values()]
    assert sorted(kinds) == ["Adam", "RMSprop", "RMSprop", "SGD", "SGD"]


def test_an_optimizer_within_another_counts_once():
    model = _dense()
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
    model.compile(scaled, "mse")
    model.inner = scaled.inner_optimizer
    assert list(state.optimizers(model).values()) == [scaled]
    assert state.parts(scaled) == [scaled, scaled.inner_optimizer]


@pytest.mark.parametrize("scaled", [False, True])
def test_the_steps_of_every_optimizer_are_counted(scaled):
    model = Adversaries()
    model.compile()
    optimizer = model.pair[0]
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        model.pair = (optimizer,)
    assert state.steps_taken(model) == 0
    weights = model.one.trainable_variables
    for _ in range(3):
        optimizer.apply([tf.ones(w.shape) for w in weights], weights)
    assert state.steps_taken(model) == 3


def test_with_gradient_accumulation_every_batch_counts():
    model = _dense()
    model.compile(keras.optimizers.SGD(gradient_accumulation_steps=4), "mse")
    model.fit(np.ones([12, 3]), np.ones([12, 2]), batch_size=2, verbose=0)
    assert int(model.optimizer.iterations) == 1
    assert state.steps_taken(model) == 6
    slots = state.slots(model)
    assert slots == [], "accumulated gradients are not averaged"


def test_complex_weights_and_models_without_weights_are_refused():
    model = _dense()
    state.check_averageable(model)
    model.trainable = False
    with pytest.raises(UsageError, match="has no trainable weights, so there is nothing"):
        state.check_averageable(model)
    model = _dense()
    model.phase = model.add_weight(shape=(2,), dtype="complex64", name="phase")
    with pytest.raises(UsageError, match="phase is complex64; ranks average real numbers only"):
        state.check_averageable(model)


def test_a_model_is_built_when_all_its_layers_are():
    class Eager(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)
            self.built = True

        def call(self, x):
            return self.dense(x)

    model = Eager()
    assert not state.is_built(model)
    model(np.ones([1, 2], np.float32))
    assert state.is_built(model)
    assert state.is_built(Adversaries()), "a model without call() is built with its layers"


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16", "int8", "bool"])
def test_bytes_restore_a_variable_in_its_own_type(dtype):
    value = tf.cast(np.arange(6).reshape(2, 3) % 2, dtype)
    variable = keras.Variable(value, dtype=dtype, trainable=False)
    stored = state.as_bytes(variable).copy()
    digest = state.digest([variable])
    variable.assign(tf.cast(np.zeros([2, 3]), dtype))
    assert state.digest([variable]) != digest
    state.set_bytes(variable, stored)
    assert state.digest([variable]) == digest
    np.testing.assert_array_equal(variable.value.numpy(), value.numpy())


def test_slots_become_those_of_a_new_optimizer():
    model = _dense()
    model.compile(keras.optimizers.Adagrad(0.1, initial_accumulator_value=0.25), "mse")
    x = np.random.default_rng(0).normal(size=[8, 3])
    model.fit(x, x[:, :2], verbose=0, batch_size=2)
    for slot in state.slots(model):
        slot.assign(np.full(slot.shape, np.nan))
    state.reset_slots(model)
    for slot in state.slots(model):
        np.testing.assert_array_equal(np.asarray(slot), np.full(slot.shape, np.float32(0.25)))
    assert int(model.optimizer.iterations) == 4


def test_vocabularies_that_differ_are_detected():
    def words(text):
        layer = keras.layers.TextVectorization()
        layer.adapt(text)
        return state.vocabularies(keras.Sequential([layer]))

    def bounds(numbers):
        layer = keras.layers.Discretization(num_bins=3)
        layer.adapt(np.array(numbers))
        return state.vocabularies(keras.Sequential([layer]))

    assert words(["a b c"]) == words(["a b c"]) != words(["a b d"])
    assert bounds([1.0, 2, 3, 4]) == bounds([1.0, 2, 3, 4]) != bounds([1.0, 5, 8, 9])
