"""Builds the algorithm of a configuration."""

from dataclasses import fields

from swarm_tf.algorithm import Algorithm, AlgorithmConfig
from swarm_tf.config import RunConfig, algorithms


def build(config: RunConfig, steps: int) -> Algorithm:
    """The callback of `config.algorithm`; it does not average at the end: the caller does.

    Args:
      config: validated.
      steps: local steps of the run, passed to classes that have a field `steps`.
    """
    algorithm = algorithms(config)[config.algorithm]
    common = {field.name: getattr(config.swarm, field.name) for field in fields(AlgorithmConfig)}
    own = vars(getattr(config, config.algorithm))
    if any(field.name == "steps" for field in fields(algorithm)):
        own = own | {"steps": steps}
    return algorithm(**{**common, **own}, seed=config.seed, average_at_end=False)
