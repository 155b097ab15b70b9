"""Trains a recipe: python train.py --config=configs/NAME.py --workdir=DIR

Alone, or on N ranks through `swarmrun -n N`, `mpirun`, `srun` or `horovodrun`.
`--help` lists every key of the configuration.
"""

import logging
import math
import os
import signal
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

from swarm_tf import UsageError
from swarm_tf.cluster import signals, startup_logs, world


def main(argv: list[str]) -> int:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS warns of its own deprecations
    # From here to the last file: a signal ends the run cleanly.
    with signals.listening():
        return train(argv)


def train(argv: list[str]) -> int:
    with startup_logs.start():
        from swarm_tf import config  # loads TensorFlow
    try:
        settings, workdir, resume = world.run_on_all_ranks(lambda: read(argv))
        agreed = config.flatten(config.to_dict(settings))
        world.agree(world.transport(), "the configuration", agreed)
        run = world.run_on_all_ranks(lambda: build(settings, workdir, resume))
        summary = run()
        if world.rank() == 0:
            print(summary)
        if summary.ended_by:
            return 128 + signal.Signals[summary.ended_by]
    except UsageError as error:
        if world.is_rank_zero():
            print(f"{argv[0]}: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


def read(argv: list[str]):
    """The configuration, validated, the workdir, and whether to go on from its checkpoints."""
    from swarm_tf.runner import flags, metrics, validation

    settings, workdir, resume = flags.parse(argv)
    validation.validate(settings, world.size())
    if world.rank() == 0:
        metrics.check_writable(workdir)
    return settings, workdir, resume


def build(settings, workdir: str, resume: str):
    """The run, ready to be called."""
    import keras

    import tasks
    from swarm_tf.cluster import devices
    from swarm_tf.runner import optimizers
    from swarm_tf.runner.run import Run

    train = settings.train
    devices.limit_threads(train.threads)
    gpu = devices.claim_gpu()
    devices.set_precision(train.mixed_precision, jit_compile=train.jit_compile, gpu=gpu)
    keras.utils.set_random_seed(settings.seed + world.rank())
    task = tasks.build(settings, workdir)
    data = task.data
    steps = train.max_steps or math.ceil(settings.total_epochs * data.steps_per_pass)
    task.model.compile(
        optimizers.build(
            settings.optimizer,
            steps=steps,
            steps_per_epoch=data.steps_per_pass * settings.epoch_multiplier,
        ),
        task.loss,
        weighted_metrics=task.metrics,
        jit_compile=False,
    )
    return Run(
        settings,
        workdir,
        task.model,
        train_from=data.train_from,
        test=data.test,
        examples=data.train_examples,
        steps=steps,
        steps_per_pass=data.steps_per_pass,
        score=task.score,
        files=task.files,
        resume=resume,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
