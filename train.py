"""Trains a recipe: python train.py --config=configs/NAME.py --workdir=DIR

Alone, or on N ranks through `swarmrun -n N`, `mpirun`, `srun` or `horovodrun`.
`--help` lists every key of the configuration.
"""

import logging
import math
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

from swarm_tf import UsageError, config, flags, metrics, quiet, world


def main(argv: list[str]) -> int:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS deprecations of its own
    try:
        settings, workdir = world.together(lambda: read(argv))
        agreed = config.flatten(config.to_dict(settings))
        world.agree(world.transport(), "the configuration", agreed)
        run = world.together(lambda: build(settings, workdir))
        summary = run()
        if world.rank() == 0:
            print(summary)
    except UsageError as error:
        if world.is_first():
            print(f"{argv[0]}: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


def read(argv: list[str]) -> tuple[config.RunConfig, str]:
    settings, workdir = flags.parse(argv)
    config.validate(settings, world.size())
    if world.rank() == 0:
        metrics.check_writable(workdir)
    return settings, workdir


def build(settings: config.RunConfig, workdir: str):
    """Everything a run needs; TensorFlow is loaded here, after the flags were found good."""
    with quiet.start():
        import keras

    import data
    import models
    from swarm_tf import devices, optimizers
    from swarm_tf.run import Run

    train = settings.train
    devices.limit_threads(train.threads)
    gpu = devices.claim_gpu()
    devices.set_precision(train.mixed_precision, jit_compile=train.jit_compile, gpu=gpu)
    keras.utils.set_random_seed(settings.seed + world.rank())
    loaded = data.load(
        settings.data,
        rank=world.rank(),
        size=world.size(),
        batch_size=train.batch_size,
        seed=settings.seed,
    )
    model = models.build(
        settings.model.name,
        classes=loaded.classes,
        input_shape=loaded.input_shape,
        seed=settings.seed,
    )
    steps = train.max_steps or math.ceil(settings.total_epochs * loaded.steps_per_pass)
    model.compile(
        optimizers.build(
            settings.optimizer,
            steps=steps,
            steps_per_epoch=loaded.steps_per_pass * settings.epoch_multiplier,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(5, "top5_accuracy")],
        jit_compile=False,
    )
    return Run(
        settings,
        workdir,
        model,
        train=loaded.train,
        test=loaded.test,
        examples=loaded.train_examples,
        steps=steps,
        steps_per_pass=loaded.steps_per_pass,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
