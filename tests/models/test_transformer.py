"""Laws of the Transformer: equal to other implementations, causal, its decoding, its weights."""

import subprocess
import sys
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

import models
from models.attention import sinusoids
from models.stack import Size
from models.transformer import Transformer
from swarm_tf.errors import UsageError
from tests.models import numpy_transformers

VOCABULARY = 23
SIZE = Size(layers=2, width=12, hidden=20, heads=3, dropout=0.1)
NORMALIZATIONS = ["pre", "post"]
EACH_NORMALIZATION = ["pre", pytest.param("post", marks=pytest.mark.slow)]


def _build(normalization="post", seed=0, dropout=0.1):
    keys = {"normalization": normalization, "dropout": dropout, "seed": seed, "name": "tested"}
    return Transformer(VOCABULARY, SIZE, **keys)


def randomise(model):
    """Makes all weights random, scales and offsets too, so that a wrong one shows."""
    rng = np.random.default_rng(0)
    for weight in model.trainable_variables:
        weight.assign(rng.normal(1.0 if weight.name == "gamma" else 0.0, 0.3, weight.shape))
    return model


def tokens(*shape, seed=0):
    """Random tokens, none of them padding."""
    return np.random.default_rng(seed).integers(1, VOCABULARY, shape).astype(np.int32)


def pad(x, count):
    return np.pad(x, [(0, 0), (0, count)])


def assert_close(actual, expected):
    """Asserts equality to 1e-5 of the largest value."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# --- other implementations ------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_transformer_equals_its_numpy_version(normalization):
    model = randomise(_build(normalization))
    source, target = tokens(2, 7), tokens(2, 5, seed=1)
    logits = model({"source": source, "target": target})
    for row in range(2):
        expected = numpy_transformers.transformer(model, source[row], target[row])
        assert_close(logits[row], expected)


def _in_keras_hub(block, states=None):
    """KerasHub's layer with our weights; its biases of attention are zero."""
    kind = keras_hub.layers.TransformerDecoder
    if block.cross is None:
        kind = keras_hub.layers.TransformerEncoder
    pre = block.residuals[0].pre
    layer = kind(SIZE.hidden, SIZE.heads, layer_norm_epsilon=1e-6, normalize_first=pre)
    shape = (None, None, SIZE.width)
    layer.build(shape) if block.cross is None else layer.build(shape, shape)
    names = ["self_attention", *["cross_attention"] * (block.cross is not None), "feedforward"]
    for name, residual in zip(names, block.residuals, strict=True):
        getattr(layer, f"_{name}_layer_norm").set_weights(residual.norm.get_weights())
    layer._feedforward_intermediate_dense.set_weights(block.widen.get_weights())
    layer._feedforward_output_dense.set_weights(block.narrow.get_weights())
    for name, ours in zip(names[:-1], [block.attention, block.cross], strict=False):
        (query,), (both,), (out,) = (
            x.get_weights() for x in (ours.query, ours.key_value, ours.out)
        )
        inner = SIZE.width, SIZE.heads, SIZE.width // SIZE.heads
        kernels = [kernel.reshape(inner) for kernel in (query, *np.split(both, 2, axis=1))]
        weights = [w for kernel in kernels for w in (kernel, np.zeros(inner[1:]))]
        weights += [out.reshape(*inner[1:], SIZE.width), np.zeros(SIZE.width)]
        getattr(layer, f"_{name}_layer").set_weights(weights)
    return layer


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_transformer_equals_layers_of_keras_hub(normalization):
    """The source has padding."""
    model = randomise(_build(normalization))
    source, target = tokens(2, 7), tokens(2, 5, seed=1)
    source[1, 4:] = 0
    (table,) = model.embedding.get_weights()
    positions = keras_hub.layers.SinePositionEncoding()

    def embed(x):
        x = tf.constant(table[x] * np.float32(np.sqrt(SIZE.width)))
        return x + positions(x)

    states, x = embed(source), embed(target)
    for block in model.encoder.blocks:
        states = _in_keras_hub(block)(states, padding_mask=source != 0)
    states = states if model.encoder.norm is None else model.encoder.norm(states)
    for block in model.decoder.blocks:
        x = _in_keras_hub(block)(x, states, encoder_padding_mask=source != 0)
    x = x if model.decoder.norm is None else model.decoder.norm(x)
    assert_close(model({"source": source, "target": target}), x @ table.T)


