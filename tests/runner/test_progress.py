"""The progress line: rewritten on a terminal, else printed once an epoch."""

import dataclasses
import io

import pytest

from swarm_tf.runner.progress import Progress, Status

STATUS = Status(
    epoch=3.25,
    epochs=10,
    loss=0.12345,
    accuracy=0.971,
    exchanges=1234,
    bytes_sent=12_300_000,
    exposed_fraction=0.021,
)
LINE = "epoch 3.25/10  loss 0.1235  acc  97.1%  1234 exchanges  12.3 MB  2.1% exposed"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_status_fits_a_terminal():
    assert str(STATUS) == LINE
    assert len(LINE) < 80


def test_a_plain_stream_gets_one_line_an_epoch(monkeypatch):
    monkeypatch.delenv("SWARM_TF_LIVE", raising=False)
    stream = io.StringIO()
    progress = Progress(stream)
    progress.update(STATUS)
    progress.end_epoch(STATUS)
    assert stream.getvalue() == f"{LINE}\n"


@pytest.mark.parametrize(("stream", "live"), [(Terminal(), None), (io.StringIO(), "1")])
def test_live_line_is_rewritten_and_ends_once_an_epoch(monkeypatch, stream, live):
    monkeypatch.delenv("SWARM_TF_LIVE", raising=False)
    if live:
        monkeypatch.setenv("SWARM_TF_LIVE", live)
    monkeypatch.setenv("COLUMNS", "80")
    progress = Progress(stream)
    progress.update(STATUS)
    progress.update(dataclasses.replace(STATUS, exchanges=9))
    progress.end_epoch(STATUS)
    first, second, third = stream.getvalue().split("\r")[1:]
    assert first == LINE
    assert second == LINE.replace("1234 ex", "9 ex") + "   "
    assert third == f"{LINE}\n"


def test_live_line_never_wraps(monkeypatch):
    monkeypatch.setenv("SWARM_TF_LIVE", "1")
    monkeypatch.setenv("COLUMNS", "40")
    stream = io.StringIO()
    Progress(stream).update(STATUS)
    assert stream.getvalue() == "\r" + LINE[:39]
