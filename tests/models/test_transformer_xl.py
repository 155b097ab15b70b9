"""Laws of Transformer-XL: the paper's attention, segments equal to one pass, the memory."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

import models
from models.attention import RelativeAttention, relative_shift, sinusoids
from models.stack import Size
from models.transformer_xl import TransformerXL
from swarm_tf.errors import UsageError
from swarm_tf.state import averaged_variables
from tests.models import numpy_transformers
from tests.models.test_transformer import (
    EACH_NORMALIZATION,
    VOCABULARY,
    assert_close,
    assert_greedy,
    assert_one_trace_decodes_all_lengths,
    count,
    greedy,
    pad,
    randomise,
    tokens,
    weights_by_formula,
)

SIZE = Size(layers=2, width=8, hidden=12, heads=2, dropout=0.1)
MEMORY = 4
MORE_MEMORIES = [pytest.param(length, marks=pytest.mark.slow) for length in (1, 9)]


def _build(normalization="post", memory_length=MEMORY, dropout=0.1, seed=0):
    keys = {"normalization": normalization, "dropout": dropout, "seed": seed, "name": "tested"}
    return randomise(TransformerXL(VOCABULARY, SIZE, memory_length=memory_length, **keys))


# --- attention ------------------------------------------------------------------------------------


@pytest.mark.parametrize("queries", [1, 2, 5])
@pytest.mark.parametrize("memory", [0, 1, 3])
@pytest.mark.parametrize("causal", [True, False])
def test_relative_shift_equals_its_definition(queries, memory, causal):
    """Key j stands memory + i - j before query i."""
    keys = memory + queries
    distances = keys - 1 - np.arange(keys + (1 if causal else queries))
    scores = np.random.default_rng(0).normal(size=(2, 3, queries, len(distances)))
    shifted = relative_shift(tf.constant(scores), keys)
    assert shifted.shape == (2, 3, queries, keys)
    for i in range(queries):
        for j in range(memory + i + 1 if causal else keys):
            (at,) = np.flatnonzero(distances == memory + i - j)
            np.testing.assert_array_equal(shifted[:, :, i, j], scores[:, :, i, at])


@pytest.mark.parametrize("queries", [1, 4])
def test_attention_equals_the_formula_of_the_paper(queries):
    layer = randomise(RelativeAttention(8, 2, random.Random(0)))
    rng = np.random.default_rng(1)
    context = rng.normal(size=(2, 6, 8)).astype(np.float32)
    visible = rng.random((2, queries, 6)) < 0.6
    visible[..., 3] = True
    distances = sinusoids(5 - tf.range(6 + queries), 8)
    x = context[:, 6 - queries :]  # of the formula, positions begin with the first query
    actual = layer(x, *layer.project(tf.constant(context)), visible[:, None], distances)
    for row in range(2):
        # Rows before the queries look at themselves; what they get is not compared.
        everyone = np.concatenate([np.eye(6, dtype=bool)[: 6 - queries], visible[row]])
        expected = numpy_transformers.attention(
            layer, context[row], context[row], everyone, relative=True
        )
        assert_close(actual[row], expected[6 - queries :])


# --- segments -------------------------------------------------------------------------------------

# Tokens in each row's segments: rows of different lengths, some segments nothing but padding, some
# shorter than the memory and some longer.
SOURCE_LENGTHS = np.array([[3, 5, 0, 4, 2], [5, 2, 3, 1, 6], [1, 1, 1, 1, 2]])
TARGET_LENGTHS = np.array([[4, 2, 0, 5, 3], [1, 4, 2, 0, 6], [1, 2, 1, 1, 1]])
RESETS = np.array([[1, 0, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 0, 0, 1]], bool)


def _segments(lengths, seed):
    """Padded tokens [row, n] of each segment."""
    for segment, column in enumerate(lengths.T):
        text = tokens(len(column), max(column) + segment % 2, seed=seed + segment)
        yield np.where(np.arange(text.shape[1]) < column[:, None], text, 0).astype(np.int32)


def _expected(model, row, source, target, memory_length):
    """One pass over a row's whole text: logits [all tokens of the target, vocabulary]."""
    document = np.cumsum(RESETS[row])
    segment = [
        np.repeat(np.arange(5), lengths[row]) for lengths in (SOURCE_LENGTHS, TARGET_LENGTHS)
    ]
    begins = [
        np.cumsum(lengths[row]) - lengths[row] for lengths in (SOURCE_LENGTHS, TARGET_LENGTHS)
    ]

    def span(own, begin):
        """From memory_length before the segment of i to its end, in the document of i."""
        i, j = own[:, None], own[None]
        near = np.arange(len(own))[None] >= begin[i] - memory_length
        return near & (j <= i) & (document[i] == document[j])

    source_visible, target_visible = (span(*both) for both in zip(segment, begins, strict=True))
    return numpy_transformers.transformer_xl(
        model,
        source[row][source[row] != 0],
        target[row][target[row] != 0],
        source_visible,
        target_visible & np.tri(len(target_visible), dtype=bool),
        segment[1][:, None] == segment[0][None],
    )


