"""What is learned: data, model, loss and metrics together, by a table of tasks."""

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
    """A task of the table.

    Attributes:
      build: makes it of the configuration and the workdir.
      models: the names that model.name may have.
    """

    build: Callable[[RunConfig, str], Task]
    models: tuple[str, ...]


def _classification(config: RunConfig, workdir: str) -> Task:
    from tasks import classification

    return classification.build(config)


def _translation(config: RunConfig, workdir: str) -> Task:
    from tasks import translation  # here, since who trains on images needs no sentencepiece

    return translation.build(config, workdir)


TASKS = {
    CLASSIFICATION: Entry(_classification, models.NAMES),
    TRANSLATION: Entry(_translation, models.TRANSLATORS),
}
"""The table of tasks, by the name that the key `task` has for them."""


def build(config: RunConfig, workdir: str) -> Task:
    """The task of a run, as this rank sees it; the same call on every rank.

    Args:
      config: validated.
      workdir: for files that all ranks share.

    Raises:
      UsageError: for an unknown task or model, data that are not there, and keys that do not fit
        them.
    """
    name = _name(config)
    for section in ("model", "data"):
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
