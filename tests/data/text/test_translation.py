"""Laws of a rank's sentence pairs: nothing is lost from the texts to the batches of all ranks."""

import hashlib
import itertools
import logging
import math
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from data.text import texts, tokens, translation
from data.text.vocabulary import BOS, EOS, PADDING, UNKNOWN
from models.stack import Size
from models.transformer_xl import TransformerXL
from swarm_tf.config import DataConfig
from swarm_tf.errors import UsageError
from swarm_tf.runner.evaluation import evaluate
from testbed import tfds_standin
from tests import other_process
from tests.data import same_batches


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """libreoffice_help, whole or a stand-in, with a directory for its tokens."""
    cache = str(tmp_path_factory.mktemp("cache"))
    where = tfds_standin.libreoffice_help(str(tmp_path_factory.mktemp("tfds")))
    return {"name": "libreoffice_help", "data_dir": where, "cache_dir": cache}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """120 pairs of wmt17_translate/de-en, all of the same form."""
    cache, where = (str(tmp_path_factory.mktemp(name)) for name in ("cache", "tfds"))
    pair = lambda i: {"de": f"Das ist Satz {i + 1000}.", "en": f"Sentence {i + 1000} is this."}  # noqa: E731
    tfds_standin.write("wmt17_translate/de-en", where, pair, {"train": 120, "test": 30})
    keys = {"name": "wmt17_translate/de-en", "data_dir": where, "cache_dir": cache}
    return keys | {"vocabulary_size": 320}


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    keys = {"name": "number_words", "cache_dir": cache, "vocabulary_size": 400}
    return keys | {"train_examples": 2000}


@pytest.fixture
def load(tmp_path):
    def load(keys, *, rank=0, size=1, batch_size=2048, seed=0, documents=False, **more):
        return translation.load(
            DataConfig(**{"vocabulary_size": 1000, **keys, **more}),
            rank=rank,
            size=size,
            batch_size=batch_size,
            seed=seed,
            workdir=str(tmp_path),
            first=lambda action, what: action(),
            documents=documents,
        )

    return load


def _sentences(part, ids):
    return [part.vocabulary.decode(row) for row in ids.tolist()]


def _pairs(part, batches):
    """The sentence pairs of the batches as texts, in order."""
    return [
        pair
        for inputs, labels, _ in batches
        for pair in zip(
            _sentences(part, inputs["source"].numpy()),
            _sentences(part, labels.numpy()),
            strict=True,
        )
    ]


def _texts_of(part):
    return list(zip(part.test_sources, part.test_references, strict=True))


# --- batches --------------------------------------------------------------------------------------


def test_batches_have_the_documented_form(load, real):
    part = load(real)
    seen = set()
    for inputs, labels, weights in itertools.chain(part.train.take(300), part.test):
        source, target, labels = (t.numpy() for t in (inputs["source"], inputs["target"], labels))
        assert source.dtype == target.dtype == labels.dtype == np.int32
        assert weights.dtype == tf.float32
        seen.add(labels.shape)
        assert source.shape == target.shape == labels.shape == tuple(weights.shape)
        assert (target[:, 0] == BOS).all()
        lengths = (labels != PADDING).sum(axis=1)
        held = np.arange(labels.shape[1]) < lengths[:, np.newaxis]
        np.testing.assert_array_equal(labels != PADDING, held)  # padding only at the end
        np.testing.assert_array_equal(weights, held)
        np.testing.assert_array_equal(target != PADDING, held)
        np.testing.assert_array_equal(target[:, 1:][held[:, 1:]], labels[:, :-1][held[:, 1:]])
        for ids in (source, labels):
            last = (ids != PADDING).sum(axis=1) - 1
            assert (np.take_along_axis(ids, last[:, np.newaxis], axis=1) == EOS).all()
            assert (ids == EOS).sum() == len(ids)
            assert UNKNOWN not in ids
            assert BOS not in ids
    rows = {width: rows for rows, width in part.shapes}
    assert len(rows) <= 12
    assert all(b <= rows[width] for b, width in seen)  # only the last test batches have fewer
    assert {tuple(labels.shape) for _, labels, _ in part.train.take(300)} <= set(part.shapes)
    assert all(2048 - width < b * width <= 2048 for b, width in part.shapes)


