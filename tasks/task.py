"""The interface between a run and what it trains."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import keras

from data import Data


@dataclass(frozen=True, kw_only=True)
class Task:
    """Data, model, loss and metrics.

    Attributes:
      data: the data of this rank.
      model: not yet compiled. Dropout should differ between ranks; weights may, since training
        starts from rank 0's.
      loss, metrics: arguments of `model.compile`; the metrics weight examples as the loss does.
      score: returns further scores of the model, by name. Called at the end on all ranks, when all
        hold the same model.
      files: contents of other files that are needed to use the model, by name in the workdir.
    """

    data: Data
    model: keras.Model
    loss: keras.losses.Loss
    metrics: list[keras.metrics.Metric]
    score: Callable[[], dict[str, float | str]] = dict
    files: Mapping[str, bytes] = field(default_factory=dict)
