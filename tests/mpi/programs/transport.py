"""The MPI transport by itself, members over it, and the same members over threads."""

import time

import keras
import numpy as np
import pytest

from swarm_tf import codec as codecs
from swarm_tf import consensus
from swarm_tf.cluster import world
from swarm_tf.errors import UsageError
from swarm_tf.member import Member
from swarm_tf.transport import collectives
from swarm_tf.transport.local import LocalNetwork
from swarm_tf.weights import FlatWeights
from tests.transport.ranks import in_threads

mpi = world.transport()
RANK, SIZE = mpi.rank, mpi.size
assert SIZE == 4


def gather_broadcast_and_mean_are_right():
    for size in (0, 1, 100_000):
        data = bytes([RANK]) * (size * (RANK + 1))
        every = mpi.gather(data, "a test", 30)
        assert every == [bytes([r]) * (size * (r + 1)) for r in range(SIZE)]
    for length in (1, 1000, 300_001):
        arrays = [np.random.default_rng([RANK, k]).normal(size=length) for k in range(2)]
        arrays = [a.astype(np.float32) for a in arrays]
        roots = [np.random.default_rng([0, k]).normal(size=length) for k in range(2)]
        every = np.stack([np.random.default_rng([r, 0]).normal(size=length) for r in range(SIZE)])
        collectives.average(mpi, arrays, 60)
        np.testing.assert_allclose(arrays[0], every.mean(axis=0), atol=1e-6)
        assert len(set(mpi.gather(arrays[0].tobytes() + arrays[1].tobytes(), "bits", 30))) == 1
        arrays = [np.full(length, RANK, np.float32), np.zeros(length, np.float32)]
        if RANK == 0:
            arrays = [r.astype(np.float32) for r in roots]
        mpi.broadcast(arrays)
        for array, root in zip(arrays, roots, strict=True):
            np.testing.assert_array_equal(array, root.astype(np.float32))


def all_messages_between_all_ranks_arrive():
    """Every rank sends messages of all sizes to every other rank at once."""
    sizes = [0, 1, 17, 4096, 65_537, 10_000_000, 0, 3]

    def payload(source, to, k):
        return np.full(sizes[k], (source * 31 + to * 7 + k) % 251, np.uint8)

    others = [r for r in range(SIZE) if r != RANK]
    for k in range(len(sizes)):
        for to in others:
            mpi.send(to, bytes([RANK, k]) + b"head" * k, payload(RANK, to, k))
    arrived, deadline = {}, time.monotonic() + 60
    while len(arrived) < len(sizes) * len(others):
        assert time.monotonic() < deadline, sorted(arrived)
        for _, head, data in mpi.receive():
            source, k = head[0], head[1]
            assert head[2:] == b"head" * k
            assert (source, k) not in arrived
            np.testing.assert_array_equal(data, payload(source, RANK, k))
            arrived[source, k] = True
        time.sleep(0.001)
    while mpi._sending:  # the others' receives drive my large sends
        mpi.receive()
    mpi.flush(30)
    mpi.gather(b"", "the end of all sends", 60)


MATCHINGS = [[(0, 1), (2, 3)], [(0, 2), (1, 3)], [(0, 3), (1, 2)]]


def scripted(transport, codec, steps=12):
    """A blocking member in perfect matchings; the lower rank of a pair initiates."""
    rank = transport.rank
    rng = np.random.default_rng([3, rank])
    # Three chunks of one block, as in the test of a ring, so that they are compiled once.
    shapes = [(70, 40), (50,), (200,), ()]
    variables = [keras.Variable(rng.normal(size=s).astype(np.float32)) for s in shapes]
    member = Member(FlatWeights(variables, 1024), transport, codec, "blocking", timeout_seconds=60)
    member.start()
    gate = member.driver._node.gate
    for step in range(steps):
        for variable in variables:
            variable.assign_add((0.01 * rng.normal(size=variable.shape)).astype(np.float32))
        partner = next(sum(p) - rank for p in MATCHINGS[step % 3] if rank in p)

        def choose(among, partner=partner):
            # The initiator chooses the dither, so the higher rank waits for its partner's request.
            deadline = time.monotonic() + 60
            while rank > partner and not any(m.sender == partner for m in gate.waiting):
                assert time.monotonic() < deadline, f"rank {rank} got no request of rank {partner}"
                time.sleep(0.0005)
            return partner

        member.boundary(step + 1, choose)
        # Else a fast rank would be served at an earlier boundary of its partner.
        transport.gather(b"", "the next matching", 60)
    member.finish(steps)
    assert member.counters.exchanges_failed == 0
    assert member.counters.exchanges + member.counters.exchanges_served == steps
    mean = consensus.mean(member.weights, transport)
    assert consensus.distance(member.weights, transport, mean) > 0
    return b"".join(np.asarray(v).tobytes() for v in variables)


