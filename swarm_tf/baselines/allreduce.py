"""Large-batch SGD: all ranks average their gradients in every step.

Goyal et al. 2017, arXiv 1706.02677; ring all-reduce in buckets as in Sergeev and Del Balso 2018,
arXiv 1802.05799 (Horovod) and Li et al. 2020, arXiv 2006.15704.

    g   <- (g_1 + ... + g_N) / N
    x   <- x - optimizer step for g        x is the same on every rank
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from swarm_tf import gradients
from swarm_tf.algorithm import Algorithm
from swarm_tf.cluster import world
from swarm_tf.errors import CollectiveError, UsageError
from swarm_tf.events import Counters
from swarm_tf.options import POSITIVE, Options, one_of, option, with_options
from swarm_tf.transport import collectives
from swarm_tf.transport.base import Array

_TOLERANCE = 1e-3
"""Allowed difference between ranks along a random direction, relative to the variable's norm."""


@dataclass
class AllReduceConfig(Options):
    """Options of large-batch SGD."""

    backend: str = option(
        "mpi", one_of(("mpi", "horovod")), "library that averages; `make horovod` builds Horovod"
    )
    bucket_mib: float = option(
        1.0, POSITIVE, "MiB of gradients that are sent together in a bucket; only with backend=mpi"
    )


