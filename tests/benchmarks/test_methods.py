"""Methods of a comparison: how they are parsed and how they are started."""

from pathlib import Path

from benchmarks.methods import Method, parse_methods


def test_a_method_may_have_its_own_settings():
    swarm, four, two = parse_methods("swarm,swarm[swarm.bits=4],allreduce[a.b=c,d.e=(1, 2)]")
    assert swarm.settings == []
    assert four.settings == ["swarm.bits=4"]
    assert two.settings == ["a.b=c", "d.e=(1, 2)"]
    assert two.algorithm == "allreduce"
    assert len({e.directory for e in (swarm, four, two)}) == 3
    assert four.directory == "swarm-swarm.bits=4"


def test_with_settings_adds_to_a_methods_own_settings():
    assert Method("swarm").with_settings(seed=1) == Method("swarm[seed=1]")
    more = Method("swarm[swarm.bits=4]").with_settings(optimizer__learning_rate=0.1, seed=2)
    assert more == Method("swarm[swarm.bits=4,optimizer.learning_rate=0.1,seed=2]")


def test_own_settings_come_last_in_the_command_line():
    """They come last, so they override the settings of all methods."""
    arguments = Method("sgp[seed=3]").arguments("c.py", Path("out"), ["--config.seed=1"])
    assert arguments == [
        "train.py",
        "--config=c.py",
        "--workdir=out",
        "--resume=never",
        "--config.seed=1",
        "--config.algorithm=sgp",
        "--config.seed=3",
    ]


def test_single_has_one_rank():
    assert Method("single[seed=1]").ranks(4) == 1
    assert Method("swarm").ranks(4) == 4
