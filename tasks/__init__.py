"""The table of tasks; a task combines data, model, loss and metrics."""

from collections.abc import Callable
from dataclasses import dataclass

import models
from swarm_tf.config import CLASSIFICATION, TRANSLATION, RunConfig
from swarm_tf.errors import UsageError
from swarm_tf.options import check_unused
from tasks.task import Task

__all__ = ["TASKS", "Entry", "Task", "build"]


@dataclass(frozen=True)
class Entry:
    """An entry of the table.

    Attributes:
      build: function from the configuration and the workdir to the task.
      models: the values of model.name that select this task.
    """

    build: Callable[[RunConfig, str], Task]
    models: tuple[str, ...]


def _classification(config: RunConfig, workdir: str) -> Task:
    from tasks import classification

    return classification.build(config)


def _translation(config: RunConfig, workdir: str) -> Task:
    from tasks import translation  # imported here because it needs sentencepiece

    return translation.build(config, workdir)


TASKS = {
    CLASSIFICATION: Entry(_classification, models.NAMES),
    TRANSLATION: Entry(_translation, models.TRANSLATORS),
}
"""Name, as in the key `task` -> entry."""


def build(config: RunConfig, workdir: str) -> Task:
    """The task of a run, with the data of this rank; must be called on every rank.

    Args:
      config: validated.
      workdir: the directory for files that all ranks share.

    Raises:
      UsageError: if the task or model is unknown, the data are missing, or keys do not apply to
        the task.
    """
    name = _name(config)
    for section in ("model", "data", "train"):
        check_unused(getattr(config, section), section, name)
    return TASKS[name].build(config, workdir)


def _name(config: RunConfig) -> str:
    model = config.model.name
    if config.task is not None and config.task not in TASKS:
        raise UsageError(f"task={config.task} must be one of {', '.join(TASKS)}")
    candidates = TASKS if config.task is None else {config.task: TASKS[config.task]}
    for name, entry in candidates.items():
        if model in entry.models:
            return name
    known = (f"{', '.join(entry.models)} for {name}" for name, entry in candidates.items())
    raise UsageError(f"model.name={model} is unknown; use one of {'; '.join(known)}")
