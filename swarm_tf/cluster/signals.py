"""How training ends before its time: a signal asks for it, and it ends in good order."""

from __future__ import annotations

import os
import signal
import socket
import threading
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""What users and schedulers send, and SIGUSR1, which every mpirun hands on to its ranks. (Open
MPI's kills them a quarter of a second after SIGTERM or SIGINT; swarmrun sends SIGUSR1.)"""

_received: list[signal.Signals] = []


def received() -> signal.Signals | None:
    """The signal that asks this rank to end; None if there was none, or nobody is `listening`."""
    return _received[0] if _received else None


class listening:
    """Within it, a first signal is remembered, and a second one ends the process at once.

    Signals reach the main thread only: elsewhere this does nothing, nor does it within itself.
    """

    # Not a generator: one that a failed training leaves open would be run at Python's exit.

    def __enter__(self) -> None:
        global _outermost
        self._outermost = threading.current_thread() is threading.main_thread() and not any(
            signal.getsignal(number) is _handler for number in SIGNALS
        )
        if not self._outermost:
            return
        # Python's handlers wait until TensorFlow returns from a block of steps. What C writes
        # into this pair does not, so another thread reads it.
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        self._thread = threading.Thread(target=_count, args=(self._ours,), daemon=True)
        self._thread.start()
        self._wakeup = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        # What was ignored before, as by nohup, stays so.
        listened_to = [
            number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN
        ]
        self._before = {number: signal.signal(number, _handler) for number in listened_to}
        _outermost = self

    def __exit__(self, *_: object) -> None:
        if not self._outermost:
            return
        self._restore()
        self._thread.join()
        self._ours.close()

    def _restore(self) -> None:
        """Handlers as they were."""
        global _outermost
        _outermost, self._outermost = None, False
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._theirs.close()
        _received.clear()


_outermost: listening | None = None


# A process that this one forks is a plain one: its signals are its own. Without this they would
# be written into the parent's pair, and end the parent's training. They wait until that is done.

_masks: list[set[int]] = []


def _before_fork() -> None:
    _masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS))


def _after_fork_in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop())


def _after_fork_in_child() -> None:
    if _outermost is not None:
        _outermost._ours.close()
        _outermost._restore()
    _after_fork_in_parent()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)


def _handler(number: int, frame: FrameType | None) -> None:
    """Only that it is there makes C write the number."""


def _count(signals: socket.socket) -> None:
    while data := signals.recv(1):
        if data[0] not in SIGNALS:  # some other one that has a handler
            continue
        if _received:
            os._exit(128 + data[0])
        _received.append(signal.Signals(data[0]))
