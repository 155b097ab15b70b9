"""Which task a configuration selects, and how translations are scored."""

import pytest

import tasks
from swarm_tf import config as c
from swarm_tf.errors import UsageError
from tasks import translation


def make(model: dict, data: dict) -> c.RunConfig:
    return c.RunConfig(
        model=c.ModelConfig(**model),
        data=c.DataConfig(**data),
        train=c.TrainConfig(epochs=1, batch_size=512),
        optimizer=c.OptimizerConfig(learning_rate=0.1),
    )


DIGITS = {"name": "digits"}
NUMBERS = {"name": "number_words", "vocabulary_size": 400}


@pytest.mark.parametrize(
    ("model", "data", "line"),
    [
        ({"name": "resnet9"}, DIGITS, "model.name=resnet9 is unknown; use one of resnet8, "),
        ({"name": "resnet9"}, NUMBERS, "for classification; transformer_tiny, "),
        (
            {"name": "resnet8", "memory_length": 8},
            DIGITS,
            "model.memory_length=8 has no effect on task=classification; leave it at 0",
        ),
        ({"name": "resnet8", "dropout": 0.1}, DIGITS, "model.dropout=0.1 has no effect"),
        ({"name": "resnet8"}, NUMBERS, "data.vocabulary_size=400 has no effect on task=classific"),
        ({"name": "resnet8"}, DIGITS | {"source": "en"}, "data.source=en has no effect"),
        ({"name": "resnet8"}, DIGITS | {"target": "en"}, "data.target=en has no effect"),
        ({"name": "resnet8"}, DIGITS | {"max_length": 5}, "leave it at 256"),
        ({"name": "resnet8"}, DIGITS | {"train_examples": 40}, "data.train_examples=40 has no"),
        ({"name": "resnet8"}, DIGITS | {"cache_dir": "x"}, "data.cache_dir=x has no effect"),
        ({"name": "transformer_tiny"}, NUMBERS | {"augment": True}, "effect on task=translation"),
        ({"name": "transformer_tiny"}, NUMBERS | {"image_size": 32}, "leave it at 224"),
        ({"name": "transformer_tiny"}, DIGITS, "data.name=digits"),
        (
            {"name": "transformer_tiny", "memory_length": 8},
            NUMBERS,
            "model.memory_length=8 needs a model with memory, transformer_xl_tiny",
        ),
    ],
)
def test_keys_that_do_not_fit_the_task_are_refused_in_one_line(model, data, line, tmp_path):
    with pytest.raises(UsageError) as refusal:
        tasks.build(make(model, data), str(tmp_path))
    assert line in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_key_task_selects_the_task_and_its_models(tmp_path):
    config = make({"name": "resnet8"}, DIGITS)
    config.task = "classification"
    assert tasks.build(config, str(tmp_path)).model.name == "resnet8"
    config.task = "translation"
    with pytest.raises(UsageError, match=r"model.name=resnet8 is unknown; use one of transformer_"):
        tasks.build(config, str(tmp_path))
    config.task = "speech"
    with pytest.raises(UsageError, match="task=speech must be one of classification, translation"):
        tasks.build(config, str(tmp_path))


def test_scores_are_bleu_and_the_share_of_exact_matches():
    references = ["The cat sat on the mat today.", "Ein Satz, wie er im Buche steht."]
    result = translation.scores(references, references)
    assert result["bleu"] == pytest.approx(100)
    assert result["exact_match"] == 1
    assert result["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|")
    # One of two is right; the other has 7 of 8 words and 6 of 7, 4 of 6, 3 of 5 n-grams.
    result = translation.scores(["The cat sat on a mat today.", references[1]], references)
    precisions = (8 + 9 - 1) / 17, (7 + 8 - 2) / 15, (6 + 7 - 3) / 13, (5 + 6 - 4) / 11
    expected = 1.0
    for precision in precisions:
        expected *= precision**0.25
    assert result["bleu"] == pytest.approx(100 * expected)
    assert result["exact_match"] == 0.5
