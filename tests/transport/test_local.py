"""The transport between threads, its faults, and members that train over it."""

import threading
import time

import keras
import numpy as np
import pytest

from swarm_tf import SwarmCallback, UsageError
from swarm_tf import codec as codecs
from swarm_tf.member import Member
from swarm_tf.transport import collectives
from swarm_tf.transport.local import Faults, LocalNetwork
from swarm_tf.weights import FlatWeights
from tests.transport.ranks import Quadratic, in_threads

MODES = ("nonblocking", "blocking", "pull")


# The network.


def _send(faults, count=4000):
    """Sends `count` numbered messages from rank 0 to rank 1; returns those that arrive."""
    network = LocalNetwork(2, faults)
    for k in range(count):
        network[0].send(1, k.to_bytes(8, "little"), np.full(8, k % 251, np.uint8))
    time.sleep(faults.delay)
    return [(head, payload) for _, head, payload in network[1].receive()]


def _close_to(share, probability, count=4000):
    """Whether a share is within five standard errors of the probability."""
    return abs(share - probability) <= 5 * np.sqrt(probability * (1 - probability) / count)


def test_without_faults_everything_arrives_in_order():
    arrived = _send(Faults(), 500)
    assert [int.from_bytes(h, "little") for h, _ in arrived] == list(range(500))
    assert all((p == k % 251).all() for k, (_, p) in enumerate(arrived))
    assert LocalNetwork(2).repeat_seconds is None


@pytest.mark.parametrize("probability", [0.05, 0.5])
def test_messages_are_dropped_with_the_given_probability(probability):
    arrived = _send(Faults(drop=probability))
    assert _close_to(1 - len(arrived) / 4000, probability)
    assert len({h for h, _ in arrived}) == len(arrived)


@pytest.mark.parametrize("probability", [0.05, 0.5])
def test_messages_are_duplicated_with_the_given_probability(probability):
    arrived = _send(Faults(duplicate=probability))
    assert _close_to(len(arrived) / 4000 - 1, probability)
    assert len({h for h, _ in arrived}) == 4000


@pytest.mark.parametrize("probability", [0.05, 0.5])
def test_one_bit_is_flipped_with_the_given_probability(probability):
    arrived = _send(Faults(corrupt=probability))
    assert len(arrived) == 4000
    wrong = 0
    for k, (head, payload) in enumerate(arrived):
        sent = k.to_bytes(8, "little") + bytes([k % 251] * 8)
        flipped = int.from_bytes(sent, "big") ^ int.from_bytes(head + payload.tobytes(), "big")
        assert flipped.bit_count() <= 1
        wrong += flipped != 0
    assert _close_to(wrong / 4000, probability)


def test_delays_make_messages_overtake_each_other():
    network = LocalNetwork(2, Faults(delay=0.2))
    for k in range(200):
        network[0].send(1, k.to_bytes(8, "little"), np.zeros(0, np.uint8))
    assert len(network[1].receive()) < 100
    time.sleep(0.2)
    late = [int.from_bytes(h, "little") for _, h, _ in network[1].receive()]
    assert late != sorted(late)
    assert network.repeat_seconds is not None


def test_the_sender_may_reuse_its_buffer():
    network = LocalNetwork(2)
    payload = np.ones(4, np.uint8)
    network[0].send(1, b"x", payload)
    payload[:] = 0
    assert network[1].receive()[0][2].tolist() == [1, 1, 1, 1]


def test_gather_average_and_broadcast():
    network = LocalNetwork(4)

    def action(rank):
        transport = network[rank]
        gathered = transport.gather(bytes([rank] * rank), "a test", 10)
        arrays = [np.full(5, rank, np.float32), np.full(3, 10 * rank, np.float32)]
        collectives.average(transport, arrays, 10)
        roots = [np.full(5, rank + 1, np.float32)]
        transport.broadcast(roots)
        return gathered, arrays, roots

    for gathered, arrays, roots in in_threads(4, action):
        assert gathered == [bytes([r] * r) for r in range(4)]
        assert arrays[0].tolist() == [1.5] * 5
        assert arrays[1].tolist() == [15.0] * 3
        assert roots[0].tolist() == [1.0] * 5


