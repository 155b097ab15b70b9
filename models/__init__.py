"""The recipes' models by name, for images and for translation; every one returns logits."""

from collections.abc import Callable

import keras

from models import cifar_resnet, imagenet_resnet, transformer, transformer_xl, wide_resnet
from swarm_tf.errors import UsageError

# A name maps to build(classes, input_shape, seed); a new family adds its own lines here.
_BUILDERS: dict[str, Callable[[int, tuple[int, ...], int | None], keras.Model]] = {
    **cifar_resnet.BUILDERS,
    **wide_resnet.BUILDERS,
    **imagenet_resnet.BUILDERS,
}

NAMES = tuple(_BUILDERS)
TRANSLATORS = (*transformer.SIZES, *transformer_xl.SIZES)


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


def build_translator(
    name: str,
    *,
    vocabulary: int,
    seed: int | None = None,
    dropout: float | None = None,
    normalization: str | None = None,
    memory_length: int = 0,
) -> transformer.Transformer:
    """A model from {"source": int32 [batch, s], "target": int32 [batch, t]} to float32 logits
    [batch, t, vocabulary]. A model with a memory takes "reset" too: bool [batch].

    Args:
      name: `model.name`, one of `TRANSLATORS`.
      vocabulary: number of tokens, both languages together.
      seed: the same seed gives the same weights and dropout; None draws new ones.
      dropout: at least 0 and below 1; None takes the default of the size.
      normalization: "post", the default, or "pre".
      memory_length: how many tokens before the segment a `transformer_xl_*` attends to.

    Raises:
      UsageError: for an unknown name or a value out of range.
    """
    if name not in TRANSLATORS:
        raise UsageError(f"model.name={name} is unknown; use one of {', '.join(TRANSLATORS)}")
    if normalization not in (None, "pre", "post"):
        raise UsageError(f"model.normalization={normalization} is neither pre nor post")
    if dropout is not None and not 0 <= dropout < 1:
        raise UsageError(f"model.dropout={dropout} is not from 0 to below 1")
    if memory_length < 0:
        raise UsageError(f"model.memory_length={memory_length} is below 0")
    recurrent = name in transformer_xl.SIZES
    if memory_length > 0 and not recurrent:
        raise UsageError(
            f"model.memory_length={memory_length} needs a model with memory, "
            f"{' or '.join(transformer_xl.SIZES)}, not {name}"
        )
    size = (transformer_xl.SIZES if recurrent else transformer.SIZES)[name]
    keys = {
        "seed": seed,
        "dropout": size.dropout if dropout is None else dropout,
        "normalization": normalization or "post",
        "name": name,
    }
    if recurrent:
        return transformer_xl.TransformerXL(vocabulary, size, memory_length=memory_length, **keys)
    return transformer.Transformer(vocabulary, size, **keys)
