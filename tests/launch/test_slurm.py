"""Real jobs of a real Slurm, which the tests start on this machine: srun, sbatch, the scripts."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from swarm_tf.launch import swarmrun
from testbed import tfds_standin
from testbed.processes import last_step
from testbed.slurm import LoopbackSlurm, Missing, until

ROOT = Path(__file__).parents[2]
PYTHON = str(Path(sys.executable))
SMALL = ["--config=configs/digits_resnet.py", "--config.train.max_steps=20"]
# In place of what the scripts request: two tasks, no GPU.
TWO_TASKS = ["--ntasks=2", "--gpus-per-task=0", "--cpus-per-task=1"]
DIGITS = ["--config.data.name=digits", "--config.model.name=resnet8", "--config.data.augment=False"]


@pytest.fixture(scope="module")
def slurm():
    try:
        with LoopbackSlurm() as slurm:
            bin_ = Path(sys.executable).parent
            slurm.environment["PATH"] = f"{bin_}:{slurm.environment['PATH']}"
            yield slurm
    except Missing as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def plugins():
    """A PMI plugin that fits the MPI of this environment, and one that does not."""
    return ("pmix", "pmi2") if "Open MPI" in swarmrun.mpi_library() else ("pmi2", "none")


@pytest.fixture
def submit(slurm, plugins, tmp_path):
    """Submits a script of slurm/; returns the number of the job."""

    def submit(script, *flags, seeds="0", sbatch=()):
        slurm.environment |= {"SWARM_RUNS": str(tmp_path), "SWARM_MPI": plugins[0]}
        where = [f"--chdir={ROOT}", f"--output={tmp_path}/log-%a", f"--array={seeds}"]
        return slurm.call(
            *("sbatch", "--parsable", *TWO_TASKS, *where, *sbatch, f"slurm/{script}.sh", *flags)
        ).strip()

    yield submit
    slurm.end_jobs()


def summary(path):
    return json.loads((path / "summary.json").read_text())


def srun(slurm, plugin, *arguments):
    return subprocess.run(
        ["srun", f"--mpi={plugin}", "--ntasks=2", PYTHON, *arguments],
        cwd=ROOT,
        env=slurm.environment,
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.mark.matrix
def test_srun_starts_a_swarm(slurm, plugins, tmp_path):
    done = srun(slurm, plugins[0], "train.py", *SMALL, f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary(tmp_path)["ranks"] == 2
    assert summary(tmp_path)["exchanges"] > 0


@pytest.mark.matrix
@pytest.mark.slow
def test_a_plugin_that_does_not_fit_is_refused_by_name(slurm, plugins, tmp_path):
    fits, other = plugins
    done = srun(slurm, other, "train.py", *SMALL, f"--workdir={tmp_path}")
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("train.py: ")]
    assert f"started as 2 ranks by srun --mpi={other}" in line
    assert line.endswith(f"use srun --mpi={fits}")
    assert not any(tmp_path.iterdir())


@pytest.mark.matrix
@pytest.mark.slow
def test_a_rank_that_fails_ends_the_others_and_is_named(slurm, plugins):
    done = srun(slurm, plugins[0], "tests/mpi/programs/fails.py", "data")
    ended = time.time()
    assert done.returncode != 0
    output = done.stdout + done.stderr
    assert ended - float(re.search(r"failing at ([0-9.]+)", output)[1]) < 45, output
    assert "ValueError: the reason of rank 1" in output
    assert f"rank 1 on {os.uname().nodename}" in output
    assert "never" not in output


@pytest.fixture
def complete(slurm, submit, tmp_path):
    """Submits a script of slurm/ and waits until it has completed without error."""

    def complete(*arguments, **options):
        job = submit(*arguments, **options)
        # sbatch --wait looks every ten seconds or more.
        until(lambda: not slurm.call("squeue", "--noheader", f"--jobs={job}"), "the job", 400)
        logs = "".join(log.read_text() for log in tmp_path.glob("log-*"))
        for task in slurm.call("scontrol", "--oneliner", "show", "job", job).splitlines():
            assert "JobState=COMPLETED" in task, task + logs

    return complete


@pytest.mark.slow
def test_the_cifar10_job_trains_each_seed(complete, tmp_path):
    complete("cifar10", "--config.train.max_steps=20", *DIGITS, seeds="0-1")
    for seed in (0, 1):
        assert summary(tmp_path / f"cifar10/seed-{seed}")["local_steps_total"] == 40
        config = json.loads((tmp_path / f"cifar10/seed-{seed}/config.json").read_text())
        assert config["seed"] == seed


@pytest.mark.slow
def test_the_imagenet_job_trains(complete, tmp_path):
    data_dir = tmp_path / "tfds"
    tfds_standin.write(
        "imagenet2012",
        str(data_dir),
        tfds_standin.coloured((48, 56), file_name="x"),
        {"train": 64, "validation": 8},
    )
    flags = [f"--config.data.data_dir={data_dir}", "--config.data.image_size=32"]
    flags += ["--config.model.name=resnet18", "--config.train.batch_size=8"]
    complete("imagenet", "--config.train.max_steps=2", *flags)
    assert summary(tmp_path / "imagenet/seed-0")["local_steps_total"] == 4


@pytest.mark.slow
def test_the_wmt17_job_trains_and_scores_translations(complete, tmp_path):
    data_dir = str(tmp_path / "tfds")
    pairs = {"train": 300, "test": 4}
    tfds_standin.write("wmt17_translate/de-en", data_dir, tfds_standin.sentences, pairs)
    flags = [f"--config.data.data_dir={data_dir}", "--config.data.vocabulary_size=400"]
    flags += ["--config.data.max_length=64", "--config.model.name=transformer_tiny"]
    flags += ["--config.train.batch_size=256", "--config.train.max_steps=2"]
    complete("wmt17", *flags)
    assert summary(tmp_path / "wmt17/seed-0")["local_steps_total"] == 4
    assert "bleu" in summary(tmp_path / "wmt17/seed-0")["final"]
    assert (tmp_path / "wmt17/seed-0/vocabulary.model").exists()


def trains(workdir):
    """Whether metrics have been written."""
    path = workdir / "metrics.jsonl"
    return path.exists() and path.stat().st_size > 0


def requeued(slurm, job):
    """Waits until a job has ended its run and is pending; its next run may begin at once."""
    until(lambda: slurm.state(job) == "PENDING BeginTime", "the job to be requeued", 90)
    time.sleep(3)  # Slurm itself waits two minutes: until the old step is over, a new one fails
    slurm.call("scontrol", "update", f"JobId={job}", "StartTime=now")


@pytest.mark.slow
def test_a_job_goes_on_after_three_requeues_and_again_with_fewer_ranks(slurm, submit, tmp_path):
    workdir, log = tmp_path / "cifar10/seed-3", tmp_path / "log-3"

    def trains_from(run):
        began = "going on from"
        until(lambda: log.read_text().count(began) == run, f"run {run} to go on", 100)
        step = int(re.findall(r"going on from .*, step (\d+)", log.read_text())[-1])
        until(lambda: last_step(workdir) > step + 20, "twenty steps more", 100)
        return step

    flags = ["--config.train.max_steps=100000", "--config.train.step_seconds=0.02", *DIGITS]
    job = submit("cifar10", *flags, seeds="3") + "_3"
    until(lambda: trains(workdir), "the first step", 300)
    until(lambda: last_step(workdir) > 60, "some steps", 300)
    slurm.call("scontrol", "requeue", job)  # as a preemption: SIGTERM
    requeued(slurm, job)
    first = trains_from(1)
    assert first > 50
    # As near the time limit; the script then requeues the job.
    slurm.call("scancel", "--batch", "--signal=USR1", job)
    requeued(slurm, job)
    assert summary(workdir)["ended_by"] == "SIGUSR1"
    second = trains_from(2)
    assert second > first + 20
    slurm.call("scontrol", "requeue", job)
    requeued(slurm, job)
    third = trains_from(3)
    assert third > second + 20
    slurm.call("scancel", job)
    until(lambda: not slurm.state(job), "the job to end", 90)
    job = submit("cifar10", *flags, seeds="3", sbatch=["--ntasks=1"]) + "_3"
    assert trains_from(4) > 2 * third  # one rank takes two steps for one of two ranks
    slurm.call("scancel", job)
    until(lambda: not slurm.state(job), "the job to end", 90)
    assert summary(workdir)["ended_by"] == "SIGTERM"
    assert summary(workdir)["ranks"] == 1
    assert (workdir / "consensus.weights.h5").exists()
    assert json.loads((workdir / "config.json").read_text())["seed"] == 3


@pytest.mark.matrix
def test_a_requeued_job_starts_even_if_its_ranks_were_killed(slurm, plugins, tmp_path):
    """Its job and step keep their numbers, after which MPIs name files that killed ranks leave."""
    start = f"srun --mpi={plugins[0]} {PYTHON} tests/mpi/programs/killed.py"
    job = slurm.call(
        *("sbatch", "--parsable", "--requeue", "--ntasks=2", f"--chdir={ROOT}"),
        *(f"--output={tmp_path}/log", "--open-mode=append"),
        f"--wrap={start} || scontrol requeue $SLURM_JOB_ID",
    ).strip()
    requeued(slurm, job)
    log = tmp_path / "log"
    until(lambda: log.read_text().count("passed") == 2, "the ranks to pass", 60)
    until(lambda: not slurm.state(job), "the job to end", 60)


@pytest.mark.slow
@pytest.mark.large
def test_the_time_limit_ends_a_job_in_good_order(slurm, submit, tmp_path):
    workdir = tmp_path / "cifar10/seed-0"
    job = submit(
        "cifar10",
        *("--config.train.max_steps=1000000", *DIGITS),
        sbatch=("--time=3", "--signal=B:USR1@60"),
    )
    until(lambda: trains(workdir), "the first step", 100)
    until(lambda: "PENDING" in slurm.state(f"{job}_0"), "the job to requeue itself", 200)
    assert summary(workdir)["ended_by"] == "SIGUSR1"
