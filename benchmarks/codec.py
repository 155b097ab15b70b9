"""What encoding and decoding cost on one core, as multiples of a memcpy of the float32 vector.

    python -m benchmarks.codec [--weights=25000000] [--rounds=11]

encode: communication copy -> payload and checksums; (+correction): of the copy and one correction.
decode: checks and correction; (onto another): added to an earlier correction.
Limits, at 8 bits and without the columns in brackets: encode 3, decode 4.
"""

import argparse
import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.timing import medians, memcpy
from swarm_tf import codec
from swarm_tf.codec import BLOCK
from swarm_tf.weights import CHUNK

ENCODE_LIMIT, DECODE_LIMIT = 3.0, 4.0


def main() -> int:
    """Prints the table; returns the number of limits missed at 8 bits."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=int, default=25_000_000)
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    chunks = max(1, round(args.weights / CHUNK))
    length = args.weights // chunks // BLOCK * BLOCK
    rng = np.random.default_rng(0)
    vectors = [rng.normal(0, 0.05, length).astype(np.float32) for _ in range(chunks)]
    near = [v + rng.normal(0, 1e-3, length).astype(np.float32) for v in vectors]
    mine, theirs = [[tf.constant(v) for v in side] for side in (vectors, near)]
    copy = memcpy(length * chunks)
    table = Table(box=box.SIMPLE_HEAD, title=f"{length * chunks:,} weights, 1 core, in memcpys")
    for heading in ("codec", "encode", "(+correction)", "decode", "(onto another)", "bits/weight"):
        table.add_column(heading, justify="right")
    missed = 0
    for name, bits in codec.variants():
        cells, encode, decode = measure(codec.build(name, bits), bits, mine, theirs, copy, args)
        table.add_row(f"{name} {bits or ''}", *cells)
        if (name, bits) == ("lattice", 8):
            missed = int(encode > ENCODE_LIMIT) + int(decode > DECODE_LIMIT)
    Console(width=100).print(table)
    print(f"{missed} of 2 limits missed")
    return missed


def measure(coder, bits, mine, theirs, copy, args):
    """One row: encode and decode over all chunks, in memcpys."""
    blocks = codec.blocks_of(mine[0].shape[0])
    scales = np.full(blocks, 1e-2 / 2 ** max(bits - 1, 0), np.float32)
    zeros = tf.zeros([blocks, BLOCK])
    own = [coder.encode((x,), 7, scales) for x in mine]
    other = [coder.encode((y,), 7, scales) for y in theirs]
    arrived = [np.asarray(encoded.payload) for encoded in other]

    def decode(onto):
        for a, b, payload in zip(own, other, arrived, strict=True):
            b.payload = tf.convert_to_tensor(payload)  # as it comes off the wire
            coder.decode(a, b, onto)

    def encode(*more):
        for x in mine:
            coder.encode((x, *more), 7, scales)

    times = medians(
        {
            "memcpy": copy,
            "encode": encode,
            "encode+": lambda: encode(zeros),
            "decode": lambda: decode(None),
            "decode+": lambda: decode(zeros),
        },
        args.rounds,
    )
    ratios = [times[k] / times["memcpy"] for k in ("encode", "encode+", "decode", "decode+")]
    payload = own[0].payload_bytes * 8 / mine[0].shape[0]
    return [f"{r:.2f}" for r in ratios] + [f"{payload:g}"], ratios[0], ratios[2]


if __name__ == "__main__":
    sys.exit(main())
