"""Laws of the vocabulary: it loses no text, depends on texts alone, and has the given size."""

import pytest

from data.text import vocabulary
from swarm_tf.errors import UsageError
from testbed import tfds_standin

TEXTS = [text.encode() for i in range(400) for text in tfds_standin.sentences(i).values()]


@pytest.fixture(scope="module")
def learnt():
    return vocabulary.load(vocabulary.train(TEXTS, 600))


@pytest.mark.parametrize(
    "text",
    [
        "a word",
        " two  spaces,   and one at the end ",
        "tab\tand ½ ﬁ … non-breaking\u00a0space",
        "never seen: 漢字 🙂 Ǆ \u200b é e\u0301",
        "",
    ],
)
def test_every_text_is_decoded_as_it_was(learnt, text):
    ids = learnt.encode(text, add_eos=True)
    assert learnt.decode(ids) == text
    assert vocabulary.UNKNOWN not in ids
    assert ids[-1] == vocabulary.EOS


def test_special_pieces_have_their_numbers_and_no_text(learnt):
    assert learnt.get_piece_size() == 600
    special = (learnt.pad_id(), learnt.bos_id(), learnt.eos_id(), learnt.unk_id())
    assert special == (0, 1, 2, 3)
    ids = learnt.encode("wörter", add_bos=True, add_eos=True)
    assert (ids[0], ids[-1]) == (vocabulary.BOS, vocabulary.EOS)
    assert learnt.decode([*ids, 0, 0]) == "wörter"


def test_frequent_words_have_few_pieces(learnt):
    assert len(learnt.encode("words")) < len("words")
    assert sum(map(len, learnt.encode(TEXTS))) < sum(map(len, TEXTS)) / 2


def test_the_vocabulary_depends_on_the_texts_alone():
    assert vocabulary.train(TEXTS, 400) == vocabulary.train(TEXTS, 400)
    assert vocabulary.train(TEXTS, 400) != vocabulary.train(TEXTS[:300], 400)


def test_impossible_sizes_are_refused_with_the_limit():
    with pytest.raises(UsageError, match=r"data.vocabulary_size=99999 is too large") as large:
        vocabulary.train(TEXTS, 99999)
    most = int(str(large.value).split("the texts give ")[1].split()[0])
    assert vocabulary.load(vocabulary.train(TEXTS, most)).get_piece_size() == most
    with pytest.raises(UsageError, match=r"data.vocabulary_size=100 is too small") as small:
        vocabulary.train(TEXTS, 100)
    least = int(str(small.value).split("characters are ")[1].split(";")[0])
    assert vocabulary.load(vocabulary.train(TEXTS, least + 1)).get_piece_size() == least + 1
    with pytest.raises(UsageError, match="is too small"):
        vocabulary.train(TEXTS, least - 1)
