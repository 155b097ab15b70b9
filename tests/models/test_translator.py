"""Laws of the translator: sentences are independent, documents have a memory, its limits."""

import numpy as np
import pytest
import tensorflow as tf

from models import decoding
from models.stack import Size
from models.transformer import Transformer
from models.transformer_xl import TransformerXL
from models.translator import Translator
from swarm_tf.errors import UsageError

BOS, EOS = 1, 2
LETTERS = "abcdefghijklmnopqrst"
SIZE = Size(layers=1, width=12, hidden=20, heads=3, dropout=0.1)
TEXTS = ["abcd", "q", "", "hgfedcba", "tsr", " ", "klmnopqrst", "abcd", "aq", "c"]
DOCUMENTS = [["abc", "hgfed", "tt"], ["qr"], [], ["s", "", "tsrqp", "k", "c"], ["", " "], ["abc"]]


class Letters:
    """A vocabulary with a token for each letter and none for blanks."""

    @staticmethod
    def encode(text):
        return [3 + LETTERS.index(letter) for letter in text if letter != " "]

    @staticmethod
    def decode(ids):
        return "".join(LETTERS[i - 3] for i in ids)


def _build(memory_length=None, seed=2):
    """A Transformer, or a TransformerXL with this memory. Its weights are large, so that its output
    varies and does not always end."""
    keys = {"normalization": "pre", "dropout": 0.1, "seed": 0, "name": "tested"}
    if memory_length is None:
        model = Transformer(3 + len(LETTERS), SIZE, **keys)
    else:
        model = TransformerXL(3 + len(LETTERS), SIZE, memory_length=memory_length, **keys)
    rng = np.random.default_rng(seed)
    for weight in model.trainable_variables:
        scale = 0.3 if weight.name in ("gamma", "beta", "table") else 1.0
        weight.assign(rng.normal(float(weight.name == "gamma"), scale, weight.shape))
    return model


def _expected(model, documents, max_length=256):
    """The tokens of each sentence, decoded greedily with a whole pass for each token."""

    @tf.function(reduce_retracing=True)
    def read(source, target, memory):
        if isinstance(model, TransformerXL):
            return model.forward(source, target, memory)
        return model({"source": source, "target": target}), memory

    found = []
    for document in documents:
        found.append([])
        memory = model.empty_memory(1) if isinstance(model, TransformerXL) else ()
        for text in document:
            ids, hypothesis = Letters.encode(text)[: max_length - 1], []
            if ids:
                source = tf.constant([[*ids, EOS]])
                while EOS not in hypothesis and len(hypothesis) < len(ids) + 1 + 50:
                    logits, _ = read(source, tf.constant([[BOS, *hypothesis]]), memory)
                    hypothesis.append(EOS + int(tf.argmax(logits[0, -1, EOS:])))
                words = [token for token in hypothesis if token != EOS]
                _, memory = read(source, tf.constant([[BOS, *words]]), memory)
            found[-1].append(hypothesis)
    return found


def _letters(documents):
    return [
        [Letters.decode([token for token in tokens if token != EOS]) for tokens in document]
        for document in documents
    ]


# --- sentences ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "memory_length",
    [5, pytest.param(None, marks=pytest.mark.slow), pytest.param(0, marks=pytest.mark.slow)],
)
def test_a_greedy_translation_does_not_depend_on_other_sentences(memory_length):
    model = _build(memory_length)
    hypotheses = _expected(model, [[text] for text in TEXTS])
    ends = {EOS in tokens for (tokens,) in hypotheses if tokens}
    assert ends == {True, False}, "some hypotheses must end and some must not"
    translator = Translator(model, Letters, beams=1)
    assert translator(TEXTS) == [text for (text,) in _letters(hypotheses)]


@pytest.mark.slow
def test_a_beam_search_does_not_depend_on_other_sentences():
    model = _build(seed=1)

    @tf.function(input_signature=[tf.TensorSpec([1, None], tf.int32)])
    def search(source):
        length = tf.shape(source)[1] + 50
        keys = {"batch": 1, "max_length": length, "beams": 3, "alpha": 1.0}
        return decoding.search(model.step, model.start(source, length), **keys)

    expected = []
    for text in TEXTS:
        tokens, _ = search(tf.constant([[*Letters.encode(text), EOS]]))
        ids = [token for token in tokens[0, 0].numpy() if token > EOS]
        expected.append(Letters.decode(ids) if text.strip() else "")
    assert len(set(expected)) > 4, "translations must differ"
    assert Translator(model, Letters, beams=3, alpha=1.0)(TEXTS) == expected


