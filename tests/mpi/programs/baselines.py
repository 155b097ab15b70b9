"""Every baseline on four ranks against its update rule, written down in NumPy for all ranks."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import swarm_tf
from swarm_tf.baselines.adpsgd import ADPSGD
from swarm_tf.baselines.allreduce import AllReduce
from swarm_tf.baselines.diloco import DiLoCo
from swarm_tf.baselines.dpsgd import DPSGD
from swarm_tf.baselines.local_sgd import LocalSGD
from swarm_tf.baselines.noloco import NoLoCo
from swarm_tf.baselines.sgp import SGP
from swarm_tf.cluster import world
from swarm_tf.errors import CollectiveError
from swarm_tf.trainer import Trainer

mpi = world.transport()
RANK, SIZE = swarm_tf.rank(), swarm_tf.size()
assert SIZE == 4
RANKS = range(SIZE)
STEPS, BATCH, FEATURES, OUT = 10, 8, 5, 3
RATE, MOMENTUM = 0.05, 0.9


def examples(rank):
    rng = np.random.default_rng(rank)
    x = rng.normal(size=[STEPS, BATCH, FEATURES]).astype(np.float32)
    w = rng.normal(size=[FEATURES, OUT])  # every rank has an optimum of its own
    return x, (x @ w + rank).astype(np.float32)


DATA = [examples(rank) for rank in RANKS]


def linear():
    keras.utils.set_random_seed(RANK)  # all ranks start from rank 0's model
    model = keras.Sequential([keras.Input([FEATURES]), keras.layers.Dense(OUT)])
    model.compile(keras.optimizers.SGD(RATE, momentum=MOMENTUM), "mse", jit_compile=False)
    return model


def trained(callback, *others):
    """[FEATURES + 1, OUT]: kernel and bias of this rank after ten steps, by `model.fit`."""
    model = linear()
    data = tf.data.Dataset.from_tensor_slices(DATA[RANK])
    model.fit(data, verbose=0, shuffle=False, callbacks=[callback, *others])
    return np.concatenate([model.get_weights()[0], model.get_weights()[1][None]])


class Reference:
    """The models and optimizers of all ranks."""

    def __init__(self):
        kernel = linear().get_weights()[0]
        mpi.broadcast([kernel])
        self.start = np.concatenate([kernel, np.zeros([1, OUT])]).astype(np.float64)
        self.x = [self.start.copy() for _ in RANKS]
        self.velocity = [np.zeros_like(self.start) for _ in RANKS]

    @staticmethod
    def gradient(x, rank, step):
        """The gradient of the mean square error."""
        inputs, labels = DATA[rank]
        inputs = np.concatenate([inputs[step], np.ones([BATCH, 1])], axis=1)
        return 2 * inputs.T @ (inputs @ x - labels[step]) / labels[step].size

    def move(self, rank, gradient):
        """What momentum SGD adds to the rank's model."""
        self.velocity[rank] = MOMENTUM * self.velocity[rank] - RATE * gradient
        return self.velocity[rank]

    def moves(self, step):
        """What the optimizers of all ranks add, each at its own model."""
        return [self.move(r, self.gradient(self.x[r], r, step)) for r in RANKS]

    def local_step(self, step):
        self.x = [x + move for x, move in zip(self.x, self.moves(step), strict=True)]


def assert_agrees(got, reference):
    np.testing.assert_allclose(got, reference.x[RANK], rtol=0, atol=1e-5)
    every = np.concatenate(reference.x)
    assert np.abs(every - np.concatenate([reference.start] * SIZE)).max() > 0.1, (
        "the models did not move"
    )


def allreduce():
    reference = Reference()
    for step in range(STEPS):
        mean = np.mean([reference.gradient(reference.x[0], r, step) for r in RANKS], axis=0)
        reference.x = [reference.x[0] + reference.move(0, mean)] * SIZE
    for bucket in (4.0, 1e-6):  # one bucket; one for each variable
        callback = AllReduce(bucket_mib=bucket, average_at_end=False)
        got = trained(callback)
        assert_agrees(got, reference)
        assert len(set(mpi.gather(got.tobytes(), "bits", 60))) == 1
        assert callback.counters.exchanges == STEPS
        sent = sum(int(n) for n in mpi.gather(b"%d" % callback.counters.bytes_sent, "bytes", 60))
        averaged = STEPS * 2 * (SIZE - 1) * 4 * reference.start.size  # 2 (N - 1) / N each
        assert sent == averaged + 8 * (SIZE - 1)  # and a digest of the first batch


