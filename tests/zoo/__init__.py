"""A zoo: small Keras programs in the ways people write them, each on two ranks.

    models.py           how a model is written
    layers.py           layers with state of their own
    preprocessing.py    layers that adapt to data
    frozen.py           frozen layers, models compiled again
    precision.py        types of weights, scaled losses, int8, LoRA
    train_steps.py      steps and loops of one's own: GANs, a VAE, tapes
    execution.py        eager, XLA, blocks of steps, tf.distribute
    inputs.py           how data comes
    optimizers.py       every optimizer of Keras
    keras_callbacks.py  Keras' own callbacks beside ours
    lifecycle.py        many trainings, those that fail or stop, files
    ranks_differ.py     what is not the same on all ranks
    arguments.py        of the callback
    baselines.py        the other algorithms

A specimen is a function that trains as a user would, with `swarm()` in place of
`swarm_tf.SwarmCallback()`; `@specimen` in front is all that adds it. What must be true of each is
in `watch.py`; what else one has to show it asserts itself. `__main__.py` runs them on a rank,
`test_zoo.py` starts the ranks and makes a test of each.

    swarmrun -n 2 -m zoo /tmp/report models.sequential        with tests/ on the PYTHONPATH
"""