def test_sinusoids_equal_the_formula_of_the_paper():
    positions = [-7, -1, 0, 1, 2, 500]
    expected = [numpy_transformers.sinusoid(position, 8) for position in positions]
    np.testing.assert_allclose(sinusoids(tf.constant(positions), 8), expected, atol=1e-4)


# --- which tokens are visible ---------------------------------------------------------------------


@pytest.mark.parametrize("normalization", EACH_NORMALIZATION)
def test_no_logit_depends_on_later_tokens(normalization):
    model = randomise(_build(normalization))
    source, target = tokens(2, 7), tokens(2, 6, seed=1)
    expected = model({"source": source, "target": target}).numpy()
    for at in range(6):
        other = target.copy()
        other[:, at] = other[:, at] % (VOCABULARY - 1) + 1
        logits = model({"source": source, "target": other}).numpy()
        np.testing.assert_array_equal(logits[:, :at], expected[:, :at])
        assert (logits[:, at:] != expected[:, at:]).any(-1).all()
    for at in range(7):
        other = source.copy()
        other[:, at] = other[:, at] % (VOCABULARY - 1) + 1
        assert (model({"source": other, "target": target}) != expected).numpy().any(-1).all()


@pytest.mark.parametrize("normalization", EACH_NORMALIZATION)
def test_padding_changes_nothing(normalization):
    """Nor do the other rows of a batch, for which rows are padded."""
    model = randomise(_build(normalization))
    source, target = tokens(2, 7), tokens(2, 6, seed=1)
    source[1, 3:], target[1, 2:] = 0, 0
    together = model({"source": pad(source, 3), "target": pad(target, 2)})
    assert_close(together[:1, :6], model({"source": source[:1], "target": target[:1]}))
    assert_close(together[1:, :2], model({"source": source[1:, :3], "target": target[1:, :2]}))


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_an_empty_source_still_gives_logits(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = _build()
    finally:
        keras.config.set_dtype_policy(before)
    source, target = np.zeros((2, 4), np.int32), tokens(2, 3)
    source[0] = tokens(4)
    logits = model({"source": source, "target": target}).numpy()
    assert np.isfinite(logits).all()
    longer = model({"source": pad(source, 5), "target": target}).numpy()
    np.testing.assert_allclose(longer, logits, atol=0.01)


# --- decoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", EACH_NORMALIZATION)
def test_decoding_step_by_step_equals_one_pass(normalization):
    model = randomise(_build(normalization))
    source, target = tokens(3, 7), tokens(3, 6, seed=1)
    source[1, 3:] = 0
    expected = model({"source": source, "target": target})
    cache = model.start(tf.constant(source), 6)
    assert {x.shape[0] for x in tf.nest.flatten(cache)} == {3}
    for position in range(6):
        logits, cache = model.step(tf.constant(target[:, position]), position, cache)
        assert logits.dtype == tf.float32
        assert_close(logits, expected[:, position])


def greedy(model, source, length, beams, **start):
    """Tokens [batch * beams, length] in one tf.while_loop: equal beams, their rows exchanged."""
    cache = model.start(source, length, **start)
    cache = tf.nest.map_structure(lambda x: tf.repeat(x, beams, axis=0), cache)
    rows = source.shape[0] * beams
    order = tf.reshape(tf.reverse(tf.reshape(tf.range(rows), [-1, beams]), [1]), [-1])

    def body(position, token, cache, decoded):
        logits, cache = model.step(token, position, cache)
        token = tf.argmax(logits, -1, tf.int32)
        decoded = tf.tensor_scatter_nd_update(decoded, [[position]], [token])
        cache = tf.nest.map_structure(lambda x: tf.gather(x, order), cache)
        return position + 1, token, cache, decoded

    loop = tf.constant(0), tf.ones([rows], tf.int32), cache, tf.zeros([length, rows], tf.int32)
    *_, decoded = tf.while_loop(lambda position, *_: position < length, body, loop)
    return tf.transpose(decoded)


def assert_greedy(decoded, logits_of):
    """Each token of decoded [rows, n] is the best after those before, by `logits_of(target)`."""
    target = np.pad(decoded[:, :-1], [(0, 0), (1, 0)], constant_values=1)
    np.testing.assert_array_equal(np.argmax(logits_of(target), -1), decoded)


@pytest.mark.parametrize("jit_compile", [pytest.param(False, marks=pytest.mark.slow), True])
def test_decoding_works_in_a_tensorflow_loop(jit_compile):
    model = randomise(_build())
    source = tokens(2, 7)
    run = tf.function(lambda x: greedy(model, x, 5, beams=2), jit_compile=jit_compile)
    decoded = run(tf.constant(source)).numpy()
    repeated = np.repeat(source, 2, axis=0)
    assert_greedy(decoded, lambda target: model({"source": repeated, "target": target}))
    assert len(np.unique(decoded)) > 2


def test_a_traced_step_serves_all_positions():
    model = randomise(_build())
    source, target = tokens(2, 7), tokens(2, 4, seed=1)
    expected = model({"source": source, "target": target})
    cache = model.start(tf.constant(source), 4)
    step = tf.function(model.step)
    for position in range(4):
        token = tf.constant(target[:, position])
        logits, cache = step(token, tf.constant(position), cache)
        assert_close(logits, expected[:, position])
    assert step.experimental_get_tracing_count() == 1


def assert_one_trace_decodes_all_lengths(model, source, **start):
    """Decoding with `max_length` as a tensor equals decoding with a number."""
    run = tf.function(lambda length: greedy(model, source, length, beams=2, **start))
    for length in (1, 4, 7):
        expected = greedy(model, source, length, beams=2, **start)
        np.testing.assert_array_equal(run(tf.constant(length)), expected)
    assert run.experimental_get_tracing_count() == 1


def test_one_trace_decodes_all_lengths():
    assert_one_trace_decodes_all_lengths(randomise(_build()), tf.constant(tokens(2, 7)))


# --- weights --------------------------------------------------------------------------------------


def weights_by_formula(size, vocabulary, normalization, distances=0):
    """Section 3 of the paper; `distances` attentions of Transformer-XL have W_kR, u and v."""
    d, norm = size.width, 2 * size.width
    feed_forward = 2 * d * size.hidden + size.hidden + d
    encoder = 4 * d * d + feed_forward + 2 * norm
    decoder = 8 * d * d + feed_forward + 3 * norm
    last = 2 * norm if normalization == "pre" else 0
    both = size.layers * (encoder + decoder + distances * (d * d + 2 * d))
    return vocabulary * d + both + last


def count(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


@pytest.mark.parametrize(
    ("name", "vocabulary", "normalization", "exact"),
    [
        ("transformer_tiny", 4_000, "post", 1_171_456),
        ("transformer_tiny", 4_000, "pre", 1_171_968),
        ("transformer_base", 37_000, "post", 63_045_632),
    ],
)
def test_number_of_weights(name, vocabulary, normalization, exact):
    model = models.build_translator(name, vocabulary=vocabulary, normalization=normalization)
    size = models.transformer.SIZES[name]
    assert model.name == name
    assert count(model) == model.count_params()
    assert count(model) == weights_by_formula(size, vocabulary, normalization) == exact
    if name == "transformer_base":  # table 3; the paper's vocabulary is "about 37,000"
        assert exact == pytest.approx(65e6, rel=0.04)


def test_dropout_is_where_the_paper_has_it():
    """Section 5.4: on each sublayer's output and on both sums of embeddings and positions. Each
    alone changes the logits."""
    model = _build()
    layers = model._flatten_layers(include_self=False)
    dropouts = [layer for layer in layers if isinstance(layer, keras.layers.Dropout)]
    assert [layer.rate for layer in dropouts] == [0.1] * (2 + SIZE.layers * (2 + 3))
    inputs = {"source": tokens(2, 7), "target": tokens(2, 5)}
    expected = model(inputs)
    for alone in dropouts:
        for layer in dropouts:
            layer.rate = 0.5 if layer is alone else 0.0
        assert (model(inputs, training=True) != expected).numpy().any()


@pytest.mark.parametrize("seed", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_the_seed_fixes_weights_and_dropout(seed):
    inputs = {"source": tokens(2, 7), "target": tokens(2, 5)}
    one, same, other = _build(seed=seed), _build(seed=seed), _build(seed=seed + 1)
    for a, b in zip(one.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    first = one(inputs, training=True)
    tf.random.set_seed(0)
    np.testing.assert_array_equal(first, same(inputs, training=True))
    assert (first != one(inputs, training=True)).numpy().any()
    assert (first != one(inputs)).numpy().any()
    other.set_weights(
        [
            a if a.dtype == np.float32 else b
            for a, b in zip(one.get_weights(), other.get_weights(), strict=True)
        ]
    )
    np.testing.assert_array_equal(one(inputs), other(inputs))
    assert (first != other(inputs, training=True)).numpy().any()


def test_no_two_kernels_start_equal():
    kernels = [w for w in _build().get_weights() if w.ndim > 1]
    assert len({w.tobytes() for w in kernels}) == len(kernels) == 1 + 2 * 5 + 2 * 8
    for a, b in zip(kernels, [w for w in _build(seed=1).get_weights() if w.ndim > 1], strict=True):
        assert (a != b).any()


def test_kernels_start_glorot_uniform():
    """Keys and values count as a kernel each."""
    model = models.build_translator("transformer_tiny", vocabulary=50, seed=0)
    block = model.decoder.blocks[0]
    keys, values = np.split(block.cross.key_value.get_weights()[0], 2, axis=1)
    for kernel in (keys, values, block.cross.query.get_weights()[0], block.widen.get_weights()[0]):
        limit = np.sqrt(6 / sum(kernel.shape))
        assert np.abs(kernel).max() == pytest.approx(limit, rel=0.01)
        assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.02)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras', on writing a variable
def test_weights_are_saved_and_loaded(tmp_path):
    model, other = randomise(_build("pre")), _build("pre", seed=1)
    model.save_weights(tmp_path / "a.weights.h5")
    other.load_weights(tmp_path / "a.weights.h5")
    for a, b in zip(model.trainable_variables, other.trainable_variables, strict=True):
        np.testing.assert_array_equal(a, b)


# --- training -------------------------------------------------------------------------------------


@pytest.mark.slow  # what a Transformer-XL learns in make test is more
def test_fit_learns_to_copy():
    model = Transformer(
        VOCABULARY,
        Size(layers=1, width=32, hidden=64, heads=2, dropout=0.0),
        normalization="pre",
        dropout=0.0,
        seed=0,
        name="copies",
    )
    source = np.maximum(tokens(16, 5), 2)  # 1 begins the target
    target = np.pad(source[:, :-1], [(0, 0), (1, 0)], constant_values=1)
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    inputs = {"source": source, "target": target}
    data = tf.data.Dataset.from_tensors((inputs, source)).repeat()
    fit = model.fit(data, steps_per_epoch=60, epochs=2, shuffle=False, verbose=0)
    assert fit.history["loss"][1] < 0.05  # guessing costs 3.1
    decoded = greedy(model, tf.constant(source), 5, beams=1)
    np.testing.assert_array_equal(decoded, source)


@pytest.mark.parametrize(
    "policy", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)]
)
def test_mixed_precision_is_close_to_float32(policy):
    """Weights and logits are float32; logits are close in one pass and step by step."""
    expected = randomise(_build())
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = randomise(_build())
    finally:
        keras.config.set_dtype_policy(before)
    source, target = tokens(2, 7), tokens(2, 5, seed=1)
    source[1, 3:] = 0
    inputs = {"source": source, "target": target}
    logits = model(inputs)
    assert logits.dtype == tf.float32
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    error = np.abs(logits - expected(inputs)).max()
    assert 1e-5 < error < 0.2
    cache = model.start(tf.constant(source), 5)
    assert cache["own"][0][0].dtype == model.compute_dtype
    for position in range(5):
        step, cache = model.step(tf.constant(target[:, position]), position, cache)
        assert step.dtype == tf.float32
        np.testing.assert_allclose(step, logits[:, position], atol=0.2)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"name": "resnet20"}, "model.name=resnet20 is unknown; use one of transformer_tiny, "),
        ({"memory_length": 3}, "model.memory_length=3 needs a model with memory, transformer_xl"),
        ({"memory_length": -1}, "model.memory_length=-1 is below 0"),
        ({"normalization": "both"}, "model.normalization=both is neither pre nor post"),
        ({"dropout": 1.0}, "model.dropout=1.0 is not from 0 to below 1"),
    ],
)
def test_impossible_settings_are_refused(keys, line):
    with pytest.raises(UsageError, match=f"^{line}"):
        models.build_translator(**{"name": "transformer_tiny", "vocabulary": 9} | keys)


