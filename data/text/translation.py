"""Loads sets of sentence pairs for Transformers: the batches of one rank."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from data import Data, Stages, partition
from data.partition import Indices, Used
from data.text import texts, tokens
from data.text.buckets import Batch, Buckets, Lengths
from data.text.pairs import Pairs
from data.text.texts import Corpus
from data.text.vocabulary import Vocabulary
from swarm_tf import files
from swarm_tf.config import DataConfig
from swarm_tf.errors import UsageError

_SHAPES = 12  # largest number of batch shapes; XLA compiles the model for each shape

First = Callable[[Callable[[], None], str], None]
"""first(action, what) runs `action` on rank 0 while the others wait; `what` names it in errors."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Translation(Data):
    """The data of a translation set: ids of a vocabulary that both languages share.

    A batch is (inputs, labels, weights). Inputs are {"source": int32 [b, w], "target": int32
    [b, w]}; labels are int32 [b, w]; weights are float32 [b, w], 1 for tokens and 0 for padding.
    Sources and labels end with EOS; targets are the labels shifted by one position, after BOS. For
    documents, inputs also have "reset", bool [b]: True where a row begins a document; where it is
    False, the row continues the same row of the previous batch.

    `train` pads to one of `shapes`, and omits pairs with a sentence of more than data.max_length
    tokens, including EOS (and documents that contain such a pair). `test` has every pair once,
    grouped by length, with longer sentences truncated. Its batches may have fewer rows; batches of
    documents always have b rows, of which the last may contain only padding.

    Attributes:
      vocabulary: its `decode` converts ids to text and ignores special ids.
      source, target: the languages.
      test_sources, test_references: the texts of the test split.
      segments: number of sentences in a document, so that test_sources[i * segments :
        (i + 1) * segments] is document i; None without documents.
      shapes: the (b, w) of training batches, with b w <= batch_size. For documents, all b are
        equal.
      target_tokens: labels in one pass over the training set by all ranks, without padding.
      dropped: number of training pairs that are omitted.
    """

    vocabulary: Vocabulary
    source: str
    target: str
    test_sources: tuple[str, ...]
    test_references: tuple[str, ...]
    segments: int | None
    shapes: tuple[tuple[int, int], ...]
    target_tokens: int
    dropped: int


