"""Sentence pairs for Transformers: from a set's texts to the batches of one rank."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from data import Data, partition
from data.partition import Indices
from data.text import texts, tokens
from data.text.buckets import Buckets, Lengths
from data.text.pairs import Pairs
from data.text.texts import Corpus
from data.text.vocabulary import Vocabulary
from swarm_tf import files
from swarm_tf.config import DataConfig
from swarm_tf.errors import UsageError

_SHAPES = 12  # of batches, at most; XLA compiles the model for each

First = Callable[[Callable[[], None], str], None]
"""first(action, what) does `action` on rank 0 while the others wait, and returns on all."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Translation(Data):
    """Sentence pairs as ids of a vocabulary that both languages share.

    A batch is (inputs, labels, weights): inputs are {"source": int32 [b, w], "target": int32
    [b, w]}, labels int32 [b, w] and weights float32 [b, w], 1 on a sentence and 0 on the padding
    behind it. Sources and labels end in EOS; targets are the labels moved one position on, behind
    BOS. Of documents, the inputs also have "reset": bool [b], True where a row begins a document;
    where it is False, the row continues the same row of the batch before.

    `train` pads to one of `shapes`, and leaves out pairs with a sentence of more than
    data.max_length tokens, EOS included (of documents: all that have such a pair). `test` has
    every pair once, those of like length together, longer sentences cut off. Its batches may have
    fewer rows; batches of documents never do, but their last rows may be nothing but padding.

    Attributes:
      vocabulary: `decode` gives plain text of ids, whatever special ones are among them.
      source, target: the languages.
      test_sources, test_references: the test split as it is, to translate and to compare with.
      segments: consecutive sentences that are a document, so that test_sources[i * segments :
        (i + 1) * segments] is one; None where every sentence stands for itself.
      shapes: (b, w) of each kind of training batch; b w <= batch_size. Of documents, all b are
        the same.
      target_tokens: labels in one pass over the training set by all ranks, without padding.
      dropped: training pairs that are left out.
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
    """Tokenizes the set, if that has not been done before, and cuts this rank's part.

    Args:
      config: name, data_dir, partition, source, target, vocabulary_size, max_length, cache_dir,
        and train_examples (of number_words).
      rank: this rank, of `size`.
      batch_size: target positions of a batch, padding included: it has as many rows as fit.
      seed: the same on all ranks, or their parts would overlap; at least 0.
      workdir: receives the tokens if data.cache_dir is None.
      first: see `First`; for one rank, `lambda action, what: action()`.
      documents: rows go on from batch to batch, for models with a memory.

    Raises:
      UsageError: for a set that is not there or not one of sentence pairs, documents of a set
        that has none, a language it has not got, keys or a partition that do not fit such a set, a
        vocabulary that is too large or too small, tokens that cannot be written, and a batch that
        cannot hold the longest sentence; nothing is ever downloaded.
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

    def epochs() -> Iterator[Indices]:
        dealt = partition.epochs(
            config.partition,
            np.zeros(len(kept), np.int8),  # no classes
            rank=rank,
            size=size,
            alpha=config.dirichlet_alpha,
            seed=seed,
        )
        return (kept[part] for part in dealt)

    shard = train.numbers(next(epochs()))  # also raises here, not at the first batch, what is wrong
    trained = train.numbers(kept)
    dropped = len(train.target.lengths) - trained.size
    if dropped and rank == 0:
        _log.warning(
            f"data.name={config.name}: {dropped} training pairs are left out, longer than "
            f"data.max_length={config.max_length}"
        )
    rows = buckets.rows[0] if documents else None
    tested = list(buckets.test(test_lengths))
    # If it must find the end itself, Keras counts the rows of a batch that is not there.
    known = tf.data.experimental.assert_cardinality(len(tested) * (segments or 1))
    sources, references = _raw(corpus, languages)
    return Translation(
        train=train.dataset(lambda: buckets.train(lengths, epochs()), buckets.widths, rows),
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
            "memory must know; use number_words, or a model without"
        )


def _tokenize(
    config: DataConfig, corpus: Corpus, languages: tuple[str, str], workdir: str, first: First
) -> Path:
    """The folder of the tokens; once it returns, they are there."""
    place = tokens.folder(corpus, languages, config.vocabulary_size, config.cache_dir or workdir)

    def prepare() -> None:
        try:
            tokens.write(corpus, languages, config.vocabulary_size, place)
        except OSError as error:
            raise UsageError(
                f"data.cache_dir={config.cache_dir or workdir} cannot take the tokens of "
                f"data.name={config.name} ({files.reason(error)}); name a directory that can "
                "be written and has room for them"
            ) from error

    first(prepare, "the vocabulary and the tokens")
    return place


def _kept(lengths: Lengths, config: DataConfig) -> Indices:
    """The examples that are not too long."""
    kept = np.flatnonzero(lengths <= config.max_length)
    if not len(kept):
        raise UsageError(
            f"data.max_length={config.max_length} leaves nothing of data.name={config.name} to "
            f"train on: the shortest has {lengths.min()} tokens"
        )
    return kept


def _raw(corpus: Corpus, languages: tuple[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The test split as texts: sources and references."""
    read = list(corpus.read("test"))
    source, target = (
        tuple(text.decode() for some in read for text in some[language]) for language in languages
    )
    return source, target
