"""Laws of the search: it is exhaustive search with many beams, a plain beam search with few.

The model is a small recurrent network. TensorFlow runs it token by token, with a cache; the
references, in NumPy, compute every prefix from its start.
"""

import math

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from models import decoding
from swarm_tf.errors import UsageError

START, END = 1, 2
UNITS = 5
EXECUTIONS = {
    "eager": lambda f: f,
    "graph": tf.function,
    "xla": lambda f: tf.function(f, jit_compile=True),
}
EACH_EXECUTION = ["eager", "graph", pytest.param("xla", marks=pytest.mark.slow)]
# Always the same cases: in one of a few thousand, two sums are too close for float32.
examples = hypothesis.settings(max_examples=40, derandomize=True, deadline=None, database=None)


class Network:
    """A model whose next token depends on all tokens before, the sentence and the position."""

    def __init__(self, seed, *, batch, vocabulary, impossible=0.0, end=0.0):
        rng = np.random.default_rng(seed)
        self.batch, self.vocabulary, self.calls = batch, vocabulary, 0
        self.sources = rng.normal(0, 2, (batch, UNITS))
        self.words = rng.normal(size=(vocabulary, UNITS))
        self.recurrent = rng.normal(size=(UNITS, UNITS))
        self.out = rng.normal(size=(UNITS, vocabulary))
        self.bias = rng.normal(size=(20, vocabulary))  # of each position
        self.bias[rng.random(self.bias.shape) < impossible] = -np.inf
        self.bias[:, END] += end

    def cache(self):
        """A hidden state and the sentence, which `step` returns unchanged."""
        state = tf.zeros([self.batch, UNITS])
        return {"state": (state,), "source": tf.constant(self.sources, tf.float32)}

    def step(self, tokens, position, cache):
        self.calls += 1
        words, recurrent, out, bias = (
            tf.constant(x, tf.float32) for x in (self.words, self.recurrent, self.out, self.bias)
        )
        state = tf.tanh(tf.gather(words, tokens) + cache["state"][0] @ recurrent)
        logits = (state + cache["source"]) @ out + bias[position]
        return logits, {"state": (state,), "source": cache["source"]}

    def log_probs(self, row, prefix):
        """Log-probabilities of all tokens after the prefix, float64 [vocabulary]."""
        state = np.zeros(UNITS)
        for token in (START, *prefix):
            state = np.tanh(self.words[token] + state @ self.recurrent)
        logits = (state + self.sources[row]) @ self.out + self.bias[len(prefix)]
        with np.errstate(invalid="ignore"):
            return logits - np.logaddexp.reduce(logits)

    def search(self, execution="eager", **keys):
        def run(cache):
            return decoding.search(self.step, cache, batch=self.batch, **keys)

        return [x.numpy() for x in EXECUTIONS[execution](run)(self.cache())]


def _penalty(length, alpha):
    return ((5 + length) / 6) ** alpha


def _continuations(log_probs, live):
    """(log-probability, tokens) of all continuations, in the order of beams and tokens."""
    return [
        (total + log_prob, (*prefix, token))
        for total, prefix in live
        for token, log_prob in enumerate(log_probs(prefix))
        if token not in (0, START) and log_prob > -math.inf
    ]


def _plain_search(log_probs, *, limit, beams, best, alpha):
    """Beam search with lists, for one sentence and to its limit: [(score, tokens)], best first.

    Also returns the first length after which no later logits can change the result.
    """
    live, ended, decided = [(0.0, ())], [], None
    for length in range(1, limit + 1):
        candidates = _continuations(log_probs, live)
        candidates = sorted(candidates, key=lambda c: -c[0])[: 2 * beams]
        live = [c for c in candidates if c[1][-1] != END][:beams]
        ended += [(p / _penalty(length, alpha), t) for p, t in candidates if t[-1] == END]
        ended = sorted(ended, key=lambda h: -h[0])[:best]
        reachable = live[0][0] / _penalty(limit, alpha) if live else -math.inf
        worst = ended[-1][0] if len(ended) == best else -math.inf
        if decided is None and (reachable <= worst or length == limit):
            decided = length
    unfinished = [(p / _penalty(limit, alpha), t) for p, t in live]
    return (ended + unfinished)[:best], decided


def _all_hypotheses(log_probs, *, limit, alpha):
    """All hypotheses by their scores: those that end, then those cut at the limit."""
    live, ended = [(0.0, ())], []
    for length in range(1, limit + 1):
        grown = _continuations(log_probs, live)
        ended += [(p / _penalty(length, alpha), t) for p, t in grown if t[-1] == END]
        live = [(p, t) for p, t in grown if t[-1] != END]
    unfinished = [(p / _penalty(limit, alpha), t) for p, t in live]
    return sorted(ended, reverse=True) + sorted(unfinished, reverse=True)


