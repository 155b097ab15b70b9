"""How long does an all-reduce take when nothing else runs? Ours, MPI's, and Horovod's if installed.

    swarmrun -n 4 -m benchmarks.allreduce --weights=1200000

Prints the median seconds of each for a float32 vector of --weights numbers; they alternate in one
run.
"""

import argparse
import json
import sys

import numpy as np

from benchmarks.timing import medians
from swarm_tf.cluster import world
from swarm_tf.transport import collectives


def main() -> int:
    """Prints one line of JSON on rank 0."""
    parser = argparse.ArgumentParser(prog="swarmrun -n 4 -m benchmarks.allreduce")
    parser.add_argument("--weights", type=int, default=1_200_000)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    transport = world.transport()
    if transport is None:
        print("start several ranks: swarmrun -n 4 -m benchmarks.allreduce", file=sys.stderr)
        return 2
    from mpi4py import MPI

    vector, result = np.ones(args.weights, np.float32), np.empty(args.weights, np.float32)
    parts = np.array_split(vector, max(1, vector.nbytes // 2**20))  # buckets, as in training

    def ours() -> None:
        MPI.COMM_WORLD.Barrier()
        collectives.average(transport, parts, 600)

    def mpi_allreduce() -> None:
        MPI.COMM_WORLD.Barrier()
        MPI.COMM_WORLD.Allreduce(vector, result)

    actions = {"ours": ours, "MPI_Allreduce": mpi_allreduce}
    try:
        import horovod.tensorflow as hvd
        import tensorflow as tf
    except ImportError:
        pass
    else:
        hvd.init()
        tensor = tf.constant(vector)

        def horovod_allreduce() -> None:
            MPI.COMM_WORLD.Barrier()
            hvd.allreduce(tensor, op=hvd.Average, name="vector")

        actions["Horovod"] = horovod_allreduce
    seconds = medians(actions, args.rounds)
    if world.rank() == 0:
        print(json.dumps({"weights": args.weights, "seconds": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
