"""How many target tokens a core prepares in a second, and how much of the batches is padding.

    python -m benchmarks.translation_input [--name=SET --data_dir=DIR --vocabulary_size=N]
        [--documents]

Time is CPU time of all threads of the process. Limits, for --batch_size=4096 or more:
1,000,000 target tokens a CPU-second, padding not counted, and padding below 25 % of all source and
target positions of a pass.
"""

import argparse
import math
import os
import statistics
import sys
import tempfile
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf

from benchmarks.timing import batch_rates
from data.text import translation
from data.text.vocabulary import PADDING
from swarm_tf.config import DataConfig

RATE = 1_000_000  # target tokens a CPU-second
SHARE = 0.25  # of positions


def main() -> int:
    """Prints both figures; returns the number of limits missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--name", default="number_words")
    parser.add_argument("--data_dir")
    parser.add_argument("--vocabulary_size", type=int, default=400)
    parser.add_argument("--batch_size", type=int, default=4096)
    parser.add_argument("--documents", action="store_true", help="as for models with a memory")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    with tempfile.TemporaryDirectory() as workdir:
        began = time.process_time()
        part = translation.load(
            DataConfig(
                name=args.name, data_dir=args.data_dir, vocabulary_size=args.vocabulary_size
            ),
            rank=0,
            size=1,
            batch_size=args.batch_size,
            seed=0,
            workdir=workdir,
            first=lambda action, what: action(),
            documents=args.documents,
        )
        pairs = part.train_examples + part.dropped
        print(f"{pairs:,} pairs prepared in {time.process_time() - began:.1f} CPU-seconds")
        padding = padding_share(part)
        tokens = part.target_tokens / part.steps_per_pass  # in a batch
        batches = max(500, math.ceil(part.steps_per_pass))
        rates = [tokens * rate for rate in batch_rates(part.train, batches, args.rounds)]
    rate = statistics.median(rates)
    print(f"shapes (rows, width): {', '.join(map(str, part.shapes))}")
    print(f"padding: {padding:.1%} of all positions")
    print(
        f"target tokens/CPU-second: {rate:,.0f} ({min(rates):,.0f} to {max(rates):,.0f}), "
        f"median of {args.rounds} rounds"
    )
    missed = int(padding >= SHARE) + int(rate < RATE)
    print(f"{missed} of 2 limits missed")
    return missed


def padding_share(part: translation.Translation) -> float:
    """The share of padding in one pass over the training set."""
    tokens = positions = 0
    for inputs, labels, _ in part.train.take(math.ceil(part.steps_per_pass)).as_numpy_iterator():
        for ids in (inputs["source"], labels):
            tokens, positions = tokens + np.count_nonzero(ids != PADDING), positions + ids.size
    return 1 - tokens / positions


if __name__ == "__main__":
    sys.exit(main())
