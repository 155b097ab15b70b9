"""Cross-entropy of logits, with label smoothing."""

import keras
import tensorflow as tf


def crossentropy(labels: tf.Tensor, logits: tf.Tensor, smoothing: float = 0.0) -> tf.Tensor:
    """Cross-entropy in nats, float32 [...].

    Label smoothing (Szegedy et al. 2015, arXiv 1512.00567, section 7) distributes a share s of the
    label's probability over all classes: (1 - s) H(label, p) + s H(uniform, p).

    Args:
      labels: integers [...].
      logits: float32 [..., classes].
      smoothing: the share s, at least 0 and below 1.
    """
    labels = tf.cast(labels, tf.int32)
    rank = len(labels.shape)
    label_logits = tf.gather(logits, labels, axis=rank, batch_dims=rank)
    if smoothing:
        label_logits += smoothing * (tf.reduce_mean(logits, axis=-1) - label_logits)
    # On a CPU 3 times as fast as tf.nn.sparse_softmax_cross_entropy_with_logits.
    return tf.reduce_logsumexp(logits, axis=-1) - label_logits


class Crossentropy(keras.losses.Loss):
    """The mean of `crossentropy` over examples or tokens, weighted by sample_weight."""

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__(name="crossentropy", reduction="mean_with_sample_weight")
        self.smoothing = smoothing

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return crossentropy(y_true, y_pred, self.smoothing)
