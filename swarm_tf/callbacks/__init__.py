"""Keras callbacks for training on several ranks; docs/callbacks.md covers those of Keras itself."""

from swarm_tf.callbacks.average_metrics import AverageMetrics
from swarm_tf.callbacks.consensus_checkpoint import ConsensusCheckpoint
from swarm_tf.callbacks.rank_zero import on_rank_zero

__all__ = ["AverageMetrics", "ConsensusCheckpoint", "on_rank_zero"]
