"""train.py as a user starts it: real ranks, real files, and bad input."""

import json
import math
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

import tasks
from swarm_tf.runner import evaluation, flags
from testbed import tfds_standin

ROOT = Path(__file__).parents[2]
SWARMRUN = str(Path(sys.executable).parent / "swarmrun")
DIGITS = "--config=configs/digits_resnet.py"
SUMMARY_KEYS = {
    "algorithm", "ranks", "survivors", "parameters", "local_steps_total", "epochs",
    "wall_seconds", "train_seconds", "examples_per_second", "final", "per_rank_accuracy",
    "exchanges", "exchanges_failed", "steps_per_exchange", "bytes_sent",
    "payload_bytes_per_exchange",
    "blocks_skipped", "exposed_seconds", "exposed_fraction", "step_seconds_median",
    "staleness_mean", "steps_per_second", "consensus_distance", "data_wait_fraction",
    "ended_by",
}  # fmt: skip


def train(ranks: int, *flags: str) -> subprocess.CompletedProcess:
    launcher = [sys.executable] if ranks == 1 else [SWARMRUN, "-n", str(ranks)]
    return subprocess.run(
        [*launcher, "train.py", *flags], cwd=ROOT, capture_output=True, text=True, timeout=400
    )


def summary(workdir: Path) -> dict:
    return json.loads((workdir / "summary.json").read_text())


def test_one_rank_without_mpi_trains_and_writes_all_files(tmp_path):
    done = train(
        1,
        DIGITS,
        f"--workdir={tmp_path}",
        "--config.algorithm=single",
        "--config.train.epochs=6",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert summary(tmp_path).keys() == SUMMARY_KEYS
    assert summary(tmp_path)["final"]["accuracy"] > 0.9
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all({"step", "rank", "time_seconds"} <= line.keys() for line in lines)
    assert any("loss" in line for line in lines)
    names = {path.name.split(".")[0] for path in tmp_path.iterdir()}
    assert {"config", "metrics", "consensus", "summary", "events"} <= names


@pytest.mark.slow
def test_three_ranks_train_with_every_option_on(tmp_path):
    done = train(
        3,
        DIGITS,
        f"--workdir={tmp_path}",
        "--config.train.epochs=12",
        "--config.swarm.topology=ring",
        "--config.swarm.bits=4",
        "--config.swarm.local_steps_distribution=geometric",
        "--config.swarm.average_statistics=False",
        "--config.swarm.average_optimizer=True",
        "--config.data.partition=dirichlet",
        "--config.data.dirichlet_alpha=5",
    )
    assert done.returncode == 0, done.stderr
    result = summary(tmp_path)
    assert result["ranks"] == 3
    assert result["exchanges"] > 20
    assert result["exchanges_failed"] == 0
    assert result["final"]["accuracy"] > 0.8
    assert result["consensus_distance"] < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["allreduce", "dpsgd"])
def test_a_baseline_trains_the_same_recipe(tmp_path, algorithm):
    """Two ranks, one of them slow; rank 0 evaluates during training, and the other one waits."""
    done = train(
        2,
        DIGITS,
        f"--workdir={tmp_path}",
        f"--config.algorithm={algorithm}",
        "--config.train.epochs=3",
        "--config.train.slow_factors=(1.0, 1.5)",
        "--config.noloco.local_steps=8",
    )
    assert done.returncode == 0, done.stderr
    result = summary(tmp_path)
    assert result["algorithm"] == algorithm
    assert result["exchanges"] > 0
    assert result["exchanges_failed"] == 0
    assert result["bytes_sent"] > 4 * result["parameters"]
    assert result["final"]["accuracy"] > 0.3, "guessing gives 0.1"
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    passes = [line for line in lines if "pass_loss" in line]
    assert len(passes) == 3
    assert passes[-1]["pass_loss"] < passes[0]["pass_loss"]
    assert 0 < passes[0]["train_seconds"] < passes[-1]["train_seconds"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["blocking", "pull"])
