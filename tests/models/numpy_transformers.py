"""The translation models written down from the papers in NumPy, float64, for one pair of texts.

Attention is a loop over queries, keys and heads; `visible` is bool [queries, keys]. Only weights
are taken from the model.
"""

import numpy as np


def transformer(model, source, target):
    """Vaswani et al. 2017; tokens [s] and [t] without padding to logits [t, vocabulary]."""
    everywhere = np.ones((len(source), len(source)), bool)
    states = _stack(model.encoder, _embed(model, source, positions=True), everywhere)
    x = _stack(
        model.decoder,
        _embed(model, target, positions=True),
        np.tri(len(target), dtype=bool),
        states=states,
        states_visible=np.ones((len(target), len(source)), bool),
    )
    return x @ _array(model.embedding.table).T


def transformer_xl(model, source, target, source_visible, target_visible, cross_visible):
    """Dai et al. 2019, in one pass over texts of any length."""
    states = _stack(model.encoder, _embed(model, source), source_visible, relative=True)
    x = _stack(
        model.decoder,
        _embed(model, target),
        target_visible,
        states=states,
        states_visible=cross_visible,
        relative=True,
    )
    return x @ _array(model.embedding.table).T


def attention(layer, x, context, visible, relative=False):
    """Vaswani et al. 3.2.2, or the four terms of A_rel in section 3.3 of Dai et al."""
    width = x.shape[1]
    size = width // layer.heads
    key, value = np.split(_array(layer.key_value.kernel), 2, axis=1)
    query = _array(layer.query.kernel)
    mixed = np.zeros_like(x)
    for head in range(layer.heads):
        part = slice(head * size, (head + 1) * size)
        queries, keys, values = x @ query[:, part], context @ key[:, part], context @ value[:, part]
        for i in range(len(x)):
            scores = np.full(len(context), -np.inf)
            for j in np.flatnonzero(visible[i]):
                scores[j] = queries[i] @ keys[j]
                if relative:
                    distance = sinusoid(i - j, width) @ _array(layer.distance.kernel)[:, part]
                    scores[j] += queries[i] @ distance
                    scores[j] += _array(layer.u)[head] @ keys[j]
                    scores[j] += _array(layer.v)[head] @ distance
            weights = np.exp((scores - scores.max()) / np.sqrt(size))
            mixed[i, part] = weights / weights.sum() @ values
    return mixed @ _array(layer.out.kernel)


def sinusoid(position, width):
    """Vaswani et al., section 3.5."""
    encoding = np.empty(width)
    for i in range(width // 2):
        encoding[2 * i] = np.sin(position / 10_000 ** (2 * i / width))
        encoding[2 * i + 1] = np.cos(position / 10_000 ** (2 * i / width))
    return encoding


def _stack(stack, x, visible, states=None, states_visible=None, relative=False):
    for block in stack.blocks:
        x = _block(block, x, visible, states, states_visible, relative)
    return _norm(stack.norm, x) if stack.norm is not None else x


def _block(block, x, visible, states, states_visible, relative):
    def feed_forward(y):
        (w1, b1), (w2, b2) = (map(_array, part.weights) for part in (block.widen, block.narrow))
        return np.maximum(y @ w1 + b1, 0) @ w2 + b2

    sublayers = [lambda y: attention(block.attention, y, y, visible, relative), feed_forward]
    if states is not None:
        sublayers.insert(1, lambda y: attention(block.cross, y, states, states_visible))
    for residual, sublayer in zip(block.residuals, sublayers, strict=True):
        if residual.pre:
            x = x + sublayer(_norm(residual.norm, x))
        else:
            x = _norm(residual.norm, x + sublayer(x))
    return x


def _embed(model, tokens, positions=False):
    table = _array(model.embedding.table)
    x = table[tokens] * np.sqrt(table.shape[1])
    if positions:
        x += [sinusoid(i, x.shape[1]) for i in range(len(x))]
    return x


def _norm(layer, x):
    scale, offset = map(_array, layer.weights)
    centred = x - x.mean(axis=1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-6) * scale + offset


def _array(variable):
    return np.asarray(variable, np.float64)
