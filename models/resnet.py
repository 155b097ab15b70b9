"""The CIFAR residual networks of He et al. 2016, "Deep residual learning" (arXiv 1512.03385, 4.2).

Three stages of n basic blocks, 6n + 2 weighted layers: n = 3 is ResNet-20 with 0.27M weights.
Shortcuts have no weights (option A), so depth is all that tells these networks apart.
"""

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras

PAPER_WIDTHS = (16, 32, 64)


def shortcut(x: Any, channels: int, stride: int) -> Any:
    """Option A: every stride-th pixel, and zeros for the channels x does not have.

    Args:
      x: images [batch, height, width, c] with c <= channels; a tensor or a Keras symbol.

    Returns:
      [batch, ceil(height / stride), ceil(width / stride), channels], as x.
    """
    if stride > 1:
        x = x[:, ::stride, ::stride, :]
    missing = channels - x.shape[-1]
    if missing:
        x = keras.ops.pad(x, ((0, 0), (0, 0), (0, 0), (0, missing)))
    return x


def resnet(
    classes: int,
    input_shape: tuple[int, ...],
    seed: int | None = None,
    *,
    blocks: int,
    widths: Sequence[int] = PAPER_WIDTHS,
) -> keras.Model:
    """The network with `blocks` basic blocks a stage and `widths` channels in the stages.

    The last BatchNorm scale of a block starts at zero, so each block starts as its shortcut
    (Goyal et al. 2017, arXiv 1706.02677, 5.1).

    Returns:
      A model from [batch, *input_shape] to logits [batch, classes].
    """
    seeds = random.Random(seed)  # seeded by the system when None
    inputs = keras.Input(input_shape, name="images")
    x = _conv(inputs, widths[0], 1, seeds)
    x = keras.layers.ReLU()(_norm(x))
    for stage, channels in enumerate(widths):
        for block in range(blocks):
            x = _block(x, channels, 2 if stage and not block else 1, seeds)
    x = keras.layers.GlobalAveragePooling2D()(x)
    logits = keras.layers.Dense(classes, kernel_initializer=_he_normal(seeds), name="logits")(x)
    return keras.Model(inputs, logits, name=f"resnet{2 * blocks * len(widths) + 2}")


def _block(x: Any, channels: int, stride: int, seeds: random.Random) -> Any:
    residual = _conv(x, channels, stride, seeds)
    residual = keras.layers.ReLU()(_norm(residual))
    residual = _conv(residual, channels, 1, seeds)
    residual = _norm(residual, scale="zeros")
    return keras.layers.ReLU()(keras.layers.Add()([residual, shortcut(x, channels, stride)]))


def _conv(x: Any, channels: int, stride: int, seeds: random.Random) -> Any:
    padding = "same"
    if stride > 1:
        # "same" would pad even images only below and right, which puts the filters' centres one
        # pixel beside those that the shortcut keeps.
        x = keras.layers.ZeroPadding2D(1)(x)
        padding = "valid"
    return keras.layers.Conv2D(
        channels, 3, stride, padding, use_bias=False, kernel_initializer=_he_normal(seeds)
    )(x)


def _norm(x: Any, scale: str = "ones") -> Any:
    # The customary constants of these recipes; Keras' own momentum of 0.99 needs more steps
    # than a short run has.
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, gamma_initializer=scale)(x)


def _he_normal(seeds: random.Random) -> keras.initializers.Initializer:
    # A seed a layer: with one seed for all, Keras gives layers of one shape the same weights.
    return keras.initializers.HeNormal(seeds.getrandbits(31))


BUILDERS: dict[str, Callable[..., keras.Model]] = {
    # For 8 x 8 digits: seconds an epoch on a CPU core. Not in the paper.
    "resnet8": partial(resnet, blocks=1, widths=(12, 24, 48)),
    "resnet20": partial(resnet, blocks=3),
    "resnet32": partial(resnet, blocks=5),
    "resnet44": partial(resnet, blocks=7),
    "resnet56": partial(resnet, blocks=9),
    "resnet110": partial(resnet, blocks=18),
}