@pytest.mark.parametrize("memory_length", [0, MEMORY, *MORE_MEMORIES])
@pytest.mark.parametrize("normalization", EACH_NORMALIZATION)
def test_segments_equal_one_pass_over_the_tokens_they_may_see(normalization, memory_length):
    model = _build(normalization, memory_length)
    sources, targets = list(_segments(SOURCE_LENGTHS, 0)), list(_segments(TARGET_LENGTHS, 50))
    calls = [
        model({"source": source, "target": target, "reset": reset})
        for source, target, reset in zip(sources, targets, RESETS.T, strict=True)
    ]
    source, target = np.concatenate(sources, axis=1), np.concatenate(targets, axis=1)
    logits = np.concatenate(calls, axis=1)
    for row in range(3):
        expected = _expected(model, row, source, target, memory_length)
        assert_close(logits[row][target[row] != 0], expected)


def test_call_equals_forward_and_keeps_the_memory():
    model = _build()
    memory = model.empty_memory(3)
    for source, target in zip(
        _segments(SOURCE_LENGTHS, 0), _segments(TARGET_LENGTHS, 50), strict=True
    ):
        logits, memory = model.forward(source, target, memory)
        called = model({"source": source, "target": target, "reset": np.zeros(3, bool)})
        np.testing.assert_array_equal(called, logits)


def test_evaluation_leaves_the_memory_of_training_alone():
    model = _build(dropout=0.0)
    inputs = {"source": tokens(2, 3), "target": tokens(2, 3), "reset": np.zeros(2, bool)}
    _, memory = model.forward(inputs["source"], inputs["target"], model.empty_memory(2))
    expected, _ = model.forward(inputs["source"], inputs["target"], memory)
    model(inputs, training=True)
    model({"source": tokens(5, 4), "target": tokens(5, 4), "reset": np.ones(5, bool)})
    np.testing.assert_array_equal(model(inputs, training=True), expected)


def test_memory_holds_the_last_real_tokens():
    model = _build()
    sources, targets = list(_segments(SOURCE_LENGTHS, 0)), list(_segments(TARGET_LENGTHS, 50))
    memory = model.empty_memory(3)
    counts = []
    for source, target in zip(sources, targets, strict=True):
        _, memory = model.forward(source, target, memory)
        counts.append(memory.encoder.count.numpy())
    np.testing.assert_array_equal(
        np.transpose(counts), np.minimum(np.cumsum(SOURCE_LENGTHS, axis=1), MEMORY)
    )
    # What the first block read is the embedding itself.
    for row in range(3):
        text = np.concatenate([source[row] for source in sources])
        last = text[text != 0][-MEMORY:]
        np.testing.assert_array_equal(memory.encoder.states[0][row], model.embedding(last[None])[0])


def test_a_reset_clears_the_memory_of_a_row_completely():
    """A NaN too, which a mask would let through."""
    model = _build()
    inputs = {"source": tokens(2, 3), "target": tokens(2, 3, seed=1)}
    expected = model(inputs | {"reset": np.array([True, True])})
    for kept in model._kept["test"][: SIZE.layers]:
        kept.assign(kept * np.nan)
    logits = model(inputs | {"reset": np.array([True, False])}).numpy()
    np.testing.assert_array_equal(logits[0], expected[0])
    assert np.isnan(logits[1]).all()


