"""The vocabulary that both languages share: byte-pair encoding by sentencepiece.

Vaswani et al. 2017, 5.1, use BPE (Sennrich et al. 2016). Its training uses only integer counts, so
the same texts give the same pieces on any machine and with any number of threads. The sums of a
unigram model are floating-point numbers and do not guarantee that. Texts are not normalised, and
characters that are too rare to be a piece are encoded as UTF-8 bytes, so decoding restores every
text exactly.
"""

import io
from collections.abc import Iterable

import sentencepiece

from swarm_tf.errors import UsageError

PADDING, BOS, EOS, UNKNOWN = range(4)

# The most frequent characters, which make up this share of the texts, are pieces. WMT17 has
# thousands of other characters.
_COVERAGE = 0.9995

Vocabulary = sentencepiece.SentencePieceProcessor


def train(texts: Iterable[bytes], size: int) -> bytes:
    """Learns a vocabulary of `size` pieces, including special pieces and 256 bytes.

    Returns:
      The serialized model, the argument of `load`.

    Raises:
      UsageError: if the texts have too many different characters for `size`, or too few words.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            hard_vocab_limit=False,  # otherwise the error could not name the possible size
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
            f"characters are {least}; set a larger size"
        ) from error
    found = load(model.getvalue()).get_piece_size()
    if found < size:
        raise UsageError(
            f"data.vocabulary_size={size} is too large: the texts give {found} pieces; "
            f"set at most {found}"
        )
    return model.getvalue()


def load(model: bytes) -> Vocabulary:
    """The vocabulary from a model of `train`; it has `encode`, `decode` and `get_piece_size`."""
    return Vocabulary(model_proto=model)
