"""Keras' own callbacks beside ours, before it and after it."""

import keras
import numpy as np
from keras import callbacks as kc
from keras import layers

import swarm_tf
from zoo import pair
from zoo.specimens import BATCH, INPUTS, numbers, refused, slow_specimen, specimen
from zoo.watch import LastLook, failing, swarm

RANK = swarm_tf.rank


def network(optimizer="sgd"):
    model = keras.Sequential([keras.Input([INPUTS]), layers.Dense(8, "relu"), layers.Dense(1)])
    model.compile(optimizer, "mse")
    return model


def fit(*callbacks, model=None, x=None, epochs=4, **options):
    model = model or network()
    own, y = numbers()
    model.fit(
        own if x is None else x, y, batch_size=BATCH, epochs=epochs, verbose=0,
        callbacks=list(callbacks), **options,
    )  # fmt: skip
    return model


def restoring_the_first_epoch():
    """Early stopping whose best epoch is the first, with other weights on each rank."""
    return kc.EarlyStopping("loss", mode="max", patience=2, restore_best_weights=True)


@slow_specimen
def early_stopping_after_ours():
    """The mean is taken of the weights that early stopping restores."""
    callback = swarm()
    fit(callback, restoring_the_first_epoch(), LastLook(callback))


@slow_specimen
def early_stopping_before_ours():
    """The mean is taken of the restored weights in this order too."""
    callback = swarm()
    fit(restoring_the_first_epoch(), callback, LastLook(callback))


@slow_specimen
def early_stopping_on_one_rank():
    """Rank 1's losses do not fall: it stops first, and still serves rank 0."""
    mine = kc.EarlyStopping("loss", min_delta=0.0 if RANK() == 0 else 1e9, patience=1)
    fit(swarm(), mine)


@slow_specimen
def model_checkpoint():
    """Each rank saves to its own path every epoch; the files can be read."""
    path = pair.directory() / f"{RANK()}-{{epoch}}.keras"
    fit(swarm(), kc.ModelCheckpoint(path))
    assert keras.models.load_model(str(path).format(epoch=4)).built


@slow_specimen
def backup_and_restore_after_ours():
    """A training that failed in epoch 2 resumes there, on both ranks with rank 0's weights."""
    path = pair.directory() / str(RANK())
    seen = []

    class Fails(kc.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append(epoch)
            if len(seen) == 3:
                raise RuntimeError("power cut")

    with failing(RuntimeError, "power cut"):
        fit(swarm(), kc.BackupAndRestore(path), Fails())
    fit(swarm(), kc.BackupAndRestore(path), Fails())
    assert seen == [0, 1, 2, 2, 3], f"epochs begun: {seen}"


@slow_specimen
def learning_rate_scheduler():
    """The schedule sets the rate at each epoch."""
    fit(swarm(), kc.LearningRateScheduler(lambda epoch, rate: rate * 0.5))


@slow_specimen
def reduce_on_plateau():
    """Each rank's own loss decides."""
    fit(swarm(), kc.ReduceLROnPlateau("loss", patience=1, min_delta=10.0))


@slow_specimen
def terminate_on_nan():
    """Rank 1's first batch is inf: its training ends, the mean is rank 0's."""
    x, _ = numbers()
    if RANK() == 1:
        x[:BATCH] = np.inf
    model = fit(swarm(timeout_seconds=20), kc.TerminateOnNaN(), x=x, shuffle=False)
    assert all(np.isfinite(w).all() for w in model.get_weights())


@slow_specimen
def nan_in_one_batch():
    """Rank 1 has one inf in mid-training: it takes rank 0's model and goes on."""
    x, _ = numbers()
    if RANK() == 1:
        x[10 * BATCH, 0] = np.inf
    fit(swarm(local_steps=1), x=x, shuffle=False, epochs=1)


@slow_specimen
def nan_in_the_last_batch():
    """No exchange follows that could repair it, so the mean is rank 0's."""
    x, _ = numbers()
    if RANK() == 1:
        x[-1, 0] = np.inf
    fit(swarm(), x=x, shuffle=False, epochs=1)


@slow_specimen
def nan_with_adam():
    """The slots become NaN too, and are reset."""
    x, _ = numbers()
    if RANK() == 1:
        x[10 * BATCH, 0] = np.inf
    model = fit(swarm(1), model=network("adam"), x=x, shuffle=False, epochs=1)
    assert all(np.isfinite(np.asarray(v)).all() for v in model.optimizer.variables)


@slow_specimen
def weights_loaded_by_a_callback():
    """They are loaded in on_train_begin, after ours, on rank 0 only: all ranks start from them."""

    class Load(kc.Callback):
        def on_train_begin(self, logs=None):
            if RANK() == 0:
                self.model.set_weights([w + 0.3 for w in self.model.get_weights()])

    fit(swarm(), Load())


@specimen
def weights_set_by_a_callback_at_the_end():
    """They are set in on_train_end, after ours: the mean is taken of them."""

    class Round(kc.Callback):
        def on_train_end(self, logs=None):
            self.model.set_weights([np.round(w, 1) + RANK() for w in self.model.get_weights()])

    callback = swarm()
    fit(callback, Round(), LastLook(callback))


@slow_specimen
def swap_ema_weights():
    """The moving average of the weights is evaluated and saved."""
    model = network(keras.optimizers.SGD(0.01, use_ema=True, ema_momentum=0.9))
    x, y = numbers()
    fit(swarm(), kc.SwapEMAWeights(), model=model, validation_data=(x[:16], y[:16]))


@slow_specimen
def logs():
    """CSVLogger, LambdaCallback and History, with a file for each rank."""
    path = pair.directory() / f"{RANK()}.csv"
    losses = []
    noted = kc.LambdaCallback(on_epoch_end=lambda epoch, logs: losses.append(logs["loss"]))
    model = fit(kc.CSVLogger(path), swarm(), noted)
    assert model.history.history["loss"] == losses
    assert len(path.read_text().splitlines()) == 5


@specimen
def two_of_ours_in_one_list():
    """A mistake that has no effect, or is refused."""
    try:
        fit(swarm(), swarm(local_steps=2))
    except swarm_tf.UsageError as error:
        with refused("callback"):
            raise error
