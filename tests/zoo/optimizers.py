"""Every optimizer of Keras, each with local and with averaged slots."""

import keras
import numpy as np
from keras import layers
from keras import optimizers as every

from zoo.specimens import BATCH, INPUTS, numbers, slow_specimen, specimen
from zoo.watch import check, swarm

OPTIMIZERS = {
    "sgd": lambda **k: every.SGD(0.01, **k),
    "momentum": lambda **k: every.SGD(0.01, momentum=0.9, **k),
    "nesterov": lambda **k: every.SGD(0.01, momentum=0.9, nesterov=True, **k),
    "adam": lambda **k: every.Adam(0.01, **k),
    "amsgrad": lambda **k: every.Adam(0.01, amsgrad=True, **k),
    "adamw": lambda **k: every.AdamW(0.01, **k),
    "adamax": lambda **k: every.Adamax(0.01, **k),
    "nadam": lambda **k: every.Nadam(0.01, **k),
    "rmsprop": lambda **k: every.RMSprop(0.01, **k),
    "rmsprop_centered": lambda **k: every.RMSprop(0.01, centered=True, momentum=0.9, **k),
    "adagrad": lambda **k: every.Adagrad(0.1, **k),
    "adadelta": lambda **k: every.Adadelta(1.0, **k),
    "adafactor": lambda **k: every.Adafactor(0.01, **k),
    "ftrl": lambda **k: every.Ftrl(0.1, **k),
    "lion": lambda **k: every.Lion(0.001, **k),
    "lamb": lambda **k: every.Lamb(0.01, **k),
    "muon": lambda **k: every.Muon(0.01, adam_lr_ratio=1, **k),
    "schedule_free": lambda **k: every.ScheduleFreeAdamW(0.01, **k),
    "loss_scale": lambda **k: every.LossScaleOptimizer(every.Adam(0.01, **k)),
}


# The others are slow. Many other specimens have local slots.
LOCAL: set[str] = set()
AVERAGED = {"adam"}


def network():
    return keras.Sequential([keras.Input([INPUTS]), layers.Dense(8, "tanh"), layers.Dense(1)])


def fit(optimizer, epochs=2, model=None, **options):
    model = model or network()
    model.compile(optimizer, "mse")
    x, y = numbers()
    lowest = {}

    def look(batch, logs):
        for v in optimizer.variables:
            if len(v.shape):
                least = float(np.min(np.asarray(v, np.float64)))
                lowest[v.path] = min(lowest.get(v.path, 0.0), least)

    watch = [keras.callbacks.LambdaCallback(on_train_batch_end=look)]
    callbacks = [swarm(local_steps=2, **options), *(watch if options else [])]
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=callbacks)
    return lowest


def _specimens(name):
    def local_slots():
        fit(OPTIMIZERS[name]())

    def slots_averaged():
        averaged = fit(OPTIMIZERS[name](), average_optimizer=True)
        check()
        # A slot that is never negative on one rank alone must not be so in a swarm. One rank trains
        # on opposite targets too, since the momentum of a bias may happen to have one sign.
        alone = [_lowest_alone(OPTIMIZERS[name](), sign) for sign in (1, -1)]
        for (path, least), *least_alone in zip(averaged.items(), *alone, strict=True):
            assert least >= 0 or min(least_alone) < 0, f"{path} falls to {least:g}"

    local_slots.__name__, slots_averaged.__name__ = name, f"{name}_averaged"
    local_slots.__doc__ = f"{name}, whose slots stay local."
    slots_averaged.__doc__ = f"{name}, whose slots are averaged, and do not become negative."
    specimen(local_slots, slow=name not in LOCAL)
    specimen(slots_averaged, slow=name not in AVERAGED)


def _lowest_alone(optimizer, sign):
    """The lowest entry that each slot ever has, in the order of the optimizer's variables."""
    model = network()
    model.compile(optimizer, "mse")
    x, y = numbers()
    lowest = {}
    for i in range(0, len(x), BATCH):
        model.train_on_batch(x[i : i + BATCH], sign * y[i : i + BATCH])
        for v in optimizer.variables:
            if len(v.shape):
                lowest[v.path] = min(lowest.get(v.path, 0.0), float(np.min(v)))
    return list(lowest.values())


for _name in OPTIMIZERS:
    _specimens(_name)


@specimen
def ema():
    """A moving average of the weights, which takes their place at the end of fit."""
    fit(every.SGD(0.01, use_ema=True, ema_momentum=0.9))


@slow_specimen
def ema_overwrite_frequency():
    """The moving average takes the weights' place every five steps."""
    fit(every.Adam(0.01, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=5))


@slow_specimen
def ema_averaged():
    """The moving average is a slot, and is averaged as slots are."""
    fit(every.Adam(0.01, use_ema=True, ema_momentum=0.9), average_optimizer=True)


@slow_specimen
def gradient_accumulation():
    """A step every four batches; 48 batches are 12 steps."""
    fit(every.SGD(0.05, momentum=0.9, gradient_accumulation_steps=4))


@slow_specimen
def gradient_accumulation_averaged():
    """Accumulated gradients are not averaged."""
    fit(every.Adam(0.01, gradient_accumulation_steps=3), average_optimizer=True)


@slow_specimen
def clipnorm():
    """The norm of each gradient is clipped."""
    fit(every.SGD(0.05, clipnorm=0.1))


@slow_specimen
def global_clipnorm_and_weight_decay():
    """The global norm of all gradients is clipped; biases do not decay."""
    optimizer = every.AdamW(0.01, weight_decay=0.1, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    fit(optimizer)


@slow_specimen
def learning_rate_schedule():
    """A cosine schedule with warm-up."""
    schedule = every.schedules.CosineDecay(0.0, 40, warmup_target=0.05, warmup_steps=8)
    fit(every.SGD(schedule, momentum=0.9))


@slow_specimen
def learning_rate_schedule_averaged():
    """A schedule with averaged slots."""
    fit(every.Adam(every.schedules.ExponentialDecay(0.01, 10, 0.9)), average_optimizer=True)


@slow_specimen
def multi_optimizer():
    """keras.optimizers.MultiOptimizer, one optimizer for each layer."""
    model = network()
    first = model.layers[0].name
    pairs = every.OptimizerMap(every.Adam(0.01), {f"{first}/.*": every.SGD(0.01, momentum=0.9)})
    fit(every.MultiOptimizer(pairs), model=model)


@specimen
def an_optimizer_of_ones_own():
    """A custom optimizer with a slot of unknown name, which must not become negative."""

    class Own(every.Optimizer):
        def build(self, variables):
            if self.built:
                return
            super().build(variables)
            self.energy = self.add_optimizer_variables(variables, "energy")

        def update_step(self, gradient, variable, learning_rate):
            energy = self.energy[self._get_variable_index(variable)]
            self.assign(energy, 0.9 * energy + 0.1 * keras.ops.square(gradient))
            step = learning_rate * gradient / (keras.ops.sqrt(energy) + 1e-7)
            self.assign_sub(variable, keras.ops.cast(step, variable.dtype))

        def get_config(self):
            return super().get_config()

    lowest = fit(Own(0.01), average_optimizer=True)
    assert all(least >= 0 for path, least in lowest.items() if "energy" in path), lowest


@slow_specimen
def strings():
    """Optimizers by their names."""
    for name in ("sgd", "rmsprop"):
        model = network()
        model.compile(name, "mse")
        model.fit(*numbers(), batch_size=BATCH, verbose=0, callbacks=[swarm()])
