"""Laws of the communication copy: no correction is lost or counted twice, none half-applied."""

import sys
import threading

import numpy as np
import pytest
import tensorflow as tf

from swarm_tf.codec import Channel, Decoded
from swarm_tf.protocol.replica import Replica


@pytest.fixture
def fast_thread_switches():
    """Threads switch every 10 microseconds, so that every interleaving occurs."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def _decoded(correction, accepted=True):
    return Decoded(np.array([accepted]), np.zeros(1, np.float32), correction)


class _Adding(Channel):
    """A channel that takes what the partner sends as the correction itself."""

    def __init__(self, length):
        super().__init__([], length)

    def decode(self, own, other, onto=None, allowed=None):
        return _decoded(other if onto is None else onto + other)


def _replica(*lengths, channel=_Adding):
    return Replica([channel(n) for n in lengths], guard=threading.Lock())


def _add(replica, chunk, value):
    length = replica.channels[chunk].length
    replica._average(chunk, None, tf.fill([length], tf.constant(value, tf.float32)))


def _copy(replica, chunk):
    return sum(term.numpy() for term in replica.terms(chunk))


def _fresh(*lengths):
    """A replica that has published zeros."""
    replica = _replica(*lengths)
    replica.publish([tf.zeros([n]) for n in lengths])
    return replica


def test_the_copy_is_what_was_published():
    replica = _replica(3, 5)
    replica.publish([tf.fill([3], 1.0), tf.fill([5], 2.0)])
    np.testing.assert_array_equal(_copy(replica, 0), np.full(3, 1))
    np.testing.assert_array_equal(_copy(replica, 1), np.full(5, 2))
    assert replica.take() == [None, None]


def test_corrections_add_up_and_are_visible_at_once():
    replica = _fresh(3, 2)
    for value in (1, 2, 4):
        _add(replica, 0, value)
    np.testing.assert_array_equal(_copy(replica, 0), np.full(3, 7))
    np.testing.assert_array_equal(_copy(replica, 1), np.zeros(2))


def test_taking_corrections_does_not_change_the_copy():
    replica = _fresh(3)
    _add(replica, 0, 1)
    (taken,) = replica.take()
    np.testing.assert_array_equal(taken, np.full(3, 1))
    np.testing.assert_array_equal(_copy(replica, 0), np.full(3, 1))
    _add(replica, 0, 2)
    np.testing.assert_array_equal(_copy(replica, 0), np.full(3, 3))
    assert len(replica.terms(0)) == 2


def test_publishing_the_corrected_model_counts_each_correction_once():
    replica = _fresh(3)
    _add(replica, 0, 1)
    (taken,) = replica.take()
    _add(replica, 0, 2)  # while the training thread applies the first
    replica.publish([taken + 10.0])
    np.testing.assert_array_equal(_copy(replica, 0), np.full(3, 13))
    (taken,) = replica.take()
    np.testing.assert_array_equal(taken, np.full(3, 2))


def test_corrections_that_were_taken_do_not_change():
    replica = _fresh(2)
    _add(replica, 0, 1)
    taken = replica.take()
    replica.publish([tf.fill([2], 1.0)])
    _add(replica, 0, 5)
    replica.take()
    np.testing.assert_array_equal(taken[0], [1, 1])


def test_a_correction_is_recomputed_if_the_one_below_it_was_taken():
    """The training thread takes corrections while another one is being computed."""
    taken, bases = [], []

    class Taken(_Adding):
        def decode(self, own, other, onto=None, allowed=None):
            bases.append(onto)
            if len(bases) == 2:  # the second correction, on top of the first
                taken.extend(replica.take())
            return super().decode(own, other, onto, allowed)

    replica = _replica(2, channel=Taken)
    replica.publish([tf.zeros([2])])
    _add(replica, 0, 1)
    _add(replica, 0, 2)
    assert len(bases) == 3
    assert bases[2] is None
    np.testing.assert_array_equal(taken[0], [1, 1])
    np.testing.assert_array_equal(_copy(replica, 0), [3, 3])
    replica.publish([taken[0]])
    np.testing.assert_array_equal(replica.take()[0], [2, 2])


def _stress(work, boundaries, lengths, step=1):
    """Runs at least `boundaries` boundaries on this thread while `work` runs on another.

    The model starts at 0, and each boundary adds one local step of `step` to every weight.
    """
    replica = _fresh(*lengths)
    model = [np.zeros(n, np.float64) for n in lengths]
    failed = []

    def communicate():
        try:
            work(replica)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=communicate)
    thread.start()
    steps = 0
    while steps < boundaries or thread.is_alive():
        taken = replica.take()
        for n, correction in enumerate(taken):
            if correction is not None:
                model[n] += correction.numpy()
            model[n] += step
        steps += 1
        replica.publish([tf.constant(m, tf.float32) for m in model])
    thread.join()
    if failed:
        raise failed[0]
    return replica, model, steps


@pytest.mark.usefixtures("fast_thread_switches")
def test_no_correction_is_lost_between_two_threads():
    """The model gets each of 1,000 corrections exactly once, whatever the interleaving."""
    corrections, lengths = 500, (4, 3)

    def work(replica):
        for n in range(corrections):
            _add(replica, 0, float(n % 7))
            _add(replica, 1, -1.0)

    replica, model, steps = _stress(work, 200, lengths)
    totals = (sum(n % 7 for n in range(corrections)), -corrections)
    for n, total in enumerate(totals):
        np.testing.assert_array_equal(_copy(replica, n), np.full(lengths[n], steps + total))
    for n, last in enumerate(replica.take()):
        held = model[n] + (0 if last is None else last.numpy())
        np.testing.assert_array_equal(held, np.full(lengths[n], steps + totals[n]))


@pytest.mark.usefixtures("fast_thread_switches")
def test_the_copy_always_contains_each_correction_exactly_once():
    """At every moment its terms add up to all corrections so far."""

    def work(replica):
        for n in range(1, 151):
            _add(replica, 0, 1.0)
            for _ in range(3):
                np.testing.assert_array_equal(_copy(replica, 0), np.full(5, n))

    replica, _, _ = _stress(work, 50, (5,), step=0)
    np.testing.assert_array_equal(_copy(replica, 0), np.full(5, 150))
