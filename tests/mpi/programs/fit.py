"""SwarmCallback in model.fit and in Trainer, on each kind of Keras model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import swarm_tf
from swarm_tf import consensus
from swarm_tf.cluster import world
from swarm_tf.events import ExchangeEnded

mpi = world.transport()
RANK, SIZE = swarm_tf.rank(), swarm_tf.size()
assert SIZE == 3
STEPS = 24


def functional():
    x = inputs = keras.Input([6])
    x = keras.layers.Dense(8)(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.2, seed=RANK)(keras.layers.Activation("relu")(x))
    return keras.Model(inputs, keras.layers.Dense(1)(x))


def sequential():
    layers = [keras.layers.Dense(8, activation="relu"), keras.layers.BatchNormalization()]
    return keras.Sequential([keras.Input([6]), *layers, keras.layers.Dense(1)])


class Subclassed(keras.Model):
    """A model that its first batch builds."""

    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(8, activation="relu")
        self.normalize = keras.layers.BatchNormalization()
        self.out = keras.layers.Dense(1)

    def call(self, x, training=False):
        return self.out(self.normalize(self.hidden(x), training=training))


def subclassed():
    model = Subclassed()
    model(np.zeros([1, 6], np.float32))
    return model


def data(repeat=1):
    rng = np.random.default_rng([1, RANK])
    x = rng.normal(size=[STEPS * 8, 6]).astype(np.float32)
    y = x.sum(axis=1, keepdims=True).astype(np.float32) + RANK
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(8).repeat(repeat)


def compiled(build, **options):
    keras.utils.set_random_seed(100 + RANK)  # ranks start different, and become equal
    model = build()
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", jit_compile=False, **options)
    return model


def bits(model):
    """Weights and statistics; not the seeds of dropout, which are not averaged."""
    own = [v for v in model.variables if "float" in str(v.dtype)]
    return b"".join(np.asarray(v).tobytes() for v in own)


def equal_everywhere(value, what):
    every = mpi.gather(value, what, 60)
    assert len(set(every)) == 1, f"{what} differs: {[hash(e) % 1000 for e in every]}"


class Watching(swarm_tf.SwarmCallback):
    """Compares the weights at the start, and records the calls of its hooks."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.steps, self.partners, self.ended = [], [], []

    def begin(self, common):
        super().begin(common)
        equal_everywhere(bits(self.model), "the weights at the start")

    def should_exchange(self, step):
        self.steps.append(step)
        return step % 3 == 0

    def choose_partner(self, neighbors, rng):
        assert neighbors
        assert set(neighbors) < set(range(SIZE))
        assert RANK not in neighbors
        assert isinstance(rng, np.random.Generator)
        self.partners.append((RANK + 1) % SIZE)
        return self.partners[-1]

    def on_exchange_end(self, exchange):
        assert isinstance(exchange, ExchangeEnded)
        self.ended.append(exchange)


def every_kind_of_model_ends_equal():
    for build, per_execution in [(functional, 1), (sequential, 4), (subclassed, 4)]:
        model = compiled(build, steps_per_execution=per_execution)
        callback = swarm_tf.SwarmCallback(local_steps=4)
        model.fit(data(), verbose=0, callbacks=[callback])
        assert int(model.optimizer.iterations.numpy()) == STEPS
        equal_everywhere(bits(model), f"{build.__name__} at the end")
        counters = callback.counters
        assert counters.exchanges + counters.exchanges_served >= 1, counters
        assert counters.exchanges <= STEPS // 4
        assert counters.exchanges_failed == 0


def an_unbuilt_model_is_averaged_or_refused():
    """A model without variables before its first batch."""
    keras.utils.set_random_seed(100 + RANK)
    model = Subclassed()
    model.compile(keras.optimizers.SGD(0.01), "mse")
    try:
        callback = swarm_tf.SwarmCallback(local_steps=4, timeout_seconds=5)
        model.fit(data(), verbose=0, callbacks=[callback])
    except swarm_tf.UsageError:
        return
    equal_everywhere(bits(model), "a model that was built by its first batch")


def averaged_slots_end_equal():
    model = compiled(sequential)
    callback = swarm_tf.SwarmCallback(2, average_optimizer=True)
    model.fit(data(), verbose=0, callbacks=[callback])
    momenta = [v for v in model.optimizer.variables if "momentum" in v.path]
    assert momenta
    equal_everywhere(b"".join(np.asarray(v).tobytes() for v in momenta), "momentum at the end")