def _assert_found(tokens, scores, expected):
    """Asserts that one sentence's tokens and scores are these hypotheses, then padding."""
    filled = np.zeros_like(tokens)
    for row, (_, hypothesis_tokens) in zip(filled, expected, strict=False):
        row[: len(hypothesis_tokens)] = hypothesis_tokens
    np.testing.assert_array_equal(tokens, filled)
    padding = [-math.inf] * (len(scores) - len(expected))
    expected = [score for score, _ in expected[: len(scores)]]
    np.testing.assert_allclose(scores, [*expected, *padding], rtol=1e-4, atol=1e-5)


# --- what is found --------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0, 0.6, 2])
@pytest.mark.parametrize(("words", "length"), [(1, 1), (1, 4), (2, 3), (3, 2), (4, 1)])
def test_with_enough_beams_search_is_exhaustive(words, length, alpha):
    network = Network(7, batch=2, vocabulary=3 + words)
    beams = (words + 1) ** length  # at least as many as there are hypotheses
    tokens, scores = network.search(max_length=length, beams=beams, best=beams, alpha=alpha)
    for row in range(2):
        every = _all_hypotheses(lambda p, r=row: network.log_probs(r, p), limit=length, alpha=alpha)
        assert len(every) <= beams
        _assert_found(tokens[row], scores[row], every)


@examples
@hypothesis.given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 3),
    vocabulary=st.integers(4, 12),
    beams=st.integers(2, 5),
    alpha=st.sampled_from([0, 0.6, 1.5]),
    impossible=st.sampled_from([0, 0, 0.3, 0.7]),
    end=st.sampled_from([-2, 0, 2]),
    data=st.data(),
)
def test_search_equals_a_plain_beam_search(
    seed, batch, vocabulary, beams, alpha, impossible, end, data
):
    """The reference searches one sentence at a time, to the limit, without stopping early."""
    network = Network(seed, batch=batch, vocabulary=vocabulary, impossible=impossible, end=end)
    limits = data.draw(st.lists(st.integers(1, 7), min_size=batch, max_size=batch))
    best = data.draw(st.integers(1, beams))
    keys = {"beams": beams, "best": best, "alpha": alpha}
    tokens, scores = network.search(max_length=7, limits=tf.constant(limits), **keys)
    decided = []
    for row, limit in enumerate(limits):
        expected, length = _plain_search(
            lambda p, r=row: network.log_probs(r, p), limit=limit, **keys
        )
        _assert_found(tokens[row], scores[row], expected)
        decided.append(length)
    assert network.calls == max(decided)  # no step more than needed, and none less


@examples
@hypothesis.given(
    seed=st.integers(0, 10**6),
    vocabulary=st.integers(4, 12),
    impossible=st.sampled_from([0, 0.3]),
    end=st.sampled_from([-2, 0, 2]),
    limits=st.lists(st.integers(1, 7), min_size=1, max_size=3),
)
def test_one_beam_takes_the_most_probable_token_each_time(
    seed, vocabulary, impossible, end, limits
):
    network = Network(
        seed, batch=len(limits), vocabulary=vocabulary, impossible=impossible, end=end
    )
    tokens, scores = network.search(max_length=7, limits=tf.constant(limits), beams=1)
    lengths = []
    for row, limit in enumerate(limits):
        total, chain = 0.0, ()
        while len(chain) < limit and chain[-1:] != (END,) and total > -math.inf:
            log_probs = network.log_probs(row, chain)
            log_probs[[0, START]] = -math.inf
            total += log_probs.max()
            chain += (int(log_probs.argmax()),)
        found = [(total / _penalty(len(chain), 0.6), chain)] if total > -math.inf else []
        _assert_found(tokens[row], scores[row], found)
        lengths.append(len(chain))
    assert network.calls == max(lengths)


