"""summary.json: the results of a run, over all ranks."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The results of a run, over all ranks."""

    algorithm: str
    ranks: int
    survivors: int
    parameters: int
    local_steps_total: int
    epochs: float
    ended_by: str | None  # name of the signal that ended the run before the mean model was tested
    wall_seconds: float
    train_seconds: float
    examples_per_second: float
    final: dict[str, Any]  # loss, accuracy, ... of the mean model on the test split
    per_rank_accuracy: dict[str, float]  # min and max over the ranks' own models
    exchanges: int
    exchanges_failed: int
    steps_per_exchange: float  # local steps of a rank per exchange that it started; NaN for none
    bytes_sent: int
    payload_bytes_per_exchange: float
    blocks_skipped: int
    exposed_seconds: float  # time that training waited for exchanges, mean over ranks
    exposed_fraction: float  # exposed_seconds / train_seconds
    data_wait_fraction: float  # share of train_seconds spent waiting for the input pipeline
    step_seconds_median: float
    steps_per_second: dict[str, float]  # min, mean and max over ranks, exchanges included
    staleness_mean: float  # in local steps
    consensus_distance: float  # RMS distance of the models to their mean, relative to its norm

    def __str__(self) -> str:
        if self.ended_by:
            return (
                f"{self.ended_by} ended the training after {self.epochs:.4g} epochs; "
                "consensus.weights.h5 has the mean model, which was not tested"
            )
        final, each = self.final.get("accuracy", math.nan), self.per_rank_accuracy
        ranks = f" (mean model; models of the ranks {each['min']:.2%} to {each['max']:.2%})"
        bleu = f"BLEU {self.final['bleu']:.2f}, " if "bleu" in self.final else ""
        often = ""
        if not math.isnan(self.steps_per_exchange):
            often = f"; an exchange every {self.steps_per_exchange:.3g} steps"
        return (
            f"{bleu}accuracy {final:.2%}{ranks if self.ranks > 1 else ''}, "
            f"{self.train_seconds:.1f} s of training, {self.examples_per_second:,.0f} examples/s; "
            f"{self.exposed_fraction:.1%} of that time waiting for exchanges, "
            f"{self.data_wait_fraction:.1%} for data{often}"
        )
