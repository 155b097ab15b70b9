"""Trainer.fit and model.fit: both have equal results, whatever the model."""

import logging
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from swarm_tf import Trainer, UsageError

EPOCHS, STEPS = 3, 5
layers, optimizers = keras.layers, keras.optimizers
rng = np.random.default_rng(0)
X = rng.normal(size=(40, 6)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)


def sets(*elements, batch=8):
    """Endless batches of the given arrays."""
    data = elements[0] if len(elements) == 1 else elements
    return tf.data.Dataset.from_tensor_slices(data).batch(batch).repeat()


def compiled(model, optimizer=None, loss="mse", **settings):
    model.compile(optimizer or optimizers.SGD(0.05, momentum=0.9), loss, **settings)
    return model


def dense(*more, optimizer=None, **settings):
    return compiled(
        keras.Sequential([keras.Input((6,)), layers.Dense(8, "tanh"), *more, layers.Dense(1)]),
        optimizer,
        **{"jit_compile": False, **settings},
    )


# Models: each returns a compiled one and its batches.


def plain():
    return dense(metrics=["mae"], weighted_metrics=["mse"]), sets(X, Y)


def normalized():
    return dense(layers.BatchNormalization()), sets(X, Y)


def dropping():
    return dense(layers.Dropout(0.3), layers.GaussianNoise(0.1, seed=5)), sets(X, Y)


def unbuilt():
    return compiled(keras.Sequential([layers.Dense(4), layers.Dense(1)])), sets(X, Y)


class Sub(keras.Model):
    def __init__(self, built=False):
        super().__init__()
        self.hidden, self.out = layers.Dense(4), layers.Dense(1)
        if built:
            self.built = True

    def call(self, x, training=False):
        return self.out(self.hidden(x))


def subclass():
    return compiled(Sub(), metrics=["mae"]), sets(X, Y)


def says_it_is_built():
    return compiled(Sub(built=True)), sets(X, Y)


def weighted():
    return dense(weighted_metrics=["mae"]), sets(X, Y, np.linspace(0, 1, 40, dtype=np.float32))


def named():
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    out = layers.Dense(2, name="first")(a), layers.Dense(1, name="second")(layers.add([a, b]))
    model = keras.Model({"a": a, "b": b}, {"first": out[0], "second": out[1]})
    targets = {"first": X[:, :2], "second": Y}
    loss, metrics = {"first": "mse", "second": "mae"}, {"second": ["mse"]}
    return compiled(model, loss=loss, metrics=metrics), sets({"a": X, "b": -X}, targets)


class Auto(keras.Model):
    """A model that adds its own loss."""

    def __init__(self):
        super().__init__()
        self.code = layers.Dense(6)

    def call(self, x):
        decoded = self.code(x)
        self.add_loss(keras.ops.mean((decoded - x) ** 2))
        return decoded


def inputs_only():
    return compiled(Auto(), loss=None), sets(X)


def inputs_in_a_tuple():
    return compiled(Auto(), loss=None), sets((X,))


def ragged():
    rows = tf.ragged.constant([[i % 7] * (1 + i % 4) for i in range(40)])
    dense_rows = layers.Lambda(lambda x: x.to_tensor(shape=[None, 4]))
    model = keras.Sequential(
        [dense_rows, layers.Embedding(7, 3), layers.Flatten(), layers.Dense(1)]
    )
    return compiled(model), sets(rows, Y)


def sparse():
    model = keras.Sequential([keras.Input((6,), sparse=True), layers.Dense(1)])
    return compiled(model), sets(tf.sparse.from_dense(X * (X > 0)), Y)


def uneven():
    return dense(), tf.data.Dataset.from_tensor_slices((X, Y)).batch(9).repeat()


def shuffled():
    seeded = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(40, seed=1)
    return dense(), seeded.batch(8)  # ends with each epoch


def stateful():
    model = keras.Sequential(
        [keras.Input((3, 2), batch_size=8), layers.GRU(4, stateful=True), layers.Dense(1)]
    )
    return compiled(model), sets(X.reshape(40, 3, 2), Y)


def frozen():
    model, data = plain()
    model.layers[0].trainable = False
    return compiled(model), data


def averaging():
    return dense(optimizer=optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9)), sets(X, Y)


def overwriting():
    optimizer = optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=4)
    return dense(optimizer=optimizer), sets(X, Y)


def accumulating():
    return dense(optimizer=optimizers.SGD(0.05, gradient_accumulation_steps=2)), sets(X, Y)


