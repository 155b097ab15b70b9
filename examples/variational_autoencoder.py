"""A variational autoencoder with a custom `train_step`.

    swarmrun -n 2 examples/variational_autoencoder.py

The swarm averages all weights that the model trains, whatever its `train_step` does.
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import tensorflow as tf
from keras import layers, ops
from sklearn.datasets import load_digits

import swarm_tf

RANK, SIZE = swarm_tf.rank(), swarm_tf.size()
keras.utils.set_random_seed(RANK)


class VAE(keras.Model):
    def __init__(self):
        super().__init__()
        self.encoder = keras.Sequential([layers.Dense(64, "relu"), layers.Dense(4)])
        self.decoder = keras.Sequential([layers.Dense(64, "relu"), layers.Dense(64)])
        self.seeds = keras.random.SeedGenerator(RANK)
        self.loss_tracker = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.loss_tracker]

    def train_step(self, images):
        with tf.GradientTape() as tape:
            mean, log_variance = ops.split(self.encoder(images, training=True), 2, axis=1)
            noise = keras.random.normal(ops.shape(mean), seed=self.seeds)
            decoded = self.decoder(mean + ops.exp(log_variance / 2) * noise, training=True)
            error = 64 * keras.losses.binary_crossentropy(images, decoded, from_logits=True)
            divergence = ops.square(mean) + ops.exp(log_variance) - 1 - log_variance
            loss = ops.mean(error + ops.sum(divergence, axis=1) / 2)
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply(gradients, self.trainable_weights)
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}


images = load_digits().data.astype("float32") / 16
data = tf.data.Dataset.from_tensor_slices(images).shard(SIZE, RANK).shuffle(2000).batch(32)
model = VAE()
model.compile(optimizer=keras.optimizers.Adam(3e-3))
swarm = swarm_tf.SwarmCallback(local_steps=2)
history = model.fit(data, epochs=12, verbose=2 if RANK == 0 else 0, callbacks=[swarm])
losses = history.history["loss"]
exchanges = swarm.counters.exchanges
print(f"rank {RANK}: loss {losses[0]:.1f} -> {losses[-1]:.1f}, {exchanges} exchanges")
