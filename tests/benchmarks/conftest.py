"""What tests of the tuning benchmarks share."""

import json
from pathlib import Path

import pytest

from benchmarks import methods


@pytest.fixture
def replace_training(monkeypatch):
    """replace_training(write) lets `write` stand for the training of a method.

    write(algorithm, rate, seed, ranks) returns the summary, the configuration and the lines of
    metrics.jsonl; or None for a run that is killed. The result is the list of (algorithm, rate,
    seed) that were started.
    """

    def replace(write):
        started = []

        def start(ranks, arguments, link):
            flags = dict(argument.removeprefix("--").split("=", 1) for argument in arguments[1:])
            rate, seed = float(flags["config.optimizer.learning_rate"]), int(flags["config.seed"])
            started.append((flags["config.algorithm"], rate, seed))
            written = write(*started[-1], ranks)
            if written is None:
                return -9, ""
            summary, config, lines = written
            workdir = Path(flags["workdir"])
            workdir.mkdir(parents=True)
            (workdir / "summary.json").write_text(json.dumps(summary))
            (workdir / "config.json").write_text(json.dumps(config))
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (workdir / "metrics.jsonl").write_text(text)
            return 0, ""

        monkeypatch.setattr(methods, "start", start)
        return started

    return replace
