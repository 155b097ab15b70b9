"""How many sentences a CPU-second search decodes, beside KerasHub's samplers.

    python -m benchmarks.decoding [--batch=32] [--rounds=5]

One step function with one cache, a small Transformer decoder of random weights, is driven by
`models.decoding` and by KerasHub on one thread: greedily, and with 4 beams. Endless sentences are
all cut at 64 tokens: what a step costs. The others end at about the lengths of their sources, 12 to
32: then it also counts when a search stops. (KerasHub's beam search is a simpler one, without
length penalty or finished hypotheses; its greedy search gives no scores.)
Limits: greedily 0.9 times KerasHub's speed, with 4 beams twice that.
"""

import argparse
import functools
import os
import sys
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import keras_hub
import tensorflow as tf
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.timing import medians
from models import decoding

LIMITS = {1: 0.9, 4: 2.0}  # by beams: speed as a multiple of KerasHub's
VOCABULARY, SOURCE, LENGTH = 4000, 32, 64
_LAYERS, _WIDTH, _HEADS = 2, 128, 4


class Decoder:
    """A pre-norm Transformer decoder with random weights; how likely the end is, is made up."""

    def __init__(self, ending: bool):
        dense, norm = keras.layers.Dense, keras.layers.LayerNormalization
        self.ending = ending
        self.words = keras.layers.Embedding(VOCABULARY, _WIDTH)
        self.positions = keras.layers.Embedding(LENGTH, _WIDTH)
        self.blocks = [
            {name: dense(_WIDTH) for name in ("query", "key", "value", "out")}
            | {name: dense(_WIDTH) for name in ("query2", "key2", "value2", "out2")}
            | {"inner": dense(4 * _WIDTH, "relu"), "outer": dense(_WIDTH)}
            | {name: norm() for name in ("norm", "norm2", "norm3")}
            for _ in range(_LAYERS)
        ]
        self.norm, self.logits = norm(), dense(VOCABULARY)

    def start(self, source: tf.Tensor, max_length: int) -> dict:
        """The cache for encoded sources [batch, length, width]; their true lengths are made up."""
        rows = tf.shape(source)[0]
        empty = tf.zeros([rows, max_length, _HEADS, _WIDTH // _HEADS])
        return {
            "past": [{"keys": empty, "values": empty} for _ in self.blocks],
            "source": [
                {"keys": _heads(block["key2"](source)), "values": _heads(block["value2"](source))}
                for block in self.blocks
            ],
            "lengths": 12 + tf.range(rows) % 21,
        }

    def step(self, tokens: tf.Tensor, position: tf.Tensor, cache: dict) -> tuple[tf.Tensor, dict]:
        x = self.words(tokens) + self.positions(position)
        visible = tf.range(LENGTH) <= position
        past = []
        for block, old, source in zip(self.blocks, cache["past"], cache["source"], strict=True):
            y = block["norm"](x)
            keys = _put(old["keys"], position, _heads(block["key"](y)))
            values = _put(old["values"], position, _heads(block["value"](y)))
            past.append({"keys": keys, "values": values})
            x += block["out"](_attend(_heads(block["query"](y)), keys, values, visible))
            query = _heads(block["query2"](block["norm2"](x)))
            x += block["out2"](_attend(query, source["keys"], source["values"], True))
            x += block["outer"](block["inner"](block["norm3"](x)))
        logits = 8 * self.logits(self.norm(x))
        late = tf.cast(position - cache["lengths"], tf.float32)
        bias = 20 + 4 * late if self.ending else tf.fill(tf.shape(late), -1e9)
        return logits + bias[:, None] * tf.one_hot(2, VOCABULARY), cache | {"past": past}


def _heads(x):
    """[..., width] to [..., heads, width / heads]."""
    return tf.reshape(x, [*tf.unstack(tf.shape(x)[:-1]), _HEADS, _WIDTH // _HEADS])


def _put(known, position, new):
    """`new` [rows, heads, n] into [rows, length, heads, n]."""
    rows = tf.range(tf.shape(new)[0])
    places = tf.stack([rows, tf.fill(tf.shape(rows), position)], 1)
    return tf.tensor_scatter_nd_update(known, places, new)


def _attend(query, keys, values, visible):
    """Query [rows, heads, n] over [rows, length, heads, n] to [rows, heads * n]."""
    scores = tf.einsum("rhn,rlhn->rhl", query, keys) * query.shape[-1] ** -0.5
    weights = tf.nn.softmax(tf.where(visible, scores, -1e9))
    return tf.reshape(tf.einsum("rhl,rlhn->rhn", weights, values), [-1, _WIDTH])


def main() -> int:
    """Prints the table; returns the number of limits missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.get_logger().setLevel("ERROR")  # there are many functions of one name
    keras.utils.set_random_seed(0)
    table = Table(box=box.SIMPLE_HEAD, title=f"sentences a CPU-second, batches of {args.batch}")
    for heading in ("sentences", "beams", "ours", "KerasHub", "ratio"):
        table.add_column(heading, justify="right")
    missed = 0
    for ending in (False, True):
        rates = measure(Decoder(ending), args)
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
    source = tf.random.normal([args.batch, SOURCE, _WIDTH], seed=0)
    # Built here, as KerasHub's loop would do it in a graph of its own.
    model.step(tf.zeros([1], tf.int32), tf.constant(0), model.start(source[:1], LENGTH))
    actions = {
        (method, beams): tf.function(functools.partial(method, model, source, beams))
        for method in (ours, kerashub)
        for beams in LIMITS
    }
    times = medians(actions, args.rounds, time.process_time)
    return {action: args.batch / seconds for action, seconds in times.items()}


def ours(model: Decoder, source: tf.Tensor, beams: int) -> tf.Tensor:
    """Tokens [batch, LENGTH]."""
    cache = model.start(source, LENGTH)
    tokens, _ = decoding.search(
        model.step, cache, batch=source.shape[0], max_length=LENGTH, beams=beams
    )
    return tokens[:, 0]


def kerashub(model: Decoder, source: tf.Tensor, beams: int) -> tf.Tensor:
    """Tokens [batch, LENGTH]. The source's keys stay out of its cache, as in KerasHub's models."""
    cache = model.start(source, LENGTH)
    fixed = tf.nest.map_structure(lambda x: tf.repeat(x, beams, axis=0), cache)

    def read(prompt, past, index):
        last = index - 1
        logits, read = model.step(tf.gather(prompt, last, axis=1), last, fixed | {"past": past})
        return logits, None, read["past"]

    samplers = keras_hub.samplers
    sampler = samplers.GreedySampler() if beams == 1 else samplers.BeamSampler(num_beams=beams)
    prompt = tf.pad(tf.fill([source.shape[0], 1], 1), [[0, 0], [0, LENGTH]])
    return sampler(read, prompt, cache["past"], index=1, stop_token_ids=[2])[:, 1:]


if __name__ == "__main__":
    sys.exit(main())
