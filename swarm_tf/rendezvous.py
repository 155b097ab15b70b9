"""The start of a training: ranks agree on what they train, and begin with equal models."""

from __future__ import annotations

import hashlib
import json
import weakref
from typing import Any

import keras

from swarm_tf import consensus, state
from swarm_tf.cluster.world import check_equal, gather_over
from swarm_tf.errors import UsageError
from swarm_tf.transport.base import Transport

_WHAT = "the start of training"

_last_weights: weakref.WeakKeyDictionary[keras.Model, str] = weakref.WeakKeyDictionary()
"""A digest of each model's weights at the end of its last training."""


def join(
    model: keras.Model,
    transport: Transport,
    common: dict[str, Any],
    *,
    averages_slots: bool,
    equal_slots: bool,
    resumed: bool = False,
    refused: str = "",
) -> bool:
    """Make sure that all ranks train the same thing, then let all begin with rank 0's variables.

    Every variable becomes equal, whether it is averaged later or not: weights, frozen ones and
    statistics, the optimizers' slots, steps and rates, each in its own type. But where the last
    training left each rank with weights of its own (`average_at_end=False`), and nobody has
    changed them since, ranks continue with what they have. So do ranks that go on from checkpoints.

    Args:
      common: what must be the same on all ranks, JSON values by name.
      averages_slots: whether optimizer slots are averaged, so that every rank must have them.
      equal_slots: whether slots must be equal; then all variables become equal in any case.
      resumed: whether this rank goes on from a checkpoint; all do, or none.
      refused: why this rank can't train; empty if it can.

    Returns:
      whether ranks continue with weights of their own.

    Raises:
      UsageError: on every rank, with what differs or why a rank can't train.
      TimeoutError: a rank does not come; names it.
    """
    owned = state.optimizers(model)
    built = {name: optimizer.built for name, optimizer in owned.items()}
    mine = {"refused": refused or _refusal(model), "built": built, "sessions": transport.sessions}
    every = gather_over(transport, mine, _WHAT)
    _raise_refusals([one["refused"] for one in every])
    transport.sessions = max(one["sessions"] for one in every) + 1
    _build_optimizers(model, [one["built"] for one in every], averages_slots)

    variables = state.all_variables(model)
    shapes = [[*entry[1:], v.trainable] for entry, v in _described(variables)]
    values = state.digest(variables)
    weights = state.digest(model.weights)
    kinds = sorted(type(optimizer).__name__ for optimizer in owned.values())
    mine = {
        "common": common | {"the kind of the model's optimizer": ", ".join(kinds)},
        "shapes": hashlib.blake2b(json.dumps(shapes).encode(), digest_size=16).hexdigest(),
        "vocabularies": state.vocabularies(model),
        "values": values,
        "weights": weights,
        "continues": not equal_slots and _last_weights.get(model) == weights,
        "resumed": resumed,
    }
    every = gather_over(transport, mine, _WHAT)
    check_equal([one["common"] for one in every])
    if len({one["shapes"] for one in every}) > 1:
        _raise_difference(variables, transport)
    _check_vocabularies([one["vocabularies"] for one in every])
    if len({one["resumed"] for one in every}) > 1:
        without = next(of for of, one in enumerate(every) if not one["resumed"])
        raise UsageError(
            f"rank {without} begins anew and others go on from a checkpoint; give every rank the "
            "same Checkpoint"
        )
    if resumed:
        return True
    differ = len({one["weights"] for one in every}) > 1
    continues = differ and all(one["continues"] for one in every)
    if not continues and len({one["values"] for one in every}) > 1:
        consensus.equalize(variables, transport)
        state.finalize_layers(model)
    return continues


def leave(model: keras.Model) -> None:
    """A training of `model` is over; if its weights stay, the next one may continue with them."""
    _last_weights[model] = state.digest(model.weights)


def _refusal(model: keras.Model) -> str:
    """Why ranks can't average this model, in one line; empty if they can."""
    replicas = getattr(model.distribute_strategy, "num_replicas_in_sync", 1)
    if replicas > 1:
        return (
            f"the model {model.name} has {replicas} replicas of a tf.distribute strategy in this "
            "process; start a rank for each device instead"
        )
    try:
        state.check_averageable(model)
    except UsageError as error:
        return str(error)
    return ""


def _raise_refusals(reasons: list[str]) -> None:
    for of, reason in enumerate(reasons):
        if reason:
            raise UsageError(reason if all(reasons) else f"rank {of}: {reason}")


def _build_optimizers(
    model: keras.Model, built: list[dict[str, bool]], averages_slots: bool
) -> None:
    """Build optimizers on all ranks if one has built them, as after loading an optimizer."""
    for name, optimizer in state.optimizers(model).items():
        there = [of for of, one in enumerate(built) if one.get(name)]
        if optimizer is model.optimizer:
            if there or averages_slots:
                state.build_optimizer(model)
        elif 0 < len(there) < len(built):
            missing = next(of for of in range(len(built)) if of not in there)
            raise UsageError(
                f"the optimizer {name} has taken steps, or was loaded, on rank {there[0]}, but "
                f"has no slots yet on rank {missing}; call its build(variables) on all ranks"
            )


def _described(
    variables: list[keras.Variable],
) -> list[tuple[tuple[str, list[int], str], keras.Variable]]:
    return list(zip(state.shapes(variables), variables, strict=True))


def _raise_difference(variables: list[keras.Variable], transport: Transport) -> None:
    """Name the first variable whose shape, dtype or trainability differs between ranks."""
    mine = [
        [path, f"{dtype} {tuple(shape)} {'trainable' if v.trainable else 'frozen'}"]
        for (path, shape, dtype), v in _described(variables)
    ]
    first, *others = gather_over(transport, mine, "the shapes of all variables")
    for of, other in enumerate(others, 1):
        for place in range(max(len(first), len(other))):
            here, there = (_at(one, place) for one in (first, other))
            if here[1] != there[1]:
                raise UsageError(
                    "the model's weights must be the same on all ranks, but variable "
                    f"{place} is {' '.join(here)} on rank 0 and {' '.join(there)} on rank {of}"
                )


def _at(variables: list[list[str]], place: int) -> list[str]:
    return variables[place] if place < len(variables) else ["not", "there"]


def _check_vocabularies(every: list[dict[str, str]]) -> None:
    for of, other in enumerate(every):
        for layer in sorted(every[0].keys() | other.keys()):
            if every[0].get(layer) != other.get(layer):
                raise UsageError(
                    f"{layer} has learned another vocabulary (or other bounds) on rank {of} than "
                    "on rank 0; adapt it to the same data on all ranks, or load what one learned"
                )
