"""Beam search for any model that predicts the next token; one beam is greedy search.

A model is given by two values: `cache`, any nest of tensors [rows, ...] that holds what the model
has to know of earlier tokens, and `step`, a function that reads one more token of every row.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from swarm_tf.errors import UsageError

PADDING = 0  # fills a row after its end
BOS, EOS = 1, 2  # the defaults of `search`
Step = Callable[[tf.Tensor, tf.Tensor, Any], tuple[tf.Tensor, Any]]


class _Hypotheses(NamedTuple):
    tokens: tf.Tensor  # int32 [batch, n, 1 + max_length], the first is `start`
    scores: tf.Tensor  # float32 [batch, n]: log-probabilities, or these over the length penalty


def search(
    step: Step,
    cache: Any,
    *,
    batch: int | tf.Tensor,
    max_length: int | tf.Tensor,
    limits: tf.Tensor | None = None,
    beams: int = 4,
    best: int = 1,
    alpha: float = 0.6,
    start: int = BOS,
    end: int = EOS,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The best hypotheses that beam search finds; to be called inside a tf.function, XLA or not.

    The score of a hypothesis is its log-probability over its `length_penalty`. As in tensor2tensor,
    finished hypotheses are kept apart from live ones, of which there are always `beams`. The search
    stops as soon as no live hypothesis can change the result. Of equal candidates, the one from the
    earlier beam wins, then the one of smaller id.

    With one beam the search is greedy: it takes the most probable token at each position. (The rule
    above would also keep a hypothesis whose end was only the second most probable token.)

    The defaults are those of Vaswani et al. 2017 (arXiv 1706.03762, 6.1), who limit the length to
    that of the source + 50.

    Args:
      step: (tokens int32 [rows], position int32 [], cache) -> (float32 logits [rows, vocabulary],
        cache): reads in each row the token before `position` (`start` at position 0) and predicts
        the one at `position`. There are batch * beams rows; those of a sentence are adjacent.
      cache: for the first step, tensors [batch, ...]. A tensor that `step` returns as
        the same object, such as the keys and values of the source, is the same for all beams of a
        sentence and is never reordered.
      batch: number of sentences. This and `max_length` may be tensors, but not under XLA.
      max_length: most tokens of a hypothesis, its end included.
      limits: int32 [batch], a smaller `max_length` for each sentence; 0 searches nothing for it.
      beams: live hypotheses per sentence.
      best: how many hypotheses to return per sentence; the fewer, the sooner the search stops.
      alpha: exponent of the length penalty, at least 0.
      start: id that stands before the first token and, like padding, is never produced.
      end: id of the last token of a hypothesis.

    Returns:
      tokens int32 [batch, best, max_length] with 0 after the end, and scores float32 [batch, best].
      Finished hypotheses come first, the highest score first. If they are fewer than `best`, live
      ones of the greatest length follow, without an end, the highest score first. If these are too
      few as well (no others have a probability above 0, or logits were NaN), the rest is zeros
      with the score -inf.

    Raises:
      UsageError: for values out of range.
    """
    if not 1 <= best <= beams:
        raise UsageError(f"best={best} with beams={beams}; use 1 <= best <= beams")
    if alpha < 0:
        raise UsageError(f"alpha={alpha} would favour short hypotheses; use 0 or more")
    if end in (PADDING, start):
        raise UsageError(f"end={end} is padding (0) or start={start}; use another id")
    limits = tf.minimum(max_length if limits is None else limits, max_length)
    limits = tf.broadcast_to(limits, [batch])
    tokens = tf.pad(tf.fill([batch, beams, 1], start), [[0, 0], [0, 0], [0, max_length]])
    if beams == 1:
        found = _greedy(step, cache, tokens, limits, alpha, start, end)
    else:
        found = _beam_search(step, cache, tokens, limits, best, alpha, start, end)
    possible = _possible(found.scores)[:, :, None]
    return tf.where(possible, found.tokens[:, :, 1:], PADDING), found.scores


def length_penalty(length: tf.Tensor, alpha: float) -> tf.Tensor:
    """((5 + length) / 6)^alpha, float32 (Wu et al. 2016, arXiv 1609.08144, equation 14)."""
    return ((5.0 + tf.cast(length, tf.float32)) / 6.0) ** alpha


def _greedy(
    step: Step,
    cache: Any,
    tokens: tf.Tensor,
    limits: tf.Tensor,
    alpha: float,
    start: int,
    end: int,
) -> _Hypotheses:
    """Greedy `search`, from tokens int32 [batch, 1, 1 + max_length] that begin with `start`."""

    def extend(position, tokens, log_probs, live, cache):
        logits, cache = step(tf.gather(tokens, position, axis=1), position, cache)
        likely, candidates = _likely(logits, 1, start)
        token = tf.where(live, candidates[:, 0], PADDING)
        log_probs += tf.where(live, likely[:, 0], 0.0)
        live &= (token != end) & (position + 1 < limits) & _possible(log_probs)
        return position + 1, _write(tokens, position + 1, token), log_probs, live, cache

    _, tokens, log_probs, _, _ = tf.while_loop(
        lambda position, tokens, log_probs, live, cache: tf.reduce_any(live),
        extend,
        (tf.constant(0), tokens[:, 0], tf.zeros_like(limits, tf.float32), limits > 0, cache),
    )
    lengths = tf.math.count_nonzero(tokens[:, 1:], axis=1)
    scores = log_probs / length_penalty(lengths, alpha)
    return _Hypotheses(tokens[:, None], scores[:, None])