def test_settings_override_those_of_the_size():
    model = models.build_translator(
        "transformer_tiny", vocabulary=9, normalization="pre", dropout=0.25
    )
    assert model.decoder.dropout.rate == 0.25
    assert model.decoder.norm is not None
    assert models.build_translator("transformer_tiny", vocabulary=9).decoder.dropout.rate == 0.1


# --- full size ------------------------------------------------------------------------------------

FULL_SIZE = """
import resource, sys
import numpy as np, keras, tensorflow as tf
import models
from tests.models.test_transformer import greedy
name, memory_length = sys.argv[1], int(sys.argv[2])
model = models.build_translator(
    name, vocabulary=37_000, seed=0, memory_length=memory_length
)
tokens = np.random.default_rng(0).integers(1, 37_000, (8, 33)).astype(np.int32)
inputs = {"source": tokens[:, 1:], "target": tokens[:, :-1]}
if memory_length:
    inputs["reset"] = np.ones(8, bool)
model.compile(
    keras.optimizers.Adam(1e-4), keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    jit_compile=False,
)
before = model.decoder.blocks[-1].widen.get_weights()[0]
loss = model.train_on_batch(inputs, tokens[:, 1:])
changed = model.decoder.blocks[-1].widen.get_weights()[0] != before
assert np.isfinite(loss) and changed.mean() > 0.5  # all but units that no token activates
decoded = tf.function(lambda x: greedy(model, x, 4, beams=2))(tf.constant(tokens[:2]))
weights = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(weights, *decoded.shape, f"{name}: loss {loss:.2f}, peak {gigabytes:.2f} GiB", sep=";")
"""


@pytest.mark.slow
@pytest.mark.large
@pytest.mark.parametrize(
    ("name", "memory_length", "weights", "paper"),
    [
        ("transformer_base", 0, 63_045_632, 65e6),
        ("transformer_big", 0, 214_171_648, 213e6),
        ("transformer_xl_base", 32, 66_203_648, None),
    ],
)
def test_full_size_trains_and_decodes(name, memory_length, weights, paper):
    """One step of Adam with 256 tokens, 4 decoded tokens; prints the peak of memory."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_SIZE, name, str(memory_length)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    counted, rows, length, line = done.stdout.splitlines()[-1].split(";")
    print(line)
    assert (int(counted), int(rows), int(length)) == (weights, 4, 4)
    if paper:
        assert weights == pytest.approx(paper, rel=0.04)
