"""SwarmSGD with ResNet-20 on Fashion-MNIST (TFDS), the recipe of He et al. 2015 for CIFAR-10.

Shows:     the paper's CIFAR-10 experiment on data of the same size (60,000 images, 10 classes).
Paper:     Nadiradze et al. 2021 (arXiv 1910.12308), where ResNets reach the top-1 accuracy of
           sequential training.
Run:       swarmrun -n 4 train.py --config=configs/fashion_mnist_resnet20.py --workdir=runs/fashion
           (add --config.data.data_dir=DIR if the TFDS files are not in the default directory)
Hardware:  2 CPU cores.
Minutes:   15 on four ranks (53 s per epoch).
Metric:    test accuracy of the mean model, 89.9 % (one rank alone: 89.7 %; docs/results.md).
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
        data=DataConfig(name="fashion_mnist", augment=True),
        train=TrainConfig(epochs=5, epoch_multiplier=3.0, batch_size=128),
        optimizer=OptimizerConfig(
            learning_rate=0.1,
            weight_decay=1e-4,
            schedule="step",
            warmup_epochs=1.0,
            step_boundaries=(0.5, 0.75),
        ),
        swarm=SwarmConfig(local_steps=4, mode="nonblocking", codec="lattice", bits=8),
    )