@with_options
class AllReduce(AllReduceConfig, Algorithm):
    """Averages gradients between the backward pass and the optimizer.

    A bucket of gradients is sent as soon as it is computed, the last layers first, while the
    backward pass continues.

    Raises:
      UsageError: an option has a value that its rule does not allow, or Horovod is missing.
    """

    name = "allreduce"
    own_gradients = False
    waits_in_step = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backend == "horovod" and self.transport is not None:
            _start_horovod(self.transport.size)
        self._error: Exception | None = None
        self._background: collectives.Background | None = None
        self._averaged: dict[int, tuple[Array, collectives.Handle | None]] = {}

    def set_model(self, model: keras.Model) -> None:
        """Make the optimizers of `model` apply the mean of all ranks' gradients."""
        super().set_model(model)
        if self.transport is None:
            return
        with tf.device("CPU"):
            self._exposed = tf.Variable(0.0, dtype=tf.float64, trainable=False)
            self._reductions = tf.Variable(0, dtype=tf.int64, trainable=False)
        gradients.release(model)  # an earlier training may have failed before its release
        gradients.intercept(model, self._mean)

    def next_boundary(self, step: int) -> int:
        """Gradients are averaged in every step; `boundary` only counts the averaged steps."""
        return step + 16

    def begin(self, common: dict[str, Any]) -> None:
        """Start the thread that averages the gradients of the following steps."""
        assert self.transport is not None
        self._first_step = self.local_step()
        self._compared, self._error = False, None
        self._exposed.assign(0.0)
        self._reductions.assign(0)
        self._background = collectives.Background(self.transport.rank)
        self._background.start()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Raise the error of this step's averaging, if there was one."""
        # If it were raised within the step, TensorFlow would wrap it in a long message.
        if self._error is not None:
            raise CollectiveError(
                f"{self._error}; all ranks must take equally many steps: another rank may have "
                "stopped early or have fewer batches"
            ) from None
        super().on_train_batch_end(batch, logs)

    def boundary(self, step: int) -> None:
        """Check that no gradient was applied without averaging."""
        steps = step - self._first_step
        if self.rounds < steps:
            raise RuntimeError(f"gradients were averaged in only {self.rounds} of {steps} steps")
        if not self._compared:
            self._compared = True
            self._check_equal_weights()

    def _check_equal_weights(self) -> None:
        """Check that ranks hold the same weights, up to rounding that depends on the processor."""
        assert self.transport is not None
        rng = np.random.default_rng(0)
        sketch = []
        for variable in self.model.trainable_variables:
            x = np.asarray(tf.cast(variable.value, tf.float64)).ravel()
            sketch.append([float(x @ rng.choice((-1.0, 1.0), x.size)), float(x @ x) ** 0.5])
        first, *others = world.gather_over(self.transport, sketch, "the weights of all ranks")
        for rank, other in enumerate(others, 1):
            for number, ((a, norm), (b, _)) in enumerate(zip(first, other, strict=True)):
                if abs(a - b) > _TOLERANCE * norm:
                    path = self.model.trainable_variables[number].path
                    raise UsageError(
                        f"{path} differs between rank {rank} and rank 0, so algorithm={self.name} "
                        "does not average all gradients; it can do so only for optimizers that "
                        "are attributes of the model"
                    )

    @property
    def rounds(self) -> int:
        """How often gradients were averaged: once per step and optimizer."""
        return int(self._reductions.numpy())

    def end(self, step: int) -> None:
        """Restore the optimizers."""
        self._compared = False
        self.boundary(step)
        self._release(wait=True)

    def abandon(self, *, exits: bool = False) -> None:
        """Restore the optimizers without waiting for other ranks."""
        self._release(wait=False)

    def _release(self, wait: bool) -> None:
        if self._background is not None:
            self._background.stop(wait)
            self._background = None
        gradients.release(self.model)

    @property
    def counters(self) -> Counters:
        """Counts of this rank's exchanges and bytes; with horovod the bytes are computed."""
        if self.weights is None or self.transport is None:
            return Counters()
        rounds, sent = self.rounds, super().counters.bytes_sent
        if self.backend == "horovod":
            size = self.transport.size
            weights = sum(math.prod(v.shape) for v in self.model.trainable_variables)
            sent = rounds * 4 * weights * 2 * (size - 1) // size
        exposed = float(self._exposed.numpy())
        return Counters(
            exchanges=rounds, bytes_sent=sent, payload_bytes=sent, exposed_seconds=exposed
        )

    def _mean(self, own: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        """The mean over all ranks of each gradient that is not None, as a dense tensor."""
        dense = [
            tf.ensure_shape(tf.convert_to_tensor(gradient), variable.shape)
            for gradient, variable in zip(own, variables, strict=True)
            if gradient is not None
        ]
        reduce = self._over_horovod if self.backend == "horovod" else self._over_mpi
        means, began = reduce(dense)
        with tf.control_dependencies(means):
            ended = tf.timestamp()
        self._exposed.assign_add(ended - began)
        self._reductions.assign_add(1)
        remaining = iter(means)
        return [None if gradient is None else next(remaining) for gradient in own]

    def _over_mpi(self, own: list[tf.Tensor]) -> tuple[list[tf.Tensor], tf.Tensor]:
        """The means, and the time at which the last gradient was computed."""
        buckets = _buckets(own, self.bucket_mib * 2**20)
        started = []
        # A bucket starts when its gradients are computed and the buckets before it have started:
        # TensorFlow runs stateful operations in the order in which they are created. So the
        # timestamp must be created after them.
        for number, bucket in enumerate(buckets):
            flat = [tf.reshape(tf.cast(own[i], tf.float32), [-1]) for i in bucket]
            start = functools.partial(self._start, number)
            started.append(tf.numpy_function(start, [tf.concat(flat, axis=0)], tf.int32))
        with tf.control_dependencies(started):
            began = tf.timestamp()
        with tf.control_dependencies([began]):
            finish = functools.partial(self._finish, len(buckets))
            flats = tf.numpy_function(finish, [], [tf.float32] * len(buckets))
        means: list[Any] = [None] * len(own)
        for bucket, flat in zip(buckets, tf.nest.flatten(flats), strict=True):
            parts = tf.split(flat, [own[i].shape.num_elements() for i in bucket])
            for i, part in zip(bucket, parts, strict=True):
                shaped = tf.reshape(part, own[i].shape)
                means[i] = tf.cast(shaped, own[i].dtype)
        return means, began

    def _over_horovod(self, own: list[tf.Tensor]) -> tuple[list[tf.Tensor], tf.Tensor]:
        """The means, and the time at which the last gradient was computed."""
        import horovod.tensorflow as hvd

        # One call per gradient: Horovod fuses them itself. hvd.DistributedOptimizer has no effect
        # in Keras 3.
        means = [
            hvd.allreduce(gradient, op=hvd.Average, name=f"gradient.{index}")
            for index, gradient in enumerate(own)
        ]
        with tf.control_dependencies(own):
            return means, tf.timestamp()

    def _start(self, number: int, array: Array) -> np.int32:
        """Begin to average bucket `number` of a step."""
        # Before the ranks have joined, and after an error, nothing is sent.
        if self._background is None or self._error is not None:
            self._averaged[number] = array.copy(), None
            return np.int32(number)
        assert self.transport is not None
        mean = array.copy()
        tag = collectives.session_tag(self.transport, number)
        collective = collectives.mean(self.transport, mean, tag, self.timeout_seconds)
        self._averaged[number] = mean, self._background.submit(collective)
        return np.int32(number)

    def _finish(self, count: int) -> list[Array]:
        """Wait until all buckets of a step are averaged, and return them."""
        means = []
        for number in range(count):
            mean, handle = self._averaged.pop(number)
            if handle is not None and self._error is None:
                try:
                    handle.wait()
                except (TimeoutError, CollectiveError) as error:
                    self._error = error
            means.append(mean if self._error is None else np.zeros_like(mean))
        return means


def _buckets(own: Sequence[tf.Tensor], size: float) -> list[list[int]]:
    """The indices of the gradients in each bucket, in the order in which they are computed."""
    buckets: list[list[int]] = []
    fill = size
    for index in reversed(range(len(own))):
        if fill >= size:
            buckets.append([])
            fill = 0
        buckets[-1].append(index)
        fill += 4 * own[index].shape.num_elements()
    return buckets


def _start_horovod(size: int) -> None:
    try:
        import horovod.tensorflow as hvd
    except ImportError as error:
        raise UsageError(
            f"allreduce.backend=horovod needs Horovod ({error}); make horovod builds it"
        ) from None
    hvd.init()
    if hvd.size() != size:
        raise UsageError(
            f"allreduce.backend=horovod: Horovod sees {hvd.size()} of {size} ranks; it was built "
            "without MPI or for another MPI; make horovod builds it again"
        )
