"""SwarmSGD with ResNet-50 on ImageNet: 90 epochs, learning rate divided by 10 every 30 epochs.

Paper:     He et al. 2016 (arXiv 1512.03385), section 3.4, for the training of each model; its
           learning rate for a batch of 128 is 0.1 x 128/256, as in Goyal et al. 2017 (arXiv
           1706.02677); Nadiradze et al. 2021 (arXiv 1910.12308) for the swarm.
Run:       srun -n 32 python train.py --config=configs/imagenet_resnet50.py --workdir=DIR
           (one rank: --config.algorithm=single)
Data:      TFDS imagenet2012; the catalog says how to get the archives:
           tensorflow.org/datasets/catalog/imagenet2012
Hardware:  32 GPUs; on recent ones add --config.train.mixed_precision=mixed_bfloat16
Hours:     unknown; not run at full length.
Metric:    accuracy and top5_accuracy of the mean model on the validation split; torchvision's
           first weights of a single model have a top-1 of 76.13 %.
"""

from swarm_tf.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SwarmConfig,
    TrainConfig,
)


def get_config() -> RunConfig:
    return RunConfig(
        model=ModelConfig(name="resnet50"),
        data=DataConfig(name="imagenet2012", augment=True),
        train=TrainConfig(epochs=90, epoch_multiplier=2.0, batch_size=128),
        optimizer=OptimizerConfig(
            learning_rate=0.05,
            momentum=0.9,
            weight_decay=1e-4,
            schedule="step",
            warmup_epochs=5.0,
            step_boundaries=(1 / 3, 2 / 3),
            step_factor=0.1,
        ),
        swarm=SwarmConfig(local_steps=4, mode="nonblocking", codec="lattice", bits=8),
    )
