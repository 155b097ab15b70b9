"""The code of docs/extending.md: one extension of each kind trains on two ranks."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from swarm_tf import codec as codecs
from swarm_tf.errors import UsageError
from swarm_tf.runner import flags
from swarm_tf.runner.validation import validate
from tests.codec import laws
from tests.protocol.swarm import FAULTS, ROUNDING, Swarm

SWARMRUN = str(Path(sys.executable).parent / "swarmrun")
ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = "summary", "config"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path_factory.mktemp("outside") / "my_run.py"
    path.write_text("\n\n".join(blocks))
    return path


@pytest.fixture(scope="module")
def run(recipe):
    """Runs the recipe on two ranks, with keys; gives its summary and config.json."""

    def run(name, *keys):
        workdir = recipe.parent / name
        done = subprocess.run(
            [
                SWARMRUN,
                *("-n", "2", "train.py"),
                *(f"--config={recipe}", f"--workdir={workdir}"),
                *(f"--config.{key}" for key in keys),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads((workdir / f"{file}.json").read_text()) for file in FILES]

    return run


@pytest.mark.slow
def test_a_new_partner_policy_codec_and_data_set_train(run):
    summary, config = run("bars", "swarm.partner_policy=cyclic", "swarm.codec=fixed")
    assert (config["swarm"]["partner_policy"], config["swarm"]["codec"]) == ("cyclic", "fixed")
    assert summary["final"]["accuracy"] > 0.95
    assert summary["exchanges"] >= 8
    assert summary["exchanges_failed"] == 0
    assert summary["blocks_skipped"] == 0
    # Matrices are sent in two bytes a weight, vectors exactly.
    assert 2 < summary["payload_bytes_per_exchange"] / summary["parameters"] < 2.5


def test_a_new_algorithm_and_task_train(run):
    summary, config = run(
        "line", "algorithm=every_few", "every_few.local_steps=5", "model.name=dense"
    )
    assert config["every_few"]["local_steps"] == 5
    assert summary["exchanges"] == 2 * (summary["local_steps_total"] // 2 // 5)
    assert summary["final"]["squared_error"] < 0.02


def test_the_keys_of_a_new_algorithm_are_checked_and_shown(recipe, capsys):
    argv = ["train.py", f"--config={recipe}", "--workdir=w", "--config.every_few.local_steps=0"]
    with pytest.raises(UsageError, match=r"every_few\.local_steps=0 must be 1 or more"):
        validate(flags.parse(argv)[0], 2)
    with pytest.raises(SystemExit):
        flags.parse(["train.py", f"--config={recipe}", "--help"])
    assert "--config.every_few.local_steps=10\n      local steps between" in capsys.readouterr().out


def test_a_new_codec_obeys_all_laws(recipe):
    """The laws of tests/codec/laws.py; and the mean stays when messages are lost or damaged."""
    runpy.run_path(str(recipe))
    laws.check(codecs.build("fixed"))
    swarm = Swarm(4, codecs.build("fixed"), seed=1, chunks=2, faults=FAULTS)
    swarm.run(100, noise=0.003)
    assert swarm.drift() < ROUNDING
    assert swarm.distance() < 0.05
