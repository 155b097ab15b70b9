"""The base of all algorithms that train on several ranks."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from types import FrameType
from typing import Any, ClassVar

import keras

from swarm_tf import consensus, rendezvous, state
from swarm_tf.cluster import devices, signals, world
from swarm_tf.errors import UsageError
from swarm_tf.events import Counters, RanksAveraged
from swarm_tf.options import ANY, POSITIVE, SEED, Options, fields, option, with_options
from swarm_tf.same_data import FirstBatch, SameData, arrays_of
from swarm_tf.stop_check import StopCheck
from swarm_tf.training_loop import callback_list, frame_of_callback_list, is_running
from swarm_tf.transport.base import Transport
from swarm_tf.weights import FlatWeights

_log = logging.getLogger("swarm_tf")


@dataclass(kw_only=True)
class AlgorithmConfig(Options):
    """Options that every algorithm has. In the configuration they are keys of section `swarm`."""

    average_statistics: bool = option(
        True, ANY, "average moving statistics of BatchNormalization too; for every algorithm"
    )
    average_optimizer: bool = option(
        False, ANY, "average momentum and other optimizer slots too; for every algorithm"
    )
    timeout_seconds: float = option(
        60.0,
        POSITIVE,
        "longest wait for another rank; for every algorithm",
        agreed=False,
        may_change=True,
    )


@with_options
class Algorithm(AlgorithmConfig, keras.callbacks.Callback):  # type: ignore[misc]
    """Trains a Keras model on all ranks of an MPI job; subclasses say how.

    All ranks start from rank 0's weights, take local steps on their own data, and do what
    `boundary` says after the steps that `next_boundary` names. Alone, without a launcher, it does
    nothing and says so. A subclass sets `name` and overrides `boundary`, and whatever else it
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
      transport: other than MPI; for tests and simulations.

    Attributes:
      name: what it is called in messages and in `algorithm=NAME`.
      synchronous: whether ranks wait for each other, so that they must take equally many steps.
      own_gradients: whether each rank applies its own gradients, not those of all ranks.
      waits_in_step: whether ranks wait for each other within a training step.
      weights: what is averaged; None until all ranks have joined.
      resumed: what `state` returned in the checkpoint that this training goes on from, for `begin`;
        None in a training that begins anew.
      checkpoint_due: whether this rank wants a checkpoint now; set by `swarm_tf.Checkpoint`.
      checkpoint_now: whether a checkpoint is to be taken after this step; synchronous ranks take
        it after the same step.
    """

    name: ClassVar[str] = "algorithm"
    synchronous: ClassVar[bool] = True
    own_gradients: ClassVar[bool] = True
    waits_in_step: ClassVar[bool] = False

    _: KW_ONLY
    seed: int = option(0, SEED, "of all that is random; the same on all ranks")
    average_at_end: bool = option(
        True, ANY, "leave every rank with the mean model after training", agreed=False
    )
    transport: Transport | None = None

    def __post_init__(self) -> None:
        keras.callbacks.Callback.__init__(self)
        given, self.transport = self.transport, self.transport or world.transport()
        if given is None and self.transport is not None:
            devices.claim_gpu_if_possible()
        ranks = self.transport.size if self.transport is not None else 1
        self.check(self.name, ranks=ranks, seed=self.seed, common=self)
        self.weights: FlatWeights | None = None
        self.resumed: Mapping[str, Any] | None = None
        self.checkpoint_due: Callable[[], bool] = lambda: False
        self.checkpoint_now = False
        self._counters = Counters()
        self._sent_before = 0
        self._sent: int | None = None  # until the end of training
        self._due = sys.maxsize
        self._rounds = 0
        self._step = 0
        self._began_at = 0  # the step at which this training began
        self._iterations = 0  # steps of the optimizer, when last read
        self._first_batch: int | None = None  # of the current block
        self._agreed_model: list[int] = []
        self._watched: FirstBatch | None = None
        self._same_data: SameData | None = None  # until ranks have compared what they read
        self._after_all: _AfterAllCallbacks | None = None
        self._caller: FrameType | None = None  # the loop that trains
        self._stop_check: StopCheck | None = None  # of synchronous ranks that have joined
        self._training = ExitStack()

    @property
    def settings(self) -> dict[str, Any]:
        """The options that must be the same on all ranks, JSON values by name."""
        return {
            one.name: _plain(getattr(self, one.name))
            for one in fields(self)
            if one.metadata["agreed"]
        }

    # What an algorithm is.

    def next_boundary(self, step: int) -> int:
        """The local step after which `boundary` is called next.

        Args:
          step: after which it was called last, or the step at which the training began.
        """
        return step + 1

    def begin(self, common: dict[str, Any]) -> None:
        """All ranks have joined; `common` is what they agreed on.

        Their weights are equal; or those of a checkpoint: then `resumed` has the rest of its state.
        """

    def boundary(self, step: int) -> None:
        """Called on every rank after local step `step`, counted from 1."""

    def end(self, step: int) -> None:
        """Called on every rank after its last local step."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this rank besides its model; for `resumed`, later.

        Called between two steps. A subclass with state of its own adds it: nested dicts and lists
        of JSON values and NumPy arrays, copied.
        """
        weights = None if self.weights is None else self.weights.state()
        return {"step": self._step, "due": self._due, "weights": weights}

    def resume(self, saved: Mapping[str, Any], *, own: bool = True) -> None:
        """Go on from a checkpoint in the training that begins now, before the ranks join.

        The caller has restored the model.

        Args:
          saved: what `state` returned.
          own: whether it was this rank's own, not the mean of others' states. A mean gives this
            rank the weights that are averaged, but no place in a random sequence.
        """
        self.resumed = {**saved, "own": own}
        self._step = self._began_at = int(saved["step"])
        self._iterations = state.steps_taken(self.model)

    @property
    def counters(self) -> Counters:
        """What this rank has exchanged so far."""
        sent = 0 if self.transport is None else self.transport.bytes_sent - self._sent_before
        if self._sent is not None:
            sent = self._sent
        return replace(self._counters, bytes_sent=sent, payload_bytes=sent)

    @contextmanager
    def exposed(self) -> Iterator[None]:
        """Count an exchange, and the time that training waits for it."""
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self._counters = self._counters.after(RanksAveraged(seconds))

    @property
    def due(self) -> int:
        """The local step after which this callback must be called next."""
        if self.transport is None:
            return sys.maxsize
        if self.weights is None:
            return self._step + 1
        return min(self._due, self._stop_check.next_step) if self._stop_check else self._due

    @property
    def stop_requested(self) -> bool:
        """Whether a signal has asked this rank to stop."""
        return signals.received() is not None

    @property
    def rounds(self) -> int:
        """How often all ranks have averaged together, in a synchronous algorithm."""
        return self._rounds

    # Keras' hooks.

    def set_model(self, model: keras.Model) -> None:
        """Keras gives every callback its model."""
        super().set_model(model)
        self._iterations = state.steps_taken(model)
        self._watched = FirstBatch.of(model) if self.transport is not None else None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Get ready to join the other ranks."""
        if self.transport is None:
            if world.is_child():
                _log.warning("a process that rank %d has started: training alone", world.rank())
            else:
                _log.warning("one rank, no launcher: training alone; mpirun -n N starts several")
            return
        self._clean_up()
        _begun.add(self)
        self._training.enter_context(signals.listening())
        self.weights = None
        self._began_at = self._step
        self._first_batch = None
        self._after_all, self._caller = _AfterAllCallbacks.of(self)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Synchronous ranks begin an epoch together.

        So a rank may validate or save for long between epochs without a timeout, and a rank that
        has stopped early is noticed before others wait for its next step.
        """
        if self.synchronous and self.transport is not None and self.weights is not None:
            agreed = {"the epoch": epoch}
            world.agree(self.transport, "the start of an epoch", agreed, world.FIRST_SECONDS)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Join the other ranks before the first batch.

        Not earlier, since other callbacks may still load weights. A model that Keras builds from
        its first batch joins after that batch.
        """
        self._first_batch = batch
        if self.transport is None or self.weights is not None:
            return
        if state.is_built(self.model) and self._slots_are_built():
            self._join()

    def _slots_are_built(self) -> bool:
        """Whether every optimizer has its slots, if they are averaged.

        The compiled optimizer can be built here; only another optimizer itself knows its weights.
        """
        if not self.average_optimizer:
            return True
        owned = state.optimizers(self.model).values()
        return all(one.built for one in owned if one is not self.model.optimizer)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Average if a boundary is due; stop if a signal has asked for it."""
        self._step += self._count_steps(batch)
        step = self._step
        self.checkpoint_now = False
        if self.transport is not None and self.weights is None:
            self._join()
            return
        if self._same_data is not None and self._same_data.poll():
            self._same_data = None
        if self._should_stop(step):
            self.model.stop_training = True
        if self.transport is None:
            return
        if step >= self._due:
            self.boundary(step)
            self._rounds += 1
            self._due = self.next_boundary(step)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Check that the model is still the one that the ranks agreed on."""
        self._check_model()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """End the averaging; after the hooks of all callbacks, take the mean model."""
        if self.transport is None:
            return
        if self.weights is None:
            refused = (
                ""
                if state.is_built(self.model)
                else "it has no batches to train on, and a model that is built by its first batch"
            )
            self._join(refused)
        self._check_model()
        if self.synchronous:  # else ranks that still train would misread this rank's next message
            world.agree(self.transport, "the end of training", self._progress(ends=True))
        self.end(self._step)
        if self._same_data is not None:
            self._same_data.finish(self.timeout_seconds)
            self._same_data = None
        self._sent = self.transport.bytes_sent - self._sent_before
        counters = self.counters
        steps = self._step - self._began_at
        if steps and not counters.exchanges + counters.exchanges_served:
            _log.warning(
                "rank %d: %s has not averaged once in %d steps, only at the very end",
                self.transport.rank,
                self.name,
                steps,
            )
        if self._after_all is None:
            self._end_training()

    def _end_training(self) -> None:
        """After the hooks of all callbacks: leave every rank with the mean model."""
        assert self.transport is not None
        assert self.weights is not None
        if self.average_at_end:
            self.weights.assign(consensus.mean(self.weights, self.transport))
        rendezvous.leave(self.model)
        world.end_training(self)
        self._close()

    def when_over(self, action: Callable[[], None]) -> None:
        """Call `action` when this training has ended on all ranks, or failed on this one."""
        self._training.callback(action)

    def local_step(self) -> int:
        """Training steps (batches) that this rank has taken with this callback."""
        return self._step

    def _count_steps(self, batch: int) -> int:
        """How many batches the block that ends with `batch` had.

        Keras reports a full block even if the data ended within it. Optimizers count correctly,
        but there may be none, several, or one that steps more than once a batch.
        """
        before, self._iterations = self._iterations, state.steps_taken(self.model)
        taken = self._iterations - before
        first, self._first_batch = self._first_batch, None
        if first is None:  # a loop of the user's own that calls no on_train_batch_begin
            return max(taken, 1)
        batches = max(batch - first + 1, 1)
        return min(taken, batches) if taken > 0 else batches

    def _should_stop(self, step: int) -> bool:
        """Whether a signal ends training here; synchronous ranks decide it together."""
        if self._stop_check is None:
            self.checkpoint_now = self.checkpoint_due()
            return self.stop_requested
        requested = {"stop": self.stop_requested, "checkpoint": self.checkpoint_due()}
        agreed = self._stop_check(step, requested, self._progress(ends=False))
        self.checkpoint_now = "checkpoint" in agreed
        return "stop" in agreed

    def _progress(self, *, ends: bool) -> dict[str, Any]:
        """Must be the same on all ranks; if not, they have different numbers of batches."""
        return {
            "the number of averagings, so of batches,": self.rounds,
            "whether the batches are at an end": ends,
        }

    def _variables(self) -> list[keras.Variable]:
        return state.averaged_variables(
            self.model,
            statistics=self.average_statistics,
            optimizer=self.average_optimizer,
        )

    def _join(self, refused: str = "") -> None:
        assert self.transport is not None
        common: dict[str, Any] = {"algorithm": self.name}
        common |= {f"{self.name}.{key}": value for key, value in self.settings.items()}
        if self.synchronous:
            common["the steps before the ranks joined"] = self._step - self._began_at
            refused = refused or self._refuses_optimizer()
        continues = rendezvous.join(
            self.model,
            self.transport,
            common,
            averages_slots=self.average_optimizer,
            equal_slots=not self.own_gradients,
            resumed=self.resumed is not None,
            refused=refused,
        )
        self._iterations = state.steps_taken(self.model)
        slots = self.average_optimizer
        self.weights = FlatWeights(
            self._variables(), signed=state.signed_variables(self.model, slots=slots)
        )
        self._agreed_model = self._model_ids()
        if self.resumed is not None:
            if self.resumed["weights"] is not None:
                self.weights.restore(self.resumed["weights"])
        elif continues and self.synchronous:
            self.weights.assign(consensus.mean(self.weights, self.transport))
        common["the model's weights"] = [entry[1:] for entry in self.weights.shapes()]
        self._rounds = 0
        self._sent_before, self._sent = self.transport.bytes_sent, None
        world.begin_training(self)
        self.begin(common)
        self._same_data = SameData(self.transport, self._watched, arrays_of(self._caller))
        self._due = self.next_boundary(self._step)
        if self.resumed is not None and (self.resumed["own"] or self.synchronous):
            self._due = max(self.resumed["due"], self._step + 1)
        self.resumed = None
        self._stop_check = None
        if self.synchronous:
            self._stop_check = StopCheck(self.transport, self._step, self.timeout_seconds)

    def _refuses_optimizer(self) -> str:
        """Why ranks cannot all take the same steps; empty if they can."""
        every = [part for one in state.optimizers(self.model).values() for part in state.parts(one)]
        scaled = any(isinstance(one, keras.optimizers.LossScaleOptimizer) for one in every)
        if scaled and self.own_gradients:
            return (
                f"mixed_float16 with algorithm={self.name}: each rank skips steps of its own, so "
                "ranks cannot stay synchronous; use mixed_bfloat16, allreduce or a swarm"
            )
        return ""

    def _model_ids(self) -> list[int]:
        """Identities of the variables that the model has, and of those that it trains."""
        model = self.model
        return [*(id(v) for v in model.weights), -1, *(id(v) for v in model.trainable_variables)]

    def _check_model(self) -> None:
        """Raises UsageError if variables were added, removed or (un)frozen since the start."""
        if self.weights is None or self._agreed_model == self._model_ids():
            return
        known = set(self._agreed_model)
        new = [v.path for v in self.model.weights if id(v) not in known]
        what = f"has new variables ({', '.join(new[:3])})" if new else "trains other variables"
        raise UsageError(
            f"the model {self.model.name} {what} since the ranks joined before its first batch; "
            "these are not averaged: build, freeze and unfreeze the model before training"
        )

    # Trainings that fail.

    def abandon(self, *, exits: bool = False) -> None:
        """The training failed on this rank, or its program ends (`exits`).

        Release what serves the training, without waiting.
        """

    def _clean_up(self) -> None:
        """End what is left of failed trainings of this callback, this model or this transport.

        Keras tells no callback when an exception ends a training.
        """
        for other in list(_begun):
            if other.transport is not self.transport:
                continue
            mine = other is self or other.model is self.model
            if mine or not is_running(other._caller):
                other._close()
                if other in world.unfinished():  # else it failed before the ranks joined
                    other.abandon()
                    world.end_training(other)

    def _close(self) -> None:
        """What `on_train_begin` has begun on this rank is over."""
        self._caller = None
        self._training.close()
        _begun.discard(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Algorithm":
        raise UsageError(
            f"a {type(self).__name__} can't be copied: it holds a rank's connection to the others; "
            "make a new one"
        )


_begun: set[Algorithm] = set()
"""Trainings that have begun on this rank, and not ended."""


class _AfterAllCallbacks(keras.callbacks.Callback):  # type: ignore[misc]
    """The last callback of a list, for what an algorithm does after all others."""

    def __init__(self, algorithm: Algorithm) -> None:
        super().__init__()
        self.algorithm = algorithm

    @staticmethod
    def of(algorithm: Algorithm) -> tuple["_AfterAllCallbacks | None", FrameType | None]:
        """Append one to the list of callbacks that is calling `algorithm.on_train_begin`.

        Returns:
          it, and the frame of the loop that trains; None twice if a loop calls the hooks itself.
        """
        frame = frame_of_callback_list()
        if frame is None:
            return None, None
        among = frame.f_locals["self"]
        mine = (c for c in among.callbacks if isinstance(c, _AfterAllCallbacks))
        last = next((c for c in mine if c.algorithm is algorithm), None)
        if last is None:
            last = _AfterAllCallbacks(algorithm)
            last.set_model(algorithm.model)
            among.callbacks.append(last)
        return last, frame.f_back

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.algorithm._end_training()


def algorithm_beside(callback: str) -> Algorithm:
    """The algorithm in the list of callbacks that is calling a hook of `callback`.

    Raises:
      UsageError: there is none.
    """
    hooks = callback_list()
    others = [] if hooks is None else hooks.callbacks
    found = next((c for c in others if isinstance(c, Algorithm)), None)
    if found is None:
        raise UsageError(
            f"{callback} needs a SwarmCallback, or another of swarm_tf's algorithms, beside it in "
            "the list of callbacks"
        )
    return found


def _plain(value: Any) -> Any:
    """An option as a JSON value: the edges of a graph."""
    return sorted(value.edges) if hasattr(value, "edges") else value
