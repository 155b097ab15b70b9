"""swarm-tf: train Keras models over many machines without waiting (SwarmSGD, arXiv 1910.12308).

```python
import keras, swarm_tf
from sklearn.datasets import load_digits

digits, shard = load_digits(), slice(swarm_tf.rank(), None, swarm_tf.size())
model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, "softmax")])
model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy")
swarm = swarm_tf.SwarmCallback(local_steps=4, bits=8)
model.fit(digits.data[shard] / 16, digits.target[shard], epochs=10, callbacks=[swarm])
if swarm_tf.rank() == 0:
    model.save("model.keras")
```
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from swarm_tf.errors import UsageError

if TYPE_CHECKING:
    from swarm_tf.algorithm import Algorithm
    from swarm_tf.checkpoint.callback import Checkpoint
    from swarm_tf.cluster.world import rank, size
    from swarm_tf.swarmsgd import SwarmCallback
    from swarm_tf.trainer import Trainer

__version__ = "0.1.0"

__all__ = ["Algorithm", "Checkpoint", "SwarmCallback", "Trainer", "UsageError", "rank", "size"]

_MODULE_OF = {
    "Algorithm": "swarm_tf.algorithm",
    "Checkpoint": "swarm_tf.checkpoint.callback",
    "SwarmCallback": "swarm_tf.swarmsgd",
    "Trainer": "swarm_tf.trainer",
    "rank": "swarm_tf.cluster.world",
    "size": "swarm_tf.cluster.world",
}


def __getattr__(name: str) -> Any:
    # Imported at first use, so that `swarmrun` does not wait for TensorFlow's import.
    if name == "callbacks":
        _check_tensorflow()
        return importlib.import_module("swarm_tf.callbacks")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'swarm_tf' has no attribute {name!r}")
    if name in ("Algorithm", "Checkpoint", "SwarmCallback", "Trainer"):
        _check_tensorflow()
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def _check_tensorflow() -> None:
    try:
        import tensorflow  # noqa: F401
    except ImportError:
        raise ImportError(
            "swarm_tf needs TensorFlow: pip install 'swarm-tf[cpu]' or 'swarm-tf[gpu]'"
        ) from None
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ImportError(
            f"swarm_tf trains Keras on TensorFlow, but KERAS_BACKEND={keras.backend.backend()}; "
            "set KERAS_BACKEND=tensorflow"
        )
