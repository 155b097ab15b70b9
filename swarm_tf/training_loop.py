"""The loop that trains, as a callback can see it: by the frames of its callers.

Keras tells a callback neither which others stand beside it, nor that the loop has ended by an
exception.
"""

from __future__ import annotations

import sys
from types import FrameType

import keras

_FRAMES = 10  # of callers within which Keras' list of callbacks is


def callback_list() -> keras.callbacks.CallbackList | None:
    """Keras' list that calls a hook right now; None if a loop calls the hook itself."""
    frame = frame_of_callback_list()
    return None if frame is None else frame.f_locals["self"]


def frame_of_callback_list() -> FrameType | None:
    """The frame of Keras' list of callbacks, on behalf of a function that a hook has called."""
    frame: FrameType | None = sys._getframe(2)
    for _ in range(_FRAMES):
        if frame is None:
            break
        if isinstance(frame.f_locals.get("self"), keras.callbacks.CallbackList):
            return frame
        frame = frame.f_back
    return None


def is_running(frame: FrameType | None) -> bool:
    """Whether a loop still trains; assumed where it can't be known."""
    if frame is None:
        return True
    for top in sys._current_frames().values():
        at: FrameType | None = top
        while at is not None:
            if at is frame:
                return True
            at = at.f_back
    return False
