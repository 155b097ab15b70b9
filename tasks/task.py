"""What a run needs to know of whatever it trains."""

from collections.abc import Callable
from dataclasses import dataclass

import keras

from data import Data


def no_score() -> dict[str, float | str]:
    """Of a task whose metrics say all."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Task:
    """Data, and what is made of them.

    Attributes:
      data: of this rank.
      model: not yet compiled; the same weights on all ranks.
      loss, metrics: to compile it with; the metrics weigh examples as the loss does.
      score: what the model is worth beyond its metrics, by name. Called at the end, on all ranks
        together, when all hold the same model.
    """

    data: Data
    model: keras.Model
    loss: keras.losses.Loss
    metrics: list[keras.metrics.Metric]
    score: Callable[[], dict[str, float | str]] = no_score
