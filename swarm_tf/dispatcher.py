"""The communication thread: moves messages between a transport and the nodes on it."""

from __future__ import annotations

import logging
import threading
import weakref

from swarm_tf.buffers import Bytes
from swarm_tf.protocol import wire
from swarm_tf.protocol.messages import Message
from swarm_tf.protocol.node import Node
from swarm_tf.transport.base import Transport

_SHORTEST_SLEEP = 0.0001
_LONGEST_SLEEP = 0.01
_log = logging.getLogger("swarm_tf")


class Service:
    """Serves one node from `start` to `stop`, on the one thread of its transport.

    Args:
      node, transport: what to connect; only that thread uses the transport meanwhile.
      fingerprint: of model, configuration and training, 64 bits; messages with it are the node's.
    """

    def __init__(self, node: Node, transport: Transport, fingerprint: int = 0) -> None:
        self.node, self.transport, self.fingerprint = node, transport, fingerprint
        self.error: BaseException | None = None
        self._dispatcher: Dispatcher | None = None

    def start(self) -> None:
        """Begin to serve."""
        self._dispatcher = Dispatcher.of(self)

    def wake(self) -> None:
        """There is work: do not sleep on."""
        if self._dispatcher is not None:
            self._dispatcher.wake()

    def stop(self) -> None:
        """End, when the message under way is handled.

        Raises:
          the exception that ended the serving earlier, if one did.
        """
        if self._dispatcher is not None:
            self._dispatcher.remove(self)
            self._dispatcher = None
        self.check()

    def check(self) -> None:
        """Raise the exception that ended the serving, if one did."""
        if self.error is not None:
            raise self.error

    def fail(self, error: BaseException) -> None:
        """The serving ends by an exception, which the training thread gets."""
        self.error = error
        self.node.interrupt()


class Dispatcher(threading.Thread):
    """One thread a transport, for any number of trainings: messages go to whose they are.

    It polls, for a blocking receive would spin a core, and sleeps in between a tenth of the time
    that nothing has happened: no message waits long, measured by how rare it is.
    """

    def __init__(self, transport: Transport) -> None:
        super().__init__(name=f"swarm-tf rank {transport.rank}", daemon=True)
        self.transport = transport
        self._services: dict[int, Service] = {}
        self._turn = threading.RLock()
        self._wake = threading.Event()

    @classmethod
    def of(cls, service: Service) -> Dispatcher:
        """The one of the service's transport, which serves it from now on."""
        with _lock:
            running = _running.get(service.transport)
            if running is None:
                running = _running[service.transport] = cls(service.transport)
            running._services = {**running._services, service.fingerprint: service}
            if not running.is_alive():
                running.start()
            return running

    def wake(self) -> None:
        """There is work: do not sleep on."""
        self._wake.set()

    def remove(self, service: Service) -> None:
        """Serve it no more; with the last one the thread ends."""
        with _lock, self._turn:
            rest = {k: one for k, one in self._services.items() if one is not service}
            self._services = rest
            if not rest and _running.get(self.transport) is self:
                del _running[self.transport]
        self._wake.set()
        if not rest and threading.current_thread() is not self:
            self.join()

    def run(self) -> None:
        """The event loop."""
        sleep = _SHORTEST_SLEEP
        while self._services:
            with self._turn:
                busy = self._move()
            sleep = _SHORTEST_SLEEP if busy else min(sleep * 1.1, _LONGEST_SLEEP)
            if not busy and self._wake.wait(sleep):
                self._wake.clear()

    def _move(self) -> bool:
        """Handle what has come, and send what is due; whether there was anything."""
        busy = False
        try:
            messages = self.transport.receive()
        except BaseException as error:
            self._fail(list(self._services.values()), error)
            return False
        for source, head, payload in messages:
            busy = True
            service = self._services.get(wire.fingerprint_of(head) or 0)
            if service is None:  # of a training that is over here, has not begun, or is damaged
                for other in self._services.values():
                    other.node.count(messages_dropped=1)
                continue
            self._guarded(service, source, head, payload)
        for service in list(self._services.values()):
            try:
                due = service.node.poll()
                for to, message in due:
                    busy = True
                    self._send(service, to, message)
            except BaseException as error:
                self._fail([service], error)
        return busy

    def _guarded(self, service: Service, source: int, head: bytes, payload: Bytes) -> None:
        try:
            message = self._read(service, source, head, payload)
            if message is not None:
                for to, answer in service.node.handle(message):
                    self._send(service, to, answer)
        except BaseException as error:
            self._fail([service], error)

    def _read(self, service: Service, source: int, head: bytes, payload: Bytes) -> Message | None:
        """The message, if it can be believed; otherwise it is counted."""
        try:
            message, size = wire.unpack(head, service.fingerprint)
            if size != len(payload):
                raise wire.Unreadable("payload cut short")
            if message.sender != source:
                raise wire.Unreadable(f"rank {source} calls itself rank {message.sender}")
            return wire.attach(message, payload)
        except wire.Unreadable as reason:
            service.node.count(messages_dropped=1)
            _log.debug("rank %d dropped a message: %s", service.node.rank, reason)
            return None

    def _send(self, service: Service, to: int, message: Message) -> None:
        head, payload = wire.pack(message, service.fingerprint)
        service.node.count(bytes_sent=len(head) + len(payload))
        self.transport.send(to, head, payload)

    def _fail(self, services: list[Service], error: BaseException) -> None:
        """End the serving of some, not of the others."""
        with _lock:
            rest = {k: one for k, one in self._services.items() if one not in services}
            self._services = rest
            if not rest and _running.get(self.transport) is self:
                del _running[self.transport]
        for service in services:
            service.fail(error)


_lock = threading.Lock()
_running: weakref.WeakKeyDictionary[Transport, Dispatcher] = weakref.WeakKeyDictionary()
