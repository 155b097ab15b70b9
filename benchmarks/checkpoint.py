"""What a checkpoint of one rank costs: the pause of training, and the time until it is on disk.

    python -m benchmarks.checkpoint [--weights 25000000 214000000] [--rounds=5]

The model is trained by Adam, so that a state has three numbers for each weight, in float32.
pause: how long the training waits for the copy of its state, as multiples of a memcpy of the state.
on disk: from the end of the pause until the file is on disk, as multiples of writing that many
bytes into one file with fsync in the same directory; and in seconds.
read: until a state is read and its digest checked, as multiples of reading the file.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.timing import memcpy
from swarm_tf.checkpoint import model_state
from swarm_tf.checkpoint.store import Stage, Store


def model(weights: int) -> keras.Model:
    """A model of about so many weights in layers of 1024 x 1024, with Adam and its slots."""
    layers = max(1, round(weights / 1024**2))
    made = keras.Sequential(
        [keras.Input((1024,)), *(keras.layers.Dense(1024) for _ in range(layers))]
    )
    made.compile(keras.optimizers.Adam(), "mse")
    made.optimizer.build(made.trainable_variables)
    return made


def timed(action) -> tuple[float, object]:
    """Seconds that `action` takes, and what it returns."""
    began = time.perf_counter()
    result = action()
    return time.perf_counter() - began, result


def plain_write(path: Path, data: bytes) -> None:
    """Write and fsync."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def measure(weights: int, rounds: int, directory: Path) -> list[str]:
    """A row of the table."""
    made = model(weights)
    size = sum(v.nbytes for v in map(np.asarray, model_state.variables(made)))
    copy, data = memcpy(size // 4), bytes(size)
    store = Store(directory, Stage(1, 1), 0, keep=1)
    pauses, writes, reads, seconds = [], [], [], []
    for step in range(1, rounds + 1):
        pause, state = timed(lambda: model_state.capture(made))
        pauses.append(pause / timed(copy)[0])
        written, path = timed(lambda step=step, state=state: store.write(step, {"model": state}))
        plain, _ = timed(lambda: plain_write(directory / "plain", data))
        writes.append(written / plain)
        seconds.append(written)
        read, _ = timed(lambda step=step: store.read(step))
        reads.append(read / timed(path.read_bytes)[0])
    cells = [f"{weights / 1e6:g} million", f"{size / 2**30:.2f} GiB"]
    cells += [f"{statistics.median(each):.2f}" for each in (pauses, writes)]
    return [*cells, f"{statistics.median(seconds):.1f} s", f"{statistics.median(reads):.2f}"]


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=int, nargs="+", default=[25_000_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="on the disk to be measured")
    args = parser.parse_args()
    table = Table(box=box.MARKDOWN)
    for name in ("weights", "state", "pause", "on disk", "", "read"):
        table.add_column(name, justify="right")
    for weights in args.weights:
        with tempfile.TemporaryDirectory(dir=args.directory) as directory:
            table.add_row(*measure(weights, args.rounds, Path(directory)))
    Console(width=100).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
