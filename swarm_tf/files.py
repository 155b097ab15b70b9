"""Writes files atomically: whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write(path: Path, content: bytes | memoryview) -> None:
    """Write a temporary file beside `path`, then rename it: readers see the old file or the new.

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
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Write the names in a directory to disk too, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def reason(error: OSError) -> str:
    """Why a file could not be written, in one line."""
    return os.strerror(error.errno) if error.errno else " ".join(str(error).split())


class _H5(io.BytesIO):
    """A file of weights in memory, for HDF5.

    On a full disk HDF5 would crash: when Python exits it repeats the writes that failed, and ends
    in a segmentation fault.
    """

    def __str__(self) -> str:  # Keras checks how the name ends
        return "memory.weights.h5"


def weights_of(model: Any, without: Sequence[Any] = ()) -> memoryview:
    """The file that `model.save_weights` would write, in memory.

    Args:
      without: parts of the model that are left out, such as its optimizer.
    """
    import keras  # only here: this module is light

    file = _H5()
    keras.saving.save_weights(model, file, objects_to_skip=without)
    return file.getbuffer()
