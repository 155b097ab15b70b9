"""Translates texts with a model, a vocabulary and beam search."""

from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from keras.utils import pad_sequences

from models import decoding
from models.decoding import BOS, EOS, PADDING
from models.transformer import Transformer
from models.transformer_xl import TransformerXL
from swarm_tf.errors import UsageError

# By how many tokens a hypothesis may be longer than its source (Vaswani et al. 2017, 6.1).
_EXTRA_TOKENS = 50


class Vocabulary(Protocol):
    """The methods used of a sentencepiece processor; ids as in `models.decoding`."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


class Translator:
    """Translates single sentences, and documents.

    Each call uses the weights that the model has then.

    Args:
      model: trained on tokens of `vocabulary`.
      max_length: most tokens of a source, its EOS included; the rest is not translated.
      beams, alpha: see `decoding.search`; one beam is greedy search.
      batch_size: most target positions searched together: sentences times the longest hypothesis,
        beams not counted. A sentence that is longer makes a batch of its own.

    Raises:
      UsageError: for values out of range.
    """

    def __init__(
        self,
        model: Transformer,
        vocabulary: Vocabulary,
        *,
        max_length: int = 256,
        beams: int = 4,
        alpha: float = 0.6,
        batch_size: int = 8192,
    ) -> None:
        counts = {"max_length": max_length, "beams": beams, "batch_size": batch_size}
        for name, value in counts.items():
            if value < 1:
                raise UsageError(f"{name}={value} must be 1 or more")
        if not alpha >= 0:
            raise UsageError(f"alpha={alpha} must be 0 or more")
        self.model = model
        self.vocabulary = vocabulary
        self.max_length = max_length
        self.beams = beams
        self.alpha = alpha
        self.batch_size = batch_size
        self._has_memory = isinstance(model, TransformerXL) and model.memory_length > 0
        memory = tf.nest.map_structure(
            lambda x: tf.TensorSpec([None, *x.shape[1:]], x.dtype), self._empty_memory(1)
        )
        # Traced once: a trace takes seconds, and an eager search takes many times as long.
        self._search = tf.function(
            self._hypotheses,
            input_signature=[tf.TensorSpec([None, None], tf.int32), memory],
            autograph=False,
        )

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """The translation of each text, a sentence; a blank text gives ""."""
        return [translation for (translation,) in self._documents([[text] for text in texts])]

    def documents(self, documents: Sequence[Sequence[str]]) -> list[list[str]]:
        """The translations of each document's sentences, in order.

        A model with a memory carries it from one sentence to the next: as in training, the memory
        then holds the source and its translation. Without a memory, sentences are translated
        independently.
        """
        if self._has_memory:
            return self._documents(documents)
        translations = iter(self(list(chain.from_iterable(documents))))
        return [[next(translations) for _ in document] for document in documents]

    def _documents(self, documents: Sequence[Sequence[str]]) -> list[list[str]]:
        encoded = [[self._encode(text) for text in document] for document in documents]
        translated = [[""] * len(document) for document in documents]
        for batch in self._batches(encoded):
            memory = self._empty_memory(len(batch))
            segments = zip_longest(*(encoded[i] for i in batch), fillvalue=[])
            for number, sources in enumerate(segments):
                width = max(1, *map(len, sources))
                padded = pad_sequences(sources, width, padding="post", value=PADDING)
                tokens, memory = self._search(padded, memory)
                for i, row in zip(batch, tokens.numpy(), strict=True):
                    if number < len(encoded[i]):
                        translated[i][number] = self.vocabulary.decode(row[row > EOS].tolist())
        return translated

    def _encode(self, text: str) -> list[int]:
        if not text.strip():
            return []
        return [*self.vocabulary.encode(text)[: self.max_length - 1], EOS]

    def _batches(self, documents: list[list[list[int]]]) -> Iterator[list[int]]:
        """Indices of documents to translate together: alike in sentences, then in length.

        Documents without a token are in no batch.
        """
        longest = [max(map(len, document), default=0) for document in documents]
        order = sorted(np.flatnonzero(longest), key=lambda i: (len(documents[i]), longest[i]))
        batch, width = [], 0
        for i in order:
            width = max(width, longest[i])
            if batch and (len(batch) + 1) * (width + _EXTRA_TOKENS) > self.batch_size:
                yield batch
                batch, width = [], longest[i]
            batch.append(i)
        if batch:
            yield batch

    def _empty_memory(self, rows: int) -> Any:
        return self.model.empty_memory(rows) if self._has_memory else ()

    def _hypotheses(self, source: tf.Tensor, memory: Any) -> tuple[tf.Tensor, Any]:
        """The best hypotheses int32 [batch, n], and the memory after them.

        Args:
          source: int32 [batch, s]; a row of padding is neither searched nor remembered.
          memory: from `_empty_memory`, or as it was after the segment before.
        """
        lengths = tf.math.count_nonzero(source, axis=1, dtype=tf.int32)
        limits = tf.where(lengths > 0, lengths + _EXTRA_TOKENS, 0)
        max_length = tf.reduce_max(limits)
        tokens, _ = decoding.search(
            self.model.step,
            self.model.start(source, max_length, memory or None),
            batch=tf.shape(source)[0],
            max_length=max_length,
            limits=limits,
            beams=self.beams,
            alpha=self.alpha,
        )
        tokens = tokens[:, 0]
        if memory:
            begin = tf.where(lengths > 0, BOS, PADDING)[:, None]
            target = tf.concat([begin, tf.where(tokens == EOS, PADDING, tokens)], axis=1)
            _, memory = self.model.forward(source, target, memory)
        return tokens, memory
