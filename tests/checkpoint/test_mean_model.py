"""`swarm-tf consensus`: the mean model of checkpoints, for `model.load_weights`."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from swarm_tf import files, state
from swarm_tf.checkpoint import layout, mean_model, model_state
from swarm_tf.checkpoint.store import Stage, Store, layout_path

STAGE = Stage(2, 3)


class Scaled(keras.layers.Layer):
    """A layer with a frozen and an integer weight."""

    def build(self, shape):
        self.scale = self.add_weight(shape=[shape[-1]], trainable=False, initializer="ones")
        self.count = self.add_weight(shape=[], dtype="int32", initializer="zeros", trainable=False)

    def call(self, x):
        return x * self.scale


def model():
    made = keras.Sequential(
        [
            keras.Input([4]),
            keras.layers.Dense(3),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            Scaled(),
            keras.layers.Dense(2, dtype="bfloat16"),
        ]
    )
    made.compile("adam", "mse")
    made.optimizer.build(made.trainable_variables)
    return made


def owned(made):
    return [part for one in state.optimizers(made).values() for part in state.parts(one)]


@pytest.fixture
def run(tmp_path):
    """A directory with checkpoints of ranks 0 and 2; that of rank 1 is lost; and their weights."""
    made, weights = model(), []
    for rank in (0, 2):
        rng = np.random.default_rng(rank)
        for weight in made.weights:
            weight.assign(rng.normal(size=weight.shape) * 10)
        weights.append([np.asarray(keras.ops.convert_to_numpy(v)) for v in made.weights])
        saved = {"model": model_state.capture(made)}
        Store(tmp_path, STAGE, rank).write(10 + rank, saved)
    known = layout.of(made, model_state.variables(made), owned(made))
    layout_path(tmp_path, STAGE).write_bytes(known)
    return tmp_path, weights


def test_the_file_has_the_mean_of_the_ranks(run, capsys):
    directory, weights = run
    assert mean_model.main([str(directory)]) == 0
    assert "the mean of rank 0 at step 10, rank 2 at step 12" in capsys.readouterr().out
    loaded = model()
    loaded.load_weights(directory / "consensus.weights.h5")
    for variable, first, second in zip(loaded.weights, *weights, strict=True):
        found = keras.ops.convert_to_numpy(variable)
        if first.dtype == np.int32:
            assert found == first
        else:
            mean = (first.astype(float) + second.astype(float)) / 2
            np.testing.assert_allclose(found.astype(float), mean.astype(first.dtype).astype(float))


def test_the_layout_is_that_of_keras_own_file(run):
    made = model()
    values = [keras.ops.convert_to_numpy(v) for v in model_state.variables(made)]
    known = layout.of(made, model_state.variables(made), owned(made))
    filled = layout.filled(known, dict(enumerate(values)))
    assert len(known) < len(filled)
    other = model()
    path = run[0] / "x.weights.h5"
    for content in (filled, files.weights_of(made, without=owned(made))):
        path.write_bytes(content)
        other.set_weights([np.zeros(w.shape) for w in other.weights])
        other.load_weights(path)
        for one, two in zip(made.weights, other.weights, strict=True):
            np.testing.assert_array_equal(
                keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(two)
            )


def test_what_cannot_be_done_is_said_in_one_line(run, tmp_path):
    directory, _ = run
    program = Path(sys.executable).parent / "swarm-tf"

    def refused(*arguments):
        done = subprocess.run([program, "consensus", *arguments], capture_output=True, text=True)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr

    assert "usage" in refused()
    assert "has no checkpoints" in refused(str(tmp_path / "none"))
    (directory / "consensus.weights.h5").write_bytes(b"a result")
    assert "exists" in refused(str(directory))
    assert (directory / "consensus.weights.h5").read_bytes() == b"a result"
    layout_path(directory, STAGE).unlink()
    assert "does not say how Keras saves the model" in refused(str(directory))
