"""The messages between nodes."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

from swarm_tf.codec import Bools, Encoded


class Kind(enum.IntEnum):
    """What a message is."""

    REQUEST = 1
    """Initiator to responder: one chunk, encoded."""
    REPLY = 2
    """Responder to initiator: the same chunk of its own, and which blocks it averaged."""
    REFUSE = 3
    """Responder to initiator: no exchange, and the reason."""
    DONE = 4
    """To all, and in answer to PING: my own steps are over, and I serve until all are done; or I
    have failed or left. If a signal is the reason, end now."""
    PING = 5
    """Are you alive?"""
    PONG = 6
    """I am, after this many local steps."""
    CANCEL = 7
    """Initiator to responder: I send no more chunks of this exchange, and the reason. The answer is
    REFUSE."""
    ADOPT = 8
    """Initiator to responder: send me one chunk of your model, exactly; yours stays as it is."""


class Reason(enum.IntEnum):
    """Why a node refuses to serve a request, or is done; in a REPLY, whether it is."""

    NONE = 0
    CROSSED = 1
    """We sent each other requests at the same time; mine serves for both."""
    BUSY = 2
    """(blocking) I am waiting for another node; send your request to another one."""
    CLOSED = 3
    OTHER_MODEL = 4
    OTHER_CODEC = 5
    NOT_FINITE = 6
    SIGNAL = 7
    """A signal asks for the end of the training."""
    FAILED = 8
    """My training ended by an exception; I take no part in the final mean."""
    LEFT = 9
    """My program ends."""
    ENDED = 10
    """In a REPLY: my own steps were over when I averaged. DONE alone does not say so, since it may
    overtake a REPLY that was sent before."""

    @property
    def is_failure(self) -> bool:
        """False for crossed and busy nodes: they average in another exchange."""
        return self not in (Reason.NONE, Reason.CROSSED, Reason.BUSY)

    def sentence(self, partner: int) -> str:
        """The reason in words, for logs."""
        return {
            Reason.NONE: "",
            Reason.CROSSED: f"rank {partner} sent a request at the same time",
            Reason.BUSY: f"rank {partner} was itself waiting",
            Reason.CLOSED: f"rank {partner} is shutting down",
            Reason.OTHER_MODEL: f"rank {partner} trains another model or configuration",
            Reason.OTHER_CODEC: f"rank {partner} uses another codec",
            Reason.NOT_FINITE: f"the weights of rank {partner} contain NaN or Inf",
            Reason.SIGNAL: f"a signal ended the training of rank {partner}",
            Reason.FAILED: f"the training of rank {partner} failed",
            Reason.LEFT: f"rank {partner} has left",
            Reason.ENDED: f"rank {partner} has taken its last step",
        }[self]


@dataclass(frozen=True)
class Message:
    """One message; `exchange` and `chunk` with the initiator's rank identify a request.

    Attributes:
      step: local steps of the sender.
      encoded: the sender's side of the chunk, for REQUEST and REPLY.
      accepted: bool [blocks], which blocks the responder averaged, for REPLY.
    """

    kind: Kind
    sender: int
    exchange: int = 0
    chunk: int = 0
    step: int = 0
    reason: Reason = Reason.NONE
    encoded: Encoded | None = None
    accepted: Bools | None = None


Outbox: TypeAlias = list[tuple[int, Message]]
"""(destination rank, message) pairs, in the order in which they leave."""
