"""The check proves from its record that a run was correct, and detects a changed record."""

import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from swarm_tf.history import check
from swarm_tf.transport.local import Faults, LocalNetwork
from tests.transport.ranks import Quadratic, in_threads


def _train(directory, network, mode="nonblocking", codec=("lattice", 4), steps=40):
    """Trains ranks as threads, each with another target; returns their record."""
    size = network.size
    start = threading.Barrier(size)

    def action(rank):
        own = Quadratic(network[rank], codec, mode, record=directory, timeout_seconds=20)
        own.member.start()
        start.wait(60)
        rng = np.random.default_rng(rank)
        for step in range(1, steps + 1):
            own.step()
            time.sleep(0.002)
            if step % 2 == 0:
                own.member.boundary(step, lambda among: int(rng.choice(among)))
            if step % 8 == 0:
                own.member.wait()  # so that a busy machine has enough exchanges
        own.member.finish(steps)
        return own.member.counters.exchanges

    assert sum(in_threads(size, action)) > 4
    return check.read(directory)


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    return _train(tmp_path_factory.mktemp("record"), LocalNetwork(3), steps=120)


def test_a_correct_run_has_no_violations(entries):
    figures, violations = check.check(entries)
    assert violations == []
    assert figures["exchanges"] > 10
    assert figures["blocks"] > 10


@pytest.mark.parametrize("mode", ["nonblocking", "blocking", "pull"])
def test_a_correct_run_on_a_faulty_network_has_no_violations(tmp_path, mode):
    faults = Faults(drop=0.05, duplicate=0.1, corrupt=0.05, delay=0.005, seed=1)
    _, violations = check.check(_train(tmp_path, LocalNetwork(3, faults), mode))
    assert violations == []


def _averaged(entries, own):
    """The index of the first entry that averaged blocks, of an initiator or of its partner."""
    return next(
        i
        for i, e in enumerate(entries)
        if e["kind"] == "averaged" and (e["rank"] == e["initiator"]) == own and e["applied"]
    )


def _twice_by_the_initiator(entries):
    entries.append(entries[_averaged(entries, own=True)])


def _twice_by_the_partner(entries):
    entries.append(entries[_averaged(entries, own=False)])


def _missing_at_the_initiator(entries):
    del entries[_averaged(entries, own=True)]


def _missing_at_the_partner(entries):
    del entries[_averaged(entries, own=False)]


def _not_opposite(entries):
    entries[_averaged(entries, own=True)]["correction"] ^= 1


def _other_blocks(entries):
    entries[_averaged(entries, own=False)]["applied"] -= 1


def _mean_moved(entries):
    end = next(e for e in entries if e["kind"] == "end")
    end["corrections"] += 1e-3 * end["size"]
    end["end"] += 1e-3 * end["size"]


def _lost_step(entries):
    next(e for e in entries if e["kind"] == "end")["end"] += 0.1


def _no_end(entries):
    entries.remove(next(e for e in entries if e["kind"] == "end"))


DAMAGES = {
    _twice_by_the_initiator: "averaged 2 times by its initiator",
    _twice_by_the_partner: "averaged 2 times by its partner",
    _missing_at_the_initiator: "averaged 0 times by its initiator",
    _missing_at_the_partner: "averaged 0 times by its partner",
    _not_opposite: "not opposite: correction differs",
    _other_blocks: "not opposite: applied differs",
    _mean_moved: "moved the sum of all models",
    _lost_step: "do not sum to the end",
    _no_end: "has no end",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_record_that_was_changed_has_a_violation(entries, damage):
    changed = [dict(entry) for entry in entries]
    damage(changed)
    _, violations = check.check(changed)
    assert any(DAMAGES[damage] in words for words in violations), violations


def test_the_program_prints_the_result_and_returns_an_exit_code(entries, tmp_path):
    def run():
        command = [sys.executable, "-m", "swarm_tf.history", str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True)

    assert run().returncode == 2
    path = tmp_path / "rank0.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    done = run()
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert "the mean held" in done.stdout
    lines = path.read_text().splitlines()
    del lines[_averaged(entries, own=True)]
    path.write_text("\n".join(lines))
    done = run()
    assert done.returncode == 1
    assert "averaged 0 times by its initiator" in done.stdout