@pytest.mark.parametrize("documents", [False, True])
def test_less_than_a_quarter_is_padding(load, real, numbers, documents):
    keys = numbers | {"train_examples": None} if documents else real
    part = load(keys, batch_size=4096, documents=documents)
    held = positions = 0
    for inputs, labels, _ in part.train.take(math.ceil(part.steps_per_pass)):
        both = np.stack([inputs["source"], labels])
        held, positions = held + (both != PADDING).sum(), positions + both.size
    assert 1 - held / positions < 0.2


@pytest.mark.parametrize("partition", ["iid", "static"])
@pytest.mark.parametrize("size", [1, 3, pytest.param(7, marks=pytest.mark.slow)])
def test_ranks_together_see_every_pair_once_an_epoch(load, small, partition, size):
    # Batches of one row, so that each rank's epoch ends on a batch's end.
    width = load(small).shapes[-1][1]
    parts = [
        load(small, rank=rank, size=size, batch_size=width, partition=partition)
        for rank in range(size)
    ]
    assert {rows for part in parts for rows, _ in part.shapes} == {1}
    seen = []
    for part in parts:
        of_rank = _pairs(part, part.train.take(2 * part.shard_examples))
        seen.append((of_rank[: part.shard_examples], of_rank[part.shard_examples :]))
    expected = sorted((f"Das ist Satz {i}.", f"Sentence {i} is this.") for i in range(1000, 1120))
    for epoch in zip(*seen, strict=True):
        assert sorted(itertools.chain(*epoch)) == expected
    for first, second in seen:
        assert first != second
        assert size == 1 or (set(first) == set(second)) == (partition == "static")
    assert {part.steps_per_pass for part in parts} == {120 / size}
    assert {part.train_examples for part in parts} == {120}


def test_a_pass_has_the_given_numbers_of_steps_and_tokens(load, real):
    part = load(real, batch_size=4096)
    batches = part.train.take(3 * math.ceil(part.steps_per_pass))
    counted = sum(float(tf.reduce_sum(weights)) for _, _, weights in batches)
    passes = 3 * math.ceil(part.steps_per_pass) / part.steps_per_pass
    assert counted / passes == pytest.approx(part.target_tokens, rel=0.02)
    other = load(real, batch_size=4096, rank=1, size=2)
    assert other.steps_per_pass == pytest.approx(part.steps_per_pass / 2)
    assert other.shard_examples == part.train_examples // 2
    assert other.target_tokens == part.target_tokens


def test_long_pairs_are_left_out_with_a_warning(load, real, caplog):
    whole = load(real)
    with caplog.at_level(logging.WARNING):
        part = load(real, max_length=20)
    stored = list(texts.find("libreoffice_help", real["data_dir"], 0).read("train"))
    lengths = [
        max(len(whole.vocabulary.encode(text)) + 1 for text in pair)
        for some in stored
        for pair in zip(some["de"], some["en"], strict=True)
    ]
    long = sum(length > 20 for length in lengths)
    assert part.dropped == long > 0
    assert part.train_examples == len(lengths) - long
    assert f"{long} training pairs are left out" in caplog.text
    assert whole.dropped + whole.train_examples == len(lengths)
    assert part.shapes[-1][1] == 20
    rows = [row for _, labels, _ in part.test for row in labels.numpy().tolist()]
    encoded = part.vocabulary.encode(list(part.test_references), add_eos=True)
    assert sorted([i for i in row if i] for row in rows) == sorted(ids[:20] for ids in encoded)


@pytest.mark.parametrize("to", ["en", "de"])
def test_the_batches_of_the_test_split_decode_to_its_texts(load, real, to):
    part = load(real, target=to)
    assert (part.source, part.target) == (("de", "en") if to == "en" else ("en", "de"))
    assert part.segments is None
    assert sorted(_pairs(part, part.test)) == sorted(_texts_of(part))
    info = tfds.core.read_only_builder.builder_from_files(
        "libreoffice_help", data_dir=real["data_dir"]
    )
    stored = info.as_dataset(split="test", shuffle_files=False).as_numpy_iterator()
    assert _texts_of(part) == [(one[part.source].decode(), one[to].decode()) for one in stored]


