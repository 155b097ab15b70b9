"""The encoder-decoder of Vaswani et al. 2017 (arXiv 1706.03762) with sinusoidal positions."""

import random
from typing import Any

import keras
import tensorflow as tf

from models.attention import Attention, sinusoids, visible_tokens
from models.stack import BASE, BIG, TINY, Embedding, Size, Stack


class Transformer(keras.Model):
    """From {"source": int32 [batch, s], "target": int32 [batch, t]} to float32 logits
    [batch, t, vocabulary].

    Padding is id 0, at the end of a row. The target is shifted right: it starts with
    the token BOS, and logits at i predict the token after target[:, : i + 1].

    Args:
      vocabulary: number of tokens, both languages together.
      normalization: "post" (the paper's) or "pre".
      seed: of weights and dropout; None draws one.
    """

    attention = Attention

    def __init__(
        self,
        vocabulary: int,
        size: Size,
        *,
        normalization: str,
        dropout: float,
        seed: int | None,
        name: str,
    ) -> None:
        super().__init__(name=name)
        seeds = random.Random(seed)  # seeded by the system when None
        self.embedding = Embedding(vocabulary, size.width, seeds)
        parts = size, self.attention, normalization, dropout, seeds
        self.encoder = Stack(*parts, cross=False, name="encoder")
        self.decoder = Stack(*parts, cross=True, name="decoder")
        self.built = True

    def call(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        source, target = inputs["source"], inputs["target"]
        positions = tf.range(tf.shape(target)[1])
        x, _ = self.decoder(
            self._embed(target, positions),
            positions <= positions[:, None],
            source=self._encode(source, training),
            source_visible=visible_tokens(source),
            training=training,
        )
        return self.embedding.logits(x)

    def start(
        self, source: tf.Tensor, max_length: int | tf.Tensor, memory: None = None
    ) -> dict[str, Any]:
        """The cache for decoding up to `max_length` tokens: tensors whose first axis is the batch.

        Args:
          source: int32 [batch, s].
          max_length: a number, or a scalar int32, so that one trace serves all (not under XLA).
          memory: unused here; `TransformerXL.start` takes one.
        """
        return self.decoder.start(self._encode(source), visible_tokens(source), max_length)

    def step(
        self, tokens: tf.Tensor, position: tf.Tensor | int, cache: dict[str, Any]
    ) -> tuple[tf.Tensor, dict[str, Any]]:
        """Logits of the next token, after reading the token at `position` of every row.

        Args:
          tokens: int32 [batch].
          position: scalar int32 below `max_length`; call with 0, 1, 2, ... in this order.
          cache: from `start` or the step before; its rows may have been reordered.

        Returns:
          float32 [batch, vocabulary], and the cache for the next position.
        """
        x = self._embed(tokens[:, None], tf.reshape(position, [1]))
        slots = tf.range(tf.shape(cache["own"][0][0])[1])
        x, cache = self.decoder.step(x, position, slots <= position, cache)
        return self.embedding.logits(x)[:, 0], cache

    def _encode(self, source: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self._embed(source, tf.range(tf.shape(source)[1]))
        return self.encoder(x, visible_tokens(source)[:, None, None], training=training)[0]

    def _embed(self, tokens: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
        x = self.embedding(tokens)
        return x + tf.cast(sinusoids(positions, x.shape[-1]), x.dtype)


SIZES = {"transformer_tiny": TINY, "transformer_base": BASE, "transformer_big": BIG}
