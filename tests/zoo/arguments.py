"""Arguments of the callback."""

import copy

import keras
import networkx as nx
import numpy as np
from keras import layers

import swarm_tf
from zoo.specimens import BATCH, INPUTS, numbers, refused, slow_specimen, specimen
from zoo.watch import swarm


def fit(callback):
    model = keras.Sequential([keras.Input([INPUTS]), layers.Dense(8, "relu"), layers.Dense(1)])
    model.compile("sgd", "mse")
    x, y = numbers()
    model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[callback])


@specimen
def numpy_integers():
    """As a search for hyperparameters gives them."""
    fit(swarm(np.int64(4), np.int32(8), seed=np.int64(3), timeout_seconds=np.float32(60)))


@slow_specimen
def numpy_switches():
    """Switches of type numpy.bool."""
    fit(swarm(average_optimizer=np.bool_(True), average_statistics=np.True_))


@specimen
def a_graph():
    """A networkx graph of the ranks as topology."""
    fit(swarm(topology=nx.path_graph(2)))


@slow_specimen
def random_local_steps():
    """Numbers of local steps are geometric, with mean 3."""
    fit(swarm(local_steps=3, local_steps_distribution="geometric"))


@specimen
def fractions_and_booleans():
    """Fractions, booleans and strings in place of numbers."""
    for options, pattern in [
        ({"local_steps": 2.5}, r"local_steps=2\.5 must be"),
        ({"local_steps": True}, "local_steps=True must be"),
        ({"local_steps": 0}, "local_steps=0 must be"),
        ({"local_steps": "4"}, "local_steps='?4'? must be"),
        ({"bits": True}, "bits=True must be"),
        ({"bits": 8.0}, r"bits=8\.0 must be"),
        ({"bits": 9}, "bits=9 must be"),
        ({"seed": 0.5}, r"seed=0\.5 must be"),
        ({"average_optimizer": "yes"}, "average_optimizer='?yes'? must be"),
        ({"average_at_end": 1}, "average_at_end=1 must be"),
        ({"timeout_seconds": -1}, "timeout_seconds=-1 must be"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds=nan must be"),
        ({"max_staleness": -3}, "max_staleness=-3 must be"),
        ({"mode": "async"}, "mode=async"),
        ({"codec": "zip"}, "codec=zip"),
        ({"topology": "star-shaped"}, "topology=star-shaped"),
        ({"local_steps_distribution": "poisson"}, "local_steps_distribution=poisson"),
    ]:
        with refused(pattern):
            fit(swarm_tf.SwarmCallback(**options))


@specimen
def a_copy():
    """A callback cannot be copied, since a rank has one place among the others."""
    with refused("can't be copied"):
        copy.deepcopy(swarm())


@specimen
def other_arguments_on_one_rank():
    """All ranks are told which arguments differ, and can train afterwards."""
    for options, pattern in [
        ({"bits": 4 + 4 * swarm_tf.rank()}, r"^swarm\.bits must be the same on all ranks"),
        ({"local_steps": 2 + swarm_tf.rank()}, r"^swarm\.local_steps must be the same"),
        ({"average_optimizer": swarm_tf.rank() == 1}, r"average_optimizer must be the same"),
    ]:
        with refused(pattern):
            fit(swarm(**options))
    fit(swarm())
