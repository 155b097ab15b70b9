"""The recipes' models by name; every one returns logits."""

from collections.abc import Callable

import keras

from models import cifar_resnet, imagenet_resnet, wide_resnet
from swarm_tf.errors import UsageError

# A name maps to build(classes, input_shape, seed); a new family adds its own lines here.
_BUILDERS: dict[str, Callable[[int, tuple[int, ...], int | None], keras.Model]] = {
    **cifar_resnet.BUILDERS,
    **wide_resnet.BUILDERS,
    **imagenet_resnet.BUILDERS,
}

NAMES = tuple(_BUILDERS)


def build(
    name: str, *, classes: int, input_shape: tuple[int, ...], seed: int | None = None
) -> keras.Model:
    """A model from float32 images [batch, *input_shape] to float32 logits [batch, classes].

    Args:
      name: `model.name`, one of `NAMES`.
      classes: number of classes.
      input_shape: (height, width, channels).
      seed: the same seed gives the same weights; None draws new ones.

    Raises:
      UsageError: for an unknown name.
    """
    if name not in _BUILDERS:
        raise UsageError(f"model.name={name} is unknown; use one of {', '.join(NAMES)}")
    return _BUILDERS[name](classes, input_shape, seed)
