"""Types of weights: mixed and pure, scaled losses, quantized layers."""

import keras
import numpy as np
from keras import layers

from zoo.specimens import BATCH, INPUTS, numbers, slow_specimen, specimen
from zoo.watch import assert_equal_on_ranks, check, swarm


def network():
    return keras.Sequential(
        [
            keras.Input([INPUTS]),
            layers.Dense(16, "relu"),
            layers.BatchNormalization(),
            layers.Dense(1),
        ]
    )


def fit(model, optimizer=None, rate=0.01, epochs=2, **options):
    model.compile(optimizer or keras.optimizers.SGD(rate, momentum=0.9), "mse")
    x, y = numbers()
    callbacks = [swarm(local_steps=2, **options)]
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=callbacks)
    return model


def under(policy, **options):
    keras.config.set_dtype_policy(policy)
    fit(network(), **options)


@slow_specimen
def mixed_bfloat16():
    """Computes in bfloat16."""
    under("mixed_bfloat16")


@slow_specimen
def mixed_float16():
    """Computes in float16; compile() scales the loss, and steps that overflow are left out."""
    under("mixed_float16")


@specimen
def mixed_float16_averaged():
    """... with averaged slots; each rank's scale is its own."""
    under("mixed_float16", optimizer=keras.optimizers.Adam(0.01), average_optimizer=True)


@specimen
def pure_bfloat16():
    """Weights of 8 bits of precision."""
    under("bfloat16")


@slow_specimen
def pure_float16():
    """Weights of 11 bits of precision."""
    under("float16")


@slow_specimen
def pure_bfloat16_averaged():
    """Slots have the weights' type."""
    under("bfloat16", average_optimizer=True)


@specimen
def float64():
    """Weights of float64, equal to the last bit."""
    under("float64")


@slow_specimen
def one_layer_of_float64():
    """Among others of float32."""
    model = keras.Sequential(
        [keras.Input([INPUTS]), layers.Dense(8, "relu", dtype="float64"), layers.Dense(1)]
    )
    fit(model)


@slow_specimen
def lora():
    """The base is frozen and of full precision; two small matrices are trained."""
    model = network()
    model.layers[0].enable_lora(2)
    fit(model)
    check()


@specimen
def int8_base_and_lora():
    """model.quantize("int8"), then LoRA: ranks had other bases, and have rank 0's after."""
    model = network()
    model.layers[0].quantize("int8")
    model.layers[0].enable_lora(2)
    fit(model)
    assert any("int8" in str(v.dtype) for v in model.weights)


@slow_specimen
def int8_model():
    """The whole model is quantized after training, on every rank."""
    model = fit(network())
    check()
    model.quantize("int8")
    said = model.predict(np.ones([1, INPUTS], "float32"), verbose=0)
    assert_equal_on_ranks(said, "what the quantized model says")


@specimen
def float8():
    """Dense layers that compute in float8, whose scales are replaced, not stepped."""
    model = network()
    model.quantize("float8")
    fit(model)


@slow_specimen
def float8_averaged():
    """... with averaged slots."""
    model = network()
    model.quantize("float8")
    fit(model, optimizer=keras.optimizers.Adam(0.01), average_optimizer=True)
