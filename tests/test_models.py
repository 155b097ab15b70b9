"""Laws of the models: the paper's weight counts, the shortcut, what a seed fixes."""

import keras
import numpy as np
import pytest

import models
from models import cifar_resnet
from swarm_tf.errors import UsageError

CIFAR = {"classes": 10, "input_shape": (32, 32, 3)}
DIGITS = {"classes": 10, "input_shape": (8, 8, 1)}


def _trainable(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def _formula(blocks, widths, channels_in, classes):
    """3 x 3 convolutions without bias, each with a scale and an offset; one dense layer."""
    convolutions = [(channels_in, widths[0])]
    for before, width in zip((widths[0], *widths), widths, strict=False):
        convolutions += [(before, width)] + [(width, width)] * (2 * blocks - 1)
    return sum(9 * a * b + 2 * b for a, b in convolutions) + (widths[-1] + 1) * classes


@pytest.mark.parametrize(
    ("name", "blocks", "millions"),  # table 6 of the paper
    [
        ("resnet20", 3, 0.27),
        ("resnet32", 5, 0.46),
        ("resnet44", 7, 0.66),
        ("resnet56", 9, 0.85),
        ("resnet110", 18, 1.7),
    ],
)
def test_weights_are_the_papers(name, blocks, millions):
    model = models.build(name, **CIFAR)
    assert model.name == name
    assert _trainable(model) == _formula(blocks, (16, 32, 64), 3, 10)
    assert _trainable(model) / 1e6 == pytest.approx(millions, rel=0.02)


def test_resnet8_is_small():
    model = models.build("resnet8", **DIGITS)
    assert _trainable(model) == _formula(1, (12, 24, 48), 1, 10) < 50_000


@pytest.mark.parametrize(
    ("name", "classes", "shape"),
    [("resnet8", 10, (8, 8, 1)), ("resnet8", 7, (9, 11, 2)), ("resnet20", 100, (32, 32, 3))],
)
def test_logits(name, classes, shape):
    model = models.build(name, classes=classes, input_shape=shape, seed=0)
    images = np.random.default_rng(0).normal(size=(5, *shape)).astype(np.float32)
    logits = keras.ops.convert_to_numpy(model(images))
    assert logits.shape == (5, classes)
    assert logits.dtype == np.float32
    assert (logits < 0).any()  # no softmax
    assert np.abs(logits).max() > 0


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("height", [7, 8])
@pytest.mark.parametrize("channels", [3, 5])
def test_shortcut_is_option_a(stride, height, channels):
    x = np.random.default_rng(0).normal(size=(2, height, 6, 3)).astype(np.float32)
    expected = np.zeros((2, -(-height // stride), -(-6 // stride), channels), np.float32)
    for row, column in np.ndindex(expected.shape[1:3]):
        expected[:, row, column, :3] = x[:, stride * row, stride * column]
    actual = cifar_resnet.shortcut(keras.ops.convert_to_tensor(x), channels, stride)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(actual), expected)


def test_a_fresh_network_is_its_shortcuts():
    """The zero scales switch every residual branch off: what remains is stem, shortcuts, head."""
    model = models.build("resnet8", **DIGITS, seed=0)
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    stem = next(layer for layer in model.layers if isinstance(layer, keras.layers.ReLU))
    features = keras.Model(model.input, stem.output)(images)
    for channels, stride in ((12, 1), (24, 2), (48, 2)):
        features = cifar_resnet.shortcut(features, channels, stride)
    pooled = keras.ops.mean(features, axis=(1, 2))
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(model(images)),
        keras.ops.convert_to_numpy(model.get_layer("logits")(pooled)),
        rtol=1e-5,
        atol=1e-6,
    )


def _weights(seed):
    return models.build("resnet8", **DIGITS, seed=seed).get_weights()


def test_the_seed_fixes_the_weights():
    for a, b in zip(_weights(3), _weights(3), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("one", "other"), [(3, 4), (None, None)])
def test_other_seeds_give_other_weights(one, other):
    kernels = [(a, b) for a, b in zip(_weights(one), _weights(other), strict=True) if a.ndim > 1]
    assert all((a != b).any() for a, b in kernels)


def test_layers_of_one_shape_differ():
    kernels = [w for w in models.build("resnet20", **CIFAR, seed=0).get_weights() if w.ndim == 4]
    same_shape = [w for w in kernels if w.shape == (3, 3, 16, 16)]
    assert len({w.tobytes() for w in same_shape}) == len(same_shape) == 6


def test_initial_kernels_have_he_variance():
    model = models.build("resnet20", **CIFAR, seed=0)
    kernels = [w for w in model.get_weights() if w.shape == (3, 3, 64, 64)]
    assert len(kernels) == 5
    for kernel in kernels:
        assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.03)


def test_unknown_names_are_refused():
    with pytest.raises(
        UsageError, match=r"^model.name=alexnet is unknown; use one of resnet8, resnet20, "
    ):
        models.build("alexnet", **CIFAR)
