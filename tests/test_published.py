"""Laws of the communication copy: no correction is lost or counted twice, none half-applied."""

import sys
import threading

import numpy as np
import pytest
import tensorflow as tf

from swarm_tf.codec.base import Decoded
from swarm_tf.protocol.replica import Published


@pytest.fixture
def hasty():
    """Threads change every 10 microseconds, so that they meet in every gap."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def _decoded(correction, accepted=True):
    return Decoded(np.array([accepted]), np.zeros(1, np.float32), correction)


def _add(published, chunk, value):
    """A correction as the codec gives it: alone, or on top of another."""
    length = published.terms(chunk)[0].shape[0]
    one = tf.fill([length], tf.constant(value, tf.float32))
    published.correct(chunk, lambda onto: _decoded(one if onto is None else onto + one))


def _copy(published, chunk):
    return sum(term.numpy() for term in published.terms(chunk))


def _fresh(*lengths):
    published = Published(lengths)
    published.publish([tf.zeros([n]) for n in lengths])
    return published


def test_the_copy_is_what_was_published():
    published = Published([3, 5])
    published.publish([tf.fill([3], 1.0), tf.fill([5], 2.0)])
    np.testing.assert_array_equal(_copy(published, 0), np.full(3, 1))
    np.testing.assert_array_equal(_copy(published, 1), np.full(5, 2))
    assert published.take() == [None, None]


def test_corrections_add_up_and_show_at_once():
    published = _fresh(3, 2)
    for value in (1, 2, 4):
        _add(published, 0, value)
    np.testing.assert_array_equal(_copy(published, 0), np.full(3, 7))
    np.testing.assert_array_equal(_copy(published, 1), np.zeros(2))


def test_taking_corrections_does_not_change_the_copy():
    published = _fresh(3)
    _add(published, 0, 1)
    (taken,) = published.take()
    np.testing.assert_array_equal(taken, np.full(3, 1))
    np.testing.assert_array_equal(_copy(published, 0), np.full(3, 1))
    _add(published, 0, 2)
    np.testing.assert_array_equal(_copy(published, 0), np.full(3, 3))
    assert len(published.terms(0)) == 2


def test_publishing_the_corrected_model_counts_each_correction_once():
    published = _fresh(3)
    _add(published, 0, 1)
    (taken,) = published.take()
    _add(published, 0, 2)  # while the training thread applies the first
    published.publish([taken + 10.0])
    np.testing.assert_array_equal(_copy(published, 0), np.full(3, 13))
    (taken,) = published.take()
    np.testing.assert_array_equal(taken, np.full(3, 2))


def test_what_was_taken_stays_as_it_was():
    published = _fresh(2)
    _add(published, 0, 1)
    taken = published.take()
    published.publish([tf.fill([2], 1.0)])
    _add(published, 0, 5)
    published.take()
    np.testing.assert_array_equal(taken[0], [1, 1])


def test_a_correction_is_computed_again_if_its_ground_was_taken():
    """The training thread takes between the two locks of `correct`."""
    published = _fresh(2)
    _add(published, 0, 1)
    taken, grounds = [], []

    def correction(onto):
        grounds.append(onto)
        if not taken:
            taken.extend(published.take())
        two = tf.fill([2], 2.0)
        return _decoded(two if onto is None else onto + two)

    published.correct(0, correction)
    assert len(grounds) == 2
    assert grounds[1] is None
    np.testing.assert_array_equal(taken[0], [1, 1])
    np.testing.assert_array_equal(_copy(published, 0), [3, 3])
    published.publish([taken[0]])
    np.testing.assert_array_equal(published.take()[0], [2, 2])


def _hammer(work, boundaries, lengths, step=1):
    """`boundaries` boundaries of the training thread, or more, against `work` in another.

    The model starts at 0, and each boundary adds one local step of `step` to every weight.
    """
    published = _fresh(*lengths)
    model = [np.zeros(n, np.float64) for n in lengths]
    failed = []

    def communicate():
        try:
            work(published)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=communicate)
    thread.start()
    steps = 0
    while steps < boundaries or thread.is_alive():
        taken = published.take()
        for n, correction in enumerate(taken):
            if correction is not None:
                model[n] += correction.numpy()
            model[n] += step
        steps += 1
        published.publish([tf.constant(m, tf.float32) for m in model])
    thread.join()
    if failed:
        raise failed[0]
    return published, model, steps


@pytest.mark.usefixtures("hasty")
def test_no_correction_is_lost_between_two_threads():
    """Each of 6,000 corrections ends in the model exactly once, whatever the interleaving."""
    corrections, lengths = 3000, (4, 3)

    def work(published):
        for n in range(corrections):
            _add(published, 0, float(n % 7))
            _add(published, 1, -1.0)

    published, model, steps = _hammer(work, 500, lengths)
    totals = (sum(n % 7 for n in range(corrections)), -corrections)
    for n, total in enumerate(totals):
        np.testing.assert_array_equal(_copy(published, n), np.full(lengths[n], steps + total))
    for n, last in enumerate(published.take()):
        held = model[n] + (0 if last is None else last.numpy())
        np.testing.assert_array_equal(held, np.full(lengths[n], steps + totals[n]))


@pytest.mark.usefixtures("hasty")
def test_the_copy_never_shows_a_correction_twice_or_not_at_all():
    """Base, applying and pending sum to all corrections so far, at every moment."""

    def work(published):
        for n in range(1, 2001):
            _add(published, 0, 1.0)
            for _ in range(3):
                np.testing.assert_array_equal(_copy(published, 0), np.full(5, n))

    published, _, _ = _hammer(work, 100, (5,), step=0)
    np.testing.assert_array_equal(_copy(published, 0), np.full(5, 2000))
