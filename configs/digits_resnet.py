"""SwarmSGD with ResNet-8 on scikit-learn's 8x8 digits, without a download.

Shows:     four ranks that average in pairs, with 8 bits per weight, without waiting.
Paper:     Nadiradze et al. 2021 (arXiv 1910.12308), a small version of its experiment
           with ResNet-20 on CIFAR-10.
Run:       swarmrun -n 4 train.py --config=configs/digits_resnet.py --workdir=runs/digits
Hardware:  2 CPU cores.
Minutes:   1, including start-up.
Metric:    test accuracy of the mean model, 97.8 % (one rank alone: 98.3 %; make demo).
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