def test_the_mean_has_the_same_bits_on_all_ranks():
    network = LocalNetwork(3)

    def action(rank):
        array = np.random.default_rng(rank).normal(size=1000).astype(np.float32)
        collectives.average(network[rank], [array], 10)
        return array.tobytes()

    assert len(set(in_threads(3, action))) == 1


def test_gather_names_the_rank_that_does_not_come():
    network = LocalNetwork(3)

    def action(rank):
        if rank == 1:
            return
        network[rank].gather(b"", "the start", 0.3)

    with pytest.raises(TimeoutError, match=r"the start.*\b1\b(?! s)"):
        in_threads(3, action)


# Members that train.


def _train(network, steps, *, period=4, pause=lambda rank: 0.0, neighbors=None, **options):
    size = network.size

    def action(rank):
        others = neighbors(rank) if neighbors else None
        own = Quadratic(network[rank], neighbors=others, **options)
        own.member.start()
        rng = np.random.default_rng(rank)
        ended = []
        for step in range(1, steps + 1):
            own.step()
            time.sleep(pause(rank))
            if step % period == 0:
                ended += own.member.boundary(step, lambda among: int(rng.choice(among)))
            if step % (2 * period) == 0:
                own.member.wait()  # so that a busy machine has enough exchanges
        ended += own.member.finish(steps)
        own.ended = ended
        return own

    return in_threads(size, action)


def _ring(size):
    return lambda rank: sorted({(rank - 1) % size, (rank + 1) % size})


def _drift(ranks):
    """Distance of the mean model from the mean of all local steps; models start at zero."""
    models = np.mean([own.x.astype(np.float64) for own in ranks], axis=0)
    return np.abs(models - np.mean([own.moved for own in ranks], axis=0)).max()


def _distance(ranks):
    models = np.stack([own.x for own in ranks])
    return float(np.sqrt(np.mean((models - models.mean(axis=0)) ** 2)))


def _count(ranks, name):
    return sum(getattr(own.member.counters, name) for own in ranks)


FAULTS = {
    "none": Faults(),
    "all": Faults(drop=0.05, duplicate=0.05, corrupt=0.05, delay=0.01, seed=1),
    "lossy": Faults(drop=0.2, seed=2),
}


