"""The parts that the residual networks share.

Convolutions are padded by the same number of pixels on all sides, as in PyTorch, and layers with
weights have torchvision's names (its `fc` is `logits` here): weights can be copied between the two
by name, with kernels transposed from [out, in, height, width] to [height, width, in, out].
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras

GROUPS, FEWEST_CHANNELS = 32, 4  # of GroupNorm: most groups, and fewest channels in a group

Builder = Callable[..., keras.Model]


@keras.saving.register_keras_serializable(package="models")
class StandardizedConv2D(keras.layers.Conv2D):  # type: ignore[misc]
    """A convolution whose filters are shifted and scaled to mean 0 and variance 1 / fan-in.

    Weight standardization (Qiao et al. 2019, arXiv 1903.10520), scaled as by Brock, De, Smith 2021,
    "Characterizing signal propagation to close the performance gap in unnormalized ResNets",
    arXiv 2101.08692.
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """See `keras.layers.Conv2D`."""
        fan_in = math.prod(kernel.shape[:-1])
        mean, variance = keras.ops.moments(kernel, axes=(0, 1, 2), keepdims=True)
        # A filter of equal weights is not divided by zero.
        scale = keras.ops.rsqrt(keras.ops.maximum(fan_in * variance, 1e-4))
        return super().convolution_op(inputs, (kernel - mean) * scale)


def _batch_norm(channels: int, **options: Any) -> keras.layers.Layer:
    # A momentum customary for these networks; Keras' 0.99 needs more steps than a short run has.
    return keras.layers.BatchNormalization(momentum=0.9, **options)


def _group_norm(channels: int, **options: Any) -> keras.layers.Layer:
    groups = (g for g in range(GROUPS, 1, -1) if channels % g == 0)
    fitting = (g for g in groups if channels // g >= FEWEST_CHANNELS)
    return keras.layers.GroupNormalization(next(fitting, 1), **options)


@dataclass(frozen=True)
class Normalization:
    """How a network is normalized, which its convolutions are part of.

    Attributes:
      convolution: the class of its convolutions.
      layer: from the number of channels and further options to the layer after a convolution.
    """

    convolution: type[keras.layers.Conv2D]
    layer: Callable[..., keras.layers.Layer]


BATCH_NORM = Normalization(keras.layers.Conv2D, _batch_norm)
GROUP_NORM = Normalization(StandardizedConv2D, _group_norm)
"""GroupNorm (Wu and He 2018, arXiv 1803.08494) and weight standardization, which belong together
(Qiao et al.).

They keep no statistics of the data, so they suit ranks whose data differ: with BatchNorm each rank
trains for its own statistics (Hsieh et al. 2020, "The non-IID data quagmire of decentralized
machine learning", arXiv 1910.00189).
"""


def conv(
    x: Any,
    channels: int,
    size: int,
    stride: int,
    seeds: random.Random,
    name: str,
    fan: str = "fan_in",
    normalization: Normalization = BATCH_NORM,
) -> Any:
    """A convolution without bias, since the normalization after it has an offset of its own.

    Args:
      x: images [batch, height, width, c].
      size: of the filters in both directions, odd.

    Returns:
      [batch, ceil(height / stride), ceil(width / stride), channels].
    """
    padding = "same"
    if stride > 1:
        # "same" would pad images of even size more below and right than above and left.
        padding = "valid"
        if size > 1:
            x = keras.layers.ZeroPadding2D(size // 2)(x)
    return normalization.convolution(
        channels,
        size,
        stride,
        padding,
        use_bias=False,
        kernel_initializer=he_normal(seeds, fan),
        name=name,
    )(x)


def norm(x: Any, name: str, scale: str = "ones", normalization: Normalization = BATCH_NORM) -> Any:
    """A normalization whose scale starts at "ones" or "zeros"; the shape stays."""
    return normalization.layer(x.shape[-1], gamma_initializer=scale, epsilon=1e-5, name=name)(x)


def branch(
    x: Any,
    convolutions: Sequence[tuple[int, int, int]],
    seeds: random.Random,
    name: str,
    fan: str = "fan_in",
    normalization: Normalization = BATCH_NORM,
) -> Any:
    """The residual branch of He et al. 2016, figure 5: every convolution normalized, and with ReLU.

    The last ReLU comes after the sum and is the caller's. The last scale starts at zero,
    so a block starts as its shortcut (Goyal et al. 2017, arXiv 1706.02677, 5.1).

    Args:
      x: images [batch, height, width, c].
      convolutions: (channels, size, stride) of each.
    """
    for number, (channels, size, stride) in enumerate(convolutions, 1):
        last = number == len(convolutions)
        x = conv(x, channels, size, stride, seeds, f"{name}.conv{number}", fan, normalization)
        x = norm(x, f"{name}.bn{number}", "zeros" if last else "ones", normalization)
        if not last:
            x = keras.layers.ReLU()(x)
    return x


def stages(widths: Sequence[int], blocks: Sequence[int]) -> Iterator[tuple[str, int, int]]:
    """(name, channels, stride) of each block: all stages but the first halve height and width."""
    for stage, (channels, count) in enumerate(zip(widths, blocks, strict=True), 1):
        for block in range(count):
            yield f"layer{stage}.{block}", channels, 2 if stage > 1 and block == 0 else 1


def head(x: Any, classes: int, initializer: keras.initializers.Initializer) -> Any:
    """Features [batch, height, width, channels] to logits [batch, classes].

    Float32 under every dtype policy: rounding to bfloat16 would move a logit by up to 1/256 of
    itself.
    """
    x = keras.layers.GlobalAveragePooling2D(dtype="float32")(x)
    return keras.layers.Dense(
        classes, kernel_initializer=initializer, dtype="float32", name="logits"
    )(x)


def he_normal(seeds: random.Random, fan: str = "fan_in") -> keras.initializers.Initializer:
    """Variance 2 / fan (He et al. 2015, arXiv 1502.01852, equation 10; 14 for "fan_out").

    Each layer draws its own seed: with one seed for all, Keras gives layers of one shape the same
    weights.
    """
    return keras.initializers.VarianceScaling(2.0, fan, seed=seeds.getrandbits(31))


def with_group_norm_too(builders: Mapping[str, Builder]) -> dict[str, Builder]:
    """The builders, and with the suffix `_gn` those of the same networks with GroupNorm."""
    return {
        **builders,
        **{
            f"{name}_gn": partial(build, normalization=GROUP_NORM)
            for name, build in builders.items()
        },
    }
