"""A deadline, kept by a second process, for a call that holds Python's global lock."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Its standard input is closed when the call returns, or this process ends.
_WATCH = """
import os, select, signal, sys
pid, seconds, message = sys.argv[1:]
if not select.select([sys.stdin], [], [], float(seconds))[0]:
    print(message, file=sys.stderr, flush=True)
    os.kill(int(pid), signal.SIGKILL)
"""


@contextmanager
def deadline(seconds: float, message: str) -> Iterator[None]:
    """Print `message` and kill this process if the `with` block takes more than `seconds`."""
    command = [sys.executable, "-I", "-S", "-c", _WATCH, str(os.getpid()), str(seconds), message]
    with subprocess.Popen(command, stdin=subprocess.PIPE):
        yield
