"""How many threads TensorFlow may use when several ranks share a machine."""

from __future__ import annotations

import os

from swarm_tf import launcher


def limit(threads: int) -> None:
    """Give TensorFlow `threads` threads for its operations, or with 0 this rank's share of the
    cores; call it before TensorFlow runs anything.
    """
    import tensorflow as tf

    if threads == 0:
        threads = max(1, len(os.sched_getaffinity(0)) // launcher.local_size())
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(max(1, threads))
