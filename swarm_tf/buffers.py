"""Memory for messages: bytes that a tensor can use without a copy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

ALIGNMENT = 64
"""Bytes; the vector instructions of TensorFlow's kernels need it."""


def empty(size: int) -> Bytes:
    """Uninitialized and aligned: uint8 [size]."""
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size]


def is_aligned(memory: Bytes) -> bool:
    """Whether a tensor can use `memory` without a copy."""
    return bool(memory.ctypes.data % ALIGNMENT == 0)