def test_no_gradient_flows_through_memory():
    model = _build()
    with tf.GradientTape() as tape:
        _, memory = model.forward(tokens(2, 3), tokens(2, 3), model.empty_memory(2), training=True)
        floats = [memory.encoder.states, memory.decoder.states]
    gradients = tape.gradient(floats, [v.value for v in model.trainable_variables])
    assert all(gradient is None for gradient in gradients)


@pytest.mark.parametrize("normalization", EACH_NORMALIZATION)
def test_no_logit_depends_on_later_tokens(normalization):
    model = _build(normalization)
    source, target = tokens(2, 5), tokens(2, 6, seed=1)
    _, memory = model.forward(tokens(2, 6), tokens(2, 6), model.empty_memory(2))
    expected, _ = model.forward(source, target, memory)
    for at in range(6):
        other = target.copy()
        other[:, at] = other[:, at] % (VOCABULARY - 1) + 1
        logits, _ = model.forward(source, other, memory)
        np.testing.assert_array_equal(logits[:, :at], expected[:, :at])
        assert (logits[:, at:] != expected[:, at:]).numpy().any(-1).all()


@pytest.mark.parametrize("normalization", EACH_NORMALIZATION)
def test_padding_changes_nothing(normalization):
    model = _build(normalization)
    source, target = tokens(2, 5), tokens(2, 6, seed=1)
    expected = model.forward(source, target, model.empty_memory(2))
    padded = model.forward(pad(source, 3), pad(target, 2), model.empty_memory(2))
    assert_close(padded[0][:, :6], expected[0])
    for a, b in zip(*(tf.nest.flatten(memory) for _, memory in (expected, padded)), strict=True):
        assert_close(a, b)


# --- decoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_length", [0, MEMORY])
@pytest.mark.parametrize("normalization", EACH_NORMALIZATION)
def test_decoding_step_by_step_equals_one_pass(normalization, memory_length):
    """Earlier segments left the memory of one row full, of one half empty, of one empty."""
    model = _build(normalization, memory_length)
    before = tokens(3, 6)
    before[1, 2:], before[2] = 0, 0
    _, memory = model.forward(before, before, model.empty_memory(3))
    source, target = tokens(3, 7), tokens(3, 6, seed=1)
    source[1, 3:] = 0
    expected, _ = model.forward(source, target, memory)
    cache = model.start(tf.constant(source), 6, memory=memory)
    assert {x.shape[0] for x in tf.nest.flatten(cache)} == {3}
    for position in range(6):
        logits, cache = model.step(tf.constant(target[:, position]), position, cache)
        assert_close(logits, expected[:, position])
    afresh, _ = model.step(tf.constant(target[:, 0]), 0, model.start(tf.constant(source), 6))
    assert_close(afresh, model.forward(source, target, model.empty_memory(3))[0][:, 0])


@pytest.mark.slow  # a Transformer does so in make test
@pytest.mark.parametrize("jit_compile", [False, True])
def test_decoding_works_in_a_tensorflow_loop(jit_compile):
    model = _build()
    source = tokens(2, 7)
    _, memory = model.forward(source, source, model.empty_memory(2))
    run = tf.function(
        lambda x, memory: greedy(model, x, 5, beams=2, memory=memory), jit_compile=jit_compile
    )
    decoded = run(tf.constant(source), memory).numpy()
    source = np.repeat(source, 2, axis=0)
    memory = tf.nest.map_structure(lambda x: tf.repeat(x, 2, axis=0), memory)
    assert_greedy(decoded, lambda target: model.forward(source, target, memory)[0])


@pytest.mark.parametrize("memory_length", [pytest.param(0, marks=pytest.mark.slow), MEMORY])
def test_one_trace_decodes_all_lengths(memory_length):
    model = _build(memory_length=memory_length)
    source = tf.constant(tokens(2, 7))
    _, memory = model.forward(source, source, model.empty_memory(2))
    assert_one_trace_decodes_all_lengths(model, source, memory=memory)


# --- weights, training ----------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", EACH_NORMALIZATION)
@pytest.mark.parametrize("name", ["transformer_xl_tiny", "transformer_xl_base"])
def test_number_of_weights(name, normalization):
    """Those of the Transformer and, for each self-attention, W_kR, u and v."""
    model = models.build_translator(name, vocabulary=4_000, normalization=normalization)
    size = models.transformer_xl.SIZES[name]
    assert model.name == name
    assert count(model) == weights_by_formula(size, 4_000, normalization, distances=2)


