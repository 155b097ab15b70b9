"""How many training images a core prepares in a second: the model must never wait for them.

    python -m benchmarks.input [--rounds=5]

Stand-ins for cifar10 and imagenet2012 are written by the builders of TFDS into a temporary
directory and read as a run reads them, with crops and flips, in batches of 128. Time is CPU time of
all threads of the process, so neither a second core nor waiting for a disk changes the result.
Limit: 20,000 images of CIFAR a CPU-second; those of ImageNet (500 x 375, JPEG) for information.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.timing import batch_rates
from data import images
from swarm_tf.config import DataConfig
from testbed import tfds_standin

LIMIT = 20_000  # images of CIFAR a CPU-second
_BATCH = 128


def main() -> int:
    """Prints the table; returns the number of limits missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    table = Table(box=box.SIMPLE_HEAD, title=f"batches of {_BATCH}, median of {args.rounds} rounds")
    for heading in ("set", "augment", "images/CPU-second", "lowest", "highest"):
        table.add_column(heading, justify="right")
    missed = 0
    with tempfile.TemporaryDirectory() as where:
        write(where)
        for name, augment, batches in (
            ("cifar10", True, 200),
            ("cifar10", False, 200),
            ("imagenet2012", True, 3),
            ("imagenet2012", False, 3),
        ):
            config = DataConfig(name=name, data_dir=where, augment=augment)
            train = images.load(config, rank=0, size=1, batch_size=_BATCH, seed=0).train
            rates = [_BATCH * rate for rate in batch_rates(train, batches, args.rounds)]
            rate = statistics.median(rates)
            table.add_row(
                name, str(augment), *(f"{r:,.0f}" for r in (rate, min(rates), max(rates)))
            )
            missed += name == "cifar10" and augment and rate < LIMIT
    Console(width=100).print(table)
    print(f"{missed} of 1 limits missed")
    return missed


def write(where: str) -> None:
    """Writes 10,000 random images of CIFAR's size, and 256 of ImageNet's usual size and bytes."""
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(None):  # hides what the builders print
        cifar = tfds_standin.images((32, 32, 3), 10, id="x")
        tfds_standin.write("cifar10", where, cifar, {"train": 10_000, "test": 10})
        tfds_standin.write("imagenet2012", where, photograph, {"train": 256, "validation": 1})


def photograph(i: int) -> dict:
    """An example of imagenet2012: a few large shapes and some noise make a JPEG of about 110 kB."""
    rng = np.random.default_rng(i)
    shapes = tf.image.resize(rng.uniform(0, 255, (6, 8, 3)), (375, 500), "bicubic").numpy()
    pixels = shapes + rng.normal(0, 5, (375, 500, 1))
    return {"file_name": "x", "image": pixels.clip(0, 255).astype(np.uint8), "label": i}


if __name__ == "__main__":
    sys.exit(main())
