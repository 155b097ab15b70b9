"""The share of its machine that a rank uses: some of the cores, and one GPU."""

from __future__ import annotations

import logging
import os

from swarm_tf.cluster import environment

_log = logging.getLogger("swarm_tf")


def limit_threads(threads: int) -> None:
    """Let TensorFlow use `threads` threads for its operations; 0: this rank's share of the cores.

    Call it before TensorFlow runs anything.
    """
    import tensorflow as tf

    if threads == 0:
        threads = max(1, int(cores()))
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(max(1, threads))


def cores() -> float:
    """This rank's share of the cores of its host; below 1 if there are more ranks than cores."""
    return len(os.sched_getaffinity(0)) / environment.local_size()


def claim_gpu() -> bool:
    """Make one GPU of this machine the only one that this rank sees; False if there is none.

    Ranks of a machine take its GPUs in turn. Memory is allocated as it is needed, so that ranks may
    share a GPU. If the program itself has hidden some GPUs, its choice stays.

    Raises:
      RuntimeError: TensorFlow has run something already, and so holds all GPUs.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    visible = tf.config.get_visible_devices("GPU")
    if len(visible) < len(gpus):
        return bool(visible)
    if not gpus:
        return False
    gpu = gpus[environment.local_rank() % len(gpus)]
    tf.config.set_visible_devices(gpu, "GPU")
    tf.config.experimental.set_memory_growth(gpu, True)
    shared = not environment.owns_gpus() and environment.local_size() > len(gpus)
    if environment.local_rank() == 0 and shared:
        _log.warning("%d ranks share %d GPUs", environment.local_size(), len(gpus))
    return True


def claim_gpu_if_possible() -> None:
    """`claim_gpu`, for a program that does not call it itself; warns if it is too late."""
    try:
        claim_gpu()
    except RuntimeError:
        _log.warning(
            "rank %d: TensorFlow has taken all GPUs of this machine already; call swarm_tf.rank() "
            "right after the imports, before TensorFlow runs anything, and each rank takes one",
            environment.rank(),
        )


def set_precision(precision: str, *, jit_compile: bool, gpu: bool) -> None:
    """Make `precision` the Keras dtype policy from here on; variables stay float32.

    Without a GPU, rank 0 warns of the options that are slower on the CPU.
    """
    import keras

    keras.config.set_dtype_policy(precision)
    slower = [precision] * (precision != "float32") + ["jit_compile"] * jit_compile
    if slower and not gpu and environment.rank() == 0:
        _log.warning("no GPU: slower on the CPU: %s", ", ".join(slower))
