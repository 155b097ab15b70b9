"""How many sentences a search decodes in a CPU-second, compared with KerasHub's samplers.

    python -m benchmarks.decoding [--batch=32] [--rounds=5]

`models.decoding` and KerasHub drive the same step function and cache, those of transformer_tiny
with random weights, on one thread: greedily, and with 4 beams. "endless" sentences are all cut at
64 tokens: they measure what a step costs. "ending" ones end at about the length of their source, 12
to 32 tokens: they also measure how soon a search stops. (KerasHub's beam search is simpler, without
length penalty or finished hypotheses; its greedy search gives no scores.)
Limits: greedily 0.9 times KerasHub's speed, with 4 beams 2 times KerasHub's speed.
"""

import argparse
import functools
import os
import sys
import time
from dataclasses import dataclass

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras_hub
import numpy as np
import tensorflow as tf
from rich import box
from rich.console import Console
from rich.table import Table

import models
from benchmarks.timing import medians
from models import decoding
from models.transformer import Transformer

LIMITS = {1: 0.9, 4: 2.0}  # by beams: speed as a multiple of KerasHub's
VOCABULARY, SOURCE, LENGTH = 4000, 32, 64


@dataclass(frozen=True)
class Decoder:
    """A translation model with random weights; if `ending`, a bias makes sentences end."""

    model: Transformer
    ending: bool

    def start(self, source: tf.Tensor) -> dict:
        """The cache for sources int32 [batch, SOURCE]; where each should end is made up."""
        lengths = 12 + tf.range(tf.shape(source)[0]) % 21
        return {**self.model.start(source, LENGTH), "lengths": lengths}

    def step(self, tokens: tf.Tensor, position: tf.Tensor, cache: dict) -> tuple[tf.Tensor, dict]:
        logits, cache = self.model.step(tokens, position, cache)
        late = tf.cast(position - cache["lengths"], tf.float32)
        bias = 20 + 4 * late if self.ending else tf.fill(tf.shape(late), -1e9)
        return 8 * logits + bias[:, None] * tf.one_hot(2, VOCABULARY), cache


def main() -> int:
    """Prints the table; returns the number of limits missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.get_logger().setLevel("ERROR")  # it warns of retracing, since many functions have one name
    model = models.build_translator("transformer_tiny", vocabulary=VOCABULARY, seed=0)
    table = Table(box=box.SIMPLE_HEAD, title=f"sentences a CPU-second, batches of {args.batch}")
    for heading in ("sentences", "beams", "ours", "KerasHub", "ratio"):
        table.add_column(heading, justify="right")
    missed = 0
    for ending in (False, True):
        rates = measure(Decoder(model, ending), args)
        for beams, limit in LIMITS.items():
            mine, theirs = rates[ours, beams], rates[kerashub, beams]
            missed += mine / theirs < limit
            name = "ending" if ending else "endless"
            table.add_row(name, str(beams), *(f"{r:.1f}" for r in (mine, theirs, mine / theirs)))
    Console(width=100).print(table)
    print(f"{missed} of 4 limits missed")
    return missed


def measure(model: Decoder, args: argparse.Namespace) -> dict[tuple, float]:
    """Sentences a CPU-second by (method, beams)."""
    numbers = np.random.default_rng(0).integers(3, VOCABULARY, [args.batch, SOURCE])
    source = tf.constant(numbers, tf.int32)
    actions = {
        (method, beams): tf.function(functools.partial(method, model, source, beams))
        for method in (ours, kerashub)
        for beams in LIMITS
    }
    times = medians(actions, args.rounds, time.process_time)
    return {action: args.batch / seconds for action, seconds in times.items()}


def ours(model: Decoder, source: tf.Tensor, beams: int) -> tf.Tensor:
    """Tokens [batch, LENGTH]."""
    cache = model.start(source)
    tokens, _ = decoding.search(
        model.step, cache, batch=source.shape[0], max_length=LENGTH, beams=beams
    )
    return tokens[:, 0]


def kerashub(model: Decoder, source: tf.Tensor, beams: int) -> tf.Tensor:
    """Tokens [batch, LENGTH]. The source's keys stay out of its cache, as in KerasHub's models."""
    cache = model.start(source)
    fixed = tf.nest.map_structure(lambda x: tf.repeat(x, beams, axis=0), cache)

    def read(prompt, past, index):
        last = index - 1
        logits, read = model.step(tf.gather(prompt, last, axis=1), last, fixed | {"own": past})
        return logits, None, read["own"]

    samplers = keras_hub.samplers
    sampler = samplers.GreedySampler() if beams == 1 else samplers.BeamSampler(num_beams=beams)
    prompt = tf.pad(tf.fill([source.shape[0], 1], 1), [[0, 0], [0, LENGTH]])
    return sampler(read, prompt, cache["own"], index=1, stop_token_ids=[2])[:, 1:]


if __name__ == "__main__":
    sys.exit(main())
