"""Questions to other programs, which may be missing, fail or never answer."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

_SECONDS = 60.0


def ask(*words: str, env: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Exit code, output and errors of a program that answers soon, or why there are none."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_SECONDS, env=env)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, "", str(error)
    return done.returncode, done.stdout, done.stderr
