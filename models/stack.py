"""What both translation models are made of: embeddings, and a stack of blocks for each language."""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from models.attention import Attention, dense

Pair = tuple[tf.Tensor, tf.Tensor]  # keys and values


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a model; Vaswani et al. 2017, table 3: N, d_model, d_ff, h and P_drop."""

    layers: int
    width: int
    hidden: int
    heads: int
    dropout: float


TINY = Size(layers=2, width=128, hidden=256, heads=4, dropout=0.1)
BASE = Size(layers=6, width=512, hidden=2048, heads=8, dropout=0.1)
BIG = Size(layers=6, width=1024, hidden=4096, heads=16, dropout=0.3)


class Embedding(keras.layers.Layer):
    """One table for both languages and the logits (Vaswani et al. 2017, section 3.4)."""

    def __init__(self, vocabulary: int, width: int, seeds: random.Random) -> None:
        super().__init__(name="embedding")
        self.table = self.add_weight(
            shape=(vocabulary, width),
            # So that logits and scaled embeddings start with variance 1.
            initializer=keras.initializers.RandomNormal(
                stddev=width**-0.5, seed=seeds.getrandbits(31)
            ),
            autocast=False,
            name="table",
        )
        self.built = True

    def call(self, tokens: tf.Tensor) -> tf.Tensor:
        """Tokens int32 [batch, n] to their embeddings [batch, n, width] times sqrt(width)."""
        found = tf.gather(self.table.value, tokens) * self.table.shape[1] ** 0.5
        return tf.cast(found, self.compute_dtype)

    def logits(self, x: tf.Tensor) -> tf.Tensor:
        """[batch, n, width] to [batch, n, vocabulary], in float32 under every dtype policy."""
        return tf.tensordot(tf.cast(x, tf.float32), self.table.value, [[2], [1]])


class Residual(keras.layers.Layer):
    """The residual connection around a sublayer f, with dropout of its output (section 5.4).

    `normalization` "post" is LayerNorm(x + f(x)), the paper's; "pre" is x + f(LayerNorm(x)).
    """

    def __init__(
        self, width: int, normalization: str, dropout: float, seeds: random.Random
    ) -> None:
        super().__init__()
        self.pre = normalization == "pre"
        self.norm = norm(width)
        self.dropout = keras.layers.Dropout(dropout, seed=seeds.getrandbits(31))
        self.built = True

    def enter(self, x: tf.Tensor) -> tf.Tensor:
        """The input of the sublayer."""
        return self.norm(x) if self.pre else x

    def leave(self, x: tf.Tensor, returned: tf.Tensor) -> tf.Tensor:
        """The sum of x and `returned`, the output of the sublayer for `enter(x)`."""
        x += self.dropout(returned)
        return x if self.pre else self.norm(x)


class Block(keras.layers.Layer):
    """Self-attention, attention to another stack if `cross`, and the feed-forward network."""

    def __init__(
        self,
        size: Size,
        attention: type[Attention],
        normalization: str,
        dropout: float,
        seeds: random.Random,
        *,
        cross: bool,
    ) -> None:
        super().__init__()
        self.attention = attention(size.width, size.heads, seeds)
        self.cross = Attention(size.width, size.heads, seeds) if cross else None
        self.widen = dense(size.width, size.hidden, seeds, activation="relu")
        self.narrow = dense(size.hidden, size.width, seeds)
        self.residuals = [
            Residual(size.width, normalization, dropout, seeds) for _ in range(2 + cross)
        ]
        self.built = True

    def call(
        self,
        x: tf.Tensor,
        visible: tf.Tensor,
        memory: tf.Tensor | None,
        source: tuple[Pair, tf.Tensor] | None,
        distances: tf.Tensor | None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """New states [batch, n, width], and what self-attention read [batch, memory + n, width]."""
        entered = self.residuals[0].enter(x)
        read = entered if memory is None else tf.concat([memory, entered], axis=1)
        keys, values = self.attention.project(read)
        attended = self.attention(entered, keys, values, visible, distances)
        return self._rest(self.residuals[0].leave(x, attended), source), read

    def step(
        self,
        x: tf.Tensor,
        slot: tf.Tensor,
        visible: tf.Tensor,
        cached: Pair,
        source: tuple[Pair, tf.Tensor],
        distances: tf.Tensor | None,
    ) -> tuple[tf.Tensor, Pair]:
        """The block for one token x [batch, 1, width]; its key and value are written to `slot`."""
        entered = self.residuals[0].enter(x)
        here = (tf.range(tf.shape(cached[0])[1]) == slot)[:, None, None]
        pairs = zip(self.attention.project(entered), cached, strict=True)
        keys, values = (tf.where(here, new, old) for new, old in pairs)
        attended = self.attention(entered, keys, values, visible, distances)
        return self._rest(self.residuals[0].leave(x, attended), source), (keys, values)

    def _rest(self, x: tf.Tensor, source: tuple[Pair, tf.Tensor] | None) -> tf.Tensor:
        if self.cross is not None:
            (keys, values), visible = source
            attended = self.cross(self.residuals[1].enter(x), keys, values, visible)
            x = self.residuals[1].leave(x, attended)
        last = self.residuals[-1]
        return last.leave(x, self.narrow(self.widen(last.enter(x))))


class Stack(keras.layers.Layer):
    """Encoder or decoder: dropout of the embeddings, blocks, and with "pre" a last LayerNorm.

    Args:
      attention: class of the self-attention.
      normalization: "pre" or "post".
      cross: whether blocks attend to another stack, as in a decoder.
    """

    def __init__(
        self,
        size: Size,
        attention: type[Attention],
        normalization: str,
        dropout: float,
        seeds: random.Random,
        *,
        cross: bool,
        name: str,
    ) -> None:
        super().__init__(name=name)
        self.size = size
        self.dropout = keras.layers.Dropout(dropout, seed=seeds.getrandbits(31))
        self.blocks = [
            Block(size, attention, normalization, dropout, seeds, cross=cross)
            for _ in range(size.layers)
        ]
        self.norm = norm(size.width) if normalization == "pre" else None
        self.built = True

    def call(
        self,
        x: tf.Tensor,
        visible: tf.Tensor,
        memory: Sequence[tf.Tensor] | None = None,
        source: tf.Tensor | None = None,
        source_visible: tf.Tensor | None = None,
        distances: tf.Tensor | None = None,
        training: bool = False,
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        """All positions at once.

        Args:
          x: embeddings [batch, n, width].
          visible: bool, broadcasts to [batch, heads, n, memory + n].
          memory: for each block [batch, memory, width]: earlier states to attend to.
          source: states [batch, s, width] of the encoder, for a decoder to attend to.
          source_visible: bool [batch, s].
          distances: for RelativeAttention, which describes them.
          training: whether dropout is on.

        Returns:
          States [batch, n, width], and for each block what its self-attention read: memory and
          states [batch, memory + n, width].
        """
        x, reads = self.dropout(x, training=training), []
        for index, block in enumerate(self.blocks):
            past = None if memory is None else memory[index]
            crossed = None
            if source is not None:
                crossed = block.cross.project(source), source_visible[:, None, None]
            x, read = block(x, visible, past, crossed, distances)
            reads.append(read)
        return self._end(x), tuple(reads)

    def start(
        self,
        source: tf.Tensor,
        source_visible: tf.Tensor,
        max_length: int | tf.Tensor,
        memory: Sequence[tf.Tensor] | None = None,
    ) -> dict[str, Any]:
        """A decoder's cache before the first `step`.

        Returns:
          "own": keys and values of each block's self-attention, each [batch, memory + max_length,
          heads, width / heads], with the memory's slots filled. "source": keys and values of its
          attention to the source. "visible": bool [batch, s].
        """
        if memory is None:
            none = tf.zeros([tf.shape(source)[0], 0, self.size.width], source.dtype)
            memory = [none] * len(self.blocks)
        own = []
        for block, past in zip(self.blocks, memory, strict=True):
            keys, values = block.attention.project(past)
            # Not tf.pad, which forgets all static sizes where max_length is a tensor.
            free = tf.zeros([tf.shape(keys)[0], max_length, *keys.shape[2:]], keys.dtype)
            own.append((tf.concat([keys, free], axis=1), tf.concat([values, free], axis=1)))
        return {
            "own": tuple(own),
            "source": tuple(block.cross.project(source) for block in self.blocks),
            "visible": source_visible,
        }

    def step(
        self,
        x: tf.Tensor,
        slot: tf.Tensor,
        visible: tf.Tensor,
        cache: dict[str, Any],
        distances: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, dict[str, Any]]:
        """One position of a decoder.

        Args:
          x: embeddings [batch, 1, width].
          slot: scalar int32, the index of this position in the cache.
          visible: bool, broadcasts to [batch, heads, 1, memory + max_length].

        Returns:
          States [batch, 1, width] and the cache with this position.
        """
        own, source_visible = [], cache["visible"][:, None, None]
        for block, cached, source in zip(self.blocks, cache["own"], cache["source"], strict=True):
            x, cached = block.step(x, slot, visible, cached, (source, source_visible), distances)
            own.append(cached)
        return self._end(x), {**cache, "own": tuple(own)}

    def _end(self, x: tf.Tensor) -> tf.Tensor:
        return x if self.norm is None else self.norm(x)


def norm(width: int) -> keras.layers.LayerNormalization:
    layer = keras.layers.LayerNormalization(epsilon=1e-6)
    layer.build((None, width))
    return layer
