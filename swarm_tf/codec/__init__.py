"""How weights are encoded for another node, and decoded there; see base.py and lattice.py."""

import functools

from swarm_tf.codec.base import NO_SCALES, Channel, Codec, Decoded, Encoded
from swarm_tf.codec.floats import BFLOAT16, FLOAT16, Float, float32
from swarm_tf.codec.kernels import BLOCK, SEEDS, Bools, Floats, blocks_of
from swarm_tf.codec.lattice import Lattice
from swarm_tf.config import CODECS
from swarm_tf.errors import UsageError


@functools.cache
def build(name: str, bits: int = 8) -> Codec:
    """The codec `name`; `bits` per weight for the lattice. It has no state: one serves all."""
    if name == "lattice":
        return Lattice(bits)
    if name == "float32":
        return float32()
    formats = {"bfloat16": BFLOAT16, "float16": FLOAT16}
    if name not in formats:
        raise UsageError(f"swarm.codec={name} must be one of {', '.join(CODECS)}")
    return Float(formats[name])


__all__ = [
    "BLOCK",
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
]
