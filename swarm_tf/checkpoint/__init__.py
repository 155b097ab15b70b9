"""Checkpoints: a training goes on after its job has ended."""