def mpi_and_threads_give_the_same_bits():
    for name, bits in [("float32", 8), ("lattice", 8)]:
        codec = codecs.build(name, bits)
        own = scripted(mpi, codec)
        every = mpi.gather(own, "weights", 60)
        assert len(set(every)) > 1
        if RANK == 0:
            network = LocalNetwork(SIZE)
            local = in_threads(SIZE, lambda r, n=network, c=codec: scripted(n[r], c))
            assert local == every, f"{name}: MPI and threads differ"
        mpi.gather(b"", "the comparison", 120)


def all_ranks_of_a_ring_initiate_at_once():
    """In each mode."""
    for mode in ("nonblocking", "blocking", "pull"):
        variable = keras.Variable(np.zeros([3000, 1], np.float32))
        rng = np.random.default_rng([4, RANK])
        member = Member(
            FlatWeights([variable], 1024),
            mpi,
            codecs.build("lattice", 8),
            mode,
            timeout_seconds=60,
            fingerprint=len(mode),
        )
        member.start()
        moved = np.zeros([3000, 1])
        for step in range(1, 31):
            before = variable.numpy().astype(np.float64)
            variable.assign_add((0.1 * rng.normal(size=[3000, 1])).astype(np.float32))
            moved += variable.numpy() - before
            member.boundary(step, lambda _: (RANK + 1) % SIZE)
            if step % 5 == 0:
                member.wait()
        member.finish(30)
        assert member.counters.exchanges_failed == 0
        # In blocking mode a rank need not initiate if it was served at each boundary.
        assert member.counters.exchanges + member.counters.exchanges_served >= 1
        every = mpi.gather(moved.tobytes(), "the steps", 60)
        expected = np.mean([np.frombuffer(e) for e in every], axis=0)
        mean = consensus.mean(member.weights, mpi)
        got = np.concatenate(mean)[:3000]
        drift = np.abs(got - expected).max()
        distance = consensus.distance(member.weights, mpi, mean)
        if mode != "pull":
            assert drift < 2e-6, drift
        # Without exchanges the distance is sqrt(3). The number of exchanges depends on
        # the machine's speed, except in blocking mode: there is one at every boundary.
        assert mode != "blocking" or distance < 0.8, distance
        assert member.counters.exchanges >= 1 or mode == "blocking"
        if RANK == 0:
            print(f"{mode}: drift {drift:.1e}, distance {distance:.3f}", flush=True)


def settings_that_differ_are_refused_on_all_ranks():
    for odd, own in [
        (2, {"swarm.bits": 4 if RANK == 2 else 8}),
        (3, {"swarm.bits": 4} if RANK == 3 else {}),
    ]:
        words = f"^swarm.bits must be the same on all ranks.* 4 on rank {odd}"
        with pytest.raises(UsageError, match=words):
            world.agree(mpi, "a test", {"swarm.mode": "blocking", **own})
    world.agree(mpi, "a test", {"a": [1, 2], "b": None})

    def refuse():
        if RANK == 2:
            raise UsageError("key=1 must be 2")
        return RANK

    with pytest.raises(UsageError, match=r"^rank 2: key=1 must be 2$"):
        world.run_on_all_ranks(refuse)
    assert world.run_on_all_ranks(lambda: RANK) == RANK


CHECKS = (
    gather_broadcast_and_mean_are_right,
    all_messages_between_all_ranks_arrive,
    settings_that_differ_are_refused_on_all_ranks,
    all_ranks_of_a_ring_initiate_at_once,
)
SLOW = (mpi_and_threads_give_the_same_bits,)