def allreduce_equals_single_on_a_larger_batch():
    """With Adam, clipping, the Trainer, and a network with a nonlinearity."""

    def network():
        keras.utils.set_random_seed(3)
        layers = [keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(OUT)]
        model = keras.Sequential([keras.Input([FEATURES]), *layers])
        optimizer = keras.optimizers.Adam(0.01, global_clipnorm=0.5)
        model.compile(optimizer, "mse")
        return model

    alone, together = network(), network()
    x, y = (np.concatenate([d[part] for d in DATA], axis=1) for part in (0, 1))
    Trainer(alone).fit(
        tf.data.Dataset.from_tensor_slices((x, y)), steps=STEPS, steps_per_epoch=STEPS
    )
    Trainer(together).fit(
        tf.data.Dataset.from_tensor_slices(DATA[RANK]),
        steps=STEPS,
        steps_per_epoch=4,
        callbacks=[AllReduce(average_at_end=False)],
    )
    for a, b in zip(alone.get_weights(), together.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


def allreduce_leaves_the_optimizer_unchanged():
    """The model is trained without the callback, with it, and without it again."""
    model = linear()
    data = tf.data.Dataset.from_tensor_slices(DATA[RANK])

    def different():
        return len(set(mpi.gather(model.get_weights()[0].tobytes(), "weights", 60))) > 1

    model.fit(data, verbose=0)
    assert different()
    model.fit(data, verbose=0, callbacks=[AllReduce(average_at_end=False)])
    assert not different()
    model.fit(data, verbose=0)
    assert different()


def an_allreduce_callback_can_be_used_again():
    """The same object is used again after a training without it."""
    model = linear()
    data = tf.data.Dataset.from_tensor_slices(DATA[RANK])
    callback = AllReduce(average_at_end=False)
    trainer = Trainer(model)
    for with_it in (True, False, True):
        callbacks = [callback] if with_it else []
        trainer.fit(data, steps=STEPS, steps_per_epoch=STEPS, callbacks=callbacks)
        every = mpi.gather(model.get_weights()[0].tobytes(), "weights", 60)
        assert (len(set(every)) == 1) == with_it


def buckets_start_before_the_backward_pass_ends():
    """No path leads from the first layer's gradients to the start of the last layer's bucket."""
    model = keras.Sequential([keras.Input([FEATURES]), *(keras.layers.Dense(7) for _ in range(3))])
    model.compile(keras.optimizers.SGD(RATE), "mse")
    callback = AllReduce(bucket_mib=1e-6)
    callback.set_model(model)
    x, y = DATA[RANK][0][0], np.zeros([BATCH, 7], np.float32)
    graph = tf.function(model.train_step).get_concrete_function((x, y)).graph
    starts = [
        op for op in graph.get_operations() if op.type == "EagerPyFunc" or op.type == "PyFunc"
    ]
    starts = [op for op in starts if op.inputs]

    def ancestors(op):
        found, new = set(), [op]
        while new:
            one = new.pop()
            for before in [*(tensor.op for tensor in one.inputs), *one.control_inputs]:
                if before not in found:
                    found.add(before)
                    new.append(before)
        return found

    assert len(starts) == 6, [op.name for op in starts]
    last_gradient = starts[-1].inputs[0].op  # of the first kernel
    assert last_gradient not in ancestors(starts[0])
    assert starts[0] in ancestors(starts[-1]), "buckets start in the same order on all ranks"


def boundaries_under_the_trainer_are_at_the_right_steps():
    """Blocks also end for other reasons: at the end of a pass, and for the log."""
    for callback, expected in [
        (LocalSGD(7, switch=0.05, steps=40), [1, 2, 9, 16, 23, 30]),
        (DiLoCo(16), [16, 32]),
    ]:
        seen, boundary = [], callback.boundary

        def note(step, seen=seen, boundary=boundary):
            seen.append(step)
            boundary(step)

        callback.boundary = note
        data = tf.data.Dataset.from_tensor_slices(DATA[RANK]).repeat()
        trainer = Trainer(linear(), longest_block=10)
        trainer.fit(data, steps=35, steps_per_epoch=6, callbacks=[callback])
        assert seen == expected, seen


def local_sgd():
    reference = Reference()
    for step in range(STEPS):
        reference.local_step(step)
        if step + 1 in (1, 2, 3, 4, 7, 10):  # every step until 4, then every third
            reference.x = [np.mean(reference.x, axis=0)] * SIZE
    assert_agrees(trained(LocalSGD(3, switch=0.1, steps=40, average_at_end=False)), reference)


def dpsgd():
    for topology, mixing in [
        ("ring", np.array([[1, 1, 0, 1], [1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 1, 1]]) / 3),
        ("complete", np.full([4, 4], 1 / 4)),
    ]:
        reference = Reference()
        for step in range(STEPS):
            moves = reference.moves(step)
            mixed = np.einsum("ij,jkl->ikl", mixing, np.stack(reference.x))
            reference.x = [x + move for x, move in zip(mixed, moves, strict=True)]
        assert_agrees(trained(DPSGD(topology, average_at_end=False)), reference)


class Irregular(SGP):
    """Rank 0 sends to all, the others to rank 0 only, so that push-sum weights leave 1."""

    def out_neighbors(self, rank, round):
        return [1, 2, 3] if rank == 0 else [0]


class Weighing(keras.callbacks.Callback):
    """Sums the push-sum weights of all ranks after every step."""

    def __init__(self, sgp):
        super().__init__()
        self.sgp, self.sums, self.own = sgp, [], []

    def on_train_batch_end(self, batch, logs=None):
        every = mpi.gather(repr(self.sgp.weight).encode(), "weights", 60)
        self.sums.append(sum(float(w) for w in every))
        self.own.append(self.sgp.weight)


SGP_CASES = [(SGP, False, 1), (SGP, True, 3), (Irregular, False, 3), (Irregular, True, 1)]


def sgp():
    for kind, overlap, local_steps in SGP_CASES:
        callback = kind(overlap, local_steps, average_at_end=False)
        weighing = Weighing(callback)
        got = trained(callback, weighing)
        reference = Reference()
        x, w = [z.copy() for z in reference.x], [1.0] * SIZE  # biased models and their weights
        under_way = [(np.zeros_like(reference.start), 0.0) for _ in RANKS]
        for step in range(STEPS):
            moves = reference.moves(step)
            x = [a + move for a, move in zip(x, moves, strict=True)]
            reference.x = [a + move for a, move in zip(reference.x, moves, strict=True)]
            round, rest = divmod(step + 1, local_steps)
            if rest:
                continue
            arriving = [(np.zeros_like(reference.start), 0.0) for _ in RANKS]
            for r in RANKS:
                out = (
                    ([1, 2, 3] if r == 0 else [0])
                    if kind is Irregular
                    else [(r + (1, 2)[(round - 1) % 2]) % 4]
                )
                share = 1 / (1 + len(out))
                x[r], w[r] = share * x[r], share * w[r]
                for to in out:
                    arriving[to] = arriving[to][0] + x[r], arriving[to][1] + w[r]
            taken = under_way if overlap else arriving
            under_way = arriving
            x = [a + b for a, (b, _) in zip(x, taken, strict=True)]
            w = [a + b for a, (_, b) in zip(w, taken, strict=True)]
            reference.x = [a / b for a, b in zip(x, w, strict=True)]
            np.testing.assert_allclose(weighing.own[step], w[RANK], rtol=1e-9)
        if overlap:  # messages in flight arrive at the end
            x = [a + b for a, (b, _) in zip(x, under_way, strict=True)]
            w = [a + b for a, (_, b) in zip(w, under_way, strict=True)]
        else:
            np.testing.assert_allclose(weighing.sums, SIZE, rtol=1e-9)
        reference.x = [a / b for a, b in zip(x, w, strict=True)]
        final = sum(float(a) for a in mpi.gather(repr(callback.weight).encode(), "weights", 60))
        np.testing.assert_allclose(final, SIZE, rtol=1e-9)
        if kind is Irregular:
            assert abs(callback.weight - 1) > 0.1
        assert_agrees(got, reference)


def diloco():
    eta, mu = 0.7, 0.9
    reference = Reference()
    slow, momentum = reference.start.copy(), np.zeros_like(reference.start)
    for step in range(STEPS):
        reference.local_step(step)
        if (step + 1) % 3 == 0:
            difference = np.mean([slow - x for x in reference.x], axis=0)
            momentum = mu * momentum + difference
            slow = slow - eta * (difference + mu * momentum)
            reference.x = [slow] * SIZE
    assert_agrees(trained(DiLoCo(3, average_at_end=False)), reference)


def noloco():
    alpha, beta, gamma, seed = 0.5, 0.7, 0.6, 11
    reference = Reference()
    slow = [reference.start.copy() for _ in RANKS]
    momentum = [np.zeros_like(reference.start) for _ in RANKS]
    callback = NoLoCo(3, attraction=gamma, seed=seed, average_at_end=False)
    partners = set()
    for step in range(STEPS):
        reference.local_step(step)
        if (step + 1) % 3 == 0:
            order = np.random.default_rng([seed, (step + 1) // 3]).permutation(SIZE)
            moved = [x - phi for x, phi in zip(reference.x, slow, strict=True)]
            old = list(slow)
            for i, j in [order[:2], order[1::-1], order[2:], order[:1:-1]]:
                momentum[i] = (
                    alpha * momentum[i]
                    + beta * (moved[i] + moved[j]) / 2
                    - gamma * (old[i] - (old[i] + old[j]) / 2)
                )
                slow[i] = old[i] + momentum[i]
                if i == RANK:
                    partners.add(j)
            reference.x = list(slow)
    assert_agrees(trained(callback), reference)
    assert len(set(mpi.gather(reference.x[RANK].tobytes(), "models", 60))) > 1
    assert partners


class Scheduled(ADPSGD):
    """Even ranks request after odd steps, odd ranks after even ones, each from the next rank."""

    def should_exchange(self, step):
        return (RANK + step) % 2 == 1

    def choose_partner(self, neighbors, rng):
        return (RANK + 1) % SIZE

    def boundary(self, step):
        super().boundary(step)
        self.member.driver.wait(60)
        mpi.gather(b"", "the exchanges of a step", 60)


def adpsgd():
    """A schedule in which the order of all exchanges is known."""
    reference = Reference()
    published = [reference.start.copy() for _ in RANKS]
    correction = [np.zeros_like(reference.start) for _ in RANKS]
    for step in range(1, STEPS + 1):
        reference.local_step(step - 1)
        initiators = [r for r in RANKS if (r + step) % 2 == 1]
        for r in initiators:
            reference.x[r] = reference.x[r] + correction[r]
            correction[r] = np.zeros_like(reference.start)
            published[r] = reference.x[r]
        for r in initiators:
            other = (r + 1) % SIZE
            mean = (published[r] + published[other]) / 2
            for one in (r, other):
                correction[one] = correction[one] + mean - published[one]
                published[one] = mean
    reference.x = [x + c for x, c in zip(reference.x, correction, strict=True)]
    callback = Scheduled(average_at_end=False)
    assert_agrees(trained(callback), reference)
    assert callback.counters.exchanges == STEPS // 2
    assert callback.counters.exchanges_failed == 0


def other_ranks_wait_for_a_long_validation():
    """One rank validates, for longer than ranks wait for each other within an epoch."""
    x, y = (part[0] for part in DATA[RANK])
    for make in (AllReduce, LocalSGD):
        model = linear()
        validating = keras.callbacks.LambdaCallback(on_test_end=lambda logs: time.sleep(3))
        callbacks = [make(timeout_seconds=1), validating]
        held_back = (x, y) if RANK == 2 else None
        model.fit(
            x, y, epochs=2, batch_size=2, verbose=0, callbacks=callbacks, validation_data=held_back
        )


def a_rank_that_stops_early_is_named_in_one_line():
    class Stop(keras.callbacks.Callback):
        def __init__(self, hook):
            super().__init__()
            setattr(self, hook, self.stop)

        def stop(self, number, logs=None):
            self.model.stop_training = RANK == 1 and number == 1

    x, y = (part[0] for part in DATA[RANK])
    for make in (AllReduce, LocalSGD):
        model, callback = linear(), make(timeout_seconds=5)
        with pytest.raises(CollectiveError) as caught:
            model.fit(x, y, epochs=9, batch_size=2, verbose=0,
                      callbacks=[callback, Stop("on_epoch_end")])  # fmt: skip
        assert "rank 1 is at 'the end of training', but rank 0 at 'the start of an epoch'" in str(
            caught.value
        )
        assert "\n" not in str(caught.value)


CHECKS = (
    allreduce,
    local_sgd,
    dpsgd,
    adpsgd,
    sgp,
    diloco,
    noloco,
)
SLOW = (
    a_rank_that_stops_early_is_named_in_one_line,
    allreduce_equals_single_on_a_larger_batch,
    allreduce_leaves_the_optimizer_unchanged,
    an_allreduce_callback_can_be_used_again,
    buckets_start_before_the_backward_pass_ends,
    boundaries_under_the_trainer_are_at_the_right_steps,
    other_ranks_wait_for_a_long_validation,
)
