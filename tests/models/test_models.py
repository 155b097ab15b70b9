"""Laws of the models: weight counts, outputs of independent implementations, what a seed fixes."""

import keras
import keras_hub
import numpy as np
import pytest

import models
from models import cifar_resnet, layers
from swarm_tf.errors import UsageError
from tests.models import numpy_networks

CIFAR = {"classes": 10, "input_shape": (32, 32, 3)}
DIGITS = {"classes": 10, "input_shape": (8, 8, 1)}
IMAGENET = {"classes": 1000, "input_shape": (None, None, 3)}  # None: any size
FAMILIES = {
    "resnet8": DIGITS,
    "resnet20": CIFAR,
    "resnet20_gn": CIFAR,
    "wideresnet28_10": CIFAR,
    "resnet18": IMAGENET,
    "resnet50": IMAGENET,
}
# The large ones are made of the same layers as the others.
EACH_FAMILY = [
    pytest.param(name, marks=pytest.mark.slow if name in ("wideresnet28_10", "resnet50") else [])
    for name in FAMILIES
]


def _trainable(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def _formula(blocks, widths, channels_in, classes):
    """3 x 3 convolutions without bias, each with a scale and an offset; one dense layer."""
    convolutions = [(channels_in, widths[0])]
    for before, width in zip((widths[0], *widths), widths, strict=False):
        convolutions += [(before, width)] + [(width, width)] * (2 * blocks - 1)
    return sum(9 * a * b + 2 * b for a, b in convolutions) + (widths[-1] + 1) * classes


@pytest.mark.parametrize(
    ("name", "blocks", "millions", "exact"),
    [  # millions: table 6 of He et al.
        ("resnet20", 3, 0.27, 269_722),
        ("resnet32", 5, 0.46, 464_154),
        pytest.param("resnet44", 7, 0.66, 658_586, marks=pytest.mark.slow),
        pytest.param("resnet56", 9, 0.85, 853_018, marks=pytest.mark.slow),
        pytest.param("resnet110", 18, 1.7, 1_727_962, marks=pytest.mark.slow),
    ],
)
def test_number_of_weights_of_cifar_resnets(name, blocks, millions, exact):
    model = models.build(name, **CIFAR)
    assert model.name == name
    assert _trainable(model) == _formula(blocks, (16, 32, 64), 3, 10) == exact
    assert exact / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize(
    ("name", "data", "exact"),
    [
        ("wideresnet28_10", CIFAR, 36_479_194),  # table 4 of Zagoruyko and Komodakis: 36.5M
        ("resnet18", IMAGENET, 11_689_512),  # this and the next: torchvision's documentation
        ("resnet50", IMAGENET, 25_557_032),
    ],
)
def test_number_of_weights_of_larger_networks(name, data, exact):
    model = models.build(name, **data)
    assert model.name == name
    assert _trainable(model) == exact


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "resnet18"])
def test_group_norm_changes_no_shape_of_a_trainable_weight(name):
    with_batch_norm, with_group_norm = (
        models.build(n, **FAMILIES[name]) for n in (name, f"{name}_gn")
    )
    shapes = [v.shape for v in with_batch_norm.trainable_variables]
    assert [v.shape for v in with_group_norm.trainable_variables] == shapes
    assert len(with_group_norm.variables) == len(shapes)  # no statistics


def test_a_network_with_group_norm_is_saved_and_loaded(tmp_path):
    model = models.build("resnet8_gn", **DIGITS, seed=0)
    model.save(tmp_path / "model.keras")
    images = _images(2, 8, 8, 1)
    np.testing.assert_array_equal(
        keras.saving.load_model(tmp_path / "model.keras")(images), model(images)
    )


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (6, 1), (12, 3), (18, 3), (64, 16), (144, 24), (512, 32)]
)
def test_groups_divide_the_channels(channels, groups):
    layer = layers.GROUP_NORM.layer(channels)
    assert layer.groups == groups
    assert layer(np.zeros((1, 2, 2, channels), np.float32)).shape == (1, 2, 2, channels)


def test_resnet8_is_small():
    model = models.build("resnet8", **DIGITS)
    assert _trainable(model) == _formula(1, (12, 24, 48), 1, 10) < 50_000