def test_the_memory_is_not_a_weight():
    model = _build()
    before = count(model)
    model({"source": tokens(2, 3), "target": tokens(2, 3), "reset": np.ones(2, bool)})
    assert count(model) == model.count_params() == before
    averaged = {id(v) for v in averaged_variables(model, optimizer=False)}
    assert averaged == {id(v) for v in model.trainable_variables}


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras', on writing a variable
def test_weights_are_saved_and_loaded(tmp_path):
    """Also for batches of another size, and before the first batch."""
    model, other = _build(), _build(seed=1)
    model.save_weights(tmp_path / "a.weights.h5")
    inputs = {"source": tokens(2, 3), "target": tokens(2, 3), "reset": np.ones(2, bool)}
    expected = model(inputs)
    model.save_weights(tmp_path / "b.weights.h5")
    for name in ("a", "b"):
        for v in other.trainable_variables:
            v.assign(v * 0)
        other.load_weights(tmp_path / f"{name}.weights.h5")
        larger = {key: np.repeat(value, 2, axis=0) for key, value in inputs.items()}
        assert_close(other(larger)[::2], expected)


def test_the_seed_fixes_the_weights():
    one, same, other = (
        models.build_translator("transformer_xl_tiny", vocabulary=9, seed=s) for s in (3, 3, 4)
    )
    kernels = [w for w in one.get_weights() if w.ndim > 1 and w.any()]  # u and v are zero
    assert len({w.tobytes() for w in kernels}) == len(kernels) == 1 + 2 * 6 + 2 * 9
    for a, b, c in zip(one.get_weights(), same.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.ndim == 1 or not a.any() or (a != c).any()


def test_fit_learns_what_only_the_memory_holds():
    """The target of a second segment is the source of the first: guessing costs about 3, half the
    time."""
    model = TransformerXL(
        VOCABULARY,
        Size(layers=1, width=32, hidden=64, heads=2, dropout=0.0),
        normalization="pre",
        dropout=0.0,
        seed=0,
        name="remembers",
        memory_length=4,
    )
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    known, nothing = tokens(32, 1), np.ones((32, 1), np.int32)
    source, target = np.concatenate([known, nothing]), np.concatenate([nothing, known])
    inputs = {"source": source, "target": np.ones_like(source), "reset": np.arange(64) < 32}
    data = tf.data.Dataset.from_tensor_slices((inputs, target)).batch(32, drop_remainder=True)
    fit = model.fit(data.repeat(), steps_per_epoch=40, epochs=4, shuffle=False, verbose=0)
    assert fit.history["loss"][-1] < 0.2


@pytest.mark.parametrize(
    "policy", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)]
)
def test_mixed_precision_is_close_to_float32(policy):
    expected = _build()
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = _build()
    finally:
        keras.config.set_dtype_policy(before)
    for source, target, reset in zip(
        _segments(SOURCE_LENGTHS, 0), _segments(TARGET_LENGTHS, 50), RESETS.T, strict=True
    ):
        inputs = {"source": source, "target": target, "reset": reset}
        logits = model(inputs)
        assert logits.dtype == tf.float32
        np.testing.assert_allclose(logits, expected(inputs), atol=0.3)
    cache = model.start(tf.constant(source), 3)
    logits, _ = model.step(tf.constant([1, 2, 3]), 0, cache)
    assert logits.dtype == tf.float32
    assert np.isfinite(logits).all()
    assert {v.dtype for v in model._kept["test"]} == {tf.as_dtype(model.compute_dtype), tf.int32}


def test_batches_of_another_size_are_refused():
    model = _build()
    inputs = {"source": tokens(2, 3), "target": tokens(2, 3), "reset": np.ones(2, bool)}
    model(inputs)
    refusal = "model.memory_length=4 needs batches of one fixed size; got"
    with pytest.raises(UsageError, match=f"{refusal} 1 rows"):
        model({key: value[:1] for key, value in inputs.items()})
    varying = {key: tf.TensorSpec([None, *v.shape[1:]], v.dtype) for key, v in inputs.items()}
    with pytest.raises(UsageError, match=f"{refusal} an unknown number of rows"):
        tf.function(model, autograph=False).get_concrete_function(varying)
