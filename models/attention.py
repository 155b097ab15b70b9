"""Multi-head attention, by content alone, or by content and distance.

Everywhere `visible` is a bool tensor that broadcasts to [batch, heads, queries, keys]: True where
the query may attend to the key. Every query needs at least one visible key.
"""

import random
from typing import Any

import keras
import tensorflow as tf

# Added to a float32 score, this makes the attention weight exactly zero.
_HIDDEN = -1e9


class Attention(keras.layers.Layer):
    """Section 3.2 of Vaswani et al. 2017 (arXiv 1706.03762): projections without biases.

    Args:
      width: of inputs and outputs.
      heads: number of heads; must divide `width`.
    """

    def __init__(self, width: int, heads: int, seeds: random.Random, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.heads = heads
        self.query = dense(width, width, seeds, use_bias=False)
        self.key_value = dense(width, 2 * width, seeds, kernels=2, use_bias=False)
        self.out = dense(width, width, seeds, use_bias=False)
        self.built = True  # here and in all these layers: no weight depends on the inputs

    def project(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """States [batch, keys, width] to keys and values [batch, keys, heads, width / heads]."""
        keys, values = tf.split(self.key_value(x), 2, axis=-1)
        return self._split(keys), self._split(values)

    def call(
        self,
        x: tf.Tensor,
        keys: tf.Tensor,
        values: tf.Tensor,
        visible: tf.Tensor,
        distances: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Attend from x [batch, queries, width] to projected keys and values.

        Args:
          distances: for RelativeAttention only, which describes them.

        Returns:
          [batch, queries, width].
        """
        # Scaled before the product, which float16 might not hold.
        queries = self._split(self.query(x)) * (x.shape[-1] // self.heads) ** -0.5
        scores = tf.cast(self._scores(queries, keys, distances), tf.float32)
        weights = tf.nn.softmax(scores + tf.where(visible, 0.0, _HIDDEN))
        mixed = tf.einsum("bhqk,bkhd->bqhd", tf.cast(weights, values.dtype), values)
        return self.out(tf.reshape(mixed, [*_leading(mixed), x.shape[-1]]))

    def _scores(
        self, queries: tf.Tensor, keys: tf.Tensor, distances: tf.Tensor | None
    ) -> tf.Tensor:
        """[batch, heads, queries, keys] of scaled queries."""
        return tf.einsum("bqhd,bkhd->bhqk", queries, keys)

    def _split(self, x: tf.Tensor) -> tf.Tensor:
        return tf.reshape(x, [*_leading(x), self.heads, x.shape[-1] // self.heads])


class RelativeAttention(Attention):
    """Section 3.3 of Dai et al. 2019 (arXiv 1901.02860): scores depend on distances, not positions.

    A score is ((q_i + u) k_j + (q_i + v) W_kR R_(i - j)) / sqrt(width of the head); u and v are
    learned for each layer and head, and start at zero.

    Calls take `distances`: the `sinusoids` [d, width] of distances i - j in descending order, each
    one less than the last. The first is the distance from the last query to the first key;
    `relative_shift` says how large d must be.
    """

    def __init__(self, width: int, heads: int, seeds: random.Random, **kwargs: Any) -> None:
        super().__init__(width, heads, seeds, **kwargs)
        self.distance = dense(width, width, seeds, use_bias=False)
        shape = (heads, width // heads)
        self.u = self.add_weight(shape=shape, initializer="zeros", name="u")
        self.v = self.add_weight(shape=shape, initializer="zeros", name="v")

    def _scores(self, queries: tf.Tensor, keys: tf.Tensor, distances: tf.Tensor) -> tf.Tensor:
        scale = queries.shape[-1] ** -0.5
        u, v = (scale * tf.cast(w.value, queries.dtype) for w in (self.u, self.v))
        relative = self._split(self.distance(distances)[None])[0]
        by_content = tf.einsum("bqhd,bkhd->bhqk", queries + u, keys)
        by_distance = tf.einsum("bqhd,phd->bhqp", queries + v, relative)
        return by_content + relative_shift(by_distance, tf.shape(keys)[1])


def relative_shift(scores: tf.Tensor, keys: tf.Tensor | int) -> tf.Tensor:
    """From scores by distance to scores by key (Dai et al. 2019, appendix B), without a gather.

    Args:
      scores: [batch, heads, queries, d]; along d the distance descends by one, from the distance
        of the last query to the first key. d must be more than `keys` if keys later than the query
        are never visible, and at least keys + queries if they may be.

    Returns:
      [batch, heads, queries, keys]: at (i, j) the score from (i, queries - 1 - i + j); undefined
      where d holds no such distance.
    """
    batch, heads, queries, distances = tf.unstack(tf.shape(scores))
    # Reshaped to rows shorter by one, each row starts one distance earlier than the row before.
    flat = tf.reshape(scores, [batch, heads, queries * distances])
    flat = flat[:, :, queries - 1 : queries * distances - 1]
    return tf.reshape(flat, [batch, heads, queries, distances - 1])[..., :keys]


def sinusoids(positions: tf.Tensor, width: int) -> tf.Tensor:
    """Encodings of integer positions or distances [n]: float32 [n, width].

    Vaswani et al. 2017, section 3.5.
    """
    frequencies = 10_000.0 ** (-tf.range(0, width, 2, tf.float32) / width)
    angles = tf.cast(positions, tf.float32)[:, None] * frequencies
    return tf.reshape(tf.stack([tf.sin(angles), tf.cos(angles)], axis=-1), [-1, width])


def visible_tokens(tokens: tf.Tensor) -> tf.Tensor:
    """Which of `tokens` [batch, n] are visible as keys, bool [batch, n]: all but padding, id 0.

    The first token always is, since a query needs a visible key even in a row of padding.
    """
    return (tokens != 0) | (tf.range(tf.shape(tokens)[1]) == 0)


def dense(
    inputs: int, units: int, seeds: random.Random, *, kernels: int = 1, **kwargs: Any
) -> keras.layers.Dense:
    """A built Dense layer of `kernels` matrices side by side, each initialized Glorot uniform.

    That is Glorot and Bengio 2010, equation 16: variance 2 / (fan in + fan out) of each kernel.
    """
    layer = keras.layers.Dense(
        units,
        kernel_initializer=keras.initializers.VarianceScaling(
            (inputs + units) / (inputs + units / kernels),
            "fan_avg",
            "uniform",
            seed=seeds.getrandbits(31),
        ),
        **kwargs,
    )
    layer.build((None, inputs))
    return layer


def _leading(x: tf.Tensor) -> list[Any]:
    """The first two dimensions, as numbers if known, so that shapes stay static in a loop."""
    shape = tf.shape(x)
    return [x.shape[i] if x.shape[i] is not None else shape[i] for i in (0, 1)]