def scaled():
    inner = optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9)
    optimizer = optimizers.LossScaleOptimizer(inner, initial_scale=2.0**126)  # overflows at first
    return dense(optimizer=optimizer), sets(X, Y)


def scheduled():
    rate = optimizers.schedules.CosineDecay(0.1, 10)
    return dense(optimizer=optimizers.AdamW(rate, weight_decay=0.01, clipnorm=1.0)), sets(X, Y)


def eager():
    return dense(layers.Dropout(0.2), run_eagerly=True), sets(X, Y)


def eager_and_unbuilt():
    return compiled(Sub(), run_eagerly=True), sets(X, Y)


def by_xla():
    return dense(jit_compile=True), sets(X, Y)


class VAE(keras.Model):
    """No `call`, a custom step, random numbers of Keras and of TensorFlow."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = layers.Dense(4), layers.Dense(6)
        self.seeds = keras.random.SeedGenerator(7)
        self.total = keras.metrics.Mean(name="total")

    @property
    def metrics(self):
        return [self.total]

    def train_step(self, data):
        with tf.GradientTape() as tape:
            mean, spread = tf.split(self.encoder(data), 2, axis=1)
            noise = keras.random.normal(tf.shape(mean), seed=self.seeds)
            noise += 0.1 * tf.random.normal(tf.shape(mean)) + tf.random.uniform([], seed=3)
            decoded = self.decoder(mean + tf.exp(spread / 2) * noise)
            loss = tf.reduce_mean((decoded - data) ** 2) + 0.1 * tf.reduce_mean(mean**2)
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        self.total.update_state(loss)
        return {"total": self.total.result()}


def vae():
    return compiled(VAE(), loss=None), sets(X)


class GAN(keras.Model):
    """Two optimizers that `compile` does not know."""

    def __init__(self):
        super().__init__()
        self.generator, self.critic = layers.Dense(6), layers.Dense(1)
        self.seeds = keras.random.SeedGenerator(7)

    def compile(self):
        super().compile()
        self.steps = optimizers.Adam(0.01), optimizers.SGD(0.01)

    def train_step(self, real):
        with tf.GradientTape(persistent=True) as tape:
            fake = self.generator(keras.random.normal((8, 3), seed=self.seeds))
            score, true = self.critic(fake), self.critic(real)
            made = -tf.reduce_mean(score)
            judged = tf.reduce_mean(tf.nn.softplus(score) + tf.nn.softplus(-true))
        of = (made, self.generator), (judged, self.critic)
        for optimizer, (loss, part) in zip(self.steps, of, strict=True):
            gradients = tape.gradient(loss, part.trainable_weights)
            optimizer.apply_gradients(zip(gradients, part.trainable_weights, strict=True))
        return {"generator": made, "critic": judged}


def gan():
    model = GAN()
    model.compile()
    return model, sets(X)


class Own(Sub):
    """A model whose step returns unusual logs."""

    def train_step(self, data):
        logs = super().train_step(data)
        norms = tf.stack([tf.norm(w) for w in self.trainable_weights])
        return {
            "all": {"loss": logs["loss"], "deeper": {"two": norms[0]}},
            "norms": norms,
            "k": 0.5,
        }


def own_logs():
    return compiled(Own()), sets(X, Y)


class ByHand(keras.Model):
    """A model that trains without an optimizer."""

    def __init__(self):
        super().__init__()
        self.out = layers.Dense(1)

    def call(self, x):
        return self.out(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x) - y) ** 2)
        gradients = tape.gradient(loss, self.trainable_weights)
        for weight, gradient in zip(self.trainable_weights, gradients, strict=True):
            weight.assign_sub(0.05 * gradient)
        return {"loss": loss}


def no_optimizer():
    return compiled_without_optimizer(ByHand()), sets(X, Y)


def compiled_without_optimizer(model):
    model.compile(optimizer=None)
    return model


KINDS = [
    normalized, weighted, ragged, uneven, frozen, averaging, accumulating,
    eager_and_unbuilt, gan,
]  # fmt: skip
MORE_KINDS = [
    plain, subclass, says_it_is_built, named, inputs_only, inputs_in_a_tuple, sparse, shuffled,
    overwriting, scaled, scheduled, eager, by_xla, no_optimizer, stateful, vae, own_logs,
    dropping, unbuilt,
]  # fmt: skip


class Hooks(keras.callbacks.Callback):
    """Records every hook with its arguments."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def note(self, name, number, logs):
        self.seen.append((name, number, self.params, logs or {}))

    def on_train_begin(self, logs=None):
        self.note("train begin", None, logs)

    def on_epoch_begin(self, epoch, logs=None):
        self.note("epoch begin", epoch, logs)

    def on_train_batch_begin(self, batch, logs=None):
        self.note("batch begin", batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        self.note("batch end", batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        self.note("epoch end", epoch, logs)

    def on_train_end(self, logs=None):
        self.note("train end", None, logs)


class Result:
    """All results of a training."""

    def __init__(self, kind, train, callbacks=lambda: []):
        keras.utils.set_random_seed(3)
        model, data = kind()
        hooks = Hooks()
        history = train(model, data, [*callbacks(), hooks])
        assert model.history is history
        self.variables = [v.numpy() for v in variables(model)]
        self.history, self.epochs, self.hooks = history.history, history.epoch, hooks.seen
        self.random = keras.random.normal((2,)).numpy(), np.random.rand(2), tf.random.normal((2,))


def variables(model):
    """Weights, slots and iterations of all optimizers, metrics, seeds."""
    own = getattr(model, "steps", [model.optimizer] if model.optimizer else [])
    slots = [v for optimizer in own for v in optimizer.variables]
    seeds = [s.state for layer in model._flatten_layers() for s in layer._seed_generators]
    return [*model.variables, *slots, *seeds]


def by_keras(model, data, callbacks):
    return model.fit(data, epochs=EPOCHS, steps_per_epoch=STEPS, callbacks=callbacks, verbose=0)


def ours(longest_block):
    def train(model, data, callbacks):
        return Trainer(model, longest_block=longest_block).fit(
            data, steps=EPOCHS * STEPS, steps_per_epoch=STEPS, callbacks=callbacks
        )

    return train


def assert_close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def assert_logs_close(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert_close(a[name], b[name])


def assert_same(a, b):
    """Asserts equal results, except the hooks."""
    assert len(a.variables) == len(b.variables)
    for one, other in zip(a.variables, b.variables, strict=True):
        assert_close(one, other)
    for one, other in zip(a.random, b.random, strict=True):
        assert_close(one, other)
    assert a.epochs == b.epochs
    assert_logs_close(a.history, b.history)


def assert_same_hooks(a, b):
    assert [hook[:3] for hook in a.hooks] == [hook[:3] for hook in b.hooks]
    for one, other in zip(a.hooks, b.hooks, strict=True):
        assert_logs_close(one[3], other[3])


@pytest.mark.filterwarnings("ignore:.*shuffle=True")
@pytest.mark.parametrize(
    "kind", [*KINDS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in MORE_KINDS)]
)
def test_both_leave_the_same_results(kind):
    keras_result, step_by_step = Result(kind, by_keras), Result(kind, ours(1))
    assert_same(keras_result, step_by_step)
    assert_same_hooks(keras_result, step_by_step)
    in_blocks = Result(kind, ours(3))
    assert_same(keras_result, in_blocks)
    ends = [hook[1] for hook in in_blocks.hooks if hook[0] == "batch end"]
    assert ends == [2, 4] * EPOCHS


@pytest.mark.filterwarnings("ignore:.*shuffle=True")
def test_a_block_calls_the_hooks_of_steps_per_execution():
    def at_once():
        return dense(steps_per_execution=STEPS), sets(X, Y)

    keras_result, blocks = Result(at_once, by_keras), Result(at_once, ours(STEPS))
    assert_same(keras_result, blocks)
    assert_same_hooks(keras_result, blocks)


class Stop(keras.callbacks.Callback):
    """Ends training in one of its hooks."""

    def __init__(self, hook, number=None):
        super().__init__()
        setattr(self, hook, lambda at=None, logs=None: self.stop(at == number))

    def stop(self, now):
        self.model.stop_training |= now


CALLBACKS = {
    "stops after a step": lambda: [Stop("on_train_batch_end", 2)],
    "stops after an epoch": lambda: [Stop("on_epoch_end", 1)],
    "stops before an epoch": lambda: [Stop("on_epoch_begin", 1)],
    "stops before the first step": lambda: [Stop("on_train_begin")],
    "nested lists": lambda: [[keras.callbacks.TerminateOnNaN()], (Stop("on_epoch_end", 1),)],
    "rates": lambda: [
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / (1 + epoch)),
        keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=0, min_delta=10),
    ],
    "early stopping": lambda: [
        keras.callbacks.EarlyStopping("loss", min_delta=10, patience=1, restore_best_weights=True)
    ],
    "history": lambda: [keras.callbacks.History()],
}


