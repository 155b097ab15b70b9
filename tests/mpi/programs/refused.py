"""A refusal on one rank reaches all ranks, wherever the others are by then."""

import time

from swarm_tf import UsageError
from swarm_tf.cluster import world

RANK, SIZE = world.rank(), world.size()


def reason(action):
    """Why `action` is refused on this rank."""
    try:
        world.run_on_all_ranks(action)
    except UsageError as error:
        return str(error)
    raise AssertionError("the action was not refused")


def refuse(where, text="no"):
    if where in (RANK, "all"):
        raise UsageError(text)


def every_rank_gets_the_reason_of_a_refusal():
    assert world.run_on_all_ranks(lambda: RANK) == RANK
    assert reason(lambda: refuse(2)) == "rank 2: no"
    assert reason(lambda: refuse("all")) == "no"


def rank_zero_runs_the_action_while_the_others_wait():
    done = []

    def slowly():
        time.sleep(0.5)
        done.append(time.monotonic())

    world.run_on_rank_zero(slowly, "a nap")
    returned = time.monotonic()  # one clock for all processes of a machine
    ends = world.transport().gather(str(done[0] if done else "").encode(), "the nap's end", 60)
    assert returned >= float(ends[0])
    assert len(done) == (RANK == 0)


def a_refusal_before_in_or_after_run_on_rank_zero_reaches_all():
    for stage in ("before", "inside", "after"):
        where = 0 if stage == "inside" else 1

        def build(stage=stage, where=where):
            if stage == "before":
                refuse(where, "too soon")
            world.run_on_rank_zero(
                lambda: refuse(where, "within") if stage == "inside" else None, "a file"
            )
            if stage == "after":
                refuse(where, "too late")

        expected = {"before": "too soon", "inside": "within", "after": "too late"}[stage]
        assert reason(build) == f"rank {where}: {expected}"
        # No rank is one gather ahead of the others.
        assert world.run_on_all_ranks(lambda stage=stage: stage) == stage


CHECKS = (
    every_rank_gets_the_reason_of_a_refusal,
    rank_zero_runs_the_action_while_the_others_wait,
    a_refusal_before_in_or_after_run_on_rank_zero_reaches_all,
)
