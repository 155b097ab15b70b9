"""A zoo: small Keras programs as people write them, each on two ranks.

    models.py           how a model is written
    layers.py           layers with state of their own
    preprocessing.py    layers that adapt to data
    frozen.py           frozen layers, models compiled again
    precision.py        types of weights, scaled losses, int8, LoRA
    train_steps.py      custom steps and loops: GANs, a VAE, tapes
    execution.py        eager, XLA, blocks of steps, tf.distribute
    inputs.py           kinds of input data
    optimizers.py       every optimizer of Keras
    keras_callbacks.py  Keras' own callbacks beside ours
    lifecycle.py        many trainings, those that fail or stop, files
    ranks_differ.py     what is not the same on all ranks
    arguments.py        arguments of the callback
    baselines.py        the other algorithms

A specimen is a function that trains as a user would, with `swarm()` in place of
`swarm_tf.SwarmCallback()`; the decorator `@specimen` adds it to the zoo. `watch.py` has what must
be true of every specimen; a specimen asserts everything else itself. `__main__.py` runs specimens
on a rank, `test_zoo.py` starts the ranks and makes a test of each specimen.

    swarmrun -n 2 -m zoo /tmp/report models.sequential        with tests/ on the PYTHONPATH
"""
