"""The driver of a node: gives the pure protocol its lock, its thread, its clock and a transport.

    training thread                               communication thread, one a transport
    Driver.request, finish, ...           ->      commands, carried out by `Driver.poll`
    Driver.view                           <-      the node's `View`, replaced after each change
    Replica.take, publish                 <->     Replica.terms, corrections

Only the communication thread touches the node. The training thread queues commands and reads the
view, both under the lock, so it never waits for a kernel or for MPI.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from swarm_tf.buffers import Bytes
from swarm_tf.codec import Channel, Floats
from swarm_tf.events import (
    BytesSent,
    Counters,
    Event,
    ExchangeEnded,
    MessageDropped,
    log_line,
)
from swarm_tf.history.record import Record
from swarm_tf.protocol import wire
from swarm_tf.protocol.messages import Outbox, Reason
from swarm_tf.protocol.node import Node, View
from swarm_tf.transport.base import Transport

_SHORTEST_SLEEP = 0.0001
_LONGEST_SLEEP, _LONGEST_IN_TRANSFER = 0.01, 0.002
_TRANSFER_SECONDS = 1.0
_log = logging.getLogger("swarm_tf")


class Driver:
    """Drives one node over one transport, from `start` to `stop`.

    Args:
      channels: how each chunk of the model travels.
      transport: to the other ranks; while the driver runs, only its thread uses it.
      mode, seed, timeout_seconds: see `Node`.
      fingerprint: 64 bits, of model, configuration and training; messages with it are the node's.
      record: of every exchange; None for no record.

    Attributes:
      replica: the copy that others average with.
      error: the exception that has ended the driver, if one has.
    """

    def __init__(
        self,
        channels: Sequence[Channel],
        transport: Transport,
        mode: str = "nonblocking",
        *,
        seed: int = 0,
        timeout_seconds: float = 60.0,
        fingerprint: int = 0,
        record: Record | None = None,
    ) -> None:
        self.transport, self.fingerprint, self.record = transport, fingerprint, record
        self.error: BaseException | None = None
        self._node = Node(
            transport.rank,
            transport.size,
            channels,
            mode,
            seed=seed,
            timeout_seconds=timeout_seconds,
            repeat_seconds=transport.repeat_seconds,
            notes_corrections=record is not None,
            guard=threading.Lock(),
            now=time.monotonic(),
        )
        self.replica = self._node.replica
        self._thread: CommunicationThread | None = None
        # Shared by both threads, under `_changed`.
        self._changed = threading.Condition()
        self._commands: list[Callable[[], None]] = []
        self._carried_out = True
        self._requested: tuple[int, int] | None = None  # partner and step, among the commands
        self._view = self._node.view
        self._counters = Counters()
        self._ended: list[ExchangeEnded] = []
        self._adopted: list[Floats] | None = None

    # The training thread.

    def start(self) -> None:
        """Begin to serve requests."""
        self._thread = CommunicationThread.serving(self)

    def stop(self) -> None:
        """Stop serving, after the message that is being handled.

        Raises:
          the exception that ended the driver earlier, if one did.
        """
        if self._thread is not None:
            self._thread.remove(self)
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise the exception that ended the driver, if one did."""
        if self.error is not None:
            raise self.error

    def request(self, partner: int, step: int, *, adopt: bool = False) -> None:
        """See `Node.request`."""
        with self._changed:  # or the other thread could run between these two lines
            self._requested = partner, step
            self._command(lambda: self._node.request(partner, step, adopt=adopt))

    def leave_boundary(self) -> None:
        """See `Node.leave_boundary`."""
        self._command(self._node.leave_boundary)

    def finish(self, step: int, *, stop: bool = False) -> None:
        """See `Node.finish`."""
        self._command(lambda: self._node.finish(step, time.monotonic(), stop=stop))

    def request_stop(self) -> None:
        """See `Node.request_stop`."""
        if not self.view.stop_requested:
            self._command(self._node.request_stop)

    def leave_swarm(self, reason: Reason) -> None:
        """See `Node.leave_swarm`."""
        self._command(lambda: self._node.leave_swarm(reason))

    def close(self) -> None:
        """See `Node.close`."""
        self._command(self._node.close)

    def state(self, timeout: float) -> dict[str, Any]:
        """See `Node.state`.

        Raises:
          TimeoutError: the communication thread has not answered within `timeout` seconds.
        """
        if self._thread is None:
            return self._node.state()
        found: list[dict[str, Any]] = []
        self._command(lambda: found.append(self._node.state()))
        if self._wait_for(lambda view: True, timeout) is None:
            raise TimeoutError(f"the communication thread gave no answer in {timeout:g} s")
        self.check()
        return found[0]

    def restore(self, saved: Mapping[str, Any], *, own: bool) -> None:
        """See `Node.restore`; before `start`."""
        self._node.restore(saved, own=own)

    def _command(self, command: Callable[[], None]) -> None:
        with self._changed:
            self._commands.append(command)
            self._carried_out = False
        if self._thread is not None:
            self._thread.wake()

    @property
    def view(self) -> View:
        """The node's view, as of the last change."""
        with self._changed:
            return self._view

    @property
    def busy_seconds(self) -> float:
        """CPU time of the communication thread so far."""
        thread = self._thread
        return 0.0 if thread is None else thread.busy_seconds

    @property
    def pending_step(self) -> int | None:
        """The local step whose exchange is not over yet; None when a new one may start."""
        with self._changed:
            return self._view.pending_step if self._requested is None else self._requested[1]

    @property
    def unanswered(self) -> tuple[int, ...]:
        """Partners that have not answered yet, late ones included."""
        with self._changed:
            requested = () if self._requested is None else (self._requested[0],)
            return requested + self._view.unanswered

    @property
    def outstanding(self) -> int:
        """Exchanges that are not over, without those that have waited for too long."""
        with self._changed:
            return self._view.outstanding + (self._requested is not None)

    def wait(self, timeout: float) -> View | None:
        """Wait until the exchange is over and all commands are carried out.

        Returns:
          the view at that moment; None if it does not come within `timeout` seconds.
        """
        return self._wait_for(lambda view: view.may_go_on, timeout)

    def wait_announced(self, timeout: float) -> None:
        """Wait until the last announcement has been sent."""
        self._wait_for(lambda view: view.has_announced, timeout)

    def _wait_for(self, holds: Callable[[View], bool], timeout: float) -> View | None:
        """Wait until `holds(view)` and all commands are carried out, or the driver has failed."""
        with self._changed:
            over = self._changed.wait_for(
                lambda: self.error is not None or (self._carried_out and holds(self._view)),
                timeout,
            )
            return self._view if over else None

    def last_seen(self, rank: int) -> tuple[float, int]:
        """When the last message of `rank` came (monotonic clock), and its local steps then."""
        return self._node.membership.last_seen[rank]

    def take_ended(self) -> list[ExchangeEnded]:
        """This rank's exchanges that ended since the last call, without harmless ones."""
        with self._changed:
            ended, self._ended = self._ended, []
            return ended

    def take_adopted(self) -> list[Floats] | None:
        """The model of a partner in chunks, if one has come since the last call."""
        with self._changed:
            adopted, self._adopted = self._adopted, None
            return adopted

    @property
    def counters(self) -> Counters:
        """What this rank has exchanged so far."""
        with self._changed:
            return self._counters

    # Either thread.

    def note(self, *events: Event) -> None:
        """Count, record and log events."""
        with self._changed:
            for event in events:
                self._counters = self._counters.after(event)
                if isinstance(event, ExchangeEnded) and not event.harmless:
                    self._ended.append(event)
        for event in events:
            if self.record is not None:
                self.record.note(event)
            if line := log_line(self.transport.rank, event):
                _log.log(*line)

    # The communication thread.

    def receive(self, source: int, head: bytes, payload: Bytes) -> None:
        """React to a message if it is valid; otherwise count it as dropped."""
        try:
            message = wire.read(source, head, payload, self.fingerprint)
        except wire.Unreadable as reason:
            self.note(MessageDropped(str(reason)))
            return
        out = self._node.handle(message, time.monotonic())
        self._finish_turn(out)

    def poll(self) -> bool:
        """Carry out commands and send what is due; returns whether there was anything."""
        with self._changed:
            commands, self._commands = self._commands, []
        for command in commands:
            command()
        may_change = bool(commands) or self._node.may_change
        out = self._node.poll(time.monotonic())
        if may_change or out or self._node.has_events:
            self._finish_turn(out)
        return bool(out or commands)

    def _finish_turn(self, out: Outbox) -> None:
        """Process events, send messages, and show the training thread the new state."""
        if events := self._node.take_events():
            self.note(*events)
        for to, message in out:
            head, payload = wire.pack(message, self.fingerprint)
            self.note(BytesSent(len(head) + len(payload)))
            self.transport.send(to, head, payload)
        view, adopted = self._node.view, self._node.take_adopted()
        with self._changed:
            if adopted is not None:
                self._adopted = adopted
            carried_out = not self._commands
            if (view, carried_out) != (self._view, self._carried_out):
                self._view, self._carried_out = view, carried_out
                if carried_out:
                    self._requested = None
                self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """End by an exception, which the training thread will raise."""
        with self._changed:
            self.error = error
            self._changed.notify_all()


