"""Ranks begin with equal models, or the error names what differs; ranks are threads here."""

import keras
import numpy as np
import pytest

from swarm_tf import UsageError, rendezvous, state
from swarm_tf.transport.local import LocalNetwork
from tests.transport.ranks import in_threads


def _join(models, **options):
    """Lets all ranks join; returns whether each one's training goes on, or its exception."""
    network = LocalNetwork(len(models))
    options = {"averages_slots": False, "equal_slots": False} | options
    common = options.pop("common", {})

    def join(rank):
        own = common(rank) if callable(common) else common
        refused = options.get("refused", lambda rank: "")(rank)
        chosen = options | {"refused": refused}
        try:
            return rendezvous.join(models[rank], network[rank], own, **chosen)
        except UsageError as error:
            return error

    return in_threads(len(models), join)


def _refused(models, match, **options):
    for result in _join(models, **options):
        assert isinstance(result, UsageError), result
        with pytest.raises(UsageError, match=match):
            raise result


def _model(seed, **options):
    keras.utils.set_random_seed(seed)
    layers = [
        keras.layers.Dense(8, trainable=False),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.5, seed=seed),
        keras.layers.Dense(2, dtype=options.get("dtype", "float32")),
    ]
    model = keras.Sequential([keras.Input([4]), *layers])
    model.compile(keras.optimizers.Adam(0.01 * (seed + 1)), "mse")
    return model


def _train(model, seed):
    x = np.random.default_rng(seed).normal(size=[8 + 8 * seed, 4])
    model.fit(x, x[:, :2], batch_size=4, verbose=0)


def _values(model):
    return [v.value.numpy() for v in state.all_variables(model)]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_every_variable_becomes_that_of_rank_0(dtype):
    models = [_model(seed, dtype=dtype) for seed in range(3)]
    for seed in (0, 1):  # rank 2 has not trained: it has no slots yet
        _train(models[seed], seed)
    models[2].layers[1].moving_mean.assign(np.full(8, 7.0))
    expected = _values(models[0])
    seeds = [m.layers[2].seed_generator.state.numpy().tolist() for m in models]
    assert _join(models) == [False] * 3
    for model in models:
        values = _values(model)
        assert len(values) == len(expected)
        for a, b in zip(values, expected, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    assert [m.layers[2].seed_generator.state.numpy().tolist() for m in models] == seeds
    assert [int(m.optimizer.iterations) for m in models] == [2, 2, 2]
    rates = {float(m.optimizer.learning_rate) for m in models}
    assert len(rates) == 1


def test_a_quantized_model_becomes_that_of_rank_0():
    models = []
    for seed in range(2):
        keras.utils.set_random_seed(seed)
        model = keras.Sequential([keras.Input([8]), keras.layers.Dense(4)])
        model.quantize("int8")
        model.layers[0].enable_lora(2)
        model.compile("sgd", "mse")
        models.append(model)
    assert "int8" in {str(v.dtype) for v in models[0].weights}
    x = np.ones([1, 8], np.float32)
    assert not np.allclose(models[0](x), models[1](x))
    _join(models)
    np.testing.assert_array_equal(models[0](x), models[1](x))


def test_an_adapted_normalization_predicts_as_that_of_rank_0():
    models = []
    for seed in range(2):
        layer = keras.layers.Normalization()
        layer.adapt(np.random.default_rng(seed).normal(seed, 1 + seed, size=[100, 3]))
        keras.utils.set_random_seed(seed)
        model = keras.Sequential([keras.Input([3]), layer, keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.predict(np.ones([1, 3]), verbose=0)  # traced with this rank's mean
        models.append(model)
    _join(models)
    first, second = (m.predict(np.ones([1, 3]), verbose=0) for m in models)
    np.testing.assert_array_equal(first, second)


def test_layers_with_different_vocabularies_are_refused():
    models = []
    for words in ("a b c", "a b d"):
        layer = keras.layers.TextVectorization()
        layer.adapt([words])
        layers = [keras.Input([1], dtype="string"), layer, keras.layers.Embedding(9, 2)]
        models.append(keras.Sequential(layers))
        models[-1].compile("sgd", "mse")
    _refused(models, r"layer \d+ \(TextVectorization\) has learned another vocabulary .* rank 1")


def test_variables_that_differ_are_named_in_full():
    long = "a_layer_whose_name_is_longer_than_what_fits_into_sixty_characters_of_one_line"
    models = []
    for units in (2, 3):
        layers = [keras.layers.Dense(2), keras.layers.Dense(units, name=long)]
        models.append(keras.Sequential([keras.Input([3]), *layers]))
        models[-1].compile("sgd", "mse")
    match = rf"variable 2 is \S*{long}/kernel float32 \(2, 2\) .* and .*{long}/kernel .* \(2, 3\)"
    _refused(models, match)


def test_a_layer_that_is_frozen_on_one_rank_only_is_refused():
    models = [_model(0), _model(0)]
    models[1].layers[3].trainable = False
    _refused(models, "trainable on rank 0 and .* frozen on rank 1")


def test_variable_names_may_differ():
    _model(0)  # Keras numbers its names
    keras.backend.clear_session()
    models = [_model(0)]
    models.append(_model(1))
    assert models[0].weights[0].path != models[1].weights[0].path
    _join(models)
    np.testing.assert_array_equal(models[0].get_weights()[0], models[1].get_weights()[0])


def test_a_refusal_of_one_rank_reaches_all():
    models = [_model(0), _model(0)]
    _refused(
        models,
        "^rank 1: it has no batches",
        refused=lambda rank: "it has no batches" if rank else "",
    )
    for model in models:
        model.trainable = False
    _refused(models, "^the model .* has no trainable weights")


def test_settings_that_differ_are_refused_by_name():
    match = r"^swarm\.bits must be the same on all ranks, but is 8 on rank 0 and 4 on rank 1"
    _refused([_model(0), _model(0)], match, common=lambda rank: {"swarm.bits": 8 - 4 * rank})


def test_a_training_goes_on_from_the_last_one_unless_weights_were_changed():
    models = [_model(seed) for seed in range(2)]
    assert _join(models) == [False, False]
    for seed, model in enumerate(models):
        _train(model, seed)
        rendezvous.leave(model)
    before = [_values(model) for model in models]
    assert _join(models) == [True, True]
    for model, values in zip(models, before, strict=True):
        for a, b in zip(_values(model), values, strict=True):
            np.testing.assert_array_equal(a, b)
    models[0].layers[0].kernel.assign(np.zeros([4, 8]))  # as after loading a file on rank 0
    assert _join(models) == [False, False]
    for a, b in zip(*(_values(model) for model in models), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_own_optimizer_with_slots_on_one_rank_only_is_refused():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.net = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
            self.mine = keras.optimizers.Adam()

    models = [Own(), Own()]
    for model in models:
        model.compile()
    models[0].mine.build(models[0].net.trainable_variables)
    _refused(models, "the optimizer mine has taken steps, or was loaded, on rank 0, but has no")
    models[1].mine.build(models[1].net.trainable_variables)
    _join(models)
