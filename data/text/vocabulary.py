"""The vocabulary that both languages share: byte-pair encoding by sentencepiece.

BPE (Sennrich et al. 2016) because Vaswani et al. 2017, 5.1, translate with it, and because its
training counts in whole numbers: the same texts give the same pieces on any machine and with any
number of threads, which the floating-point sums of a unigram model do not promise. Texts are not
normalised, and what is too rare for a piece of its own is spelt in UTF-8 bytes: decoding gives
every text back as it was.
"""

import io
from collections.abc import Iterable

import sentencepiece

from swarm_tf.errors import UsageError

PADDING, BOS, EOS, UNKNOWN = range(4)

# The commonest characters that together make up this share of the texts are pieces; WMT17 has
# thousands of others.
_COVERAGE = 0.9995

Vocabulary = sentencepiece.SentencePieceProcessor


def train(texts: Iterable[bytes], size: int) -> bytes:
    """Learns a vocabulary of `size` pieces, the special ones and 256 bytes among them.

    Returns:
      The model; `load` makes a vocabulary of it.

    Raises:
      UsageError: if the texts have too many characters for `size`, or too few words.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            hard_vocab_limit=False,  # so that the refusal can say how many pieces there are
            character_coverage=_COVERAGE,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            pad_id=PADDING,
            bos_id=BOS,
            eos_id=EOS,
            unk_id=UNKNOWN,
            minloglevel=3,
        )
    except RuntimeError as error:
        if "required_chars" not in str(error):
            raise
        least = str(error).partition(" vs ")[2].partition(".")[0]
        raise UsageError(
            f"data.vocabulary_size={size} is too small: special pieces, bytes and single "
            f"characters are {least}; set more than that"
        ) from error
    found = load(model.getvalue()).get_piece_size()
    if found < size:
        raise UsageError(
            f"data.vocabulary_size={size} is too large: the texts give {found} pieces; "
            "set that or less"
        )
    return model.getvalue()


def load(model: bytes) -> Vocabulary:
    """The vocabulary that `train` made: `encode`, `decode`, `get_piece_size`."""
    return Vocabulary(model_proto=model)