def load(
    config: DataConfig,
    *,
    rank: int,
    size: int,
    batch_size: int,
    seed: int,
    workdir: str,
    first: First,
    documents: bool = False,
) -> Translation:
    """Tokenizes the set, unless its tokens exist, and selects this rank's part.

    Args:
      config: uses name, data_dir, partition, source, target, vocabulary_size, max_length,
        cache_dir, and train_examples (of number_words).
      rank: this rank, below `size`.
      size: number of ranks.
      batch_size: largest number of target positions in a batch, including padding.
      seed: at least 0, and the same on all ranks; otherwise their parts would overlap.
      workdir: the directory for the tokens if data.cache_dir is None.
      first: see `First`; for one rank, `lambda action, what: action()`.
      documents: whether a row continues in the next batch, for models with a memory.

    Raises:
      UsageError: if the set is missing or has no sentence pairs, no documents or not the languages
        that are required; if keys or the partition do not apply to the set; if the vocabulary size
        is not possible, the tokens cannot be written, or a batch cannot hold the longest sentence.
        Nothing is ever downloaded.
    """
    corpus = texts.find(config.name, config.data_dir, seed, config.train_examples)
    _check(config, corpus, documents)
    languages = texts.direction(config.name, corpus.languages, config.source, config.target)
    place = _tokenize(config, corpus, languages, workdir, first)
    vocabulary = tokens.read_vocabulary(place)
    segments = corpus.segments if documents else None
    train, test = (
        Pairs(*(tokens.read(place, split, language) for language in languages), segments)
        for split in tokens.SPLITS
    )
    lengths, test_lengths = train.longest(), np.minimum(test.longest(), config.max_length)
    kept = _kept(lengths, config)
    buckets = Buckets.fit(
        np.append(lengths[kept], test_lengths.max()), _SHAPES, batch_size, even_rows=documents
    )

    def epochs(rank: int, size: int, used: Used) -> Iterator[tuple[int, Indices]]:
        return partition.epochs(
            config.partition,
            np.zeros(len(kept), np.int8),  # no classes
            rank=rank,
            size=size,
            alpha=config.dirichlet_alpha,
            seed=seed,
            used=used,
        )

    def tagged(rank: int, size: int, used: Used) -> Iterator[Batch]:
        """Widths, and units by their number in `kept`, with the epoch: see `partition.used_by`."""
        numbered = (epoch * len(kept) + part for epoch, part in epochs(rank, size, used))
        return buckets.train(lengths[kept], numbered)

    def train_from(first: int, stages: Stages) -> tf.data.Dataset:
        # A unit is used up with its last segment: one that has been begun is used again, whole.
        units = [[count // (segments or 1) for count in counts] for counts in stages]
        used = partition.used_by(
            units, len(kept), lambda *rank: (batch for _, batch in tagged(*rank))
        )

        def batches() -> Iterator[Batch]:
            for width, numbers in tagged(rank, size, used):
                yield width, kept[numbers % len(kept)]

        return train.dataset(batches, buckets.widths, rows, first)

    _, part = next(epochs(rank, size, Used()))  # raises errors of the partition here
    shard = train.numbers(kept[part])
    trained = train.numbers(kept)
    dropped = len(train.target.lengths) - trained.size
    if dropped and rank == 0:
        _log.warning(
            f"data.name={config.name}: {dropped} training pairs are left out: they are longer "
            f"than data.max_length={config.max_length}"
        )
    rows = buckets.rows[0] if documents else None
    tested = list(buckets.test(test_lengths))
    # With an unknown number of batches, Keras counts the rows of a batch after the last one.
    known = tf.data.experimental.assert_cardinality(len(tested) * (segments or 1))
    sources, references = _raw(corpus, languages)
    return Translation(
        train_from=train_from,
        test=test.dataset(lambda: iter(tested), buckets.widths, rows).apply(known),
        train_examples=trained.size,
        shard_examples=shard.size,
        steps_per_pass=buckets.batches_per_pass(lengths[kept]) * (segments or 1) / size,
        vocabulary=vocabulary,
        source=languages[0],
        target=languages[1],
        test_sources=sources,
        test_references=references,
        segments=segments,
        shapes=tuple(zip(buckets.rows, buckets.widths, strict=True)),
        target_tokens=int(train.target.lengths[trained].sum()),
        dropped=dropped,
    )


def _check(config: DataConfig, corpus: Corpus, documents: bool) -> None:
    if config.partition == "dirichlet":
        raise UsageError(
            f"data.partition=dirichlet needs classes, and the sentences of data.name={config.name} "
            "have none; use iid or static"
        )
    if documents and corpus.segments is None:
        raise UsageError(
            f"data.name={config.name} does not say where documents begin, which a model with a "
            "memory needs; use number_words, or set model.memory_length=0"
        )


def _tokenize(
    config: DataConfig, corpus: Corpus, languages: tuple[str, str], workdir: str, first: First
) -> Path:
    """Makes sure that the tokens exist; returns their directory."""
    place = tokens.folder(corpus, languages, config.vocabulary_size, config.cache_dir or workdir)

    def prepare() -> None:
        try:
            tokens.write(corpus, languages, config.vocabulary_size, place)
        except OSError as error:
            raise UsageError(
                f"data.cache_dir={config.cache_dir or workdir} cannot store the tokens of "
                f"data.name={config.name} ({files.reason(error)}); name a directory that can "
                "be written and has enough space"
            ) from error

    first(prepare, "the vocabulary and the tokens")
    return place


def _kept(lengths: Lengths, config: DataConfig) -> Indices:
    """The indices of the examples of at most data.max_length tokens."""
    kept = np.flatnonzero(lengths <= config.max_length)
    if not len(kept):
        raise UsageError(
            f"data.max_length={config.max_length} leaves no training pair of data.name="
            f"{config.name}; it must be at least {lengths.min()}, the length of the shortest one"
        )
    return kept


def _raw(corpus: Corpus, languages: tuple[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The texts of the test split: sources and references."""
    read = list(corpus.read("test"))
    source, target = (
        tuple(text.decode() for some in read for text in some[language]) for language in languages
    )
    return source, target
