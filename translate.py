"""Translates a text with the model of a finished run: python translate.py WORKDIR [FILE]

Each line of FILE, or of the standard input, becomes a line of the standard output, in UTF-8. It is
computed in float32, also where the run trained in mixed precision.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from itertools import chain, groupby
from pathlib import Path
from typing import NoReturn

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

from swarm_tf import UsageError
from swarm_tf.cluster import startup_logs

FILES = ("config.json", "vocabulary.model", "consensus.weights.h5")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def main(argv: list[str]) -> int:
    try:
        args = parse(argv)
        workdir = Path(args.workdir)
        for name in FILES:
            if not (workdir / name).is_file():
                raise UsageError(
                    f"WORKDIR={workdir} has no {name}; use that of a finished translation run"
                )
        lines = read(args.file)
        translator = load(workdir, beams=args.beams, alpha=args.alpha)
    except UsageError as error:
        print(f"translate.py: {error}", file=sys.stderr)
        return 2
    documents = [list(group) for _, group in groupby(lines, key=lambda line: bool(line.strip()))]
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` may close the pipe
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    for translation in chain.from_iterable(translator.documents(documents)):
        print(" ".join(translation.splitlines()))  # a model may produce line breaks
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="translate.py",
        description="Translates a text, line by line, with the model of a finished run.",
        epilog="For a model with memory (model.memory_length above 0) lines are the sentences of "
        "a document in order, and an empty line ends it; otherwise each line is a text of its own.",
    )
    parser.add_argument("workdir", metavar="WORKDIR", help="--workdir of the run")
    parser.add_argument("file", metavar="FILE", nargs="?", help="UTF-8; default: standard input")
    parser.add_argument("--beams", type=int, default=4, help="1: greedy search; default: 4")
    alpha = "length penalty, 0 or more: the higher, the longer translations; default: 0.6"
    parser.add_argument("--alpha", type=float, default=0.6, help=alpha)
    args = parser.parse_args(argv[1:])
    if args.beams < 1:
        raise UsageError(f"--beams={args.beams} must be 1 or more")
    if not args.alpha >= 0:
        raise UsageError(f"--alpha={args.alpha} must be 0 or more")
    return args


def read(file: str | None) -> list[str]:
    """The lines, without their line ends."""
    name = "standard input" if file is None else f"FILE={file}"
    try:
        text = sys.stdin.buffer.read() if file is None else Path(file).read_bytes()
        lines = text.decode("utf-8").split("\n")
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 at byte {error.start}; convert it") from error
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def load(workdir: Path, *, beams: int, alpha: float):
    """The translator of a run; TensorFlow is loaded here, after the flags were checked."""
    with startup_logs.start():
        import models
    from data.text import vocabulary
    from models.translator import Translator
    from swarm_tf.cluster import devices
    from swarm_tf.config import ModelConfig
    from tasks.translation import network

    config, pieces, weights = (workdir / name for name in FILES)
    with refuse_damaged(config):
        saved = json.loads(config.read_bytes())
        keys, max_length = ModelConfig(**saved["model"]), saved["data"]["max_length"]
    if keys.name not in models.TRANSLATORS:
        raise UsageError(
            f"WORKDIR={workdir} is of model.name={keys.name}, which does not translate; use "
            f"a run of {', '.join(models.TRANSLATORS)}"
        )
    with refuse_damaged(pieces):
        learnt = vocabulary.load(pieces.read_bytes())
    devices.limit_threads(0)
    devices.claim_gpu()
    model = network(keys, learnt.get_piece_size())
    with refuse_damaged(weights):
        model.load_weights(weights)
    return Translator(model, learnt, max_length=max_length, beams=beams, alpha=alpha)


@contextlib.contextmanager
def refuse_damaged(file: Path) -> Iterator[None]:
    """Report any error in reading a file of the run as a damaged file."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UsageError(
            f"{file} is damaged, or is not of the same run and version as the rest of WORKDIR"
        ) from error


if __name__ == "__main__":
    sys.exit(main(sys.argv))
