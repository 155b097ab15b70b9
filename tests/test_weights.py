"""Keras variables <-> chunks, and which variables are averaged."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from swarm_tf.codec import BLOCK
from swarm_tf.state import averaged_variables, signed_variables
from swarm_tf.weights import FlatWeights

SHAPES = {
    "one scalar": [()],
    "scalars and vectors": [(), (3,), (), (1, 1, 1)],
    "one block": [(BLOCK,)],
    "one over a block": [(BLOCK + 1,)],
    "a layer": [(7, 5), (5,)],
    "with an empty one": [(4,), (0, 3), (2, 2)],
    "long after short": [(1,), (3 * BLOCK + 17,), (5, 5)],
    "many": [(k % 7 + 1, k % 5 + 1) for k in range(120)],
    "empty ones at the edges": [(0,), (2 * BLOCK,), (0,)],
    "nothing": [],
}


def _variables(shapes, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    values = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    variables = [keras.Variable(v, dtype=dtype) for v in values]
    return variables, values


def _flat(weights):
    """The weights in the order of the chunks, and where in the chunks they stand."""
    values = [np.ravel(np.asarray(tf.cast(v.value, tf.float32))) for v in weights.variables]
    flat = np.concatenate([np.zeros(0, np.float32), *values])
    matrices = sum(v.size for v, w in zip(values, weights.variables, strict=True) if w.ndim > 1)
    ends = np.cumsum([0, *weights.lengths])
    vectors_at = ends[min(weights.exact)] if weights.exact else 0
    where = np.arange(flat.size)
    where[matrices:] += vectors_at - matrices
    return flat, where


def _joined(chunks):
    return np.concatenate([np.zeros(0, np.float32), *(np.asarray(c) for c in chunks)])


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("chunk", [BLOCK, 2 * BLOCK, 2**21])
def test_chunks_hold_every_weight_once(shapes, chunk):
    variables, values = _variables(shapes)
    weights = FlatWeights(variables, chunk)
    chunks = weights.flatten()
    assert [c.shape[0] for c in chunks] == weights.lengths
    assert all(length % BLOCK == 0 for length in weights.lengths)
    assert all(length <= max(chunk, BLOCK) for length in weights.lengths)
    flat, where = _flat(weights)
    assert weights.total == flat.size == sum(v.size for v in values)
    joined = _joined(chunks)
    np.testing.assert_array_equal(joined[where], flat)
    assert not np.delete(joined, where).any()


def test_vectors_have_chunks_of_their_own():
    variables, _ = _variables([(5,), (3, 4), (), (2, 2), (7,)])
    weights = FlatWeights(variables)
    assert weights.lengths == [BLOCK, BLOCK]
    assert weights.exact == {1}
    assert [v.ndim > 1 for v in weights.variables] == [True, True, False, False, False]


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("chunk", [BLOCK, 2**21])
def test_assign_is_the_inverse_of_flatten(shapes, chunk):
    variables, values = _variables(shapes)
    weights = FlatWeights(variables, chunk)
    chunks = [np.array(c) for c in weights.flatten()]
    for variable in variables:
        variable.assign(np.full(variable.shape, 99.0))
    weights.assign(chunks)
    for variable, value in zip(variables, values, strict=True):
        np.testing.assert_array_equal(np.asarray(variable), value)


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("chunk", [BLOCK, 2**21])
def test_add_changes_every_weight_once(shapes, chunk):
    weights = FlatWeights(_variables(shapes)[0], chunk)
    before, where = _flat(weights)
    rng = np.random.default_rng(1)
    corrections = [rng.normal(size=n).astype(np.float32) for n in weights.lengths]
    result = weights.add([tf.constant(c) for c in corrections])
    expected = before + _joined(corrections)[where]
    np.testing.assert_array_equal(_flat(weights)[0], expected)
    np.testing.assert_array_equal(_joined(result)[where], expected)


def test_add_without_a_correction_leaves_the_chunk_alone():
    variables, values = _variables([(BLOCK,), (BLOCK,)])
    weights = FlatWeights(variables, BLOCK)
    weights.add([None, tf.ones([BLOCK])])
    np.testing.assert_array_equal(np.asarray(variables[0]), values[0])
    np.testing.assert_array_equal(np.asarray(variables[1]), values[1] + 1)
    weights.add([None, None])
    np.testing.assert_array_equal(np.asarray(variables[1]), values[1] + 1)


@pytest.mark.parametrize("shapes", [[(BLOCK,)], [()], [(3,), (4,)], [(32, 32)], [(2, 2), (5, 1)]])
def test_flattened_weights_do_not_follow_the_variables(shapes):
    variables, _ = _variables(shapes)
    weights = FlatWeights(variables)
    flat, where = _flat(weights)
    before = weights.flatten()
    added = weights.add([tf.ones([BLOCK])])
    for variable in variables:
        variable.assign(np.full(variable.shape, 99.0))
        variable.value.assign_add(tf.ones(variable.shape))
    np.testing.assert_array_equal(_joined(before)[where], flat)
    np.testing.assert_array_equal(_joined(added)[where], flat + 1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_float_types_are_cast_and_keep_their_type(dtype):
    variables, _ = _variables([(3, 4), (5,)], dtype)
    weights = FlatWeights(variables)
    chunks = weights.flatten()
    assert {c.dtype for c in chunks} == {tf.float32}
    flat, where = _flat(weights)
    np.testing.assert_array_equal(_joined(chunks)[where], flat)
    result = weights.add([tf.ones([n]) for n in weights.lengths])
    now, _ = _flat(weights)
    # The published copy holds the digits that the cast to the model's type loses.
    np.testing.assert_array_equal(_joined(result)[where], flat + 1)
    np.testing.assert_allclose(now, flat + 1, rtol=2**-8, atol=2**-8)
    weights.assign(chunks)
    np.testing.assert_array_equal(_flat(weights)[0], flat)
    assert {v.dtype for v in variables} == {dtype}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_many_small_corrections_add_up(dtype):
    """Each is far below a step of the type: cast one by one, nearly all would vanish."""
    variables, _ = _variables([(3, 4), (5,)], dtype)
    weights = FlatWeights(variables)
    start, where = _flat(weights)
    small = np.float32(1e-4)
    for _ in range(2000):
        result = weights.add([tf.fill([n], small) for n in weights.lengths])
    np.testing.assert_allclose(_joined(result)[where], start + 0.2, rtol=0, atol=1e-3)
    np.testing.assert_allclose(_flat(weights)[0], start + 0.2, rtol=2**-8, atol=2**-8)


def test_float64_keeps_its_precision_through_copy_and_assign():
    value = np.array([[1.0 + 2**-40, 1e-300], [3.0, -(1.0 + 2**-50)]])
    wide, narrow = keras.Variable(value, dtype="float64"), keras.Variable(np.ones([3], np.float32))
    weights = FlatWeights([wide, narrow])
    copied = weights.copy()
    wide.assign(np.zeros([2, 2]))
    weights.assign(copied)
    np.testing.assert_array_equal(np.asarray(wide), value)
    weights.add([tf.fill([n], 2**-30) for n in weights.lengths])
    np.testing.assert_array_equal(np.asarray(wide), value + 2**-30)


def test_float32_and_bfloat16_weights_may_share_a_chunk():
    (a,), _ = _variables([(6,)])
    (b,), _ = _variables([(7,)], "bfloat16", seed=1)
    weights = FlatWeights([a, b])
    assert [dtype for _, _, dtype in weights.shapes()] == ["float32", "bfloat16"]
    weights.assign([tf.range(BLOCK, dtype=tf.float32)])
    np.testing.assert_array_equal(np.asarray(a), np.arange(6))
    np.testing.assert_array_equal(np.asarray(tf.cast(b.value, tf.float32)), np.arange(6, 13))


def _with_batchnorm():
    return keras.Sequential([keras.Input([3]), keras.layers.BatchNormalization()])


def test_moving_variance_stays_positive():
    model = _with_batchnorm()
    weights = FlatWeights(averaged_variables(model), signed=signed_variables(model, slots=False))
    layer = model.layers[0]
    layer.moving_variance.assign([1.0, 2.0, 4.0])
    layer.moving_mean.assign([1.0, 1.0, 1.0])
    result = weights.add([tf.fill([BLOCK], -3.0)])
    np.testing.assert_allclose(np.asarray(layer.moving_variance), [0.1, 0.2, 1.0], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(layer.moving_mean), [-2.0, -2.0, -2.0])
    held, where = _flat(weights)
    np.testing.assert_array_equal(_joined(result)[where], held)


def test_a_statistic_that_was_never_negative_stays_so_whatever_its_name():
    """A user's own batch norm: its variance has another name, and its mean is seen to be signed."""
    variance = keras.Variable(np.array([1.0, 2.0], np.float32), trainable=False, name="running_var")
    mean = keras.Variable(np.array([1.0, -1.0], np.float32), trainable=False, name="running_mean")
    weights = FlatWeights([variance, mean])
    for _ in range(3):
        weights.add([tf.fill([BLOCK], -3.0)])
    np.testing.assert_allclose(np.asarray(variance), [1e-3, 2e-3], rtol=1e-5)
    np.testing.assert_allclose(np.asarray(mean), [-8.0, -10.0])
    trained = keras.Variable(np.array([1.0, 2.0], np.float32), name="moving_variance")
    FlatWeights([trained]).add([tf.fill([BLOCK], -3.0)])
    np.testing.assert_allclose(np.asarray(trained), [-2.0, -1.0])