@pytest.mark.parametrize(
    "beams", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_scores_are_those_of_the_tokens(execution, beams):
    """A longer search, also in a graph and under XLA; it gives the same each time."""
    network = Network(3, batch=8, vocabulary=40, end=4)
    keys = {"max_length": 15, "limits": tf.range(8, 16), "beams": beams, "best": beams}
    tokens, scores = network.search(execution, **keys)
    assert tokens.shape == (8, beams, 15)
    assert tokens.dtype == np.int32
    assert scores.shape == (8, beams)
    assert scores.dtype == np.float32
    ended = 0
    for row, hypotheses in enumerate(tokens):
        for score, padded in zip(scores[row], hypotheses, strict=True):
            length = np.count_nonzero(padded)
            chain = tuple(padded[:length])
            assert not padded[length:].any()
            assert not {0, START} & set(chain)
            assert END not in chain[:-1]
            assert length == 8 + row or chain[-1] == END
            total = sum(network.log_probs(row, chain[:n])[t] for n, t in enumerate(chain))
            assert score == pytest.approx(total / _penalty(length, 0.6), rel=1e-5)
            ended += chain[-1] == END
    assert ended > 0
    for again, once in zip(network.search(execution, **keys), (tokens, scores), strict=True):
        np.testing.assert_array_equal(again, once)


@pytest.mark.parametrize("execution", ["graph", "xla"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_sentence_does_not_depend_on_its_neighbours(execution, beams):
    """Equal to the last bit, among sentences that end sooner, end later, or were replaced."""
    network = Network(5, batch=4, vocabulary=9, end=1)
    keys = {"batch": 4, "max_length": 12, "beams": beams, "best": beams}

    @EXECUTIONS[execution]
    def run(sources, limits):
        cache = network.cache() | {"source": sources}
        return decoding.search(network.step, cache, limits=limits, **keys)

    sources = network.sources.astype(np.float32)
    replacements = np.random.default_rng(0).normal(0, 3, (4, UNITS)).astype(np.float32)
    limits = np.array([3, 9, 12, 5], np.int32)
    tokens, scores = run(tf.constant(sources), tf.constant(limits))
    for row in range(4):
        others = np.arange(4) != row
        changed = np.where(others[:, None], replacements, sources)
        again = run(tf.constant(changed), tf.constant(np.where(others, limits[::-1], limits)))
        np.testing.assert_array_equal(again[0][row], tokens[row])
        np.testing.assert_array_equal(again[1][row], scores[row])


def test_one_trace_serves_all_sizes():
    """Batch and greatest length may be tensors."""
    network = Network(1, batch=3, vocabulary=9)

    @tf.function(input_signature=[tf.TensorSpec([None, UNITS]), tf.TensorSpec([], tf.int32)])
    def run(sources, length):
        batch = tf.shape(sources)[0]
        cache = {"state": (tf.zeros([batch, UNITS]),), "source": sources}
        return decoding.search(network.step, cache, batch=batch, max_length=length, best=3)

    for batch, length in ((3, 5), (1, 8)):
        tokens, scores = network.search(max_length=length, best=3)
        several = run(network.cache()["source"][:batch], length)
        np.testing.assert_array_equal(several[0], tokens[:batch])
        np.testing.assert_allclose(several[1], scores[:batch], rtol=1e-5)
    assert run.experimental_get_tracing_count() == 1


def test_only_cache_entries_that_differ_between_beams_are_moved():
    """The source's entries are never moved; with one beam nothing is moved."""
    network = Network(0, batch=2, vocabulary=9, end=-9)
    given, returned = [], []

    def step(tokens, position, cache):
        given.append(cache)
        logits, cache = network.step(tokens, position, cache)
        returned.append(cache)
        return logits, cache

    for beams in (3, 1):
        given.clear()
        returned.clear()
        decoding.search(step, network.cache(), batch=2, max_length=5, beams=beams)
        assert len(given) == 5
        for before, after in zip(returned, given[1:], strict=False):
            assert after["source"] is before["source"]
            assert (after["state"][0] is before["state"][0]) == (beams == 1)


# --- when it stops --------------------------------------------------------------------------------


def _chain(*log_probs_of_end):
    """A step at whose positions a sentence ends with the given log-probability, or goes on."""
    end = np.array(log_probs_of_end)
    logits = np.full((len(end), 4), -np.inf)
    logits[:, END] = end
    with np.errstate(divide="ignore"):
        logits[:, 3] = np.log(-np.expm1(end))
    calls = []

    def step(tokens, position, cache):
        calls.append(int(position))
        return tf.repeat(tf.constant(logits[position], tf.float32)[None], len(tokens), 0), cache

    return step, calls


@pytest.mark.parametrize("above", [True, False])
def test_a_live_hypothesis_is_followed_as_long_as_it_can_win(above):
    """After one token of at most 10 one hypothesis has ended; the other can go on at no cost."""
    # Both scores are equal for x / penalty(1) = log(1 - e^x) / penalty(10), where penalty(1) = 1.
    level = _solve(lambda x: x - math.log(-math.expm1(x)) / _penalty(10, 0.6))
    end = level - 1e-3 if above else level + 1e-3
    step, calls = _chain(end, *[-math.inf] * 8, 0.0)
    tokens, scores = decoding.search(step, (), batch=1, max_length=10, beams=2)
    if above:
        assert len(calls) == 10
        assert list(tokens[0, 0]) == [3] * 9 + [END]
        assert scores[0, 0] > end
    else:
        assert len(calls) == 1
        assert list(tokens[0, 0]) == [END] + [0] * 9
        assert float(scores[0, 0]) == pytest.approx(end)


def _solve(function, low=-10.0, high=-1e-6):
    """Where a rising function is zero."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if function(middle) > 0 else (middle, high)
    return low


def test_fewer_hypotheses_take_fewer_steps_and_are_the_same():
    calls = []
    found = []
    for best in (1, 2, 4):
        network = Network(2, batch=2, vocabulary=8, end=2)
        found.append(network.search(max_length=20, best=best))
        calls.append(network.calls)
    assert calls[0] < calls[1] < calls[2] <= 20
    for tokens, scores in found[:2]:
        np.testing.assert_array_equal(tokens, found[2][0][:, : tokens.shape[1]])
        np.testing.assert_array_equal(scores, found[2][1][:, : tokens.shape[1]])


# --- extremes -------------------------------------------------------------------------------------


def _constant(*logits):
    return lambda tokens, position, cache: (tf.repeat([logits], len(tokens), 0), cache)


@pytest.mark.parametrize("execution", EACH_EXECUTION)
@pytest.mark.parametrize("beams", [1, 2, 3, 5])
def test_ties_go_to_the_earlier_beam_and_the_smaller_token(execution, beams):
    def run():
        step = _constant(*[0.0] * 6)
        return decoding.search(
            step, (), batch=2, max_length=4, beams=beams, best=beams, alpha=0, end=4
        )

    tokens, scores = EXECUTIONS[execution](run)()
    if beams == 1:
        expected = [(4 * math.log(1 / 6), (2, 2, 2, 2))]
    else:
        live, ended = [()], []
        for _ in range(4):
            candidates = [(*t, token) for t in live for token in (2, 3, 4, 5)][: 2 * beams]
            live = [t for t in candidates if t[-1] != 4][:beams]
            ended += [t for t in candidates if t[-1] == 4]
        expected = [(len(t) * math.log(1 / 6), t) for t in (ended + live)[:beams]]
    for row in range(2):
        _assert_found(tokens[row].numpy(), scores[row].numpy(), expected)


@pytest.mark.parametrize("execution", EACH_EXECUTION)
@pytest.mark.parametrize("beams", [1, 4])
def test_if_only_the_end_is_possible_there_is_one_hypothesis(execution, beams):
    """Padding and start are more probable than the end, but are left out."""
    run = EXECUTIONS[execution](
        lambda: decoding.search(
            _constant(3.0, 2.0, 1.0), (), batch=1, max_length=3, beams=beams, best=beams
        )
    )
    tokens, scores = run()
    score = 1 - math.log(math.exp(3) + math.exp(2) + math.exp(1))
    _assert_found(tokens[0].numpy(), scores[0].numpy(), [(score, (END,))])


@pytest.mark.parametrize("execution", EACH_EXECUTION)
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("logit", [-math.inf, math.nan, math.inf])
def test_logits_that_are_no_probabilities_give_no_hypothesis(execution, beams, logit):
    run = EXECUTIONS[execution](
        lambda: decoding.search(
            _constant(*[logit] * 5), (), batch=2, max_length=3, beams=beams, best=beams
        )
    )
    tokens, scores = run()
    assert not tokens.numpy().any()
    assert (scores.numpy() == -math.inf).all()


@pytest.mark.parametrize("beams", [1, 3])
def test_search_stops_when_no_hypothesis_can_go_on(beams):
    step, calls = _chain(-1.0, math.nan, *[-1.0] * 8)
    decoding.search(step, (), batch=1, max_length=10, beams=beams, best=beams)
    assert len(calls) == 2


@pytest.mark.parametrize("beams", [1, 3])
def test_a_sentence_that_never_ends_is_cut_at_its_limit(beams):
    step = _constant(0.0, 0.0, -math.inf, 1.0, 0.0)
    limits = tf.constant([2, 0, 4, 9])
    tokens, scores = decoding.search(step, (), batch=4, max_length=4, limits=limits, beams=beams)
    expected = [[3, 3, 0, 0], [0, 0, 0, 0], [3, 3, 3, 3], [3, 3, 3, 3]]
    np.testing.assert_array_equal(tokens[:, 0], expected)
    each = 1 - math.log(3 + math.e)
    expected = [length * each / _penalty(length, 0.6) for length in (2, 0, 4, 4)]
    np.testing.assert_allclose(scores[:, 0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"beams": 0}, r"best=1 with beams=0; use 1 <= best <= beams"),
        ({"best": 0}, r"best=0 with beams=4; use 1 <= best <= beams"),
        ({"beams": 4, "best": 5}, r"best=5 with beams=4; use 1 <= best <= beams"),
        ({"alpha": -0.1}, r"alpha=-0.1 .* use 0 or more"),
        ({"end": 0}, r"end=0 is padding"),
        ({"end": 7, "start": 7}, r"end=7 is .* start=7"),
    ],
)
def test_impossible_arguments_are_refused(keys, line):
    with pytest.raises(UsageError, match=line):
        decoding.search(_constant(0.0, 0.0, 0.0), (), batch=1, max_length=3, **keys)
