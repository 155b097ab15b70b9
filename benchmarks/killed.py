"""Runs that are killed several times end as accurate as runs that are not.

    python -m benchmarks.killed --config=FILE --out=DIR [--ranks=2] [--seeds=3] [--kills=5] [flags]

For each seed two runs of the same recipe: one whole, and one whose ranks are all killed (SIGKILL)
`kills` times, at points that are evenly spread over its steps, and started again by the same
command. Finished runs are kept and not repeated. Other flags are for train.py.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from swarm_tf.launch import swarmrun
from testbed.processes import last_step


def command(args, workdir: Path, seed: int, rest: list[str]) -> swarmrun.Job:
    """The job of a run."""
    flags = [f"--config={args.config}", f"--workdir={workdir}", f"--config.seed={seed}", *rest]
    return swarmrun.plan(["-n", str(args.ranks), "train.py", *flags])


def run(job: swarmrun.Job, output: Path, kill_at: int | None, workdir: Path) -> int | None:
    """Run the job; kill all its processes once it has logged step `kill_at`: then None."""
    with open(output, "a") as file:
        process = subprocess.Popen(
            job.command, env=job.variables, stdout=file, stderr=file, start_new_session=True
        )
    while process.poll() is None:
        if kill_at is not None and last_step(workdir) >= kill_at:
            children = _descendants(process.pid)
            for pid in (*children, process.pid):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
            time.sleep(2)
            return None
        time.sleep(0.2)
    return process.returncode


def _descendants(pid: int) -> list[int]:
    """The processes that `pid` has started, and theirs."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(entry.name)] = int(
                (entry / "stat").read_text().rpartition(")")[2].split()[1]
            )
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def main() -> int:
    """Trains what is not finished yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=5)
    args, rest = parser.parse_known_args()
    results: dict[str, list[float]] = {"whole": [], "killed": []}
    table = Table("seed", "whole", "killed", "starts", "steps, both", box=box.MARKDOWN)
    for seed in range(args.seeds):
        steps = 0
        for name, found in results.items():
            workdir = args.out / f"{name}-{seed}"
            starts = workdir.with_suffix(".starts")
            workdir.parent.mkdir(parents=True, exist_ok=True)
            job, output = command(args, workdir, seed, rest), workdir.with_suffix(".log")
            points = [steps * k // (args.kills + 1) for k in range(1, args.kills + 1)]
            todo: list[int | None] = [*(points if name == "killed" else []), None]
            done = workdir / "summary.json"
            while not done.exists():
                with open(starts, "a") as file:
                    file.write("x")
                passed = last_step(workdir)
                point = next((p for p in todo if p is None or p > passed), None)
                code = run(job, output, point, workdir)
                if code:
                    print(f"exit code {code}; see {output}", file=sys.stderr)
                    return 1
            summary = json.loads(done.read_text())
            steps = summary["local_steps_total"] // args.ranks
            found.append(summary["final"]["accuracy"])
        cells = [f"{found[-1]:.2%}" for found in results.values()]
        table.add_row(str(seed), *cells, str(len(starts.read_text())), str(steps))
    means = [statistics.mean(found) for found in results.values()]
    table.add_row("mean", *(f"{mean:.2%}" for mean in means), "", "")
    Console(width=100).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
