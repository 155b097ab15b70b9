"""A command line becomes a RunConfig, or one line that says what is allowed."""

from pathlib import Path

import pytest

from swarm_tf import config
from swarm_tf.errors import UsageError
from swarm_tf.runner import flags, keys
from swarm_tf.runner.validation import validate

SOURCE = """
from swarm_tf import config as c

def get_config(name="resnet8"):
    return c.RunConfig(
        model=c.ModelConfig(name=name),
        data=c.DataConfig(name="digits"),
        train=c.TrainConfig(epochs=10, batch_size=32),
        optimizer=c.OptimizerConfig(learning_rate=0.1),
    )
"""
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "small.py"
    file.write_text(SOURCE)
    return str(file)


def parse(path, *overrides):
    return flags.parse(["train.py", f"--config={path}", "--workdir=w", *overrides])


def refusal(*argv):
    with pytest.raises(UsageError) as error:
        flags.parse(["train.py", *argv])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_overrides_the_file_decides(path):
    run, workdir, resume = parse(path)
    assert (run.model.name, run.swarm.bits, workdir) == ("resnet8", 8, "w")
    assert resume == "auto"


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        (["--config.swarm.bits=4"], "swarm.bits", 4),
        (["--config.swarm.bits", "4"], "swarm.bits", 4),
        (["--config.swarm.bits=4", "--config.swarm.bits=2"], "swarm.bits", 2),
        (["--config.algorithm=single"], "algorithm", "single"),
        (["--config.train.max_steps=7"], "train.max_steps", 7),
        (["--config.train.epochs=0.5"], "train.epochs", 0.5),
        (["--config.data.data_dir=/data"], "data.data_dir", "/data"),
        (["--config.train.jit_compile"], "train.jit_compile", True),
        (["--config.swarm.local_steps=auto"], "swarm.local_steps", "auto"),
        (["--config.swarm.local_steps=2"], "swarm.local_steps", 2),
        (["--config.train.checkpoint_every=None"], "train.checkpoint_every", None),
        (["--config.train.max_steps=3", "--config.train.max_steps=None"], "train.max_steps", None),
        (["--config.data.source=en", "--config.data.source=None"], "data.source", None),
        (["--config.swarm.average_statistics=false"], "swarm.average_statistics", False),
        (["--noconfig.swarm.average_statistics"], "swarm.average_statistics", False),
        (
            ["--config.optimizer.step_boundaries=(0.5, 0.75)"],
            "optimizer.step_boundaries",
            [0.5, 0.75],
        ),
    ],
)
def test_an_override_changes_one_key(path, arguments, key, value):
    run, *_ = parse(path, *arguments)
    changed = config.flatten(config.to_dict(run))
    assert changed.pop(key) == value
    unchanged = config.flatten(config.to_dict(parse(path)[0]))
    assert changed == {k: v for k, v in unchanged.items() if k != key}


def test_order_of_flags_does_not_matter(path):
    run, *others = flags.parse(
        ["train.py", "--config.swarm.bits=4", "--resume=must", "--workdir", "w", "--config", path]
    )
    assert (run.swarm.bits, others) == (4, ["w", "must"])


def test_a_file_may_take_an_argument(path):
    assert parse(f"{path}:resnet20")[0].model.name == "resnet20"


@pytest.mark.parametrize("argument", ["", ":resnet20", ":a:b"])
def test_a_path_may_have_colons(tmp_path, argument):
    file = tmp_path / "a:b" / "c:d.py"
    file.parent.mkdir()
    file.write_text(SOURCE)
    assert parse(f"{file}{argument}")[0].model.name == (argument[1:] or "resnet8")
    missing = refusal(f"--config={file.parent}/c:.py{argument}", "--workdir=w")
    assert missing.endswith(f"is not a file; did you mean {file}?")


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--config.swarm.bitz=4", "--config.swarm.bitz is no key; did you mean swarm.bits?"),
        ("--config.bits=4", "did you mean swarm.bits? allowed are swarm.average_statistics, "),
        ("--config.train.bits=4", "did you mean swarm.bits?"),
        ("--config.name=x", "did you mean model.name or data.name or optimizer.name?"),
        ("--config.swarm=4", "--config.swarm is no key; allowed are swarm.average_statistics, "),
        ("--config.zzz=4", "--config.zzz is no key; allowed are algorithm, seed, "),
        ("--config.swarm.bits=four", "swarm.bits=four must be a whole number"),
        ("--config.swarm.bits=7.5", "swarm.bits=7.5 must be a whole number"),
        ("--config.train.max_steps=x", "train.max_steps=x must be a whole number"),
        ("--config.train.epochs=ten", "train.epochs=ten must be a finite number"),
        ("--config.train.jit_compile=si", "train.jit_compile=si must be True or False"),
        ("--config.optimizer.step_boundaries=(1,", "must be a tuple of numbers such as"),
        ("--config.swarm.bits", "Missing value for flag --config.swarm.bits; use train.py"),
        ("--wrkdir=x", "Unknown command line flag 'wrkdir'; use train.py --config="),
        ("stray", "unexpected argument stray; use train.py --config="),
    ],
)
def test_wrong_arguments_are_refused(path, argument, words):
    assert words in refusal(f"--config={path}", "--workdir=w", argument)


def test_missing_flags_are_refused(path):
    assert "--config is missing; use train.py --config=" in refusal("--workdir=w")
    assert "--workdir is missing" in refusal(f"--config={path}")
    assert "Missing value for flag --workdir" in refusal(f"--config={path}", "--workdir")


def test_a_missing_file_suggests_a_similar_name(path):
    line = refusal(f"--config={path.replace('small', 'smal')}", "--workdir=w")
    assert line.endswith(f"smal.py is not a file; did you mean {path}?")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def get_config(:", "fails: SyntaxError"),
        ("import no_such_module", " fails in line 1: ModuleNotFoundError: No module named"),
        ("x = 1", "has no attribute 'get_config'"),
        ("def get_config():\n    return {}", "must return a RunConfig, not dict"),
        (SOURCE.replace("epochs=", "epoch="), "unexpected keyword argument 'epoch'"),
    ],
)
def test_a_broken_file_is_refused(tmp_path, source, words):
    file = tmp_path / "broken.py"
    file.write_text(source)
    assert words in refusal(f"--config={file}", "--workdir=w")


def test_help_lists_the_keys_and_their_values(path, capsys):
    with pytest.raises(SystemExit) as end:
        flags.parse(["train.py", f"--config={path}", "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: train.py --config=")
    assert "  --config.swarm.bits=8\n      bits per weight on the wire" in shown


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("[!_]*.py")), ids=lambda file: file.stem)
def test_every_recipe_is_valid(file):
    run = flags.load(str(file))
    for size in (1, 4):
        validate(run, size)


def test_the_documented_keys_are_those_of_the_code():
    """If it fails: python -m swarm_tf.runner.keys > docs/configuration.md."""
    assert (CONFIGS.parent / "docs" / "configuration.md").read_text() == keys.page()
