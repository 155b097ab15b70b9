"""What travels between two nodes, and how the receiver reads it (DESIGN: the codec)."""

import functools

from swarm_tf.codec.base import BLOCK, SEEDS, Codec, Encoded, blocks_of
from swarm_tf.codec.floats import BFLOAT16, FLOAT16, FLOAT32, Float
from swarm_tf.codec.lattice import Lattice
from swarm_tf.codec.scales import BlockScales, too_many
from swarm_tf.config import CODECS
from swarm_tf.errors import UsageError


@functools.cache
def build(name: str, bits: int = 8) -> Codec:
    """The codec `name`; `bits` a weight for the lattice. It has no state: one serves all."""
    if name == "lattice":
        return Lattice(bits)
    formats = {"float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16}
    if name not in formats:
        raise UsageError(f"swarm.codec={name} must be one of {', '.join(CODECS)}")
    return Float(formats[name])


__all__ = [
    "BLOCK",
    "SEEDS",
    "BlockScales",
    "Codec",
    "Encoded",
    "Lattice",
    "blocks_of",
    "build",
    "too_many",
]
