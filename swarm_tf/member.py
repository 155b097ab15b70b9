"""The training thread's part in the swarm: what it does at boundaries, and at the end."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from swarm_tf.cluster import world
from swarm_tf.codec import Codec, float32
from swarm_tf.driver import Driver
from swarm_tf.events import BoundaryPassed, Counters, ExchangeEnded, NotFinite, PartnersBusy
from swarm_tf.history.record import Record
from swarm_tf.protocol.messages import Reason
from swarm_tf.protocol.node import View
from swarm_tf.transport.base import Transport
from swarm_tf.weights import FlatWeights

_LONGEST_PAUSE = 0.05
# Each late answer was computed against an old model: with four exchanges at once a rank was thrown
# 1.5 times as far off as with two.
_OUTSTANDING = 2
_LATE_STEPS, _LATE_TIMES = 16, 4
_RECENT = 15  # exchanges whose median counts
_FOLLOW_SECONDS = 1.0


class Member:
    """Averages `weights` in the swarm: `start`, `boundary` after every few steps, `finish`.

    Args:
      weights: of the model; no optimizer step may run while a method does.
      transport: to the other ranks.
      codec: for all chunks except those of `weights.exact`.
      mode, seed, timeout_seconds: see `Node`.
      neighbors: ranks to average with, in ascending order; None: all others.
      max_staleness: local steps after which an unanswered exchange is late, so that another one is
        started beside it; None: four times as many as the last exchanges took, at least 16.
      fingerprint: 64 bits, the same on all ranks of one swarm.
      record: a directory for the record of what each exchange did; see `Record`.
      on_adopt: called when a neighbour's model was copied, since this rank's weights had become
        NaN or infinite.
    """

    def __init__(
        self,
        weights: FlatWeights,
        transport: Transport,
        codec: Codec,
        mode: str = "nonblocking",
        *,
        neighbors: Sequence[int] | None = None,
        max_staleness: int | None = None,
        seed: int = 0,
        timeout_seconds: float = 60.0,
        fingerprint: int = 0,
        on_adopt: Callable[[], None] = lambda: None,
        record: str | os.PathLike[str] | None = None,
    ) -> None:
        self.weights, self.transport, self.mode = weights, transport, mode
        self.max_staleness, self.timeout = max_staleness, timeout_seconds
        others = [rank for rank in range(transport.size) if rank != transport.rank]
        self.neighbors = others if neighbors is None else list(neighbors)
        self._on_adopt, self._noted_not_finite = on_adopt, False
        transport.sessions += 1
        rank, session = transport.rank, transport.sessions
        self._record: Record | None = None
        if record is not None:
            self._record = Record(record, rank, transport.size, session, mode)
        codecs = (float32() if k in weights.exact else codec for k in range(len(weights.lengths)))
        self.driver = Driver(
            [one.channel(n) for one, n in zip(codecs, weights.lengths, strict=True)],
            transport,
            mode,
            seed=seed,
            timeout_seconds=timeout_seconds,
            fingerprint=(fingerprint + session) % 2**64,
            record=self._record,
        )
        self._step = 0
        self._steps_of_exchanges: deque[int] = deque(maxlen=_RECENT)
        self._followed_at = -math.inf
        self._jitter = np.random.default_rng([seed, rank, 1])

    @property
    def counters(self) -> Counters:
        """What this rank has exchanged so far."""
        return self.driver.counters

    @property
    def stop_requested(self) -> bool:
        """Whether a signal, to this rank or to one that has announced it, ends the training."""
        return self.driver.view.stop_requested

    def start(self) -> None:
        """Begin to serve requests."""
        # Adding zeros compiles `add` now, so that the first correction need not wait.
        self.driver.replica.publish(self.weights.add(self.weights.zeros()))
        self.driver.replica.warm_up()
        self.transport.gather(b"", "the start of training", world.START_SECONDS)
        self.driver.start()

    @property
    def busy_seconds(self) -> float:
        """CPU time of the communication thread so far."""
        return self.driver.busy_seconds

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this rank's part in the swarm, between two boundaries.

        A correction that has come since the last boundary is not in it, nor in the weights.
        """
        return {
            "node": self.driver.state(self.timeout),
            "jitter": self._jitter.bit_generator.state,
        }

    def restore(self, saved: Mapping[str, Any], *, own: bool) -> None:
        """Go on with what `state` returned, before `start`; see `Node.restore`."""
        self.driver.restore(saved["node"], own=own)
        if own:
            self._jitter.bit_generator.state = saved["jitter"]

    # At a boundary.

    def boundary(
        self, step: int, choose_partner: Callable[[list[int]], int]
    ) -> list[ExchangeEnded]:
        """After local step `step`: apply corrections, publish the model, start an exchange.

        Args:
          choose_partner: called with neighbours that take part and owe no answer; if it returns one
            that owes an answer, no exchange starts.

        Returns:
          this rank's own exchanges that ended since the last boundary.

        Raises:
          RuntimeError: a rank has left in the middle of training.
        """
        began = time.perf_counter()
        self._step = step
        self.driver.check()
        if left := self.driver.view.left:
            raise RuntimeError(f"{_ranks(left)} left in the middle of training")
        if self.mode == "blocking":
            self._blocking_sync(choose_partner)
        else:
            self._nonblocking_sync(choose_partner)
        ended = self.driver.take_ended()
        staleness = tuple(step - exchange.step for exchange in ended if not exchange.failure)
        self._steps_of_exchanges.extend(staleness)
        self.driver.note(BoundaryPassed(time.perf_counter() - began, staleness))
        return ended

    def _nonblocking_sync(self, choose_partner: Callable[[list[int]], int]) -> None:
        self._apply()
        pending_step = self.driver.pending_step
        if pending_step is not None and self._step - pending_step < self._late_after():
            return
        if self.driver.outstanding >= _OUTSTANDING:
            return
        unanswered = self.driver.unanswered
        candidates = [rank for rank in self._taking_part() if rank not in unanswered]
        if candidates and (partner := choose_partner(candidates)) not in unanswered:
            self._request(partner)

    def _late_after(self) -> int:
        """Local steps after which an exchange is late."""
        if self.max_staleness is not None:
            return self.max_staleness
        usual = statistics.median(self._steps_of_exchanges) if self._steps_of_exchanges else 0
        return max(_LATE_STEPS, round(_LATE_TIMES * usual))

    def _taking_part(self) -> list[int]:
        """Neighbours whose training has not failed and whose program has not ended.

        All neighbours if there is none: the exchange then fails, and the log says why.
        """
        gone = self.driver.view.failed | self.driver.view.left
        return [rank for rank in self.neighbors if rank not in gone] or self.neighbors

    def _blocking_sync(self, choose_partner: Callable[[list[int]], int]) -> None:
        deadline, pause = time.monotonic() + self.timeout, 0.001
        self._apply()
        while True:
            self._request(choose_partner(self._taking_part()))
            view = self.wait()
            if view is None or view.settled or view.left:  # `left`: an error at the next boundary
                break
            if time.monotonic() > deadline:
                self.driver.note(PartnersBusy(self.timeout))
                break
            time.sleep(self._jitter.uniform(0, pause))  # all were busy: do not collide again
            pause = min(2 * pause, _LONGEST_PAUSE)
        self.driver.leave_boundary()
        self._apply()

    def _request(self, partner: int) -> None:
        finite = self.driver.replica.finite
        if not finite and not self._noted_not_finite:
            self._noted_not_finite = True
            self.driver.note(NotFinite(self._step, partner))
        self.driver.request(partner, self._step, adopt=not finite)

    def wait(self) -> View | None:
        """Wait until the exchange that was started last is over; None if it is overdue."""
        # The node's own deadline comes first, and its warning names the partner.
        view = self.driver.wait(self.timeout + 1)
        self.driver.check()
        return view

    def _apply(self) -> None:
        """Add corrections to the model, or copy a partner's model, and publish the result."""
        self._adopt()
        before = self.weights.flatten() if self._record is not None else []
        corrections = self.driver.replica.take()
        after = self.weights.add(corrections)
        if self._record is not None:
            self._record.boundary(before, corrections, after)
        self.driver.replica.publish(after)

    def _adopt(self) -> None:
        """Copy the model of a partner, if one was requested and has come."""
        chunks = self.driver.take_adopted()
        if chunks is None or self.driver.replica.finite:  # finite: another adoption has come before
            return
        self.weights.assign(chunks)
        self.driver.replica.replace(self.weights.flatten())
        if self._record is not None:
            self._record.adopted(self.weights.flatten())
        self._on_adopt()

    # The end.

    def finish(
        self,
        step: int,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> list[ExchangeEnded]:
        """Serve until all ranks have finished their steps; then apply the last corrections.

        Args:
          stop_requested: whether a signal has asked all ranks to finish; checked while waiting.

        Raises:
          TimeoutError: a rank that is still needed gives no sign of life; names it.
          RuntimeError: the training of a rank failed, so there is no mean of all.
        """
        self._step = step
        self.driver.finish(step, stop=stop_requested())
        self._wait_for(self._still_training, "finish its steps", stop_requested)
        self._wait_for(lambda: self.driver.unanswered, "answer", stop_requested)
        view = self.driver.view
        if gone := view.failed | view.left:
            self.driver.close()
            self.driver.stop()
            raise RuntimeError(
                f"the training of {_ranks(gone)} failed, so there is no mean of all ranks' models; "
                "this rank's model stays as it is"
            )
        self.transport.gather(b"", "the end of training", self.timeout)
        self.driver.close()
        self.driver.stop()
        self.transport.flush(self.timeout)
        self._apply()
        if self._record is not None:
            self._record.end()
        return self.driver.take_ended()

    def leave_swarm(self, reason: Reason) -> None:
        """Leave the swarm at once, since the training failed here, and announce it to the others.

        Waits a second at most, until that is sent.
        """
        self.driver.leave_swarm(reason)
        self.driver.wait_announced(1.0)
        with contextlib.suppress(Exception):  # perhaps the one that ended the driver
            self.driver.stop()

    def _still_training(self) -> list[int]:
        """Other ranks that have not taken their last step."""
        others = set(range(self.transport.size)) - {self.transport.rank}
        return sorted(others - self.driver.view.done)

    def _follow(self, ranks: Sequence[int]) -> None:
        """Average with one of `ranks` that is ahead, about once a second, by no partner policy."""
        now = time.monotonic()
        ahead = [rank for rank in ranks if self.driver.last_seen(rank)[1] > self._step]
        busy = self.driver.pending_step is not None
        if not ahead or busy or now - self._followed_at < _FOLLOW_SECONDS:
            return
        self._followed_at = now
        self._apply()
        self._request(int(self._jitter.choice(ahead)))

    def _wait_for(
        self,
        awaited: Callable[[], Sequence[int]],
        what: str,
        stop_requested: Callable[[], bool],
    ) -> None:
        """Wait until `awaited()` is empty, as long as those ranks send messages."""
        began = time.monotonic()
        while ranks := awaited():
            self.driver.check()
            if stop_requested():
                self.driver.request_stop()
            if self.mode == "pull":  # no other rank changes this one
                self._follow([rank for rank in ranks if rank in self.neighbors])
            now = time.monotonic()
            for rank in ranks:
                last_seen, step = self.driver.last_seen(rank)
                if now - max(last_seen, began) > self.timeout:
                    raise TimeoutError(
                        f"rank {self.transport.rank} waited {self.timeout:g} s for rank {rank} to "
                        f"{what}; it was last seen after {step} steps"
                    )
            time.sleep(0.002)


def _ranks(ranks: Collection[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, sorted(ranks)))}"
