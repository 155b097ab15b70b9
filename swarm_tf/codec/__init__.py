"""How weights are encoded for another node, and decoded there; see base.py and lattice.py."""

import functools

from swarm_tf.codec.base import NAME_BYTES, NO_SCALES, Channel, Codec, Decoded, Encoded
from swarm_tf.codec.floats import BFloat16, Float16, Float32, float32
from swarm_tf.codec.kernels import BLOCK, SEEDS, Bools, Floats, blocks_of
from swarm_tf.codec.lattice import BITS, Lattice
from swarm_tf.errors import UsageError

CODECS: dict[str, type[Codec]] = {
    codec.name: codec for codec in (Lattice, Float32, BFloat16, Float16)
}
"""The table of codecs, by the name that `swarm.codec` has for them."""


@functools.cache
def build(name: str, bits: int = 8) -> Codec:
    """The codec `name`, with `bits` per weight if it has a choice.

    A codec has no state, so one instance is shared by all.

    Raises:
      UsageError: `name` is none of the table, or the codec has no such width.
      ValueError: the codec has another name than its entry, or one that is too long for messages.
    """
    if name not in CODECS:
        raise UsageError(f"swarm.codec={name} must be one of {', '.join(CODECS)}")
    codec = float32() if name == Float32.name else CODECS[name].build(bits)
    if codec.name != name or len(codec.wire_name.encode("ascii")) > NAME_BYTES:
        raise ValueError(f"codec {name} calls itself {codec.wire_name} in messages")
    return codec


def variants() -> list[tuple[str, int]]:
    """(name, bits) of every codec of the table in every width; bits 0 where there is no choice."""
    return [(name, bits) for name, codec in CODECS.items() for bits in codec.choices or (0,)]


__all__ = [
    "BITS",
    "BLOCK",
    "CODECS",
    "NAME_BYTES",
    "NO_SCALES",
    "SEEDS",
    "Bools",
    "Channel",
    "Codec",
    "Decoded",
    "Encoded",
    "Floats",
    "blocks_of",
    "build",
    "float32",
    "variants",
]
