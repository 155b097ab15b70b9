"""Checkpoints: a training goes on after its job has ended."""

from swarm_tf.checkpoint.callback import Checkpoint

__all__ = ["Checkpoint"]
