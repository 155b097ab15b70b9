"""The law of the mean: no exchange moves it, whatever the order, loss or damage."""

import pytest

from swarm_tf import codec as codecs
from tests.protocol.swarm import CODECS, FAULTS, ROUNDING, Swarm

SLOW = [pytest.mark.slow]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in ("float32", "lattice8") else SLOW) for name in CODECS],
)
def test_mean_stays_over_hundreds_of_exchanges(name):
    swarm = Swarm(8, codecs.build(*CODECS[name]), seed=8)
    # The formats that differ most get the long run.
    exchanges = 1000 if name in ("float32", "lattice2") else 200
    swarm.run(exchanges, noise=0.003)
    assert swarm.drift() < ROUNDING
    assert swarm.count("exchanges") >= exchanges
    assert swarm.count("exchanges_failed") == 0
    assert swarm.count("exchanges") == swarm.count("exchanges_served")


@pytest.mark.parametrize(
    "name",
    [
        "lattice4",
        *(
            pytest.param(name, marks=SLOW)
            for name in ("float32", "bfloat16", "lattice16", "lattice8")
        ),
    ],
)
def test_mean_stays_with_lost_doubled_reordered_and_damaged_messages(name):
    swarm = Swarm(4, codecs.build(*CODECS[name]), seed=1, faults=FAULTS)
    swarm.run(400, noise=0.003)
    assert min(swarm.network.injected.values()) > 30
    assert swarm.drift() < ROUNDING
    assert swarm.distance() < 0.05


@pytest.mark.parametrize("name", ["float32", "lattice4"])
@pytest.mark.parametrize(
    "faults", [pytest.param(None, marks=SLOW), FAULTS], ids=["reliable", "faulty"]
)
def test_mean_stays_with_several_chunks(name, faults):
    swarm = Swarm(3, codecs.build(*CODECS[name]), seed=2, chunks=7, faults=faults)
    swarm.run(60, noise=0.003)
    assert swarm.drift() < ROUNDING
    assert swarm.distance() < 0.05


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("name", ["float32", "lattice4"])
def test_mean_stays_at_any_moment(size, name):
    swarm = Swarm(size, codecs.build(*CODECS[name]), seed=3)
    for _ in range(25):
        swarm.run(swarm.count("exchanges") + 3, noise=0.003)
        assert swarm.drift() < ROUNDING


def test_deadlines_that_pass_do_not_move_the_mean():
    # Messages take longer than the timeout: many exchanges are given up, and end late.
    swarm = Swarm(4, codecs.build("lattice", 4), seed=4, timeout_seconds=0.2)
    given_up = 0
    for _ in range(10):
        swarm.run(swarm.count("exchanges") + 20, noise=0.003)
        given_up += sum(e.overdue for n in swarm.nodes for e in n.take_ended())
        assert swarm.drift() < ROUNDING
    assert given_up > 3


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in ("float32", "lattice3") else SLOW) for name in CODECS],
)
def test_models_converge_without_local_steps(name):
    swarm = Swarm(4, codecs.build(*CODECS[name]), seed=5)
    before = swarm.distance()
    swarm.run(150, noise=0)
    # 16-bit floats round on a grid of 2^-8 and 2^-11 of a weight; few bits take longer.
    coarse = {"bfloat16": 20, "float16": 100, "lattice3": 50, "lattice2": 2}.get(name, 10_000)
    assert swarm.distance() < before / coarse