@pytest.mark.parametrize("name", ["Adam", "RMSprop", "Adafactor", "Lamb", "Adadelta", "Ftrl"])
def test_slots_that_are_squares_are_told_apart_from_signed_slots(name):
    layers = [keras.layers.Dense(4), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input([3]), *layers])
    model.compile(getattr(keras.optimizers, name)(0.01), "mse")
    x = np.random.default_rng(0).normal(size=[40, 3])
    model.fit(x, x[:, :2] ** 3, batch_size=4, verbose=0)
    signed = {id(v) for v in signed_variables(model, slots=True)}
    slots = averaged_variables(model, optimizer=True)[4:]
    assert slots
    for slot in slots:
        if id(slot) not in signed:
            assert np.min(slot) >= 0, slot.path
    negative = {id(v) for v in slots if np.min(v) < 0}
    assert negative <= signed


def test_moving_variance_follows_an_ordinary_correction_exactly():
    model = _with_batchnorm()
    weights = FlatWeights(averaged_variables(model))
    weights.add([tf.fill([BLOCK], -0.25)])
    np.testing.assert_array_equal(np.asarray(model.layers[0].moving_variance), [0.75] * 3)


# Which variables are averaged.


class Subclassed(keras.Model):
    """Layers in attributes, in a list and in another model; and a float weight."""

    def __init__(self):
        super().__init__()
        self.normalize = keras.layers.BatchNormalization()
        self.blocks = [keras.layers.Dense(4), keras.layers.Dense(4)]
        self.inner = keras.Sequential([keras.layers.Dense(3), keras.layers.Dropout(0.5, seed=1)])
        self.temperature = self.add_weight(shape=(), name="temperature", trainable=False)

    def call(self, x, training=False):
        x = self.normalize(x, training=training)
        for block in self.blocks:
            x = block(x)
        return self.inner(x, training=training) * self.temperature


