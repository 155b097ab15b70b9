"""Medians of interleaved actions, to compare as ratios: absolute times are noisy. Batch rates."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping

import numpy as np


def memcpy(length: int) -> Callable[[], None]:
    """A function that copies a float32 vector of `length` between two warm buffers."""
    source, target = np.ones(length, np.float32), np.zeros(length, np.float32)
    return lambda: np.copyto(target, source)


def medians(
    actions: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each action; all run once a round, so that drift affects all equally."""
    for action in actions.values():
        action()
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            began = clock()
            action()
            seconds[name].append(clock() - began)
    return {name: statistics.median(times) for name, times in seconds.items()}


def batch_rates(dataset: Iterable[object], batches: int, rounds: int) -> list[float]:
    """Batches per CPU-second of all threads together, in each of the rounds of `batches` each."""
    stream = iter(dataset)
    rates = []
    for _ in range(rounds + 1):
        began = time.process_time()
        for _ in range(batches):
            next(stream)
        rates.append(batches / (time.process_time() - began))
    return rates[1:]  # the first one warms up
