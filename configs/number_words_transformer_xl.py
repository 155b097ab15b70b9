"""SwarmSGD with a small Transformer-XL on number words, English to German.

    one hundred and five  ->  einhundertfünf

Paper:     Dai et al. 2019 (arXiv 1901.02860) for relative attention and the memory (a document is
           20 consecutive numbers); Vaswani et al. 2017 (arXiv 1706.03762) for Adam's constants
           and the schedule; Nadiradze et al. 2021 (arXiv 1910.12308) for the swarm.
Run:       swarmrun -n 4 train.py --config=configs/number_words_transformer_xl.py \\
               --workdir=runs/numbers
Data:      generated; no files.
Hardware:  2 CPU cores.
Minutes:   7 on four ranks.
Metric:    exact_match, the share of exactly correct translations among the 500 test numbers, none
           of which is trained on: 100 % with seed 0, 97.4 % with seed 1.
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
        model=ModelConfig(name="transformer_xl_tiny", memory_length=32, dropout=0.0),
        data=DataConfig(name="number_words", vocabulary_size=400, train_examples=40000),
        train=TrainConfig(epochs=2, epoch_multiplier=3.0, batch_size=1024),
        optimizer=OptimizerConfig(
            name="adam",
            learning_rate=2e-3,
            beta_2=0.98,
            epsilon=1e-9,
            schedule="inverse_sqrt",
            warmup_epochs=0.25,
        ),
        swarm=SwarmConfig(local_steps=4, mode="nonblocking", codec="lattice", bits=8),
    )
