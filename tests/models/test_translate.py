"""Laws of translate.py: one line for each line, as Translator gives it; refusals in one line."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import models
import translate
from data.text import vocabulary
from models.translator import Translator
from testbed import tfds_standin

ROOT = Path(__file__).parents[2]
SENTENCES = [text.encode() for i in range(400) for text in tfds_standin.sentences(i).values()]
TEXT = ["one two three", "", "four", "five six", " ", "", "seven", "one two three", "four"]
DOCUMENTS = [TEXT[:1], TEXT[1:2], TEXT[2:4], TEXT[4:6], TEXT[6:]]

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras', on saving


@pytest.fixture(scope="module")
def pieces():
    return vocabulary.train(SENTENCES, 400)


def _finish(workdir, pieces, **keys):
    """Writes the files of a finished run with this model; returns the model."""
    workdir.mkdir()
    config = {"model": keys, "data": {"max_length": 20}}
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "vocabulary.model").write_bytes(pieces)
    model = models.build_translator(**keys, vocabulary=400, seed=0)
    for weight in model.trainable_variables:
        if weight.name == "kernel":
            weight.assign(3 * weight)  # so that the output depends on the input
    model.save_weights(workdir / "consensus.weights.h5")
    return model


def _run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "translate.py", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        **options,
    )


def _lines(documents):
    """Each text as bytes of one line, whatever it contains."""
    return [
        " ".join(text.splitlines()).encode() + b"\n" for document in documents for text in document
    ]


def test_a_transformer_translates_each_line_by_itself(tmp_path, pieces):
    model = _finish(tmp_path / "run", pieces, name="transformer_tiny", dropout=0.0)
    file = tmp_path / "text"
    file.write_bytes("\r\n".join(TEXT).encode())  # Windows line ends; none after the last line
    done = _run(tmp_path / "run", file, "--beams=2", "--alpha=0")
    assert (done.stderr, done.returncode) == (b"", 0)
    translator = Translator(model, vocabulary.load(pieces), max_length=20, beams=2, alpha=0)
    assert done.stdout.splitlines(keepends=True) == _lines([translator(TEXT)])


@pytest.mark.slow
def test_a_transformer_xl_translates_documents_from_standard_input(tmp_path, pieces):
    keys = {"name": "transformer_xl_tiny", "memory_length": 16, "normalization": "pre"}
    model = _finish(tmp_path / "run", pieces, **keys)
    done = _run(tmp_path / "run", input="".join(line + "\n" for line in TEXT).encode())
    assert (done.stderr, done.returncode) == (b"", 0)
    translator = Translator(model, vocabulary.load(pieces), max_length=20)
    expected = _lines(translator.documents(DOCUMENTS))
    assert done.stdout.splitlines(keepends=True) == expected
    assert [line == b"\n" for line in expected] == [not line.strip() for line in TEXT]
    assert expected != _lines([translator(TEXT)]), (
        "memory must change a translation, or this tests nothing"
    )


@pytest.mark.slow
def test_a_closed_pipe_ends_the_program_without_a_message(tmp_path, pieces):
    _finish(tmp_path / "run", pieces, name="transformer_tiny")
    process = subprocess.Popen(
        [sys.executable, "translate.py", tmp_path / "run", "--beams=1"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    process.stdin.write(b"one\n")
    process.stdin.close()
    assert process.stderr.read() == b""
    assert process.wait() == -signal.SIGPIPE


# --- refusals -------------------------------------------------------------------------------------


def _refused(capsys, *arguments):
    """The one line on stderr with which translate.py refuses its arguments."""
    assert translate.main(["./translate.py", *map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("translate.py: ")
    assert printed.err.endswith("\n")
    assert printed.err.count("\n") == 1
    return printed.err.removeprefix("translate.py: ").strip()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--beams=0"], "--beams=0 must be 1 or more"),
        (["--beams=many"], "argument --beams: invalid int value: 'many'"),
        (["--alpha=-1"], "--alpha=-1.0 must be 0 or more"),
        (["--alpha=nan"], "--alpha=nan must be 0 or more"),
        (["text", "--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_bad_flags_are_refused(flags, line, capsys):
    assert _refused(capsys, "run", *flags) == line


def test_text_files_that_cannot_be_read_are_refused(tmp_path, capsys):
    for name in translate.FILES:
        (tmp_path / name).touch()
    file = tmp_path / "text"
    line = f"FILE={file} cannot be read: No such file or directory"
    assert _refused(capsys, tmp_path, file) == line
    file.write_bytes("käse".encode("latin-1"))
    assert _refused(capsys, tmp_path, file) == f"FILE={file} is not UTF-8 at byte 1; convert it"


@pytest.mark.parametrize("name", translate.FILES)
def test_a_missing_file_of_the_run_is_named_before_any_text_is_read(name, tmp_path, pieces, capsys):
    run = tmp_path / "run"
    refusal = "WORKDIR={} has no {}; use that of a finished translation run"
    assert _refused(capsys, run) == refusal.format(run, "config.json")
    _finish(run, pieces, name="transformer_tiny")
    (run / name).unlink()
    assert _refused(capsys, run) == refusal.format(run, name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"{}"),
        ("config.json", b'{"model": {"name": "transformer_tiny", "depth": 3}, "data": {}}'),
        ("vocabulary.model", b"words"),
    ],
)
def test_a_damaged_file_of_the_run_is_named(name, content, tmp_path, pieces, capsys):
    run, file = tmp_path / "run", tmp_path / "text"
    file.write_text("one\n")
    _finish(run, pieces, name="transformer_tiny")
    (run / name).write_bytes(content)
    assert _refused(capsys, run, file).startswith(f"{run / name} is damaged, or is not of")


def test_a_run_of_an_image_model_is_refused(tmp_path, capsys):
    for name in translate.FILES:
        (tmp_path / name).touch()
    config = {"model": {"name": "resnet20"}, "data": {"max_length": 20}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "text").write_text("one\n")
    line = _refused(capsys, tmp_path, tmp_path / "text")
    assert line.startswith(
        f"WORKDIR={tmp_path} is of model.name=resnet20, which does not translate; use a run of "
        "transformer_tiny, "
    )


@pytest.mark.slow
def test_weights_of_another_run_are_refused(tmp_path, pieces):
    _finish(tmp_path / "run", pieces, name="transformer_tiny")
    (tmp_path / "run" / "vocabulary.model").write_bytes(vocabulary.train(SENTENCES, 390))
    done = _run(tmp_path / "run", input=b"one\n")
    assert (done.stdout, done.returncode) == (b"", 2)
    assert done.stderr.decode() == (
        f"translate.py: {tmp_path}/run/consensus.weights.h5 is damaged, or is not of the same run "
        "and version as the rest of WORKDIR\n"
    )