def overridden_hooks_are_called():
    model = compiled(functional)
    callback = Watching()
    model.fit(data(), verbose=0, callbacks=[callback])
    assert callback.steps == list(range(1, STEPS + 1))
    assert 1 <= len(callback.partners) <= STEPS // 3
    done = [e for e in callback.ended if not e.failure]
    assert len(done) == callback.counters.exchanges
    assert {e.partner for e in done} <= {(RANK + 1) % SIZE}
    assert all(e.step % 3 == 0 and e.seconds >= 0 for e in done)
    equal_everywhere(bits(model), "the weights at the end")


def without_average_at_end_ranks_end_different():
    model = compiled(sequential)
    callback = swarm_tf.SwarmCallback(STEPS // 2, average_at_end=False)
    model.fit(data(), verbose=0, callbacks=[callback])
    assert len(set(mpi.gather(bits(model), "weights", 60))) == SIZE
    mean = consensus.mean(callback.weights, mpi)
    assert consensus.distance(callback.weights, mpi, mean) > 0


def without_average_statistics_ranks_keep_their_own():
    model = compiled(sequential)
    callback = swarm_tf.SwarmCallback(4, average_statistics=False)
    model.fit(data(), verbose=0, callbacks=[callback])
    trained = b"".join(np.asarray(v).tobytes() for v in model.trainable_variables)
    equal_everywhere(trained, "trained weights")
    statistics = [np.asarray(v).tobytes() for v in model.layers[1].non_trainable_variables]
    assert len(set(mpi.gather(statistics[0], "moving means", 60))) == SIZE


def a_callback_can_be_used_twice():
    model = compiled(sequential)
    callback = swarm_tf.SwarmCallback(4)
    for _ in range(2):
        model.fit(data(), verbose=0, callbacks=[callback])
        equal_everywhere(bits(model), "after a fit")
    assert int(model.optimizer.iterations.numpy()) == 2 * STEPS


def geometric_local_steps_vary():
    model = compiled(functional)
    drawn = []

    class Noting(swarm_tf.SwarmCallback):
        def on_train_batch_end(self, batch, logs=None):
            drawn.append(int(self.model.optimizer.iterations.numpy()))
            super().on_train_batch_end(batch, logs)

    callback = Noting(4, local_steps_distribution="geometric")
    swarm_tf.Trainer(model).fit(data(-1), steps=60, steps_per_epoch=60, callbacks=[callback])
    blocks = np.diff([0, *drawn])
    assert drawn[-1] == 60
    assert len(set(blocks.tolist())) > 1, "blocks must have random lengths"
    assert 5 <= len(blocks) <= 40
    assert callback.counters.exchanges_failed == 0
    equal_everywhere(bits(model), "the weights at the end")
    every = mpi.gather(str(drawn).encode(), "boundaries", 60)
    assert len(set(every)) > 1, "each rank must draw its own lengths"


def blocking_and_pull_end_equal():
    for mode in ("blocking", "pull"):
        model = compiled(sequential)
        callback = swarm_tf.SwarmCallback(2, mode=mode, topology="ring")
        model.fit(data(), verbose=0, callbacks=[callback])
        assert callback.counters.exchanges_failed == 0
        equal_everywhere(bits(model), f"{mode} at the end")


def settings_and_models_that_differ_are_refused():
    for options, key in [
        ({"bits": 4 if RANK == 1 else 8}, "swarm.bits"),
        ({"local_steps": 2 + RANK}, "swarm.local_steps"),
        ({"mode": "blocking" if RANK == 2 else "pull"}, "swarm.mode"),
    ]:
        model = compiled(sequential)
        with pytest.raises(swarm_tf.UsageError, match=f"^{key} must be the same"):
            model.fit(data(), verbose=0, callbacks=[swarm_tf.SwarmCallback(**options)])
    inputs = 6 if RANK else 7
    model = keras.Sequential([keras.Input([inputs]), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x, y = np.zeros([8, inputs], np.float32), np.zeros([8, 1], np.float32)
    with pytest.raises(swarm_tf.UsageError, match="the model's weights must be the same"):
        model.fit(x, y, verbose=0, callbacks=[swarm_tf.SwarmCallback()])


CHECKS = (
    every_kind_of_model_ends_equal,
    overridden_hooks_are_called,
    settings_and_models_that_differ_are_refused,
    an_unbuilt_model_is_averaged_or_refused,
)
SLOW = (
    blocking_and_pull_end_equal,
    without_average_at_end_ranks_end_different,
    without_average_statistics_ranks_keep_their_own,
    a_callback_can_be_used_twice,
    geometric_local_steps_vary,
    averaged_slots_end_equal,
)
