"""What all ways of training on several ranks have in common."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import keras

from swarm_tf import consensus, ending, validation, world
from swarm_tf.errors import UsageError
from swarm_tf.metrics import Counters
from swarm_tf.transport.base import Transport
from swarm_tf.weights import FlatWeights, averaged_variables

_log = logging.getLogger("swarm_tf")


class Algorithm(keras.callbacks.Callback):  # type: ignore[misc]
    """Trains a Keras model on all ranks of an MPI job; subclasses say how.

    All ranks start from rank 0's weights, take local steps on their own data, and do what
    `boundary` says after those steps that `next_boundary` names. Alone, without a launcher, it
    does nothing and says so. A subclass sets `name` and overrides `boundary`, and what else it
    needs:

    ```python
    class EveryTenSteps(swarm_tf.Algorithm):
        name = "every_ten_steps"

        def next_boundary(self, step):
            return step + 10

        def boundary(self, step):
            with self.exposed():
                self.weights.assign(consensus.mean(self.weights, self.transport))
    ```

    Args:
      average_statistics: average the moving statistics of BatchNormalization too.
      average_optimizer: average momentum and other optimizer slots too.
      average_at_end: leave every rank with the mean model after training.
      seed: of all that is random; the same on all ranks.
      timeout_seconds: longest wait for another rank.
      transport: other than MPI; for tests and simulations.

    Attributes:
      name: what it is called in messages and in `algorithm=NAME`.
      synchronous: whether ranks wait for each other, so that they must take equally many steps.
      own_gradients: whether each rank steps by its own gradients, not by everyone's.
      weights: what is averaged; None until the ranks have met.
      settings: what must be the same on all ranks, JSON values by name.
    """

    name = "algorithm"
    synchronous = True
    own_gradients = True

    def __init__(
        self,
        *,
        average_statistics: bool = True,
        average_optimizer: bool = False,
        average_at_end: bool = True,
        seed: int = 0,
        timeout_seconds: float = 60.0,
        transport: Transport | None = None,
    ) -> None:
        super().__init__()
        self.transport = transport or world.transport()
        self.settings: dict[str, Any] = {
            "average_statistics": average_statistics,
            "average_optimizer": average_optimizer,
            "seed": seed,
        }
        self.average_at_end = average_at_end
        self.timeout_seconds = timeout_seconds
        self.weights: FlatWeights | None = None
        self._counters = Counters()
        self._sent_before = 0
        self._sent: int | None = None  # until the end of training
        self._due = sys.maxsize
        self._rounds = 0
        self._has_trained = False
        self._hearing = 0  # the step at which synchronous ranks next ask whether to end
        self._heard = 0, 0.0  # the last such step, and when it was
        self._training = ExitStack()

    # What an algorithm is.

    def next_boundary(self, step: int) -> int:
        """The local step that `boundary` follows after `step`, the last such one or the start."""
        return step + 1

    def begin(self, common: dict[str, Any]) -> None:
        """The ranks have met, with equal weights; `common` is all that they agreed on."""

    def boundary(self, step: int) -> None:
        """Called on every rank after local step `step`, counted from 1."""

    def end(self, step: int) -> None:
        """Called on every rank after its last local step."""

    @property
    def counters(self) -> Counters:
        """What this rank has exchanged so far."""
        sent = 0 if self.transport is None else self.transport.bytes_sent - self._sent_before
        if self._sent is not None:
            sent = self._sent
        return replace(self._counters, bytes_sent=sent, payload_bytes=sent)

    @contextmanager
    def exposed(self) -> Iterator[None]:
        """Within it an exchange makes training wait: count both."""
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self._counters += Counters(exchanges=1, exposed_seconds=seconds)

    @property
    def due(self) -> int:
        """The local step after which this callback must be called next."""
        if self.weights is None:
            return sys.maxsize
        return min(self._due, self._hearing) if self.synchronous else self._due

    @property
    def asked(self) -> bool:
        """Whether a signal asks this rank to end."""
        return ending.asked() is not None

    @property
    def rounds(self) -> int:
        """How often the ranks have averaged together; of synchronous algorithms."""
        return self._rounds

    # Keras' hooks.

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Meet the other ranks."""
        for key, value in self.settings.items():
            validation.check(f"{self.name}.{key}", value)
        if self.transport is None:
            _log.warning("one rank, no launcher: training alone; mpirun -n N starts several")
            return
        self._training.close()  # of a training that failed
        self._training.enter_context(ending.listening())
        # A model that Keras builds from its first batch joins after that batch.
        self.weights = None
        if self.model.built:
            self._meet()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Do what is due; end, if a signal asks for it."""
        if self.transport is not None and self.weights is None:
            self._meet()
            return
        step = self.local_step()
        if self._ends(step):
            self.model.stop_training = True
        if self.transport is None:
            return
        if step >= self._due:
            self.boundary(step)
            self._rounds += 1
            self._due = self.next_boundary(step)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Part from the others; take the mean model, if that is asked for."""
        self._training.close()
        if self.weights is None:
            return
        assert self.transport is not None
        if self.synchronous:  # or what comes now would be taken for what others still wait for
            world.agree(self.transport, "the end of training", self._progress(ends=True))
        self.end(self.local_step())
        self._sent = self.transport.bytes_sent - self._sent_before
        world.end(self)
        if self.average_at_end:
            self.weights.assign(consensus.mean(self.weights, self.transport))

    def local_step(self) -> int:
        """Optimizer steps that this rank has taken."""
        # `batch` counts oddly under steps_per_execution; the optimizer counts every step.
        return int(self.model.optimizer.iterations.numpy())

    def _ends(self, step: int) -> bool:
        """Whether training ends here by a signal; ranks that go in step decide it together."""
        if self.transport is None or not self.synchronous:
            return self.asked
        if step < self._hearing:
            return False
        what, seconds = f"step {step} of all ranks", self.timeout_seconds
        world.agree(self.transport, what, self._progress(ends=False), seconds)
        (before, began), now = self._heard, time.monotonic()
        mine = {"asked": self.asked, "seconds": (now - began) / (step - before) if before else 1.0}
        told = world.gather_over(self.transport, mine, what, seconds)
        # About once a second, and at the same step on all.
        slowest = max(one["seconds"] for one in told)
        self._hearing = step + min(max(int(1 / max(slowest, 1e-3)), 1), 1000)
        self._heard = step, time.monotonic()
        return any(one["asked"] for one in told)

    def _progress(self, *, ends: bool) -> dict[str, Any]:
        """What tells ranks with other numbers of batches from those that go in step."""
        return {
            "the number of averagings, so of batches,": self.rounds,
            "whether the batches are at an end": ends,
        }

    def _variables(self) -> list[keras.Variable]:
        return averaged_variables(
            self.model,
            statistics=self.settings["average_statistics"],
            optimizer=self.settings["average_optimizer"],
        )

    def _meet(self) -> None:
        assert self.transport is not None
        self.weights = FlatWeights(self._variables())
        common: dict[str, Any] = {"algorithm": self.name}
        common |= {f"{self.name}.{key}": value for key, value in self.settings.items()}
        common["the model's weights"] = self.weights.shapes()
        if self.synchronous:
            self._check_optimizer(common)
        world.agree(self.transport, "the start of training", common)
        if not self._has_trained:
            consensus.equalize(self.weights, self.transport)
        elif self.synchronous:  # in a swarm a second training goes on with each rank's own weights
            self.weights.assign(consensus.mean(self.weights, self.transport))
        self._has_trained = True
        self._rounds = 0
        self._sent_before, self._sent = self.transport.bytes_sent, None
        world.begin(self)
        self.begin(common)
        step = self.local_step()
        self._due, self._hearing, self._heard = self.next_boundary(step), step + 1, (0, 0.0)

    def _check_optimizer(self, common: dict[str, Any]) -> None:
        """What ranks that go in step must have in common: steps and, of float16, the scale."""
        optimizer = self.model.optimizer
        common["the optimizer's iterations"] = self.local_step()
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            if self.own_gradients:
                raise UsageError(
                    f"mixed_float16 with algorithm={self.name}: each rank leaves out steps of its "
                    "own, so ranks cannot go in step; use mixed_bfloat16, allreduce or a swarm"
                )
            common["the optimizer's loss scale"] = float(optimizer.dynamic_scale)


class Single(Algorithm):
    """Training on one rank alone, on purpose."""

    name = "single"
    synchronous = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """There is nobody to meet."""
