"""Methods of a comparison, as they are written and as they are started."""

from pathlib import Path

from benchmarks.methods import Method, parse_methods


def test_settings_of_their_own():
    swarm, four, two = parse_methods("swarm,swarm[swarm.bits=4],allreduce[a.b=c,d.e=(1, 2)]")
    assert swarm.settings == []
    assert four.settings == ["swarm.bits=4"]
    assert two.settings == ["a.b=c", "d.e=(1, 2)"]
    assert two.algorithm == "allreduce"
    assert len({e.directory for e in (swarm, four, two)}) == 3
    assert four.directory == "swarm-swarm.bits=4"


def test_more_settings():
    assert Method("swarm").with_settings(seed=1) == Method("swarm[seed=1]")
    more = Method("swarm[swarm.bits=4]").with_settings(optimizer__learning_rate=0.1, seed=2)
    assert more == Method("swarm[swarm.bits=4,optimizer.learning_rate=0.1,seed=2]")


def test_command_line():
    """A method's own settings come last: they win over those of all."""
    arguments = Method("sgp[seed=3]").arguments("c.py", Path("out"), ["--config.seed=1"])
    assert arguments == [
        "train.py",
        "--config=c.py",
        "--workdir=out",
        "--config.seed=1",
        "--config.algorithm=sgp",
        "--config.seed=3",
    ]


def test_single_has_one_rank():
    assert Method("single[seed=1]").ranks(4) == 1
    assert Method("swarm").ranks(4) == 4
