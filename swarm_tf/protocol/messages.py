"""The words of an exchange: what nodes say to each other, and what one exchange came to."""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field

from swarm_tf.codec.base import Bools, Encoded, Floats


class Kind(enum.IntEnum):
    """What a message is."""

    REQUEST = 1
    """Initiator to responder: one chunk, encoded."""
    REPLY = 2
    """Responder to initiator: the same chunk of its own, and which blocks it averaged."""
    REFUSE = 3
    """Responder to initiator: no exchange, and the reason."""
    DONE = 4
    """To all: my own steps are over; I serve until everybody's are, which end now if a signal
    is the reason."""
    PING = 5
    """Are you alive?"""
    PONG = 6
    """I am, after this many local steps."""
    CANCEL = 7
    """Initiator to responder: no more chunks of this exchange come, and the reason. The answer is
    REFUSE."""
    ADOPT = 8
    """Initiator to responder: show me one chunk of your model, exactly; it stays as it is."""


class Reason(enum.IntEnum):
    """Why a node refuses to serve a request, or is done."""

    NONE = 0
    CROSSED = 1
    """We asked each other at the same time; my request stands for both."""
    BUSY = 2
    """(blocking) I wait for a node myself; ask another one."""
    CLOSED = 3
    OTHER_MODEL = 4
    OTHER_CODEC = 5
    NOT_FINITE = 6
    SIGNAL = 7
    """A signal asks for the end of the training."""
    FAILED = 8
    """My training ended by an exception; I take no part in its end."""
    LEFT = 9
    """My program ends."""

    @property
    def is_failure(self) -> bool:
        """Crossed and busy nodes average all the same, in another exchange."""
        return self not in (Reason.NONE, Reason.CROSSED, Reason.BUSY)

    def sentence(self, partner: int) -> str:
        """The reason in words, for logs."""
        return {
            Reason.NONE: "",
            Reason.CROSSED: f"rank {partner} asked at the same time",
            Reason.BUSY: f"rank {partner} was waiting itself",
            Reason.CLOSED: f"rank {partner} is shutting down",
            Reason.OTHER_MODEL: f"rank {partner} trains another model or configuration",
            Reason.OTHER_CODEC: f"rank {partner} does not speak this codec",
            Reason.NOT_FINITE: f"the weights of rank {partner} contain NaN or Inf",
            Reason.SIGNAL: f"a signal ended the training of rank {partner}",
            Reason.FAILED: f"the training of rank {partner} failed",
            Reason.LEFT: f"rank {partner} has left",
        }[self]


@dataclass(frozen=True)
class Message:
    """One message; `exchange` and `chunk` with the initiator's rank identify a request.

    Attributes:
      step: local steps of the sender, for PONG.
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


@dataclass
class Exchange:
    """One exchange as its initiator sees it; `SwarmCallback.on_exchange_end` receives it.

    Attributes:
      id: counted by the initiator.
      partner: rank asked.
      step: local steps of the initiator when it published what it sent.
      seed: of the dither.
      started, seconds: time of the start (monotonic clock) and duration.
      failure: why it did not happen, in words; empty if it did.
      payload_bytes: of the initiator's model, or in mode "pull" of its partner's.
      blocks, blocks_skipped: of the codec; a skipped block could not be read for certain.
      overdue: the answer did not come in time; it may still.
      harmless: nothing failed; the averaging happens in another exchange.
      adopts: takes the partner's model as it is, in place of one that is not finite.
    """

    id: int
    partner: int
    step: int
    seed: int
    started: float
    seconds: float = 0.0
    failure: str = ""
    payload_bytes: int = 0
    blocks: int = 0
    blocks_skipped: int = 0
    # The initiator's bookkeeping: own side of the chunks under way, to read the replies against
    # and to repeat requests; the chunks to send; when the partner was last heard and asked.
    under_way: dict[int, Encoded | None] = field(default_factory=dict, repr=False)
    to_send: deque[int] = field(default_factory=deque, repr=False)
    answered: int = 0
    heard: float = 0.0
    asked: float = 0.0
    overdue: bool = False
    harmless: bool = False
    adopts: bool = False
    cancelled: int | None = None  # the chunk at which no more came
    model: dict[int, Floats] = field(default_factory=dict, repr=False)  # adopted, by chunk


@dataclass
class Served:
    """One exchange as its responder sees it.

    Attributes:
      id: counted by the initiator.
      chunks: how many the initiator sends, those once more included, by the answers so far.
      answers: to each of them, by its number.
    """

    id: int
    chunks: int
    answers: dict[int, Message] = field(default_factory=dict)
