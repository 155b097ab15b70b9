"""The wide residual networks of Zagoruyko and Komodakis 2016 (arXiv 1605.07146, table 1).

Three stages of n pre-activation blocks (He et al. 2016, arXiv 1603.05027, figure 4e), k times as
wide as the CIFAR residual networks, 6n + 4 convolutions: WRN-28-10 has n = 4, k = 10 and 36.5M
weights. Without dropout, as in the paper's table 5.

No block ends with BatchNorm here, so no scale starts at zero: all start at one. (The authors' code,
https://github.com/szagoruyko/wide-residual-networks, draws them between zero and one, Torch's
default of the time.) Kernels and head start He normal by fan-in, as in that code.
"""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import keras

from models import layers


def wide_resnet(
    classes: int,
    input_shape: tuple[int, ...],
    seed: int | None = None,
    *,
    blocks: int,
    factor: int,
) -> keras.Model:
    """The network with `blocks` blocks a stage, `factor` times 16, 32 and 64 channels wide.

    Returns:
      A model from [batch, *input_shape] to logits [batch, classes].
    """
    seeds = random.Random(seed)  # seeded by the system when None
    inputs = keras.Input(input_shape, name="images")
    x = layers.conv(inputs, 16, 3, 1, seeds, "conv1")
    widths = [factor * channels for channels in (16, 32, 64)]
    for name, channels, stride in layers.stages(widths, [blocks] * len(widths)):
        x = _block(x, channels, stride, seeds, name)
    x = keras.layers.ReLU()(layers.norm(x, "bn1"))
    logits = layers.head(x, classes, layers.he_normal(seeds))
    depth = 2 * blocks * len(widths) + 4
    return keras.Model(inputs, logits, name=f"wideresnet{depth}_{factor}")


def _block(x: Any, channels: int, stride: int, seeds: random.Random, name: str) -> Any:
    activated = keras.layers.ReLU()(layers.norm(x, f"{name}.bn1"))
    residual = layers.conv(activated, channels, 3, stride, seeds, f"{name}.conv1")
    residual = keras.layers.ReLU()(layers.norm(residual, f"{name}.bn2"))
    residual = layers.conv(residual, channels, 3, 1, seeds, f"{name}.conv2")
    if x.shape[-1] != channels:
        # From the activated x, as in the authors' code: both paths then see normalized inputs.
        x = layers.conv(activated, channels, 1, stride, seeds, f"{name}.shortcut")
    return keras.layers.Add()([residual, x])


BUILDERS: dict[str, Callable[..., keras.Model]] = {
    "wideresnet28_10": partial(wide_resnet, blocks=4, factor=10),
}