def test_blocking_and_pull_train_too(tmp_path, mode):
    done = train(
        2,
        DIGITS,
        f"--workdir={tmp_path}",
        f"--config.swarm.mode={mode}",
        "--config.train.max_steps=60",
    )
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path)["local_steps_total"] == 120
    assert summary(tmp_path)["exchanges"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_averages_float32_weights(tmp_path, precision):
    done = train(
        2,
        DIGITS,
        f"--workdir={tmp_path}",
        f"--config.train.mixed_precision={precision}",
        "--config.train.recalibrate=True",
        "--config.train.epochs=10",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no GPU") == 1
    result = summary(tmp_path)
    assert result["exchanges"] > 20
    assert result["exchanges_failed"] == 0
    assert result["final"]["accuracy"] > 0.9
    assert result["final"]["top5_accuracy"] >= result["final"]["accuracy"]
    # Weights rounded to 8 or 11 bits would sit on a coarse grid.
    with h5py.File(tmp_path / "consensus.weights.h5") as file:
        weights = []
        file["layers"].visititems(
            lambda _, item: weights.append(item[()]) if isinstance(item, h5py.Dataset) else None
        )
    assert {str(weight.dtype) for weight in weights} == {"float32"}
    largest = max(weights, key=lambda weight: weight.size)
    assert (largest.astype("float16").astype("float32") != largest).mean() > 0.9


@pytest.mark.slow
def test_two_ranks_train_on_a_set_that_is_streamed(tmp_path):
    where = str(tmp_path / "tfds")
    example = tfds_standin.coloured((20, 60), file_name="x")
    tfds_standin.write("imagenet2012", where, example, {"train": 60, "validation": 11}, shards=3)
    done = train(
        2,
        DIGITS,
        f"--workdir={tmp_path / 'run'}",
        "--config.algorithm=local_sgd",
        "--config.data.name=imagenet2012",
        f"--config.data.data_dir={where}",
        "--config.data.image_size=16",
        "--config.data.augment=True",
        "--config.train.batch_size=8",
        "--config.train.max_steps=12",
    )
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "run")["local_steps_total"] == 24
    assert summary(tmp_path / "run")["epochs"] == pytest.approx(24 * 8 / 60)


@pytest.mark.slow  # a model that has hardly learned takes long to translate
def test_two_ranks_that_share_the_test_split_have_the_score_of_one(tmp_path):
    recipe = "configs/number_words_transformer_xl.py"
    short = ["--config.train.max_steps=40", "--config.data.train_examples=2000"]
    done = train(2, f"--config={recipe}", f"--workdir={tmp_path}", *short)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "vocabulary.model").exists()
    final = summary(tmp_path)["final"]
    names = {"loss", "accuracy", "perplexity", "bleu", "exact_match", "bleu_signature"}
    assert final.keys() == names
    assert final["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|")

    config, *_ = flags.parse(["", f"--config={ROOT / recipe}", f"--workdir={tmp_path}", *short])
    task = tasks.build(config, str(tmp_path))
    task.model.load_weights(tmp_path / "consensus.weights.h5")
    task.model.compile(loss=task.loss, weighted_metrics=task.metrics, jit_compile=False)
    alone = evaluation.evaluate(task.model, task.data.test) | task.score()
    assert alone.keys() == names
    for name in ("loss", "accuracy", "perplexity"):
        assert final[name] == pytest.approx(alone[name], rel=1e-4)
    # Rounding depends on the batch, and decides between two beams of equal score.
    assert final["bleu"] == pytest.approx(alone["bleu"], abs=1)
    assert alone["loss"] == pytest.approx(math.log(alone["perplexity"]), rel=1e-4)


BAD = {
    "misspelt key": (["--config.swarm.bitz=8"], ["bitz", "bits"]),
    "bits": (["--config.swarm.bits=9"], ["swarm.bits=9", "8"]),
    "no local steps": (["--config.swarm.local_steps=0"], ["swarm.local_steps=0"]),
    "unknown model": (["--config.model.name=resnet21"], ["model.name=resnet21"]),
    "memory of an image model": (
        ["--config.model.memory_length=8"],
        ["model.memory_length=8 has no effect on task=classification"],
    ),
    "no data": (["--config.data.name=cifar10", "--config.data.data_dir=/nowhere"], ["cifar10"]),
    "no ImageNet": (
        ["--config.data.name=imagenet2012", "--config.data.data_dir=/nowhere"],
        ["imagenet2012", "downloads/manual", "ILSVRC2012_img_train.tar"],
    ),
    "workdir": (["--workdir=/dev/null/run"], ["/dev/null/run"]),
    "alone": (["--config.algorithm=single"], ["algorithm=single"]),
    "differing": (
        ["--config.swarm.bits={bits}"],
        ["swarm.bits must be the same on all ranks, but is 8 on rank 0 and 4 on rank 1"],
    ),
}

