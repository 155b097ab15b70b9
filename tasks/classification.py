"""The task `classification`: images with class labels."""

import keras

import models
from data import images
from swarm_tf.cluster import world
from swarm_tf.config import RunConfig
from tasks.crossentropy import Crossentropy
from tasks.task import Task


def build(config: RunConfig) -> Task:
    """See `tasks.build`."""
    loaded = images.load(
        config.data,
        rank=world.rank(),
        size=world.size(),
        batch_size=config.train.batch_size,
        seed=config.seed,
    )
    model = models.build(
        config.model.name,
        classes=loaded.classes,
        input_shape=loaded.input_shape,
        seed=config.seed,
    )
    return Task(
        data=loaded,
        model=model,
        loss=Crossentropy(config.train.label_smoothing),
        metrics=[
            keras.metrics.SparseCategoricalAccuracy("accuracy"),
            keras.metrics.SparseTopKCategoricalAccuracy(5, "top5_accuracy"),
        ],
    )