@pytest.mark.slow
def test_batches_and_order_change_nothing():
    translator = Translator(_build(5), Letters)
    expected = translator(TEXTS)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    for translator.batch_size in (1, 110, 200):
        assert translator([TEXTS[i] for i in order]) == [expected[i] for i in order]


def test_no_batch_has_more_than_batch_size_positions():
    """Hypotheses are up to 50 longer than sources. A longer sentence is a batch of its own."""
    translator = Translator(_build(), Letters, beams=1, batch_size=110)
    batches, search = [], translator._search

    def record(source, memory):
        batches.append(source)
        return search(source, memory)

    translator._search = record
    translator(TEXTS)
    assert all(len(b) == 1 or len(b) * (b.shape[1] + 50) <= 110 for b in batches)
    rows = [row[row != 0].tolist() for batch in batches for row in batch]
    texts = [text for text in TEXTS if text.strip()]
    assert sorted(rows) == sorted([*Letters.encode(text), EOS] for text in texts)
    assert len(batches) < len(texts)


def test_sentences_longer_than_max_length_are_cut():
    model = _build()
    translator = Translator(model, Letters, beams=1, max_length=5)
    assert translator(["abcdefghij", "abcd", "abc"]) == translator(["abcd", "abcdq", "abc"])
    expected = _expected(model, [["abcdefghij"]], max_length=5)
    assert [translator(["abcdefghij"])] == _letters(expected)


def test_empty_input_gives_empty_output():
    translator = Translator(_build(5), Letters)
    assert translator([]) == translator.documents([]) == []
    assert translator(["", " ", "\t"]) == ["", "", ""]
    assert translator.documents([[], [""], ["", " "]]) == [[], [""], ["", ""]]


# --- documents ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory_length", "batch_size"),
    [
        (3, 4096),
        pytest.param(100, 1, marks=pytest.mark.slow),
        pytest.param(100, 4096, marks=pytest.mark.slow),
    ],
)
def test_documents_equal_a_reference_that_goes_sentence_by_sentence(memory_length, batch_size):
    model = _build(memory_length)
    expected = _letters(_expected(model, DOCUMENTS))
    translator = Translator(model, Letters, beams=1, batch_size=batch_size)
    assert translator.documents(DOCUMENTS) == expected
    alone = translator([text for document in DOCUMENTS for text in document])
    assert alone != [text for document in expected for text in document], "memory has no effect"


@pytest.mark.parametrize("memory_length", [None, 0])
def test_without_memory_a_document_is_translated_as_single_sentences(memory_length):
    translator = Translator(_build(memory_length), Letters)
    expected = [translator(document) for document in DOCUMENTS]
    assert translator.documents(DOCUMENTS) == expected


# --- the function ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("memory_length", [5, None])
def test_one_trace_serves_all_texts_and_later_weights(memory_length):
    model = _build(memory_length)
    translator = Translator(model, Letters, batch_size=200)
    before = translator(TEXTS)
    for weight, other in zip(
        model.trainable_variables, _build(memory_length, seed=0).trainable_variables, strict=True
    ):
        weight.assign(other)
    assert translator(TEXTS) == Translator(model, Letters)(TEXTS) != before
    translator.documents(DOCUMENTS)
    assert translator._search.experimental_get_tracing_count() == 1


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"max_length": 0}, "max_length=0 must be 1 or more"),
        ({"beams": 0}, "beams=0 must be 1 or more"),
        ({"batch_size": 0}, "batch_size=0 must be 1 or more"),
        ({"alpha": -0.1}, "alpha=-0.1 must be 0 or more"),
        ({"alpha": float("nan")}, "alpha=nan must be 0 or more"),
    ],
)
def test_impossible_settings_are_refused(keys, line):
    with pytest.raises(UsageError, match=f"^{line}$"):
        Translator(_build(), Letters, **keys)