@pytest.mark.parametrize(
    ("name", "classes", "shape"),
    [
        ("resnet8", 10, (8, 8, 1)),
        ("resnet8", 7, (9, 11, 2)),
        ("resnet20", 100, (32, 32, 3)),
        pytest.param("wideresnet28_10", 100, (10, 12, 3), marks=pytest.mark.slow),
        ("resnet18", 1000, (32, 32, 3)),
        pytest.param("resnet50", 9, (33, 47, 1), marks=pytest.mark.slow),
    ],
)
def test_logits_have_their_shape_and_type_and_no_softmax(name, classes, shape):
    model = models.build(name, classes=classes, input_shape=shape, seed=0)
    images = np.random.default_rng(0).normal(size=(5, *shape)).astype(np.float32)
    logits = keras.ops.convert_to_numpy(model(images))
    assert logits.shape == (5, classes)
    assert logits.dtype == np.float32
    assert (logits < 0).any()  # no softmax
    assert np.abs(logits).max() > 0


def _randomised(name, data):
    """A model whose scales, offsets and statistics are all random, so that a wrong one shows."""
    model = models.build(name, **data, seed=0)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape
            spread = [rng.uniform(0.5, 1.5, size), rng.normal(0, 0.3, size)]
            layer.set_weights([*spread, rng.normal(0, 0.3, size), rng.uniform(0.5, 1.5, size)])
        elif isinstance(layer, keras.layers.GroupNormalization):
            size = layer.gamma.shape
            layer.set_weights([rng.uniform(0.5, 1.5, size), rng.normal(0, 0.3, size)])
    return model


def _images(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def _assert_close(actual, expected):
    """Asserts equality to 1e-4 of the largest value."""
    actual, expected = (keras.ops.convert_to_numpy(x) for x in (actual, expected))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "reference", "blocks", "size"),
    [
        ("resnet20", numpy_networks.cifar_resnet, 3, (32, 32)),
        ("resnet20", numpy_networks.cifar_resnet, 3, (9, 11)),
        ("resnet20_gn", numpy_networks.cifar_resnet_with_group_norm, 3, (9, 11)),
        ("wideresnet28_10", numpy_networks.wide_resnet, 4, (9, 11)),
        *(
            pytest.param(*more, marks=pytest.mark.slow)
            for more in (
                ("resnet20", numpy_networks.cifar_resnet, 3, (14, 18)),
                ("resnet110", numpy_networks.cifar_resnet, 18, (9, 11)),
                ("wideresnet28_10", numpy_networks.wide_resnet, 4, (14, 18)),
            )
        ),
    ],
)
def test_cifar_networks_equal_their_numpy_versions(name, reference, blocks, size):
    """At inference and with random statistics, their logits are equal."""
    model = _randomised(name, {"classes": 10, "input_shape": (None, None, 3)})
    weights = {layer.name: layer.get_weights() for layer in model.layers}
    images = _images(1, *size, 3)
    _assert_close(model(images), reference(weights, images, blocks))


def _name_in_keras_hub(name):
    """KerasHub's name of layer conv1, bn1, layer2.0.conv3, .bn3, .downsample.0 or .downsample.1."""
    if "." not in name:
        return f"conv1_{name[:-1]}"
    stage, block, part, *which = name.removeprefix("layer").split(".")
    layer = f"0_{('conv', 'bn')[int(which[0])]}" if which else f"{part[-1]}_{part[:-1]}"
    return f"stack{int(stage) - 1}_block{block}_{layer}"


@pytest.mark.parametrize(
    ("name", "block", "blocks"),
    [
        ("resnet18", "basic_block", [2, 2, 2, 2]),
        pytest.param("resnet50", "bottleneck_block", [3, 4, 6, 3], marks=pytest.mark.slow),
    ],
)
def test_imagenet_networks_equal_those_of_keras_hub(name, block, blocks):
    """At inference, with random statistics: features and logits for images of any size.

    KerasHub's network takes torchvision's weights (v1.5: the stride is in the 3 x 3 convolution).
    """
    ours = _randomised(name, IMAGENET)
    theirs = keras_hub.models.ResNetBackbone(
        [64], [7], [64, 128, 256, 512], blocks, [1, 2, 2, 2], block_type=block
    )
    *body, head = [layer for layer in ours.layers if layer.weights]
    for layer in body:
        theirs.get_layer(_name_in_keras_hub(layer.name)).set_weights(layer.get_weights())
    assert len(body) == sum(bool(layer.weights) for layer in theirs.layers)
    kernel, bias = head.get_weights()
    for height, width in [(32, 32), (64, 96), (75, 49), (224, 224)]:
        images = _images(1, height, width, 3)
        features = keras.ops.mean(theirs(images), axis=(1, 2))
        _assert_close(ours(images), features @ kernel + bias)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("height", [7, 8])
