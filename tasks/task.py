"""What a run needs to know of whatever it trains."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import keras

from data import Data


@dataclass(frozen=True, kw_only=True)
class Task:
    """Data, and what is made of them.

    Attributes:
      data: of this rank.
      model: not yet compiled. Ranks draw different dropout; a swarm starts from rank 0's weights.
      loss, metrics: to compile it with; the metrics weigh examples as the loss does.
      score: further scores of the model, by name. Called at the end, on all ranks together, when
        all hold the same model.
      files: what else is needed to use the model, by the name in the workdir.
    """

    data: Data
    model: keras.Model
    loss: keras.losses.Loss
    metrics: list[keras.metrics.Metric]
    score: Callable[[], dict[str, float | str]] = dict
    files: Mapping[str, bytes] = field(default_factory=dict)
