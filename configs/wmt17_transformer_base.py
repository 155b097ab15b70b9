"""SwarmSGD with the base Transformer (63M weights) on WMT17 English to German.

Paper:     Vaswani et al. 2017 (arXiv 1706.03762), base model: sections 5.3 and 5.4 for Adam's
           constants, the peak learning rate (512^-0.5 4000^-0.5), label smoothing and dropout;
           Nadiradze et al. 2021 (arXiv 1910.12308) for the swarm.
Run:       srun -n 16 python train.py --config=configs/wmt17_transformer_base.py --workdir=DIR
           (one rank: --config.algorithm=single); then python translate.py DIR FILE
Data:      TFDS wmt17_translate/de-en, prepared once:
           python -c "import tensorflow_datasets as t; t.load('wmt17_translate/de-en')"
Hardware:  16 GPUs; on recent ones add --config.train.mixed_precision=mixed_bfloat16
Hours:     unknown; not run at full length.
Metric:    BLEU of the mean model on newstest2017, 4 beams, with sacrebleu's signature. The paper
           reports a tokenized BLEU of 27.3 on newstest2014, which is not comparable.
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
        model=ModelConfig(name="transformer_base"),
        data=DataConfig(name="wmt17_translate/de-en", source="en", target="de"),
        train=TrainConfig(epochs=10, epoch_multiplier=1.5, batch_size=4096, label_smoothing=0.1),
        optimizer=OptimizerConfig(
            name="adam",
            learning_rate=7e-4,
            beta_2=0.98,
            epsilon=1e-9,
            schedule="inverse_sqrt",
            warmup_epochs=0.5,
        ),
        swarm=SwarmConfig(local_steps=4, mode="nonblocking", codec="lattice", bits=8),
    )
