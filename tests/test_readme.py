"""The documents: their links, and the README's first example, which trains when it is pasted."""

import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

import swarm_tf

SWARMRUN = str(Path(sys.executable).parent / "swarmrun")
ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLE = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]

# Writes the weights that each rank has at the end, and prints its number of exchanges.
AFTERWARDS = """
import numpy as np
flat = np.concatenate([weight.ravel() for weight in model.get_weights()])
np.save(f"rank{swarm_tf.rank()}.npy", flat)
print("exchanges", swarm.counters.exchanges)
"""


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_readme_example_trains_as_it_stands(tmp_path, ranks):
    (tmp_path / "script.py").write_text(EXAMPLE + AFTERWARDS)
    start = [sys.executable] if ranks == 1 else [SWARMRUN, "-n", str(ranks)]
    done = subprocess.run(
        [*start, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    each = [np.load(tmp_path / f"rank{rank}.npy") for rank in range(ranks)]
    for weights in each[1:]:
        np.testing.assert_array_equal(weights, each[0])
    exchanges = [int(count) for count in re.findall(r"exchanges (\d+)", done.stdout)]
    assert len(exchanges) == ranks
    if ranks > 1:
        # 280 steps; a rank waits for its exchange after at most 16.
        assert min(exchanges) > 10
    digits = load_digits()
    predicted = keras.models.load_model(tmp_path / "model.keras").predict(
        digits.data / 16, verbose=0
    )
    assert (predicted.argmax(axis=1) == digits.target).mean() > 0.9


def test_the_package_shows_the_same_example():
    assert EXAMPLE in swarm_tf.__doc__


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_links_lead_to_files_that_exist(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_readme_is_short():
    assert len(README.split()) <= 900