# --- determinism ----------------------------------------------------------------------------------


def _digest(part):
    tensors = [tf.nest.flatten(batch) for batch in part.train.take(20)]
    model = part.vocabulary.serialized_model_proto()
    parts = [model, *(t.numpy().tobytes() for batch in tensors for t in batch)]
    return hashlib.sha256(b"".join(parts)).hexdigest()


_PROGRAM = """
import sys; from tests.data.text import test_translation as t
from data.text import translation
from swarm_tf.config import DataConfig
where, workdir = sys.argv[1:]
config = DataConfig(name="wmt17_translate/de-en", data_dir=where, vocabulary_size=320)
first = lambda action, what: action()
part = translation.load(
    config, rank=0, size=1, batch_size=200, seed=0, workdir=workdir, first=first
)
print(t._digest(part))
"""


@pytest.mark.slow
def test_batches_depend_on_the_seed_but_not_on_the_process_or_its_threads(load, small, tmp_path):
    expected = _digest(load(small, batch_size=200))
    workdir = str(tmp_path / "other")
    assert other_process.last_word(_PROGRAM, small["data_dir"], workdir) == expected
    tf.random.set_seed(0)
    assert _digest(load(small, batch_size=200)) == expected
    others = [load(small, batch_size=200, seed=1), load(small, batch_size=200, rank=1, size=2)]
    assert len({expected, *map(_digest, others)}) == 3


