"""What one rank is refused, all are refused, wherever the others stand by then."""

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
    raise AssertionError("it was not refused")


def refuse(where, text="no"):
    if where in (RANK, "all"):
        raise UsageError(text)


def every_rank_learns_why():
    assert world.run_on_all_ranks(lambda: RANK) == RANK
    assert reason(lambda: refuse(2)) == "rank 2: no"
    assert reason(lambda: refuse("all")) == "no"


def the_first_rank_does_it_while_the_others_wait():
    done = []

    def slowly():
        time.sleep(0.5)
        done.append(time.monotonic())

    world.run_on_rank_zero(slowly, "a nap")
    returned = time.monotonic()  # one clock for all processes of a machine
    ends = world.transport().gather(str(done[0] if done else "").encode(), "the nap's end", 60)
    assert returned >= float(ends[0])
    assert len(done) == (RANK == 0)


def a_refusal_on_the_way_to_what_is_first_done_reaches_all():
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
        # Nobody is one gather ahead of the others.
        assert world.run_on_all_ranks(lambda stage=stage: stage) == stage


CHECKS = (
    every_rank_learns_why,
    the_first_rank_does_it_while_the_others_wait,
    a_refusal_on_the_way_to_what_is_first_done_reaches_all,
)
