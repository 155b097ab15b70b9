"""train.py, stopped by a signal after some steps; each rank notes how it began and what it used.

Arguments: the file for the notes, the step of rank 0 that stops the run (0: none), and train.py's.
"""

import hashlib
import os
import signal
import sys

import keras
import numpy as np
import tensorflow as tf

import train
from swarm_tf import state
from swarm_tf.checkpoint import model_state
from swarm_tf.cluster import world

NOTES, STOP = sys.argv[1], int(sys.argv[2])


class Probe(keras.callbacks.Callback):
    """Placed last, so that it sees the model after the algorithm has joined the ranks."""

    def __init__(self):
        super().__init__()
        self.began = {}
        self.stopped = world.rank() > 0 or not STOP

    def on_train_batch_begin(self, batch, logs=None):
        if not self.began:
            optimizer = self.model.optimizer
            self.began = {
                "digest": state.digest(state.all_variables(self.model)),
                "iterations": int(optimizer.iterations.numpy()),
                "learning_rate": float(optimizer.learning_rate),
            }
            found = model_state.variables(self.model)
            self.began |= {f"variable-{n}": v.numpy() for n, v in enumerate(found)}

    def on_train_batch_end(self, batch, logs=None):
        steps = int(self.model.optimizer.iterations.numpy())
        if steps >= STOP and not self.stopped:
            self.stopped = True  # a second signal would end the process at once
            os.kill(os.getpid(), signal.SIGTERM)


def numbered(data, seen):
    """The same batches; `seen` gets a digest of each example of each batch, in order."""

    def note(images):
        seen.append([hashlib.blake2b(one.tobytes(), digest_size=8).hexdigest() for one in images])
        return np.int64(0)

    def look(images, *rest):
        with tf.control_dependencies([tf.numpy_function(note, [images], tf.int64)]):
            return (tf.identity(images), *rest)

    return data.map(look, num_parallel_calls=1, deterministic=True)


def build(settings, workdir, resume):
    run = train_build(settings, workdir, resume)
    fit = run.trainer.fit

    def noted(data, *, callbacks, first_step, **options):
        seen, probe = [], Probe()
        fit(numbered(data, seen), callbacks=[*callbacks, probe], first_step=first_step, **options)
        taken = run.algorithm.local_step() - first_step
        np.savez(
            NOTES.format(rank=world.rank()),
            trained_on=[example for batch in seen[:taken] for example in batch],
            first_step=first_step,
            taken=taken,
            steps_per_pass=run.steps_per_pass,
            examples=run.examples,
            **probe.began,
        )

    run.trainer.fit = noted
    return run


train_build, train.build = train.build, build
sys.exit(train.main(["train.py", *sys.argv[3:]]))
