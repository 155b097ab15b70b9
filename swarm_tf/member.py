"""A model's membership in the swarm: what the training thread does at its boundaries."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np

from swarm_tf import world
from swarm_tf.codec import Codec
from swarm_tf.exchange import Exchange
from swarm_tf.metrics import Counters
from swarm_tf.swarm import Node
from swarm_tf.transport.base import Transport
from swarm_tf.transport.service import Service
from swarm_tf.weights import FlatWeights

_LONGEST_PAUSE = 0.05
_log = logging.getLogger("swarm_tf")


class Member:
    """Joins `weights` to the swarm: `start`, `boundary` after every few steps, `finish`.

    Args:
      weights: of the model, between optimizer steps whenever a method is called.
      transport: to the other ranks.
      codec, mode, seed, timeout_seconds: see `Node`.
      max_staleness: local steps for which an unanswered exchange lets training go on.
      fingerprint: 64 bits that ranks of one swarm have in common.
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
    ) -> None:
        self.weights, self.transport, self.mode = weights, transport, mode
        self.max_staleness, self.timeout = max_staleness, timeout_seconds
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

    def boundary(self, step: int, choose_partner: Callable[[], int]) -> list[Exchange]:
        """After local step `step`: apply what came, publish the model, start an exchange.

        Returns:
          the own exchanges that ended since the last boundary.
        """
        began = time.perf_counter()
        self._service.check()
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
        self._apply()
        self._ask(choose_partner(), step)

    def _meet(self, step: int, choose_partner: Callable[[], int]) -> None:
        deadline, pause = time.monotonic() + self.timeout, 0.001
        self._apply()
        while True:
            self._ask(choose_partner(), step)
            if not self._wait() or self.node.averaged:
                break
            if time.monotonic() > deadline:
                busy = f"all whom it asked in {self.timeout:g} s were waiting themselves"
                _log.warning("rank %d: no exchange: %s", self.node.rank, busy)
                self.node.count(exchanges_failed=1)
                break
            time.sleep(self._jitter.uniform(0, pause))  # all were busy: do not collide again
            pause = min(2 * pause, _LONGEST_PAUSE)
        self.node.leave()
        self._apply()

    def _ask(self, partner: int, step: int) -> None:
        self.node.ask(partner, step)
        self._service.wake()

    def _wait(self) -> bool:
        # The node's own deadline comes first, and its warning names the partner.
        over = self.node.wait(self.timeout + 1)
        self._service.check()
        return over

    def _apply(self) -> None:
        corrections = self.node.published.take()
        self.node.published.publish(self.weights.add(corrections))

    def finish(self, step: int, asked: bool = False) -> list[Exchange]:
        """Serve until all ranks have finished their steps; then the last corrections apply.

        Args:
          asked: by a signal, so that all should finish now.

        Raises:
          TimeoutError: a rank that is still needed gives no sign of life; names it.
        """
        self.node.finish(step, asked)  # from here on it asks those who train whether they live
        self._service.wake()
        self._until(lambda: self._missing(), "it to finish its steps")
        self._until(lambda: self.node.owed(), "its answer")
        self.transport.gather(b"", "the end of training", self.timeout)
        self.node.close()
        self._service.stop()
        self.transport.flush(self.timeout)
        self._apply()
        return self.node.take_finished()

    def _missing(self) -> list[int]:
        return sorted(set(range(self.transport.size)) - self.node.done)

    def _until(self, awaited: Callable[[], list[int]], what: str) -> None:
        """Wait until `awaited()` is empty, as long as those ranks are heard of."""
        began = time.monotonic()
        while ranks := awaited():
            self._service.check()
            now = time.monotonic()
            for rank in ranks:
                heard, step = self.node.heard.get(rank, (now, 0))
                if now - max(heard, began) > self.timeout:
                    raise TimeoutError(
                        f"rank {self.transport.rank} waited {self.timeout:g} s for {what}: rank "
                        f"{rank}, last heard of after {step} steps"
                    )
            time.sleep(0.002)
