"""Signals that end training early, but cleanly."""

from __future__ import annotations

import os
import signal
import socket
import threading
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Those that users and schedulers send, and SIGUSR1, which every mpirun forwards to its ranks.
(Open MPI's mpirun kills ranks 0.25 s after SIGTERM or SIGINT; swarmrun sends SIGUSR1.)"""

_received: list[signal.Signals] = []


def received() -> signal.Signals | None:
    """The signal that asks this rank to stop; None if none has come, or outside `listening`."""
    return _received[0] if _received else None


class listening:
    """A context in which a first signal is remembered, and a second one ends the process at once.

    Only the main thread may set handlers: in another thread, and when nested, it does nothing.
    """

    # Not a generator: Python would resume, at its exit, one that a failed training left open.

    def __enter__(self) -> None:
        global _outermost
        self._outermost = threading.current_thread() is threading.main_thread() and not any(
            signal.getsignal(number) is _handler for number in SIGNALS
        )
        if not self._outermost:
            return
        # Python runs handlers only when TensorFlow returns from a block of steps. Its C handler
        # writes the number into this socket pair at once; another thread reads it there.
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._thread = threading.Thread(target=_record, args=(self._reader,), daemon=True)
        self._thread.start()
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        # Signals that are ignored, as by nohup, stay ignored.
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
        self._reader.close()

    def _restore(self) -> None:
        """Set the handlers that were set before."""
        global _outermost
        _outermost, self._outermost = None, False
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._writer.close()
        _received.clear()


_outermost: listening | None = None


# A forked process handles its own signals. Without these hooks they would be written into the
# parent's socket pair, and end the parent's training. Signals are blocked while the hooks run.

_masks: list[set[int]] = []


def _before_fork() -> None:
    _masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS))


def _after_fork_in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop())


def _after_fork_in_child() -> None:
    if _outermost is not None:
        _outermost._reader.close()
        _outermost._restore()
    _after_fork_in_parent()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)


def _handler(number: int, frame: FrameType | None) -> None:
    """Does nothing; but only for a signal with a Python handler does C write the number."""


def _record(signals: socket.socket) -> None:
    while data := signals.recv(1):
        if data[0] not in SIGNALS:  # another signal that has a handler
            continue
        if _received:
            os._exit(128 + data[0])
        _received.append(signal.Signals(data[0]))