def test_every_iteration_starts_from_the_beginning(load, small):
    part = load(small)
    first, second = (_pairs(part, part.train.take(5)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("first", [1, 150])
def test_a_resumed_run_begins_at_any_batch(load, small, first):
    same_batches.assert_begins_at(load(small, rank=1, size=2), first)


# --- tokens on disk -------------------------------------------------------------------------------


def _files(where):
    return {p: p.stat().st_mtime_ns for p in Path(where).rglob("*") if p.is_file()}


def test_tokens_are_made_once_for_both_directions(load, small, tmp_path):
    cache = {"cache_dir": str(tmp_path / "cache")}
    there = load(small, **cache)
    files = _files(cache["cache_dir"])
    assert files
    back = load(small, **cache, source="en", rank=1, size=2, seed=5, max_length=100)
    assert _files(cache["cache_dir"]) == files
    assert back.test_references == there.test_sources
    there, back = (part.vocabulary.serialized_model_proto() for part in (there, back))
    assert there == back


def test_another_vocabulary_size_or_text_has_other_tokens(load, small, tmp_path):
    cache = str(tmp_path / "cache")
    load(small, cache_dir=cache)
    load(small, cache_dir=cache, vocabulary_size=310)
    assert len(list(Path(cache).iterdir())) == 2
    where = str(tmp_path / "tfds")
    pair = lambda i: {"de": f"Ein anderer Satz, {i}.", "en": f"Another sentence, {i}."}  # noqa: E731
    tfds_standin.write("wmt17_translate/de-en", where, pair, {"train": 120, "test": 30})
    other = load(small, cache_dir=cache, data_dir=where)
    assert len(list(Path(cache).iterdir())) == 3
    assert _pairs(other, other.train.take(1))[0][0].startswith("Ein anderer Satz")


def test_without_a_cache_the_tokens_are_in_the_workdir(load, small, tmp_path):
    load(small, cache_dir=None)
    names = sorted(path.name.split("-")[0] for path in tmp_path.iterdir())
    assert names == ["tokens"]


def test_a_cache_that_cannot_be_written_is_refused(load, small):
    with pytest.raises(
        UsageError, match=r"^data\.cache_dir=/dev/null/x cannot store the tokens of"
    ):
        load(small, cache_dir="/dev/null/x")


def test_only_rank_0_writes(load, small, tmp_path):
    """The other ranks wait in `first`, and then read the tokens."""
    order = []

    def rank_1(action, what):
        order.append(what)
        load(small, cache_dir=None)  # as rank 0, meanwhile

    def nobody(action, what):
        pass

    def other(first):
        return translation.load(
            DataConfig(**small | {"cache_dir": None}),
            rank=1,
            size=2,
            batch_size=2048,
            seed=0,
            workdir=str(tmp_path),
            first=first,
        )

    with pytest.raises(UsageError, match=r"not seen by this rank; data.cache_dir"):
        other(nobody)
    assert not any(tmp_path.iterdir())
    assert other(rank_1).shard_examples == 60
    assert len(order) == 1


class _Broken:
    """A set whose test split cannot be read."""

    identity, languages, segments = "broken", ("de", "en"), None

    def examples(self, split):
        return 100

    def read(self, split):
        if split == "test":
            raise OSError("a disk failed")
        pairs = [tfds_standin.sentences(i) for i in range(100)]
        yield {language: [pair[language].encode() for pair in pairs] for language in self.languages}


def test_tokens_that_could_not_be_finished_leave_no_files(tmp_path):
    place = tokens.folder(_Broken(), ("de", "en"), 500, str(tmp_path))
    with pytest.raises(OSError, match="a disk failed"):
        tokens.write(_Broken(), ("de", "en"), 500, place)
    assert not any(tmp_path.iterdir())


def test_of_two_runs_that_tokenize_at_once_the_first_one_counts(tmp_path):
    place = tokens.folder(_Broken(), ("de", "en"), 500, str(tmp_path))

    class Overtaken(_Broken):
        def read(self, split):
            place.mkdir(exist_ok=True)
            (place / "theirs").touch()
            return super().read("train")

    tokens.write(Overtaken(), ("de", "en"), 500, place)
    assert [path.name for path in tmp_path.rglob("*")] == [place.name, "theirs"]
    tokens.write(_Broken(), ("de", "en"), 500, place)  # the text is not even read


def test_a_large_set_is_sampled_evenly(monkeypatch):
    class Large(_Broken):
        def examples(self, split):
            return 120

        def read(self, split):
            for part in np.arange(120).reshape(12, 10):
                yield {language: [b"%s %d" % (language.encode(), i) for i in part]
                       for language in self.languages}  # fmt: skip

    everything = list(tokens._sample(Large(), ("de", "en")))
    assert len(everything) == len(set(everything)) == 240
    monkeypatch.setattr(tokens, "_SAMPLE", 60)
    some = list(tokens._sample(Large(), ("de", "en")))
    assert some == list(tokens._sample(Large(), ("de", "en")))
    assert len(some) == len(set(some)) == 60
    chosen = [int(text.split()[1]) for text in some if text.startswith(b"de")]
    assert len(chosen) == 30
    assert len({i % 10 for i in chosen}) > 5
    assert np.mean(chosen) == pytest.approx(60, abs=20)  # deviation 5.5


# --- documents ------------------------------------------------------------------------------------


def _numbers_of_words():
    """Maps the words of each training number to the number."""
    corpus = texts.find("number_words", None, 0, 2000)
    words = [text.decode() for some in corpus.read("train") for text in some["en"]]
    return dict(zip(words, corpus.numbers("train").ravel().tolist(), strict=True))


def test_rows_of_documents_count_up_until_a_reset(load, numbers):
    part = load(numbers, batch_size=100, documents=True)
    rows = 100 // max(width for _, width in part.shapes)
    assert {b for b, _ in part.shapes} == {rows}
    assert 1 < len(part.shapes) <= 12
    assert part.train.element_spec[0]["source"].shape.as_list() == [rows, None]
    assert part.train.element_spec[0]["reset"].shape == (rows,)
    assert part.steps_per_pass == pytest.approx(2000 / rows)
    of_words = _numbers_of_words()
    before = np.full(rows, -1)
    for step, (inputs, labels, _) in enumerate(part.train.take(400)):
        longest = (np.stack([inputs["source"], labels]) != PADDING).sum(axis=2).max()
        width = min(width for _, width in part.shapes if width >= longest)
        assert labels.shape == inputs["source"].shape == (rows, width)
        now = np.array([of_words[w] for w in _sentences(part, inputs["source"].numpy())])
        reset = inputs["reset"].numpy()
        assert reset.tolist() == [step % 20 == 0] * rows
        np.testing.assert_array_equal(now[~reset], before[~reset] + 1)
        np.testing.assert_array_equal(reset, now % 20 == 0)
        before = now


@pytest.mark.parametrize("first", [20, 47, 913])
def test_a_resumed_run_begins_within_a_document(load, numbers, first):
    """Each document has 20 batches."""
    part = load(numbers, batch_size=100, documents=True, rank=1, size=2)
    same_batches.assert_begins_at(part, first)


@pytest.mark.parametrize("partition", ["iid", pytest.param("static", marks=pytest.mark.slow)])
def test_ranks_together_see_every_document_once_an_epoch(load, numbers, partition):
    # Batches of one row, so that each rank's epoch ends on a batch's end.
    width = load(numbers, documents=True).shapes[-1][1]
    keys = {"batch_size": width, "documents": True, "partition": partition}
    parts = [load(numbers, rank=rank, size=2, **keys) for rank in range(2)]
    assert {part.shard_examples for part in parts} == {1000}
    assert {part.steps_per_pass for part in parts} == {1000}
    seen = [words for part in parts for words, _ in _pairs(part, part.train.take(1000))]
    assert sorted(seen) == sorted(_numbers_of_words())


def test_documents_are_tested_once_and_in_order(load, numbers):
    """Test batches have as many rows as training batches; some rows are only padding."""
    part = load(numbers, batch_size=200, documents=True)
    assert part.segments == 20
    assert part.test.element_spec == part.train.element_spec
    found, batches = [], list(part.test)
    for at in range(0, len(batches), 20):
        together = batches[at : at + 20]
        found += zip(*(_pairs(part, [batch]) for batch in together), strict=True)
        for segment, (inputs, labels, weights) in enumerate(together):
            assert set(inputs["reset"].numpy()) == {segment == 0}
            np.testing.assert_array_equal(weights, labels != PADDING)
    sentences = _texts_of(part)
    documents = [tuple(sentences[at : at + 20]) for at in range(0, 500, 20)]
    padding = [(("", ""),) * 20] * (len(found) - len(documents))
    assert padding
    assert sorted(found) == sorted(documents + padding)


def test_a_model_with_a_memory_is_evaluated_on_documents(load, numbers):
    """The loss is that of all documents in one batch without padding rows."""
    part = load(numbers, batch_size=200, documents=True)
    size = Size(layers=1, width=8, hidden=12, heads=2, dropout=0.0)
    keys = {"normalization": "pre", "dropout": 0.0, "seed": 0, "name": "tested"}
    model = TransformerXL(400, size, memory_length=8, **keys)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    model.compile(loss=loss)
    memory, expected = model.empty_memory(25), 0.0
    for segment in range(20):
        sources, labels = (
            tf.ragged.constant(part.vocabulary.encode(list(side[segment::20]), add_eos=True))
            for side in (part.test_sources, part.test_references)
        )
        targets = tf.concat([tf.fill([25, 1], BOS), labels[:, :-1]], axis=1).to_tensor()
        logits, memory = model.forward(sources.to_tensor(), targets, memory)
        labels = labels.to_tensor()
        expected += float(loss(labels, logits, labels != PADDING))
    mean = evaluate(model, part.test)["loss"]  # of all batches
    assert mean * len(part.test) == pytest.approx(expected, rel=1e-5)


def test_documents_with_a_long_pair_are_left_out_whole(load, numbers):
    part = load(numbers, batch_size=12, documents=True, max_length=12)
    assert part.dropped > 0
    assert part.dropped % 20 == part.train_examples % 20 == 0
    assert part.dropped + part.train_examples == 2000
    corpus = texts.find("number_words", None, 0, 2000)
    expected = []
    for some in corpus.read("train"):
        document = [(s.decode(), t.decode()) for s, t in zip(some["en"], some["de"], strict=True)]
        tokenized = part.vocabulary.encode([text for pair in document for text in pair])
        if max(map(len, tokenized)) < 12:  # and EOS
            expected += document
    assert part.train_examples == len(expected)
    assert sorted(_pairs(part, part.train.take(len(expected)))) == sorted(expected)


# --- refusals -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Unusual sets: texts in three languages, images, and texts without a test split."""
    where = str(tmp_path_factory.mktemp("odd"))
    text = tfds.features.Text()
    three = tfds.features.FeaturesDict({"de": text, "en": text, "fr": text})
    pair = lambda i: {"de": f"Satz {i}", "en": f"Sentence {i}", "fr": f"Phrase {i}"}  # noqa: E731
    tfds_standin.write_own("three", where, three, {"train": 50, "validation": 5}, pair)
    tfds_standin.write_own("untested", where, three, {"train": 50}, pair)
    tfds_standin.write(
        "mnist", where, tfds_standin.images((28, 28, 1), 10), {"train": 8, "test": 8}
    )
    return where


def test_a_set_of_three_languages_with_a_validation_split_is_read(load, odd):
    part = load({"name": "three", "data_dir": odd, "source": "fr"}, vocabulary_size=290)
    assert (part.source, part.target) == ("fr", "de")
    assert sorted(part.test_sources) == [f"Phrase {i}" for i in range(5)]
    assert _pairs(part, part.train.take(1))[0][0].startswith("Phrase ")


def test_the_test_split_may_have_longer_sentences_than_training(load, tmp_path):
    where = str(tmp_path / "tfds")
    features = tfds.features.Translation(("de", "en"))
    pair = lambda i: {"de": "ä " * i + "x", "en": "ö " * i + "y"}  # noqa: E731
    tfds_standin.write_own("growing", where, features, {"train": 30, "test": 40}, pair)
    part = load({"name": "growing", "data_dir": where}, vocabulary_size=267)
    assert len(part.test_sources) == 40
    assert sorted(_pairs(part, part.test)) == sorted(_texts_of(part))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"name": "nosuchset"}, "nosuchset is unknown: neither number_words, nor a set in"),
        ({"name": "digits"}, "digits is unknown: neither number_words, nor"),
        ({"name": "wmt14_translate/de-en"}, r"is not in data.data_dir=.*: prepare it with python"),
        ({"name": "mnist"}, "data.name=mnist is not a set of sentence pairs; use number_words"),
        ({"name": "untested"}, "has the splits train, but needs train and test or validation"),
        ({"name": "three", "source": "ru"}, "data.source=ru is no language .* use one of de, en"),
        ({"name": "three", "source": "en", "target": "en"}, "=en must be two languages"),
        ({"name": "three", "partition": "dirichlet"}, "data.partition=dirichlet needs classes"),
        (
            {"name": "three", "train_examples": 40},
            "data.train_examples=40 has no effect .* at None",
        ),
        (
            {"name": "number_words", "train_examples": 30},
            "=30 must be a multiple of 20, .* 949260,",
        ),
        ({"name": "number_words", "train_examples": 949280}, "=949280 must .* from 20 to 949260,"),
        ({"name": "number_words", "train_examples": 0}, "data.train_examples=0 must .* from 20 to"),
        ({"name": "three", "vocabulary_size": 9}, "data.vocabulary_size=9 is too small"),
        ({"name": "three", "vocabulary_size": 9999}, "data.vocabulary_size=9999 is too large"),
        ({"name": "three", "vocabulary_size": 290, "max_length": 1}, "data.max_length=1 leaves no"),
    ],
)
def test_sets_that_cannot_be_used_are_refused_in_one_line(load, odd, keys, words):
    with pytest.raises(UsageError, match=words) as refusal:
        load({"data_dir": odd} | keys)
    assert "\n" not in str(refusal.value)


def test_impossible_batches_ranks_and_documents_are_refused(load, small):
    with pytest.raises(UsageError, match=r"train.batch_size=3 .* must be at least"):
        load(small, batch_size=3)
    with pytest.raises(UsageError, match="120 examples among 121 ranks"):
        load(small, size=121)
    with pytest.raises(UsageError, match="does not say where documents begin"):
        load(small, documents=True)
