"""The CIFAR residual networks of He et al. 2016, "Deep residual learning" (arXiv 1512.03385, 4.2).

Three stages of n basic blocks, 6n + 2 weighted layers: n = 3 is ResNet-20 with 0.27M weights.
Shortcuts have no weights (option A), so these networks differ in depth alone.
"""

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras

from models import layers

PAPER_WIDTHS = (16, 32, 64)


def shortcut(x: Any, channels: int, stride: int) -> Any:
    """Option A: every stride-th pixel, and zeros for the channels that x lacks.

    Args:
      x: images [batch, height, width, c] with c <= channels; a tensor or a Keras symbol.

    Returns:
      [batch, ceil(height / stride), ceil(width / stride), channels], a tensor or symbol like x.
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
    normalization: layers.Normalization = layers.BATCH_NORM,
) -> keras.Model:
    """The network with `blocks` basic blocks a stage and `widths` channels in the stages.

    Returns:
      A model from [batch, *input_shape] to logits [batch, classes].
    """
    seeds = random.Random(seed)  # seeded by the system when None
    inputs = keras.Input(input_shape, name="images")
    x = layers.conv(inputs, widths[0], 3, 1, seeds, "conv1", normalization=normalization)
    x = keras.layers.ReLU()(layers.norm(x, "bn1", normalization=normalization))
    for name, channels, stride in layers.stages(widths, [blocks] * len(widths)):
        convolutions = [(channels, 3, stride), (channels, 3, 1)]
        residual = layers.branch(x, convolutions, seeds, name, normalization=normalization)
        x = keras.layers.Add()([residual, shortcut(x, channels, stride)])
        x = keras.layers.ReLU()(x)
    logits = layers.head(x, classes, layers.he_normal(seeds))
    return keras.Model(inputs, logits, name=f"resnet{2 * blocks * len(widths) + 2}")


_WITH_BATCH_NORM: dict[str, Callable[..., keras.Model]] = {
    # For 8 x 8 digits: an epoch takes seconds on a CPU core. Not in the paper.
    "resnet8": partial(resnet, blocks=1, widths=(12, 24, 48)),
    "resnet20": partial(resnet, blocks=3),
    "resnet32": partial(resnet, blocks=5),
    "resnet44": partial(resnet, blocks=7),
    "resnet56": partial(resnet, blocks=9),
    "resnet110": partial(resnet, blocks=18),
}
BUILDERS = layers.with_group_norm_too(_WITH_BATCH_NORM)
