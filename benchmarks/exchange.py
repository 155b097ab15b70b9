"""What an exchange costs two ranks of one thread each, as multiples of a memcpy of the model.

    swarmrun -n 2 -m benchmarks.exchange [--weights=25000000] [--rounds=15] [--bits=8]

pause: how long the training loop stops at a nonblocking boundary if the partner answered in time.
cpu: CPU time of a rank's process, both threads, publishing included, per exchange that it took
part in, as initiator or as responder. Between two boundaries the rank only sleeps, so it holds
nothing else but polling, which is shown too.
Both ranks time a memcpy once a round, after the exchanges: what slows the machine down slows down
both sides of the ratio.
Limits: pause 4, cpu 12.
"""

import argparse
import os
import statistics
import sys
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.timing import memcpy
from swarm_tf import codec
from swarm_tf.cluster import world
from swarm_tf.member import Member
from swarm_tf.weights import FlatWeights

PAUSE_LIMIT, CPU_LIMIT = 4.0, 12.0
_PERIOD = 0.5


def variables(weights: int) -> list[keras.Variable]:
    """About `weights` weights in the mix of sizes of a ResNet-50: few large, many small."""
    rng = np.random.default_rng(0)
    shapes = [shape for width in (64, 128, 256, 512) for shape in _stage(width)]
    scale = weights / sum(int(np.prod(shape)) for shape in shapes)
    return [
        keras.Variable(rng.normal(0, 0.05, (max(1, int(s[0] * scale)), *s[1:])).astype(np.float32))
        for s in shapes
    ]


def _stage(width: int) -> list[tuple[int, ...]]:
    unit = [(width, 4 * width), (9 * width, width), (4 * width, width)]
    return [s for _ in range(4) for matrix in unit for s in (matrix, *[(matrix[1],)] * 4)]


def main() -> int:
    """Prints the table on rank 0; returns the number of limits missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=int, default=25_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--bits", type=int, default=8)
    args = parser.parse_args()
    if world.size() != 2:
        print(f"swarmrun -n 2: two ranks are needed, got {world.size()}", file=sys.stderr)
        return 2
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    transport, rank = world.transport(), world.rank()
    weights = FlatWeights(variables(args.weights))
    copy = memcpy(weights.total)
    member = Member(weights, transport, codec.build("lattice", args.bits), timeout_seconds=60)
    member.start()
    pauses, copies, step, cpu, before = [], [], 0, 0.0, 0
    for warm in (True, False):
        for _ in range(args.rounds if not warm else 4):
            step += 1
            cpu -= time.process_time()
            # The local steps: a small change, different on each rank.
            weights.variables[rank].assign(weights.variables[rank] * (1 - 1e-3))
            in_time = member.driver.pending_step is None
            began = time.perf_counter()
            member.boundary(step, lambda _: 1 - rank)
            if in_time:
                pauses.append(time.perf_counter() - began)
            time.sleep(_PERIOD)
            cpu += time.process_time()
            began = time.perf_counter()
            copy()
            copies.append(time.perf_counter() - began)
        if warm:
            pauses, copies, cpu = [], [], 0.0
            before = member.counters.exchanges + member.counters.exchanges_served
    member.finish(step)
    polling = _polling(member, args.rounds)
    counters = member.counters
    shared = counters.exchanges + counters.exchanges_served - before
    unit = statistics.median(copies)
    own = [statistics.median(pauses) / unit, cpu / shared / unit, polling / shared / unit]
    rows = transport.gather(repr(own).encode(), "results", 60)
    if rank:
        return 0
    table = Table(box=box.SIMPLE_HEAD, title=f"{weights.total:,} weights, {args.bits} bits")
    for heading in ("in memcpys", "pause", "cpu", "of it polling"):
        table.add_column(heading, justify="right")
    results = [[float(x) for x in row.decode()[1:-1].split(",")] for row in rows]
    for r, row in enumerate(results):
        table.add_row(f"rank {r}", *(f"{x:.2f}" for x in row))
    Console(width=100).print(table)
    print(f"memcpy {unit * 1e3:.1f} ms; rank 0: {counters.exchanges} exchanges initiated, "
          f"{counters.exchanges_served} answered, {len(pauses)} pauses")  # fmt: skip
    missed = sum((row[0] > PAUSE_LIMIT) + (row[1] > CPU_LIMIT) for row in results)
    print(f"{missed} of 4 limits missed")
    return missed


def _polling(member: Member, rounds: int) -> float:
    """CPU seconds that polling takes in so many rounds without an exchange."""
    idle = Member(
        FlatWeights(member.weights.variables[:1]), member.transport, codec.build("float32")
    )
    idle.start()
    cpu = time.process_time()
    time.sleep(rounds * _PERIOD)
    cpu = time.process_time() - cpu
    idle.finish(0)
    return cpu


if __name__ == "__main__":
    sys.exit(main())
