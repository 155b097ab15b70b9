"""A zoo: small Keras programs in the ways people write them, each on two ranks.

    models.py         how a model is written           optimizers.py    every optimizer of Keras
    train_steps.py    steps and loops of one's own     precision.py     dtypes, loss scaling, int8, LoRA
    inputs.py         how data comes                   frozen.py        frozen layers, compiled again
    execution.py      eager, XLA, blocks of steps      lifecycle.py     many trainings, failures, files
    layers.py         layers with state                keras_callbacks.py
    preprocessing.py  layers that adapt                ranks_differ.py  what is not the same on all ranks
    arguments.py      of the callback                  baselines.py     the other algorithms

A specimen is a function that trains as a user would, with `swarm()` in place of
`swarm_tf.SwarmCallback()`; `@specimen` in front is all that adds it. What must be true of each is
in `watch.py`; what else one has to show it asserts itself. `ranks.py` runs them on a rank,
`test_zoo.py` starts the ranks and makes a test of each.

    swarmrun -n 2 -m zoo /tmp/report models.sequential        with tests/ on the PYTHONPATH
"""