def _beam_search(
    step: Step,
    cache: Any,
    tokens: tf.Tensor,
    limits: tf.Tensor,
    best: int,
    alpha: float,
    start: int,
    end: int,
) -> _Hypotheses:
    """Beam `search`, from tokens int32 [batch, beams, 1 + max_length] that begin with `start`."""
    beams = tokens.shape[1]
    cache = tf.nest.map_structure(lambda x: tf.repeat(x, beams, axis=0), cache)
    none = tf.fill(tf.shape(tokens)[:2], -math.inf)
    # All beams start equal, so only the first one gets a score above -inf.
    live = _Hypotheses(tokens, tf.where(tf.range(beams) == 0, 0.0, none))
    finished = _Hypotheses(tokens[:, :best], none[:, :best])
    first_rows = beams * tf.range(tf.shape(tokens)[0])[:, None]

    def undecided(position, live, finished, cache):
        # Later tokens add at most 0 to a log-probability, and its divisor is at most the penalty of
        # the limit: no live hypothesis can score above `attainable`. Equal scores change nothing.
        attainable = live.scores[:, 0] / length_penalty(limits, alpha)
        return tf.reduce_any((position < limits) & (attainable > finished.scores[:, -1]))

    def extend(position, live, finished, cache):
        last = tf.reshape(tf.gather(live.tokens, position, axis=2), [-1])
        logits, next_cache = step(last, position, cache)
        position += 1
        # Only one candidate of a beam ends: of 2 * beams candidates, at least `beams` stay live.
        candidates, parents = _candidates(live, *_likely(logits, 2 * beams, start), position)
        ends = tf.gather(candidates.tokens, position, axis=2) == end
        within = (position <= limits)[:, None]  # beyond its limit a sentence keeps its hypotheses

        scores = candidates.scores / length_penalty(position, alpha)
        scores = tf.where(within & ends, scores, -math.inf)
        all_tokens = tf.concat([finished.tokens, candidates.tokens], 1)
        finished, _ = _highest(best, all_tokens, tf.concat([finished.scores, scores], 1))

        log_probs = tf.where(ends, -math.inf, candidates.scores)
        grown, chosen = _highest(beams, candidates.tokens, log_probs)
        live = _Hypotheses(
            tf.where(within[:, :, None], grown.tokens, live.tokens),
            tf.where(within, grown.scores, live.scores),
        )
        sources = tf.reshape(first_rows + tf.gather(parents, chosen, batch_dims=1), [-1])
        cache = tf.nest.map_structure(
            lambda new, old: old if new is old else tf.gather(new, sources), next_cache, cache
        )
        return position, live, finished, cache

    _, live, finished, _ = tf.while_loop(undecided, extend, (tf.constant(0), live, finished, cache))
    return _filled(finished, live.tokens, live.scores / length_penalty(limits, alpha)[:, None])


def _candidates(
    live: _Hypotheses, likely: tf.Tensor, tokens: tf.Tensor, position: tf.Tensor
) -> tuple[_Hypotheses, tf.Tensor]:
    """The 2 * beams likeliest extensions by one token, and the beam that each one extends.

    Args:
      live: [batch, beams, ...].
      likely, tokens: [batch * beams, n], as `_likely` returns them.
      position: where the new token goes.
    """
    beams, width = live.scores.shape[1], tokens.shape[1]
    log_probs = live.scores[:, :, None] + tf.reshape(likely, [-1, beams, width])
    log_probs, chosen = tf.math.top_k(tf.reshape(log_probs, [-1, beams * width]), 2 * beams)
    tokens = tf.gather(tf.reshape(tokens, [-1, beams * width]), chosen, batch_dims=1)
    parents = chosen // width
    before = tf.gather(live.tokens, parents, batch_dims=1)
    return _Hypotheses(_write(before, position, tokens), log_probs), parents


def _highest(count: int, tokens: tf.Tensor, scores: tf.Tensor) -> tuple[_Hypotheses, tf.Tensor]:
    """The hypotheses of the highest scores, and their indices int32 [batch, count]; of equals the
    first.
    """
    scores, places = tf.math.top_k(scores, count)
    return _Hypotheses(tf.gather(tokens, places, batch_dims=1), scores), places


def _filled(finished: _Hypotheses, tokens: tf.Tensor, scores: tf.Tensor) -> _Hypotheses:
    """Finished hypotheses; where they are too few, those of `tokens` and `scores` follow."""
    best = finished.scores.shape[1]
    number = tf.math.count_nonzero(_possible(finished.scores), axis=1, dtype=tf.int32)[:, None]
    places = tf.range(best)
    places = tf.where(places < number, places, best + places - number)
    tokens = tf.gather(tf.concat([finished.tokens, tokens], 1), places, batch_dims=1)
    scores = tf.gather(tf.concat([finished.scores, scores], 1), places, batch_dims=1)
    return _Hypotheses(tokens, scores)


def _likely(logits: tf.Tensor, count: int, start: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Log-probabilities and ids [rows, at most count] of the likeliest tokens, from high to low."""
    vocabulary = logits.shape[-1]
    tokens = tf.range(vocabulary)
    barred = tf.where((tokens == PADDING) | (tokens == start), -math.inf, 0.0)
    top, tokens = tf.math.top_k(logits + barred, min(count, vocabulary))
    log_probs = top - tf.reduce_logsumexp(logits, axis=-1, keepdims=True)
    return tf.where(tf.math.is_nan(log_probs), -math.inf, log_probs), tokens


def _write(hypotheses: tf.Tensor, position: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
    """`hypotheses` [..., 1 + max_length] with `tokens` [...] written at `position`."""
    here = tf.range(tf.shape(hypotheses)[-1]) == position
    return tf.where(here, tokens[..., None], hypotheses)


def _possible(scores: tf.Tensor) -> tf.Tensor:
    return scores > -math.inf
