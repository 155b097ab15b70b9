"""A model's membership in the swarm: what the training thread does at its boundaries."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Sequence

import numpy as np

from swarm_tf.cluster import world
from swarm_tf.codec import Codec
from swarm_tf.dispatcher import Service
from swarm_tf.events import Counters
from swarm_tf.history.record import Record
from swarm_tf.protocol.messages import Exchange, Reason
from swarm_tf.protocol.node import Node
from swarm_tf.transport.base import Transport
from swarm_tf.weights import FlatWeights

_LONGEST_PAUSE = 0.05
_FOLLOW_SECONDS = 1.0
_log = logging.getLogger("swarm_tf")


class Member:
    """Joins `weights` to the swarm: `start`, `boundary` after every few steps, `finish`.

    Args:
      weights: of the model, between optimizer steps whenever a method is called.
      transport: to the other ranks.
      codec, mode, seed, timeout_seconds: see `Node`.
      max_staleness: local steps for which an unanswered exchange lets training go on.
      fingerprint: 64 bits that ranks of one swarm have in common.
      record: a directory in which to write down what each exchange did; see `Record`.
      on_adopt: called when the model of a neighbour was taken, since the own one had become NaN
        or infinite.
    """

    def __init__(
        self,
        weights: FlatWeights,
        transport: Transport,
        codec: Codec,
        mode: str = "nonblocking",
        *,
        max_staleness: int = 16,
        seed: int = 0,
        timeout_seconds: float = 60.0,
        fingerprint: int = 0,
        on_adopt: Callable[[], None] = lambda: None,
        record: str | os.PathLike[str] | None = None,
    ) -> None:
        self.weights, self.transport, self.mode = weights, transport, mode
        self.max_staleness, self.timeout = max_staleness, timeout_seconds
        self._on_adopt, self._was_ill = on_adopt, False
        self.node = Node(
            transport.rank,
            transport.size,
            weights.lengths,
            codec,
            mode,
            exact=weights.exact,
            seed=seed,
            timeout_seconds=timeout_seconds,
            retry_seconds=transport.retry_seconds,
        )
        transport.sessions += 1
        self._service = Service(self.node, transport, (fingerprint + transport.sessions) % 2**64)
        if record is not None:
            self.node.averaging.keeps_last = True
            self.node.record = Record(
                record, transport.rank, transport.size, transport.sessions, mode
            )
        self._followed = -math.inf
        self._jitter = np.random.default_rng([seed, transport.rank, 1])

    @property
    def counters(self) -> Counters:
        """What this rank has exchanged so far."""
        return self.node.counters

    def start(self) -> None:
        """Begin to serve."""
        # Nothing added; but the first correction must not wait until that is compiled.
        self.node.published.publish(self.weights.add(self.weights.zeros()))
        self.node.averaging.warm_up()
        self.transport.gather(b"", "the start of training", world.START_SECONDS)
        self._service.start()

    def reachable(self, ranks: Sequence[int]) -> list[int]:
        """Those of `ranks` that have not left the swarm."""
        gone = self.node.failed | self.node.left
        return [rank for rank in ranks if rank not in gone]

    def boundary(self, step: int, choose_partner: Callable[[], int]) -> list[Exchange]:
        """After local step `step`: apply what came, publish the model, start an exchange.

        Returns:
          the own exchanges that ended since the last boundary.

        Raises:
          RuntimeError: a rank has left in the middle of training.
        """
        began = time.perf_counter()
        self._service.check()
        if self.node.left:
            raise RuntimeError(f"{_ranks(self.node.left)} left in the middle of training")
        if self.mode == "blocking":
            self._meet(step, choose_partner)
        else:
            self._pass_by(step, choose_partner)
        ended = self.node.take_finished()
        for exchange in ended:
            if not exchange.failure:
                self.node.count(staleness_sum=step - exchange.step, staleness_count=1)
        self.node.count(exposed_seconds=time.perf_counter() - began)
        return ended

    def _pass_by(self, step: int, choose_partner: Callable[[], int]) -> None:
        asked_at = self.node.asked_at
        if asked_at is not None:
            if step - asked_at < self.max_staleness:
                return
            self._wait()
        self._adopt()
        self._apply()
        self._ask(choose_partner(), step)

    def _meet(self, step: int, choose_partner: Callable[[], int]) -> None:
        deadline, pause = time.monotonic() + self.timeout, 0.001
        self._adopt()
        self._apply()
        while True:
            self._ask(choose_partner(), step)
            if not self._wait() or self.node.averaged:
                break
            if self.node.left:
                break  # the next boundary says so
            if time.monotonic() > deadline:
                busy = f"all whom it asked in {self.timeout:g} s were waiting themselves"
                _log.warning("rank %d: no exchange: %s", self.node.rank, busy)
                self.node.count(exchanges_failed=1)
                break
            time.sleep(self._jitter.uniform(0, pause))  # all were busy: do not collide again
            pause = min(2 * pause, _LONGEST_PAUSE)
        self.node.leave()
        self._adopt()
        self._apply()

    def _ask(self, partner: int, step: int) -> None:
        if self.node.ill and not self._was_ill:
            self._was_ill = True
            _log.warning(
                "rank %d: its weights are NaN or Inf after step %d; it takes the model of rank %d",
                self.node.rank,
                step,
                partner,
            )
        self.node.ask(partner, step, adopt=self.node.ill)
        self._service.wake()

    def _adopt(self) -> None:
        """Take the model of a partner, if one was asked for and has come."""
        chunks = self.node.take_adopted()
        if chunks is None:
            return
        self.weights.assign(chunks)
        self.node.published.take()  # corrections to a model that is gone
        self.node.published.publish(self.weights.gather())
        if self.node.record is not None:
            self.node.record.adopted(self.weights.gather())
        self.node.ill = False
        self._on_adopt()

    def _wait(self) -> bool:
        # The node's own deadline comes first, and its warning names the partner.
        over = self.node.wait(self.timeout + 1)
        self._service.check()
        return over

    def _apply(self) -> None:
        before = self.weights.gather() if self.node.record is not None else []
        corrections = self.node.published.take()
        after = self.weights.add(corrections)
        if self.node.record is not None:
            self.node.record.boundary(before, corrections, after)
        self.node.published.publish(after)

    def finish(
        self,
        step: int,
        asked: Callable[[], bool] = lambda: False,
        neighbors: Sequence[int] = (),
    ) -> list[Exchange]:
        """Serve until all ranks have finished their steps; then the last corrections apply.

        Args:
          asked: whether a signal wants all to finish now; it may come while this rank waits.
          neighbors: ranks to follow in mode "pull", where nobody else changes this one.

        Raises:
          TimeoutError: a rank that is still needed gives no sign of life; names it.
          RuntimeError: the training of a rank failed, so there is no mean of all.
        """
        self.node.finish(step, asked())  # from here on it asks those who train whether they live
        self._service.wake()
        self._until(self._missing, "it to finish its steps", asked, neighbors)
        self._until(lambda: self.node.owed(), "its answer", asked)
        if gone := self.node.failed | self.node.left:
            self.node.close()
            self._service.stop()
            raise RuntimeError(
                f"the training of {_ranks(gone)} failed, so there is no mean of all ranks' models; "
                "this one is left as it is"
            )
        self.transport.gather(b"", "the end of training", self.timeout)
        self.node.close()
        self._service.stop()
        self.transport.flush(self.timeout)
        self._apply()
        if self.node.record is not None:
            self.node.record.end()
        return self.node.take_finished()

    def part(self, reason: Reason) -> None:
        """Leave the swarm at once, with a word to the others: the training failed here.

        Waits a second at most, for that word.
        """
        self.node.part(reason)
        self._service.wake()
        deadline = time.monotonic() + 1
        while not self.node.has_told and time.monotonic() < deadline:
            time.sleep(0.001)
        with contextlib.suppress(Exception):  # what ended the service, perhaps
            self._service.stop()

    def _missing(self) -> list[int]:
        return sorted(set(range(self.transport.size)) - self.node.done)

    def _follow(self, ranks: Sequence[int]) -> None:
        """Average with one of `ranks` that is ahead, about once a second."""
        node, now = self.node, time.monotonic()
        ahead = [rank for rank in ranks if node.heard[rank][1] > node.step]
        if not ahead or node.asked_at is not None or now - self._followed < _FOLLOW_SECONDS:
            return
        self._followed = now
        self._adopt()
        self._apply()
        self._ask(int(self._jitter.choice(ahead)), node.step)

    def _until(
        self,
        awaited: Callable[[], list[int]],
        what: str,
        asked: Callable[[], bool],
        neighbors: Sequence[int] = (),
    ) -> None:
        """Wait until `awaited()` is empty, as long as those ranks are heard of."""
        began = time.monotonic()
        while ranks := awaited():
            self._service.check()
            if asked():
                self.node.end_by_signal()
            if self.mode == "pull":
                self._follow([rank for rank in ranks if rank in neighbors])
            now = time.monotonic()
            for rank in ranks:
                heard, step = self.node.heard.get(rank, (now, 0))
                if now - max(heard, began) > self.timeout:
                    raise TimeoutError(
                        f"rank {self.transport.rank} waited {self.timeout:g} s for {what}: rank "
                        f"{rank}, last heard of after {step} steps"
                    )
            time.sleep(0.002)


def _ranks(ranks: Collection[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, sorted(ranks)))}"
