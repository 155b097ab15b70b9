"""The communication thread: moves messages between a node and a transport."""

from __future__ import annotations

import logging
import threading

from swarm_tf.exchange import Message
from swarm_tf.swarm import Node
from swarm_tf.transport import wire
from swarm_tf.transport.base import Transport

_SHORTEST_SLEEP = 0.0001
_LONGEST_SLEEP = 0.01
_log = logging.getLogger("swarm_tf")


class Service(threading.Thread):
    """Serves one node until `stop`.

    It polls, for a blocking receive would spin a core, and sleeps in between a tenth of the time
    that nothing has happened: no message waits long, measured by how rare it is.

    Args:
      node, transport: what to connect; only this thread uses the transport while it runs.
      fingerprint: of model and configuration, 64 bits; messages of other models are dropped.
    """

    def __init__(self, node: Node, transport: Transport, fingerprint: int = 0) -> None:
        super().__init__(name=f"swarm-tf rank {transport.rank}", daemon=True)
        self.node, self.transport, self.fingerprint = node, transport, fingerprint
        self.error: BaseException | None = None
        self._wake = threading.Event()
        self._stop_asked = threading.Event()

    def wake(self) -> None:
        """There is work: do not sleep on."""
        self._wake.set()

    def stop(self) -> None:
        """End the thread and wait for it.

        Raises:
          the exception that ended the thread earlier, if one did.
        """
        self._stop_asked.set()
        self._wake.set()
        if self.is_alive():
            self.join()
        self.check()

    def check(self) -> None:
        """Raise the exception that ended the thread, if one did."""
        if self.error is not None:
            raise self.error

    def run(self) -> None:
        """The event loop."""
        sleep = _SHORTEST_SLEEP
        try:
            while not self._stop_asked.is_set():
                busy = self._turn()
                sleep = _SHORTEST_SLEEP if busy else min(sleep * 1.1, _LONGEST_SLEEP)
                if not busy and self._wake.wait(sleep):
                    self._wake.clear()
        except BaseException as error:
            self.error = error
            self.node.interrupt()

    def _turn(self) -> bool:
        busy = False
        for head, payload in self.transport.receive():
            busy = True
            try:
                message, size = wire.unpack(head, self.fingerprint)
                if size != len(payload):
                    raise wire.Unreadable("payload cut short")
                message = wire.attach(message, payload)
            except wire.Unreadable as reason:
                self.node.count(messages_dropped=1)
                _log.debug("rank %d dropped a message: %s", self.node.rank, reason)
                continue
            for to, answer in self.node.handle(message):
                self._send(to, answer)
        for to, due in self.node.poll():
            busy = True
            self._send(to, due)
        return busy

    def _send(self, to: int, message: Message) -> None:
        head, payload = wire.pack(message, self.fingerprint)
        self.node.count(bytes_sent=len(head) + len(payload))
        self.transport.send(to, head, payload)