@pytest.mark.parametrize("faults", FAULTS)
@pytest.mark.parametrize(
    "codec", [("lattice", 4), pytest.param(("float32", 8), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("mode", ["nonblocking", "blocking"])
def test_training_keeps_the_mean_and_brings_models_together(mode, codec, faults):
    network = LocalNetwork(4, FAULTS[faults], repeat_seconds=0.02)
    ranks = _train(network, 40, mode=mode, codec=codec)
    assert _drift(ranks) < 2e-6  # of weights up to 3, rounded at each of 40 steps
    assert _count(ranks, "exchanges") >= 10
    # Alone, the ranks would end at their targets, 1.0 apart.
    assert _distance(ranks) < 0.7
    assert _count(ranks, "exchanges_failed") == 0
    assert all(own.member.counters.bytes_sent > 0 for own in ranks)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "codec", [pytest.param(("float32", 8), marks=pytest.mark.slow), ("lattice", 8)]
)
def test_all_eight_ranks_of_a_ring_initiate_at_once(mode, codec):
    together = threading.Barrier(8)
    began = [False] * 8

    def pause(rank):
        if not began[rank]:
            began[rank] = True
            together.wait(60)
        return 0.0

    ranks = _train(
        LocalNetwork(8), 12, period=1, pause=pause, neighbors=_ring(8), mode=mode, codec=codec
    )
    if mode != "pull":
        assert _drift(ranks) < 2e-6
    # All eight request; two requests that cross are one exchange.
    assert _count(ranks, "exchanges") >= 4
    assert _count(ranks, "exchanges_failed") == 0


@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_exchange_after_every_step(mode):
    ranks = _train(LocalNetwork(2), 100, period=1, mode=mode)
    if mode != "pull":
        assert _drift(ranks) < 2e-6
    if mode == "blocking":
        # As many averagings as boundaries, give or take those after one rank has finished.
        assert 100 <= _count(ranks, "exchanges") <= 101
        assert _distance(ranks) < 0.06


@pytest.mark.parametrize("mode", MODES)
def test_a_rank_that_stopped_early_follows_the_one_that_trains_on(mode):
    network = LocalNetwork(2)

    def action(rank):
        own = Quadratic(network[rank], mode=mode)
        own.member.start()
        steps = 4 if rank else 120
        for step in range(1, steps + 1):
            own.step()
            time.sleep(0.02)  # 2.4 s: in mode pull a finished rank requests once a second
            own.member.boundary(step, lambda _: 1 - rank)
        own.member.finish(steps)
        return own

    trains_on, stopped = in_threads(2, action)
    # The training rank is at its target; an average with the other would keep it far from there.
    apart = np.abs(trains_on.target - stopped.target).mean()
    assert np.abs(trains_on.x - trains_on.target).mean() < 0.01 * apart
    assert np.abs(stopped.x - trains_on.x).mean() < (0.5 if mode == "pull" else 0.05) * apart


def test_a_rank_that_stands_still_stops_no_other():
    """Rank 2 stands still in its first step until the others have taken all their steps."""
    others = threading.Semaphore(0)
    steps, waited = [0] * 4, []

    def pause(rank):
        steps[rank] += 1
        if rank != 2 and steps[rank] == 60:
            others.release()
        elif rank == 2 and steps[rank] == 1:
            waited.extend(others.acquire(timeout=60) for _ in range(3))
        return 0.01

    ranks = _train(LocalNetwork(4), 60, pause=pause)
    assert waited == [True] * 3
    assert _drift(ranks) < 2e-6


def test_a_stopped_rank_costs_the_others_no_exchange():
    """Rank 3 receives nothing, as after SIGSTOP, until each other one has exchanged often enough.

    Until its exchange with rank 3 is late a rank has one exchange at a time, after it another one
    beside it. So every rank ends exchanges while rank 3 owes it an answer.
    """
    network, others = LocalNetwork(4), threading.Semaphore(0)
    receive = network[3].receive
    wanted, enough = 20, [False] * 3

    def action(rank):
        own = Quadratic(network[rank])
        own.member.start()
        rng = np.random.default_rng(rank)
        if rank == 3:
            network[3].receive = lambda: []
            assert all(others.acquire(timeout=120) for _ in range(3))
            network[3].receive = receive
            own.member.finish(0)
            return []
        partners, step, deadline = [], 0, time.monotonic() + 25  # less than the timeout
        while not all(enough) and time.monotonic() < deadline:
            step += 1
            own.step()
            time.sleep(0.01)
            ended = own.member.boundary(step, lambda among: int(rng.choice(among)))
            assert own.member.driver.outstanding <= 2
            if 3 in own.member.driver.view.unanswered:
                partners += [exchange.partner for exchange in ended]
            enough[rank] = len(partners) >= wanted
        others.release()
        own.member.finish(step)
        assert own.member.counters.exchanges_failed == 0
        return partners

    *live, _ = in_threads(4, action)
    for rank, partners in enumerate(live):
        assert len(partners) >= wanted, f"rank {rank} ended {len(partners)} exchanges"
        assert 3 not in partners


def test_a_chosen_partner_that_owes_an_answer_is_not_requested_again():
    network = LocalNetwork(3)
    receive = network[1].receive
    network[1].receive = lambda: []

    def action(rank):
        own = Quadratic(network[rank], max_staleness=1)
        own.member.start()
        if rank == 0:
            for step in range(1, 5):
                own.member.boundary(step, lambda among: 1)
                assert own.member.driver.unanswered == (1,)
            network[1].receive = receive
        own.member.finish(4)
        return own.member.counters

    counters = in_threads(3, action)[0]
    assert (counters.exchanges, counters.exchanges_failed) == (1, 0)


def test_corrections_apply_while_an_own_exchange_is_under_way():
    network = LocalNetwork(3)
    receive = network[1].receive
    network[1].receive = lambda: []
    served = threading.Barrier(3)

    def action(rank):
        own = Quadratic(network[rank], codec=("float32", 8))
        own.member.start()
        if rank == 0:
            own.member.boundary(1, lambda among: 1)
            served.wait(60)
            assert own.member.driver.pending_step == 1
            own.member.boundary(2, lambda among: 1)
            moved = np.abs(own.x).max()
        else:
            if rank == 2:
                own.step()
                own.member.boundary(1, lambda among: 0)
                own.member.wait()
            served.wait(60)
            moved = 0.0
        if rank == 1:
            network[1].receive = receive
        own.member.finish(2)
        return moved

    assert in_threads(3, action)[0] > 0


@pytest.mark.parametrize("mode", ["nonblocking", "blocking"])
def test_a_rank_that_stops_answering_is_named(mode):
    network, all_reported = LocalNetwork(3), threading.Barrier(3)

    def action(rank):
        own = Quadratic(network[rank], mode=mode, timeout_seconds=2.5)
        own.member.start()
        error = ""
        for step in range(1, 4):
            own.step()
            own.member.boundary(step, lambda _: (rank + 1) % 3)
            if rank == 2:
                own.member.driver.stop()
                break
        else:
            with pytest.raises(TimeoutError) as caught:
                own.member.finish(3)
            error = str(caught.value)
        all_reported.wait(60)
        own.member.driver.stop()
        return error

    errors = in_threads(3, action)
    # Rank 1 requested from the silent rank 2; in blocking mode rank 0 may wait for rank 1 alone.
    assert errors[1].startswith("rank 1 waited 2.5 s")
    assert "for rank 2 to" in errors[1]
    assert errors[0].startswith("rank 0 waited 2.5 s")
    if mode == "nonblocking":  # in blocking mode it may name rank 1
        assert "for rank 2 to" in errors[0]


def test_an_error_of_the_communication_thread_reaches_training():
    network = LocalNetwork(2)

    class Broken(Exception):
        pass

    def broken():
        raise Broken

    def action(rank):
        own = Quadratic(network[rank])
        own.member.start()
        if rank == 0:
            own.member.transport.receive = broken
            deadline = time.monotonic() + 10
            while own.member.driver.error is None and time.monotonic() < deadline:
                time.sleep(0.01)
            with pytest.raises(Broken):
                own.member.boundary(1, lambda _: 1)
        else:
            own.member.driver.stop()

    in_threads(2, action)


def test_staleness_is_counted_in_local_steps():
    ranks = _train(LocalNetwork(2), 40, period=2, pause=lambda rank: 0.002)
    for own in ranks:
        counters = own.member.counters
        assert counters.staleness_count > 0
        assert 2 <= counters.staleness_mean <= 8


def test_a_second_training_ignores_messages_of_the_first(monkeypatch):
    """As if `model.fit` ran twice: late messages of the first training reach the second."""
    network, sent = LocalNetwork(2), []
    deliver = network.deliver
    monkeypatch.setattr(
        network, "deliver", lambda *m: (sent.append((*m[:3], m[3].copy())), deliver(*m))
    )
    first = _train(network, 20, timeout_seconds=2)
    monkeypatch.undo()
    for message in sent:
        network.deliver(*message)
    second = _train(network, 20, timeout_seconds=2)
    for ranks in (first, second):
        assert _drift(ranks) < 2e-6
        assert _count(ranks, "exchanges_failed") == 0


@pytest.mark.parametrize("partner", [0, 2, None])
def test_a_partner_that_is_no_neighbour_is_refused(partner):
    """Rank 0 itself, a rank across the ring, or None: none of them would answer."""
    network = LocalNetwork(4)

    class Wrong(SwarmCallback):
        def choose_partner(self, neighbors, rng):
            return partner

    callback = Wrong(topology="ring", transport=network[0])
    variable = keras.Variable(np.zeros([8], np.float32))
    callback.member = Member(FlatWeights([variable]), network[0], codecs.build("float32"))
    with pytest.raises(UsageError, match=f"choose_partner returned {partner}; .*: 1, 3"):
        callback._choose([1, 3])
