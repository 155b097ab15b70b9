"""Types of weights: mixed and pure precision, scaled losses, quantized layers."""

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
    """The model computes in bfloat16."""
    under("mixed_bfloat16")


@slow_specimen
def mixed_float16():
    """The model computes in float16; compile() scales the loss, steps that overflow are skipped."""
    under("mixed_float16")


@specimen
def mixed_float16_averaged():
    """Slots are averaged; each rank keeps its own loss scale."""
    under("mixed_float16", optimizer=keras.optimizers.Adam(0.01), average_optimizer=True)


@slow_specimen
def pure_bfloat16():
    """Weights have 8 bits of precision."""
    under("bfloat16")


@slow_specimen
def pure_float16():
    """Weights have 11 bits of precision."""
    under("float16")


@slow_specimen
def pure_bfloat16_averaged():
    """Averaged slots have the type of the weights."""
    under("bfloat16", average_optimizer=True)


@specimen
def float64():
    """float64 weights are equal to the last bit."""
    under("float64")


@slow_specimen
def one_layer_of_float64():
    """One layer has float64 weights, the others float32."""
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
    """model.quantize("int8"), then LoRA: ranks start with different bases, end with rank 0's."""
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
    predicted = model.predict(np.ones([1, INPUTS], "float32"), verbose=0)
    assert_equal_on_ranks(predicted, "what the quantized model predicts")


@slow_specimen
def float8():
    """Dense layers compute in float8; their scales are replaced instead of updated by a step."""
    model = network()
    model.quantize("float8")
    fit(model)


@slow_specimen
def float8_averaged():
    """float8 with averaged slots."""
    model = network()
    model.quantize("float8")
    fit(model, optimizer=keras.optimizers.Adam(0.01), average_optimizer=True)
