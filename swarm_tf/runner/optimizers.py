"""Keras optimizers and learning-rate schedules of a run; schedules count a rank's own steps."""

from __future__ import annotations

import math
from typing import Any

import keras

from swarm_tf.config import OptimizerConfig

# Weight decay is applied to kernels only, as in He et al. 2016, not to offsets and scales.
_NOT_DECAYED = ("bias", "beta", "gamma")


def build(config: OptimizerConfig, *, steps: int, steps_per_epoch: float) -> keras.Optimizer:
    """The optimizer of one rank for a run of `steps` local steps.

    Args:
      config: section `optimizer`.
      steps_per_epoch: local steps per epoch of the recipe, including the epoch multiplier.
    """
    rate = schedule(config, steps=steps, steps_per_epoch=steps_per_epoch)
    decay = config.weight_decay or None
    adams = {"beta_2": config.beta_2, "epsilon": config.epsilon}
    clipping = {"global_clipnorm": config.clip_norm}
    optimizer: keras.Optimizer
    if config.name in ("sgd", "momentum"):
        momentum = config.momentum if config.name == "momentum" else 0.0
        sgd = keras.optimizers.SGD
        optimizer = sgd(rate, momentum, config.nesterov, weight_decay=decay, **clipping)
    elif config.name == "adam":
        optimizer = keras.optimizers.Adam(rate, weight_decay=decay, **adams, **clipping)
    else:
        adamw = keras.optimizers.AdamW  # does not accept weight_decay=None
        optimizer = adamw(rate, weight_decay=config.weight_decay, **adams, **clipping)
    if config.weight_decay and not config.decay_all:
        optimizer.exclude_from_weight_decay(var_names=_NOT_DECAYED)
    return optimizer


def schedule(config: OptimizerConfig, *, steps: int, steps_per_epoch: float) -> Any:
    """Learning rate by local step: linear warm-up, then the schedule `config.schedule`.

    "inverse_sqrt" is the schedule of Vaswani et al. 2017 (arXiv 1706.03762, equation 3): the peak
    divided by sqrt(step / warm-up steps).
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    peak = config.learning_rate
    schedules = keras.optimizers.schedules
    if config.schedule == "cosine":
        return schedules.CosineDecay(
            0.0 if warmup else peak,
            max(1, steps - warmup),
            warmup_target=peak if warmup else None,
            warmup_steps=warmup,
        )
    if config.schedule == "inverse_sqrt":
        warmup = max(1, warmup)  # a small fraction of an epoch may round to 0 steps
        return WarmUp(InverseSqrt(peak, warmup), warmup)
    boundaries = [max(1, math.ceil(f * steps)) for f in config.step_boundaries]
    if config.schedule == "constant" or not boundaries:
        boundaries = []
    values = [peak * config.step_factor**i for i in range(len(boundaries) + 1)]
    decay = schedules.PiecewiseConstantDecay(boundaries, values) if boundaries else peak
    return WarmUp(decay, warmup) if warmup else decay


@keras.saving.register_keras_serializable(package="swarm_tf")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """Multiplies `rate` (a number or a schedule) by step / steps during the first `steps` steps."""

    def __init__(self, rate: Any, steps: int) -> None:
        self.rate, self.steps = rate, steps

    def __call__(self, step: Any) -> Any:
        rate = self.rate(step) if callable(self.rate) else self.rate
        share = keras.ops.cast(step + 1, "float32") / self.steps
        return rate * keras.ops.minimum(share, 1.0)

    def get_config(self) -> dict[str, Any]:
        return {"rate": self.rate, "steps": self.steps}


@keras.saving.register_keras_serializable(package="swarm_tf")
class InverseSqrt(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """`peak` for the first `steps` steps, then peak * sqrt(steps / step)."""

    def __init__(self, peak: float, steps: int) -> None:
        self.peak, self.steps = peak, steps

    def __call__(self, step: Any) -> Any:
        share = keras.ops.cast(step + 1, "float32") / self.steps
        return self.peak * keras.ops.rsqrt(keras.ops.maximum(share, 1.0))

    def get_config(self) -> dict[str, Any]:
        return {"peak": self.peak, "steps": self.steps}
