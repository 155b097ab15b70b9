"""Runs short programs, which may be missing, fail or hang."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

_SECONDS = 60.0


def run(*words: str, env: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Exit code, output and errors of a program; 1, "" and the reason if it can't run, or hangs."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_SECONDS, env=env)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, "", str(error)
    return done.returncode, done.stdout, done.stderr
