"""SwarmSGD against the same ResNet on one rank, on scikit-learn's 8x8 digits: no download.

Shows:     four ranks that average pairwise, 8 bits a weight, and never wait for each other.
Paper:     Nadiradze et al. 2021 (arXiv 1910.12308), its CIFAR-10 ResNet-20 experiment in small.
Run:       swarmrun -n 4 train.py --config=configs/digits_resnet.py --workdir=runs/digits
Hardware:  2 CPU cores.
Minutes:   1, start-up included.
Metric:    test accuracy of the mean model, 97.8% (one rank alone: 98.3%; make demo).
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
        model=ModelConfig(name="resnet8"),
        data=DataConfig(name="digits"),
        train=TrainConfig(epochs=40, batch_size=32, evaluate_every=2.0, threads=1),
        optimizer=OptimizerConfig(
            learning_rate=0.05, weight_decay=1e-4, schedule="cosine", warmup_epochs=2.0
        ),
        swarm=SwarmConfig(local_steps=4, mode="nonblocking", codec="lattice", bits=8),
    )
