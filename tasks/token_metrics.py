"""Metrics per token.

Keras' own metrics first average each row, including its padding, so a token in a narrow batch would
have a larger weight than a token in a wide batch.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from tasks.crossentropy import crossentropy


class TokenMean(keras.metrics.Mean):
    """The mean of `measure(labels, logits)` over all tokens, weighted by sample_weight.

    Args:
      measure: function of labels int32 [batch, n] and logits float32 [batch, n, vocabulary] that
        returns a value for each token, [batch, n].
    """

    def __init__(self, measure: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], name: str) -> None:
        super().__init__(name)
        self.measure = measure

    def update_state(
        self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None
    ) -> None:
        values = tf.reshape(self.measure(y_true, y_pred), [-1])
        weights = None if sample_weight is None else tf.reshape(sample_weight, [-1])
        super().update_state(values, weights)


class Perplexity(TokenMean):
    """exp of the mean cross-entropy, without label smoothing."""

    def __init__(self) -> None:
        super().__init__(crossentropy, "perplexity")

    def result(self) -> tf.Tensor:
        return tf.exp(super().result())


def accuracy() -> TokenMean:
    """The share of tokens with the highest logit."""
    return TokenMean(keras.metrics.sparse_categorical_accuracy, "accuracy")


def loss(smoothing: float) -> TokenMean:
    """The mean training loss over tokens.

    It replaces Keras' metric of the same name, which weights batches by their number of rows.
    """
    return TokenMean(lambda labels, logits: crossentropy(labels, logits, smoothing), "loss")
