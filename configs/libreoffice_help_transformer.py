"""SwarmSGD with a small Transformer on LibreOffice's help texts, German to English.

Shows:     the paper's WMT17 experiment on 42,026 sentence pairs, a size for two CPU cores.
Paper:     Nadiradze et al. 2021 (arXiv 1910.12308) for the swarm; Vaswani et al. 2017 (arXiv
           1706.03762) for the model, Adam's constants, the schedule and label smoothing.
Run:       swarmrun -n 4 train.py --config=configs/libreoffice_help_transformer.py \\
               --workdir=runs/help
           (add --config.data.data_dir=DIR if the TFDS files are not in the default directory)
Data:      libreoffice_help, sentence pairs "de" and "en" in the file format of TFDS, which has
           no builder for them; `write_own` in testbed/tfds_standin.py writes such a set.
Hardware:  2 CPU cores.
Minutes:   24 on four ranks.
Metric:    BLEU of the mean model on the test split, 4 beams: 28.1 (one rank alone: 27.2;
           docs/results.md).
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
        model=ModelConfig(name="transformer_tiny"),
        data=DataConfig(name="libreoffice_help", vocabulary_size=4000, max_length=128),
        train=TrainConfig(epochs=5, epoch_multiplier=3.0, batch_size=1024, label_smoothing=0.1),
        optimizer=OptimizerConfig(
            name="adam",
            learning_rate=2e-3,
            beta_2=0.98,
            epsilon=1e-9,
            schedule="inverse_sqrt",
            warmup_epochs=1.0,
        ),
        swarm=SwarmConfig(local_steps=4, mode="nonblocking", codec="lattice", bits=8),
    )