def _functional():
    x = inputs = keras.Input([5])
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.3, seed=1)(x)
    x = keras.layers.GaussianNoise(0.1, seed=2)(x)
    shared = keras.layers.Dense(5)
    x = shared(shared(x))
    return keras.Model(inputs, keras.layers.Dense(2)(x))


def _sequential():
    layers = keras.layers
    return keras.Sequential(
        [keras.Input([5]), layers.Dense(4), layers.BatchNormalization(), layers.Dropout(0.5)]
    )


def _subclassed():
    model = Subclassed()
    model(np.zeros([2, 5], np.float32))
    return model


def _subclassed_counting():
    class Counting(Subclassed):
        def __init__(self):
            super().__init__()
            self.calls = self.add_weight(shape=(), dtype="int32", trainable=False, name="calls")

    model = Counting()
    model(np.zeros([2, 5], np.float32))
    return model


MODELS = {"functional": _functional, "sequential": _sequential, "subclassed": _subclassed}
STATISTICS = {"functional": 2, "sequential": 2, "subclassed": 3}


@pytest.mark.parametrize("kind", MODELS)
def test_trainable_variables_and_statistics_are_averaged_once(kind):
    model = MODELS[kind]()
    chosen = averaged_variables(model)
    ids = [id(v) for v in chosen]
    assert len(ids) == len(set(ids))
    assert {id(v) for v in model.trainable_variables} <= set(ids)
    assert len(chosen) == len(model.trainable_variables) + STATISTICS[kind]


