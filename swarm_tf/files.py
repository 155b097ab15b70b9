"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write(path: Path, content: bytes | memoryview) -> None:
    """Through a temporary file beside `path` and a rename: a reader sees the old file or the new.

    When this returns, `content` is on disk.

    Raises:
      OSError: it cannot be written, as on a full disk; the old file stays, the temporary one goes.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not every file system can
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    """Also the name is on disk then."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason(error: OSError) -> str:
    """Why a file could not be written, in one line."""
    return os.strerror(error.errno) if error.errno else " ".join(str(error).split())
