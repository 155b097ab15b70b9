"""An encoder-decoder with the attention and recurrence of Transformer-XL (arXiv 1901.02860).

A long text is a sequence of segments. Each block also attends to its inputs for the last
`memory_length` tokens before the segment; no gradient flows through these (Dai et al. 2019,
section 3.2). That holds in the encoder, where a token sees its whole segment, and in the decoder,
where a token sees its segment up to itself, and of the encoder the states of that segment alone.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from models.attention import RelativeAttention, sinusoids, visible_tokens
from models.stack import BASE, TINY
from models.transformer import Transformer
from swarm_tf.errors import UsageError


class Recent(NamedTuple):
    """The last inputs of the blocks of a stack, without padding, the newest in the last slot.

    states: for each block [batch, memory_length, width].
    count: int32 [batch], how many of the last slots are filled.
    """

    states: tuple[tf.Tensor, ...]
    count: tf.Tensor


class Memory(NamedTuple):
    """The memory of both stacks."""

    encoder: Recent
    decoder: Recent


class TransformerXL(Transformer):
    """As `Transformer`, but it knows distances instead of positions, and has a memory.

    `forward` takes and returns the memory. With `memory_length` above 0, `call` keeps it between
    calls: row i of a batch continues row i of the batch before, unless the input "reset", bool
    [batch], clears the memory of that row. Training calls and other calls have separate memories,
    each for batches of one size. The memory is no weight: it is neither saved nor averaged.

    Args:
      memory_length: how many tokens before the segment to attend to.
    """

    attention = RelativeAttention

    def __init__(self, *args: Any, memory_length: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.memory_length = memory_length
        self._kept: dict[str, list[tf.Variable]] = {}

    def call(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        source, target = inputs["source"], inputs["target"]
        if self.memory_length == 0:
            memory = self.empty_memory(tf.shape(source)[0])
            return self.forward(source, target, memory, training)[0]
        variables = self._variables("train" if training else "test", source.shape[0])
        memory = self.empty_memory(source.shape[0])
        memory = tf.nest.pack_sequence_as(memory, [tf.identity(kept) for kept in variables])
        logits, memory = self.forward(source, target, forget(memory, inputs["reset"]), training)
        for kept, new in zip(variables, tf.nest.flatten(memory), strict=True):
            kept.assign(new)
        return logits

    def forward(
        self, source: tf.Tensor, target: tf.Tensor, memory: Memory, training: bool = False
    ) -> tuple[tf.Tensor, Memory]:
        """The logits [batch, t, vocabulary] of a segment, and the memory after it.

        Args:
          source, target: int32 [batch, s] and [batch, t]; a row may be all padding.
          memory: as it was after the segment before, or `empty_memory(batch)`.
        """
        states, encoder = self._read_source(source, memory.encoder, training)
        slots = tf.range(self.memory_length + tf.shape(target)[1])
        x, reads = self.decoder(
            self.embedding(target),
            self._filled(slots, memory.decoder.count)
            & (slots <= slots[self.memory_length :, None]),
            memory=memory.decoder.states,
            source=states,
            source_visible=visible_tokens(source),
            distances=self._distances(slots[-1], 1 + tf.size(slots)),
            training=training,
        )
        return self.embedding.logits(x), Memory(encoder, after(memory.decoder, reads, target))

    def empty_memory(self, batch: tf.Tensor | int) -> Memory:
        """The memory at the beginning of `batch` documents."""
        size = self.encoder.size
        states = tf.zeros([batch, self.memory_length, size.width], self.compute_dtype)
        nothing = Recent((states,) * size.layers, tf.zeros([batch], tf.int32))
        return Memory(nothing, nothing)

    def start(
        self, source: tf.Tensor, max_length: int | tf.Tensor, memory: Memory | None = None
    ) -> dict[str, Any]:
        """As `Transformer.start`. `forward` returns the memory after the decoded tokens.

        Args:
          memory: as it was after the segment before; None at the beginning of a document.
        """
        if memory is None:
            memory = self.empty_memory(tf.shape(source)[0])
        states, _ = self._read_source(source, memory.encoder)
        cache = self.decoder.start(
            states, visible_tokens(source), max_length, memory.decoder.states
        )
        return {**cache, "remembered": memory.decoder.count}

    def step(
        self, tokens: tf.Tensor, position: tf.Tensor | int, cache: dict[str, Any]
    ) -> tuple[tf.Tensor, dict[str, Any]]:
        slots = tf.range(tf.shape(cache["own"][0][0])[1])
        slot = self.memory_length + position
        x, cache = self.decoder.step(
            self.embedding(tokens[:, None]),
            slot,
            self._filled(slots, cache["remembered"]) & (slots <= slot),
            cache,
            self._distances(slot, 1 + tf.size(slots)),
        )
        return self.embedding.logits(x)[:, 0], cache

    def _read_source(
        self, source: tf.Tensor, recent: Recent, training: bool = False
    ) -> tuple[tf.Tensor, Recent]:
        """The encoder's states [batch, s, width], and its memory after the segment."""
        slots = tf.range(self.memory_length + tf.shape(source)[1])
        seen = tf.pad(
            visible_tokens(source), [[0, 0], [self.memory_length, 0]], constant_values=True
        )
        x, reads = self.encoder(
            self.embedding(source),
            self._filled(slots, recent.count) & seen[:, None, None],
            memory=recent.states,
            distances=self._distances(slots[-1], tf.size(slots) + tf.shape(source)[1]),
            training=training,
        )
        return x, after(recent, reads, source)

    def _filled(self, slots: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        """Bool [batch, 1, 1, slots]: False for the empty slots of a memory that is not full."""
        return slots >= self.memory_length - count[:, None, None, None]

    def _distances(self, first: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        """Sinusoids of `count` descending distances from `first`, for RelativeAttention."""
        return sinusoids(first - tf.range(count), self.encoder.size.width)

    def _variables(self, use: str, batch: int | None) -> list[tf.Variable]:
        """The variables, in flat order, of the memory for `use`; the first call creates them."""
        if use not in self._kept and batch is not None:
            with tf.init_scope():  # outside the graph that is being traced
                empty = tf.nest.flatten(self.empty_memory(batch))
                # Not Keras variables: Keras would save those, and the swarm average them.
                self._kept[use] = [tf.Variable(tensor, trainable=False) for tensor in empty]
        if batch is None or batch != self._kept[use][0].shape[0]:
            raise UsageError(
                f"model.memory_length={self.memory_length} needs batches of one fixed size; "
                f"got {batch or 'an unknown number of'} rows"
            )
        return self._kept[use]


def after(recent: Recent, reads: tuple[tf.Tensor, ...], tokens: tf.Tensor) -> Recent:
    """The memory after a segment: the last tokens of past and segment that are not padding.

    Args:
      reads: for each block [batch, memory_length + n, width], the past and then the segment.
      tokens: int32 [batch, n], the segment.
    """
    length = recent.states[0].shape[1]
    new = tf.math.count_nonzero(tokens, axis=1, dtype=tf.int32)
    slots = new[:, None] + tf.range(length)
    states = tuple(tf.stop_gradient(tf.gather(read, slots, batch_dims=1)) for read in reads)
    return Recent(states, tf.minimum(recent.count + new, length))


def forget(memory: Memory, rows: tf.Tensor) -> Memory:
    """The memory with the selected `rows`, bool [batch], emptied."""

    def clear(x: tf.Tensor) -> tf.Tensor:
        return tf.where(tf.reshape(rows, [-1] + [1] * (len(x.shape) - 1)), tf.zeros([], x.dtype), x)

    return tf.nest.map_structure(clear, memory)


SIZES = {"transformer_xl_tiny": TINY, "transformer_xl_base": BASE}
