"""Hides the notes that TensorFlow writes to stderr when it is imported, on every rank."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

_NOTE = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog"
    rb"|I\d{4} .*(oneDNN custom operations|optimized to use available CPU instructions)"
    rb"|To enable the following instructions"
)


@contextlib.contextmanager
def start() -> Iterator[None]:
    """A context to import TensorFlow in; all else written to stderr in it is printed at its end.

    The notes are written before TensorFlow reads any setting that would silence them.
    """
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(screen, 2)
            os.close(screen)
            written.seek(0)
            for line in written:
                if not _NOTE.match(line):
                    os.write(2, line)
