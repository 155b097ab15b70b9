"""What there is to learn: data, model, loss and measures together, by the kind of the model."""

import models
from swarm_tf.config import RunConfig
from swarm_tf.errors import UsageError
from tasks.task import Task

__all__ = ["Task", "build"]


def build(config: RunConfig, workdir: str) -> Task:
    """The task of a run, as this rank sees it; the same call on every rank.

    Args:
      config: validated.
      workdir: for files that all ranks share.

    Raises:
      UsageError: for an unknown model, data that are not there, and keys that do not fit them.
    """
    name = config.model.name
    # Imported where needed: who trains on images needs no sentencepiece.
    if name in models.NAMES:
        from tasks import classification

        return classification.build(config)
    if name in models.TRANSLATORS:
        from tasks import translation

        return translation.build(config, workdir)
    raise UsageError(
        f"model.name={name} is unknown; use one of {', '.join(models.NAMES)} for images, "
        f"{', '.join(models.TRANSLATORS)} for translation"
    )