REFUSED = """
import contextlib, io, json, os, sys, traceback
from pathlib import Path

sys.path.insert(0, os.getcwd())
import train
from swarm_tf.cluster import world

report, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
found = {}
for case, flags in cases.items():
    flags = [flag.format(bits=8 - 4 * world.rank()) for flag in flags]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = train.main(["train.py", *flags])
    found[case] = code, said.getvalue()
(report / f"{world.rank()}.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """What each of two ranks returned and printed in each case: [{case: (code, text)}].

    One start serves all cases, since a rank can go on after a refusal.
    """
    report = tmp_path_factory.mktemp("refused")
    (report / "program.py").write_text(REFUSED)
    run = f"--workdir={report / 'run'}"
    cases = {case: [DIGITS, run, *flags] for case, (flags, _) in BAD.items()}
    done = subprocess.run(
        [SWARMRUN, "-n", "2", str(report / "program.py"), str(report), json.dumps(cases)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert not (report / "run" / "metrics.jsonl").exists()
    return [json.loads((report / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_line_and_exit_code_2_on_every_rank(refusals, case):
    _, words = BAD[case]
    codes, texts = zip(*(rank[case] for rank in refusals), strict=True)
    assert codes == (2, 2)
    lines = [line for line in texts[0].splitlines() if line.startswith("train.py: ")]
    assert len(lines) == 1, texts
    assert all(word in lines[0] for word in words), lines
    assert "train.py: " not in texts[1]
    assert not any("Traceback" in text for text in texts)


@pytest.mark.parametrize(
    ("ranks", "flags", "words"),
    [
        pytest.param(2, ["--config.swarm.bits=9"], ["swarm.bits=9", "8"], marks=pytest.mark.matrix),
        pytest.param(
            6, ["--config.swarm.topology=hypercube"], ["hypercube", "6"], marks=pytest.mark.slow
        ),
    ],
    ids=["bits", "hypercube of 6"],
)
def test_a_refused_job_ends_with_one_line_and_exit_code_2(tmp_path, ranks, flags, words):
    mark = f"--workdir={tmp_path / 'left'}"
    done = train(ranks, DIGITS, mark, *flags)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("train.py: ")]
    assert len(lines) == 1, done.stderr
    assert all(word in lines[0] for word in words), lines
    assert "Traceback" not in done.stderr
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert mark not in listed, "a rank is left behind"


@pytest.mark.slow
def test_a_rank_that_crashes_ends_the_job_with_its_traceback(tmp_path):
    script = tmp_path / "crash.py"
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r}); os.chdir({str(ROOT)!r})\n"
        "import train\n"
        "from swarm_tf import trainer\nfrom swarm_tf.cluster import world\n"
        "run = trainer.Trainer._run\n"
        "def crash(self, block, count):\n"
        "    if world.rank() == 1 and self.steps_taken > 20: raise RuntimeError('out of luck')\n"
        "    return run(self, block, count)\n"
        "trainer.Trainer._run = crash\n"
        f"sys.exit(train.main(['train.py', {DIGITS!r}, '--workdir={tmp_path}/run',"
        " '--config.algorithm=local_sgd']))\n"
    )
    done = subprocess.run(
        [SWARMRUN, "-n", "2", str(script)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode not in (0, 2)
    assert "rank 1 on " in done.stderr
    assert "RuntimeError: out of luck" in done.stderr


def test_a_disconnected_graph_is_refused():
    import networkx as nx

    from swarm_tf import SwarmCallback, UsageError
    from swarm_tf.transport.local import LocalNetwork

    graph = nx.Graph([(0, 1), (2, 3)])
    with pytest.raises(UsageError, match="connected"):
        SwarmCallback(topology=graph, transport=LocalNetwork(4)[0])
