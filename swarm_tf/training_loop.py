"""What a callback can find out about the loop that trains, from the frames of its callers.

Keras tells a callback neither which other callbacks there are, nor that an exception has ended the
loop.
"""

from __future__ import annotations

import sys
from types import FrameType

import keras

_FRAMES = 10  # callers among which Keras' list of callbacks is looked for


def callback_list() -> keras.callbacks.CallbackList | None:
    """Keras' list that is calling the current hook; None if a loop calls the hook itself."""
    frame = frame_of_callback_list()
    return None if frame is None else frame.f_locals["self"]


def frame_of_callback_list() -> FrameType | None:
    """The frame of `callback_list`, or None; to be called by a function that a hook calls."""
    frame: FrameType | None = sys._getframe(2)
    for _ in range(_FRAMES):
        if frame is None:
            break
        if isinstance(frame.f_locals.get("self"), keras.callbacks.CallbackList):
            return frame
        frame = frame.f_back
    return None


def set_epoch_length(batches: int) -> None:
    """Let `model.fit`, if it is calling the current hook, take so many batches in the next epoch.

    Keras finds out how long an epoch is at the start, and takes it for the length of all. If the
    data end earlier it takes half a step: the optimizer counts it, though it has no batch.
    """
    frame = frame_of_callback_list()
    caller = None if frame is None else frame.f_back
    epochs = None if caller is None else caller.f_locals.get("epoch_iterator")
    if epochs is not None:
        epochs._num_batches = batches


def is_running(frame: FrameType | None) -> bool:
    """Whether the loop of `frame` still runs; True for None, where that can't be known."""
    if frame is None:
        return True
    for top in sys._current_frames().values():
        at: FrameType | None = top
        while at is not None:
            if at is frame:
                return True
            at = at.f_back
    return False
