"""on_rank_zero: callbacks that write files, on rank 0 only."""

from __future__ import annotations

import keras

from swarm_tf.algorithm import Algorithm
from swarm_tf.callbacks.consensus_checkpoint import ConsensusCheckpoint
from swarm_tf.cluster import world
from swarm_tf.errors import UsageError

_ON_ALL_RANKS = (
    keras.callbacks.EarlyStopping,
    keras.callbacks.ReduceLROnPlateau,
    keras.callbacks.LearningRateScheduler,
    keras.callbacks.TerminateOnNaN,
    keras.callbacks.SwapEMAWeights,
    keras.callbacks.BackupAndRestore,
    Algorithm,
    ConsensusCheckpoint,
)


def on_rank_zero(callback: keras.callbacks.Callback) -> keras.callbacks.Callback:
    """`callback` on rank 0, and one that does nothing on the others.

    For callbacks that write: ModelCheckpoint, CSVLogger, TensorBoard, RemoteMonitor.

    Raises:
      UsageError: it changes the training itself, or works together with those of other ranks.
    """
    if isinstance(callback, _ON_ALL_RANKS):
        raise UsageError(
            f"on_rank_zero({type(callback).__name__}): it must be on all ranks; with "
            "AverageMetrics before them, callbacks decide alike on each"
        )
    return callback if world.rank() == 0 else keras.callbacks.Callback()
