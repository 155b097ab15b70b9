"""The task `translation`: sentence pairs, and BLEU on the test split."""

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import sacrebleu

import models
from data.text import translation
from data.text.translation import Translation
from models.translator import Translator
from swarm_tf.cluster import world
from swarm_tf.config import ModelConfig, RunConfig
from tasks import token_metrics
from tasks.crossentropy import Crossentropy
from tasks.task import Task

_SCORE_SECONDS = 3600.0  # longest wait for another rank's translations


def build(config: RunConfig, workdir: str) -> Task:
    """See `tasks.build`."""
    loaded = translation.load(
        config.data,
        rank=world.rank(),
        size=world.size(),
        batch_size=config.train.batch_size,
        seed=config.seed,
        workdir=workdir,
        first=world.run_on_rank_zero,
        documents=config.model.memory_length > 0,
    )
    # Each rank has its own seed, so that the dropout noise of ranks is independent.
    seed = config.seed + world.rank()
    model = network(config.model, loaded.vocabulary.get_piece_size(), seed)
    smoothing = config.train.label_smoothing
    translator = Translator(model, loaded.vocabulary, max_length=config.data.max_length)
    return Task(
        data=loaded,
        model=model,
        loss=Crossentropy(smoothing),
        metrics=[
            token_metrics.loss(smoothing),
            token_metrics.accuracy(),
            token_metrics.Perplexity(),
        ],
        score=Score(translator, loaded) if config.train.bleu else dict,
        files={"vocabulary.model": loaded.vocabulary.serialized_model_proto()},
    )


def network(config: ModelConfig, vocabulary: int, seed: int | None = None) -> keras.Model:
    """The model of section `model`.

    Args:
      vocabulary: number of pieces.
      seed: of initial weights and dropout.
    """
    return models.build_translator(
        config.name,
        vocabulary=vocabulary,
        seed=seed,
        dropout=config.dropout,
        normalization=config.normalization,
        memory_length=config.memory_length,
    )


@dataclass(frozen=True)
class Score:
    """Translates the test split, a part on each rank, and compares it with the references."""

    translator: Translator
    data: Translation

    def __call__(self) -> dict[str, float | str]:
        """BLEU (0 to 100) of the detokenized texts, its signature, and the share of exact matches.

        sacrebleu (Post 2018, arXiv 1804.08771) computes BLEU; the signature names its options.
        """
        documents = self._documents(self.data.test_sources)
        own = self.translator.documents(documents[world.rank() :: world.size()])
        parts = world.gather(own, "the translations of the test split", _SCORE_SECONDS)
        translated = [[""]] * len(documents)
        for rank, part in enumerate(parts):
            translated[rank :: world.size()] = part
        found = [sentence for document in translated for sentence in document]
        return scores(found, self.data.test_references)

    def _documents(self, sentences: Sequence[str]) -> list[Sequence[str]]:
        length = self.data.segments or 1
        return [sentences[at : at + length] for at in range(0, len(sentences), length)]


def scores(translated: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """The scores that `Score` describes, from a translation and a reference per sentence."""
    bleu = sacrebleu.BLEU()
    score = bleu.corpus_score(translated, [references]).score
    exact = sum(text == reference for text, reference in zip(translated, references, strict=True))
    return {
        "bleu": score,
        "exact_match": exact / len(references),
        "bleu_signature": str(bleu.get_signature()),
    }
