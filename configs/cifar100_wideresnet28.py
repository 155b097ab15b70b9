"""SwarmSGD with WideResNet-28-10 on CIFAR-100: the recipe of Zagoruyko and Komodakis 2016.

Paper:     Zagoruyko, Komodakis 2016 (arXiv 1605.07146), sections 3 and 3.6, for the training
           of each model; Nadiradze et al. 2021 (arXiv 1910.12308) for the swarm.
Run:       swarmrun -n 8 train.py --config=configs/cifar100_wideresnet28.py --workdir=runs/cifar100
           (one rank: --config.algorithm=single)
Data:      TFDS cifar100, prepared once:
           python -c "import tensorflow_datasets as t; t.load('cifar100')"
Hardware:  8 GPUs; on recent ones add --config.train.mixed_precision=mixed_bfloat16
Hours:     unknown; not run at full length.
Metric:    test accuracy of the mean model; the paper reports 80.75 % for one model.
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
        model=ModelConfig(name="wideresnet28_10"),
        data=DataConfig(name="cifar100", augment=True),
        train=TrainConfig(epochs=200, epoch_multiplier=1.5, batch_size=128),
        optimizer=OptimizerConfig(
            learning_rate=0.1,
            momentum=0.9,
            nesterov=True,
            weight_decay=5e-4,
            schedule="step",
            step_boundaries=(0.3, 0.6, 0.8),
            step_factor=0.2,
        ),
        swarm=SwarmConfig(local_steps=4, mode="nonblocking", codec="lattice", bits=8),
    )