@pytest.mark.filterwarnings("ignore:.*shuffle=True")
@pytest.mark.parametrize("callbacks", CALLBACKS.values(), ids=CALLBACKS)
def test_callbacks_act_the_same_in_both(callbacks):
    keras_result, other = Result(plain, by_keras, callbacks), Result(plain, ours(1), callbacks)
    assert_same(keras_result, other)
    assert_same_hooks(keras_result, other)


@pytest.mark.filterwarnings("ignore:.*shuffle=True")
def test_an_interrupted_training_resumes_at_its_epoch(tmp_path):
    """With BackupAndRestore, after a callback has failed in the second epoch."""

    class Fails(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2 and self.model.optimizer.iterations > STEPS:
                raise ZeroDivisionError

    def twice(train, backup):
        def both(model, data, callbacks):
            with pytest.raises(ZeroDivisionError):
                train(model, data, [keras.callbacks.BackupAndRestore(backup), Fails()])
            return train(model, data, [keras.callbacks.BackupAndRestore(backup), *callbacks])

        return both

    keras_result = Result(plain, twice(by_keras, tmp_path / "keras"))
    other = Result(plain, twice(ours(1), tmp_path / "ours"))
    assert_same(keras_result, other)
    assert_same_hooks(keras_result, other)
    assert other.epochs == [1, 2]


def test_a_callback_list_made_by_keras_is_used_as_it_is():
    model, data = plain()
    hooks = Hooks()
    made = keras.callbacks.CallbackList([hooks], add_history=True, model=model, epochs=99)
    history = ours(3)(model, data, made)
    assert history.epoch == [0, 1, 2]
    assert hooks.params == {"epochs": 99}


def test_every_batch_is_trained_on():
    read = []

    def batches():
        for number in range(4):
            read.append(number)
            yield X[:8], Y[:8]

    kinds = (tf.TensorSpec([8, 6]), tf.TensorSpec([8, 1]))
    ours(2)(compiled(Sub()), tf.data.Dataset.from_generator(batches, output_signature=kinds), [])
    assert read[:6] == [
        0,
        1,
        2,
        3,
        0,
        1,
    ]  # no batch is lost to build the model; the data restarts at its end


def test_many_trainings_give_no_warning(caplog, recwarn):
    model, data = plain()
    with caplog.at_level(logging.WARNING):
        tf.get_logger().addHandler(caplog.handler)
        for _ in range(10):
            Trainer(model).fit(data, steps=4, steps_per_epoch=2)
        tf.get_logger().removeHandler(caplog.handler)
    assert caplog.messages == []
    assert [str(warning.message) for warning in recwarn] == []


def endless_without_batches():
    return tf.data.Dataset.from_tensor_slices((X[:0], Y[:0])).batch(8).repeat()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: Trainer(Sub()), "model.compile"),
        (lambda: Trainer(plain()[0], longest_block=0), "longest_block=0"),
        (lambda: Trainer(plain()[0]).fit(sets(X, Y), steps=0, steps_per_epoch=1), "steps=0"),
        (lambda: Trainer(plain()[0]).fit(sets(X, Y), steps=1, steps_per_epoch=0), "epoch=0"),
        (lambda: Trainer(plain()[0]).fit(sets(X, Y), steps=2.5, steps_per_epoch=1), "steps=2.5"),
        (lambda: Trainer(plain()[0]).fit((X, Y), steps=1, steps_per_epoch=1), "not tuple"),
        (
            lambda: Trainer(plain()[0]).fit(endless_without_batches(), steps=1, steps_per_epoch=1),
            "no batches",
        ),
        (
            lambda: Trainer(eager()[0]).fit(endless_without_batches(), steps=1, steps_per_epoch=1),
            "no batches",
        ),
    ],
)
def test_impossible_arguments_are_refused_in_one_line(wrong, words):
    with pytest.raises(UsageError, match=words) as refusal:
        wrong()
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
def test_a_model_of_several_replicas_is_refused():
    program = """
import keras, tensorflow as tf, swarm_tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, 2 * [tf.config.LogicalDeviceConfiguration()])
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
try:
    swarm_tf.Trainer(model)
except swarm_tf.UsageError as refusal:
    print(refusal)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "2 replicas" in done.stdout
