"""SwarmSGD with ResNet-20 on CIFAR-10; each model trains by the recipe of He et al. 2016, 4.2.

Paper:     Nadiradze et al. 2021 (arXiv 1910.12308), section 5, trains ResNet-20 on CIFAR-10.
Run:       swarmrun -n 8 train.py --config=configs/cifar10_resnet20.py --workdir=runs/cifar10
           (one rank: --config.algorithm=single, which is the recipe of He et al.)
Data:      TFDS cifar10, prepared once:
           python -c "import tensorflow_datasets as t; t.load('cifar10')"
Hardware:  8 GPUs, or 8 nodes of 8 CPU cores.
Hours:     unknown; not run at full length.
Metric:    test accuracy of the mean model; He et al. report 91.25 % for one model.
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
        model=ModelConfig(name="resnet20"),
        data=DataConfig(name="cifar10", augment=True),
        # 164 epochs are the 64,000 steps of He et al.
        train=TrainConfig(epochs=164, epoch_multiplier=1.5, batch_size=128),
        optimizer=OptimizerConfig(
            learning_rate=0.1,
            momentum=0.9,
            weight_decay=1e-4,
            schedule="step",
            step_boundaries=(0.5, 0.75),
            step_factor=0.1,
        ),
        swarm=SwarmConfig(local_steps=4, mode="nonblocking", codec="lattice", bits=8),
    )