@pytest.mark.parametrize("channels", [3, 5])
def test_the_shortcut_is_option_a_of_the_paper(stride, height, channels):
    x = np.random.default_rng(0).normal(size=(2, height, 6, 3)).astype(np.float32)
    expected = np.zeros((2, -(-height // stride), -(-6 // stride), channels), np.float32)
    for row, column in np.ndindex(expected.shape[1:3]):
        expected[:, row, column, :3] = x[:, stride * row, stride * column]
    actual = cifar_resnet.shortcut(keras.ops.convert_to_tensor(x), channels, stride)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(actual), expected)


def test_a_new_network_computes_only_its_shortcuts():
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


@pytest.mark.parametrize(
    ("name", "last"),
    [("resnet20", "bn2"), ("resnet20_gn", "bn2"), ("resnet18", "bn2"), ("resnet50", "bn3")],
)
def test_only_the_last_scales_of_branches_start_at_zero(name, last):
    model = models.build(name, classes=10, input_shape=(32, 32, 3))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization | keras.layers.GroupNormalization):
            scale, *_ = layer.get_weights()
            assert (scale == (0 if layer.name.endswith(f".{last}") else 1)).all()


@pytest.mark.parametrize("name", EACH_FAMILY)
def test_mixed_precision_keeps_variables_and_logits_in_float32(name):
    """The network computes in bfloat16; its variables and logits are float32."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = models.build(name, **FAMILIES[name])
    finally:
        keras.config.set_dtype_policy(policy)
    assert {variable.dtype for variable in model.variables} == {"float32"}
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert {layer.output.dtype for layer in convolutions} == {"bfloat16"}
    images = _images(2, *(size or 32 for size in model.input.shape[1:]))
    logits = keras.ops.convert_to_numpy(model(images))
    assert logits.dtype == np.float32
    assert (logits.view(np.uint32) & 0xFFFF).any()  # more digits than bfloat16 has


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras', on writing a variable
def test_weights_are_saved_and_loaded(tmp_path):
    """Keras' files allow dots in layer names."""
    model = _randomised("resnet8", DIGITS)
    model.save_weights(tmp_path / "resnet8.weights.h5")
    other = models.build("resnet8", **DIGITS, seed=1)
    other.load_weights(tmp_path / "resnet8.weights.h5")
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def _weights(name, seed):
    return models.build(name, **FAMILIES[name], seed=seed).get_weights()


@pytest.mark.parametrize("name", EACH_FAMILY)
def test_the_seed_fixes_the_weights(name):
    for a, b in zip(_weights(name, 3), _weights(name, 3), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["resnet8", pytest.param("resnet18", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("one", "other"), [(3, 4), (None, None)])
def test_other_seeds_give_other_weights(name, one, other):
    pairs = zip(_weights(name, one), _weights(name, other), strict=True)
    assert all((a != b).any() for a, b in pairs if a.ndim > 1)


@pytest.mark.parametrize("name", EACH_FAMILY)
def test_no_two_layers_start_equal(name):
    kernels = [w for w in _weights(name, 0) if w.ndim > 1]
    assert len({w.tobytes() for w in kernels}) == len(kernels)


def test_initial_kernels_have_he_variance():
    kernels = [w for w in _weights("resnet20", 0) if w.shape == (3, 3, 64, 64)]
    assert len(kernels) == 5
    for kernel in kernels:
        assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.03)


def test_initial_imagenet_kernels_have_torchvisions_variance():
    model = models.build("resnet50", **IMAGENET, seed=0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            height, width, _, channels_out = layer.kernel.shape
            deviation = np.sqrt(2 / (height * width * channels_out))
            assert layer.get_weights()[0].std() == pytest.approx(deviation, rel=0.03)
    assert model.get_layer("logits").get_weights()[0].std() == pytest.approx(0.01, rel=0.03)


def test_unknown_names_are_refused():
    with pytest.raises(
        UsageError, match=r"^model.name=alexnet is unknown; use one of resnet8, resnet20, "
    ):
        models.build("alexnet", **CIFAR)
