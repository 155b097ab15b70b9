"""summary.json: what a run has done, all ranks together."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A whole run, all ranks together."""

    algorithm: str
    ranks: int
    survivors: int
    parameters: int
    local_steps_total: int
    epochs: float
    ended_by: str | None  # the signal that ended it early; the mean model was not tested then
    wall_seconds: float
    train_seconds: float
    examples_per_second: float
    final: dict[str, Any]  # loss, accuracy, ... of the mean model on the test split
    per_rank_accuracy: dict[str, float]  # min and max of the separate models
    exchanges: int
    exchanges_failed: int
    bytes_sent: int
    payload_bytes_per_exchange: float
    blocks_skipped: int
    exposed_seconds: float  # a rank's mean
    exposed_fraction: float  # of train_seconds
    data_wait_fraction: float  # of train_seconds: steps waited for the input pipeline
    step_seconds_median: float
    steps_per_second: dict[str, float]  # min, mean and max over ranks, exchanges included
    staleness_mean: float  # local steps
    consensus_distance: float  # root mean square distance to the mean model, over its norm

    def __str__(self) -> str:
        if self.ended_by:
            return (
                f"{self.ended_by} ended the training after {self.epochs:.4g} epochs; "
                "consensus.weights.h5 has the mean model, which was not tested"
            )
        final, each = self.final.get("accuracy", math.nan), self.per_rank_accuracy
        alone = f" (mean model; separate ones {each['min']:.2%} to {each['max']:.2%})"
        bleu = f"BLEU {self.final['bleu']:.2f}, " if "bleu" in self.final else ""
        return (
            f"{bleu}accuracy {final:.2%}{alone if self.ranks > 1 else ''}, "
            f"{self.train_seconds:.1f} s of training, {self.examples_per_second:,.0f} examples/s; "
            f"of the time {self.exposed_fraction:.1%} waiting for exchanges, "
            f"{self.data_wait_fraction:.1%} for data"
        )