class CommunicationThread(threading.Thread):
    """One thread per transport, for all trainings; it hands each message to its driver.

    It polls, since a blocking receive would spin a core. Between polls it sleeps about a quarter of
    the time since the last message, so the delay stays in proportion to how rare messages are, but
    at most 10 ms, and 2 ms while a message is on its way.

    Attributes:
      busy_seconds: CPU time that this thread has used so far.
    """

    def __init__(self, transport: Transport) -> None:
        super().__init__(name=f"swarm-tf rank {transport.rank}", daemon=True)
        self.transport = transport
        self._drivers: dict[int, Driver] = {}  # by fingerprint; replaced as a whole
        self._turn = threading.RLock()
        self._wake = threading.Event()
        self.busy_seconds = 0.0

    @classmethod
    def serving(cls, driver: Driver) -> CommunicationThread:
        """The thread of the driver's transport; it serves the driver from now on."""
        with _lock:
            running = _running.get(driver.transport)
            if running is None:
                running = _running[driver.transport] = cls(driver.transport)
            running._drivers = {**running._drivers, driver.fingerprint: driver}
            if not running.is_alive():
                running.start()
            return running

    def wake(self) -> None:
        """There is work: end the current sleep."""
        self._wake.set()

    def remove(self, driver: Driver) -> None:
        """Stop serving a driver; with the last one the thread ends."""
        with self._turn:
            last = self._drop([driver])
        self._wake.set()
        if last and threading.current_thread() is not self:
            self.join()

    def _drop(self, drivers: list[Driver]) -> bool:
        """Stop serving `drivers`; returns whether none is left."""
        with _lock:
            rest = {k: one for k, one in self._drivers.items() if one not in drivers}
            self._drivers = rest
            if not rest and _running.get(self.transport) is self:
                del _running[self.transport]
            return not rest

    def run(self) -> None:
        """The event loop."""
        sleep, last_busy = _SHORTEST_SLEEP, time.monotonic()
        while self._drivers:
            with self._turn:
                busy = self.turn()
            self.busy_seconds = time.thread_time()
            last_busy = time.monotonic() if busy else last_busy
            # MPI moves the rest of a large message only while it is polled. One that has not
            # arrived for long is to a rank that stands still.
            moving = self.transport.in_transfer and time.monotonic() - last_busy < _TRANSFER_SECONDS
            longest = _LONGEST_IN_TRANSFER if moving else _LONGEST_SLEEP
            sleep = _SHORTEST_SLEEP if busy else min(sleep * 1.3, longest)
            if not busy and self._wake.wait(sleep):
                self._wake.clear()

    def turn(self) -> bool:
        """Handle what has come and send what is due; returns whether there was anything."""
        busy = False
        try:
            messages = self.transport.receive()
        except BaseException as error:
            self._fail(list(self._drivers.values()), error)
            return False
        for source, head, payload in messages:
            busy = True
            driver = self._drivers.get(wire.fingerprint_of(head) or 0)
            if driver is None:  # of a training that is over or not begun here, or damaged
                for other in self._drivers.values():
                    other.note(MessageDropped())
                continue
            try:
                driver.receive(source, head, payload)
            except BaseException as error:
                self._fail([driver], error)
        for driver in list(self._drivers.values()):
            try:
                busy |= driver.poll()
            except BaseException as error:
                self._fail([driver], error)
        return busy

    def _fail(self, drivers: list[Driver], error: BaseException) -> None:
        """End `drivers` by an exception; other ones go on."""
        self._drop(drivers)
        for driver in drivers:
            driver.fail(error)


_lock = threading.Lock()
_running: weakref.WeakKeyDictionary[Transport, CommunicationThread] = weakref.WeakKeyDictionary()