@pytest.mark.parametrize("kind", MODELS)
def test_without_statistics_only_trainable_variables_are_averaged(kind):
    model = MODELS[kind]()
    chosen = averaged_variables(model, statistics=False)
    assert [id(v) for v in chosen] == [id(v) for v in model.trainable_variables]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("optimizer", [pytest.param(False, marks=pytest.mark.slow), True])
def test_seed_generators_and_counters_are_never_averaged(kind, optimizer):
    model = MODELS[kind]()
    model.compile(keras.optimizers.Adam(), "mse", metrics=["mae"])
    model.fit(np.zeros([4, 5]), np.zeros([4, model(np.zeros([1, 5])).shape[-1]]), verbose=0)
    for variable in averaged_variables(model, optimizer=optimizer):
        assert "float" in str(variable.dtype)
        assert "seed" not in variable.path
        assert "iteration" not in variable.path
        assert "learning_rate" not in variable.path
        assert "metric" not in variable.path


def test_integer_state_is_not_averaged():
    model = _subclassed_counting()
    chosen = {id(v) for v in averaged_variables(model)}
    assert id(model.calls) not in chosen
    assert id(model.temperature) in chosen


def test_frozen_layers_are_not_averaged():
    model = _functional()
    for layer in model.layers:
        layer.trainable = False
    model.layers[-1].trainable = True
    chosen = {id(v) for v in averaged_variables(model)}
    assert chosen == {id(v) for v in model.layers[-1].trainable_variables}


@pytest.mark.parametrize(
    ("optimizer", "slots"),
    [
        (lambda: keras.optimizers.SGD(0.1), 0),
        (lambda: keras.optimizers.SGD(0.1, momentum=0.9), 1),
        (lambda: keras.optimizers.Adam(1e-3), 2),
        (lambda: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10), 0.9), 1),
    ],
)
def test_the_slots_of_an_optimizer_are_averaged_on_request(optimizer, slots):
    model = _sequential()
    model.compile(optimizer(), "mse")
    model.fit(np.zeros([4, 5]), np.zeros([4, 4]), verbose=0)
    plain, more = averaged_variables(model), averaged_variables(model, optimizer=True)
    assert [id(v) for v in more[: len(plain)]] == [id(v) for v in plain]
    extra = more[len(plain) :]
    assert len(extra) == slots * len(model.trainable_variables)
    assert {tuple(v.shape) for v in extra} <= {tuple(v.shape) for v in model.trainable_variables}


def test_slots_are_averaged_from_the_first_step_on():
    """`SwarmCallback` chooses the variables in on_train_begin, before the first step."""
    chosen = []
    model = _sequential()
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    look = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: chosen.extend(averaged_variables(model, optimizer=True))
    )
    model.fit(np.zeros([4, 5]), np.zeros([4, 4]), verbose=0, callbacks=[look])
    expected = averaged_variables(model, optimizer=True)
    assert [v.path for v in chosen] == [v.path for v in expected]


def test_a_model_is_the_same_after_flatten_and_assign():
    model = _functional()
    weights = FlatWeights(averaged_variables(model), chunk=BLOCK)
    x = np.random.default_rng(0).normal(size=[8, 5]).astype(np.float32)
    before = np.asarray(model(x))
    chunks = [np.array(c) for c in weights.flatten()]
    weights.assign([np.zeros_like(c) for c in chunks])
    assert not np.allclose(np.asarray(model(x)), before)
    weights.assign(chunks)
    np.testing.assert_array_equal(np.asarray(model(x)), before)


@pytest.mark.parametrize("scaled", [False, True])
def test_slots_are_averaged_but_not_counters_and_loss_scales(scaled):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    optimizer = keras.optimizers.Adam(0.1)
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, "mse", jit_compile=False)
    chosen = averaged_variables(model, optimizer=True)
    assert sorted(tuple(v.shape) for v in chosen) == sorted([(3, 2), (2,)] * 3)
