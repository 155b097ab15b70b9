"""The ImageNet residual networks of He et al. 2016 (arXiv 1512.03385, table 1), as in torchvision.

Shortcuts are convolutions where the shape changes (option B). ResNet-50 is version 1.5: a block
halves the image in its 3 x 3 convolution; the paper does so in the first 1 x 1, which then reads
only one pixel of four (https://github.com/facebookarchive/fb.resnet.torch, "Notes").

Kernels are initialized as in that code and torchvision, He normal by fan-out; the head's with
standard deviation 0.01 (Goyal et al. 2017, arXiv 1706.02677, 5.1).
"""

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras

from models import layers

WIDTHS = (64, 128, 256, 512)

# (channels, size, stride) of the convolutions of a block's residual branch.
Convolutions = list[tuple[int, int, int]]


def _basic(channels: int, stride: int) -> Convolutions:
    return [(channels, 3, stride), (channels, 3, 1)]


def _bottleneck(channels: int, stride: int) -> Convolutions:
    return [(channels, 1, 1), (channels, 3, stride), (4 * channels, 1, 1)]


def resnet(
    classes: int,
    input_shape: tuple[int, ...],
    seed: int | None = None,
    *,
    convolutions: Callable[[int, int], Convolutions],
    blocks: Sequence[int],
    normalization: layers.Normalization = layers.BATCH_NORM,
) -> keras.Model:
    """The network with `blocks[i]` blocks in stage i, each made of `convolutions`.

    Args:
      input_shape: (height, width, channels) of at least 32 x 32; None for any height or width.

    Returns:
      A model from [batch, *input_shape] to logits [batch, classes].
    """
    seeds = random.Random(seed)  # seeded by the system when None
    inputs = keras.Input(input_shape, name="images")
    x = layers.conv(inputs, 64, 7, 2, seeds, "conv1", "fan_out", normalization)
    x = keras.layers.ReLU()(layers.norm(x, "bn1", normalization=normalization))
    # No pixel is negative after the ReLU, so padding with zeros never changes a maximum.
    x = keras.layers.MaxPooling2D(3, 2)(keras.layers.ZeroPadding2D(1)(x))
    for name, width, stride in layers.stages(WIDTHS, blocks):
        x = _block(x, convolutions(width, stride), stride, seeds, name, normalization)
    head = keras.initializers.RandomNormal(stddev=0.01, seed=seeds.getrandbits(31))
    depth = sum(blocks) * len(convolutions(1, 1)) + 2
    return keras.Model(inputs, layers.head(x, classes, head), name=f"resnet{depth}")


def _block(
    x: Any,
    convolutions: Convolutions,
    stride: int,
    seeds: random.Random,
    name: str,
    normalization: layers.Normalization,
) -> Any:
    residual = layers.branch(x, convolutions, seeds, name, "fan_out", normalization)
    channels = residual.shape[-1]
    if stride > 1 or x.shape[-1] != channels:
        shortcut = f"{name}.downsample"
        x = layers.conv(x, channels, 1, stride, seeds, f"{shortcut}.0", "fan_out", normalization)
        x = layers.norm(x, f"{shortcut}.1", normalization=normalization)
    return keras.layers.ReLU()(keras.layers.Add()([residual, x]))


_WITH_BATCH_NORM: dict[str, Callable[..., keras.Model]] = {
    "resnet18": partial(resnet, convolutions=_basic, blocks=(2, 2, 2, 2)),
    "resnet50": partial(resnet, convolutions=_bottleneck, blocks=(3, 4, 6, 3)),
}
BUILDERS = layers.with_group_norm_too(_WITH_BATCH_NORM)
