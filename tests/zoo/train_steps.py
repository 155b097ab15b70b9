"""Custom training steps and loops."""

import keras
import tensorflow as tf
from keras import layers, ops

import swarm_tf
from zoo.specimens import BATCH, INPUTS, numbers, slow_specimen, specimen
from zoo.watch import swarm


def network(outputs=1):
    return keras.Sequential([keras.Input([INPUTS]), layers.Dense(8, "relu"), layers.Dense(outputs)])


class OwnStep(keras.Model):
    """Keras' guide: "Customizing what happens in fit()"."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply(gradients, self.trainable_weights)
        return {"loss": loss}


@slow_specimen
def own_train_step():
    """A step with compute_loss, a tape and optimizer.apply."""
    x = keras.Input([INPUTS])
    model = OwnStep(x, layers.Dense(1)(layers.Dense(8, "relu")(x)))
    model.compile("adam", "mse")
    model.fit(*numbers(), batch_size=BATCH, verbose=0, callbacks=[swarm()])


@specimen
def own_train_step_with_metrics():
    """The step keeps a metric of its own, and zips gradients with apply_gradients."""

    class Model(OwnStep):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.mean_loss = keras.metrics.Mean(name="loss")

        @property
        def metrics(self):
            return [self.mean_loss]

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = ops.mean(ops.square(self(x, training=True) - y))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            self.mean_loss.update_state(loss)
            return {"loss": self.mean_loss.result()}

    x = keras.Input([INPUTS])
    model = Model(x, layers.Dense(1)(x))
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9))
    model.fit(*numbers(), batch_size=BATCH, verbose=0, callbacks=[swarm()])


class GAN(keras.Model):
    """Keras' example "WGAN-GP": two optimizers, the discriminator is trained `times` as often."""

    def __init__(self, times=1):
        super().__init__()
        self.times = times
        self.discriminator = network()
        self.generator = keras.Sequential([keras.Input([3]), layers.Dense(8), layers.Dense(INPUTS)])
        self.seeds = keras.random.SeedGenerator(swarm_tf.rank())

    def compile(self, d_optimizer, g_optimizer):
        super().compile()
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer

    def train_step(self, real):
        if isinstance(real, tuple):
            real = real[0]
        for _ in range(self.times):
            noise = keras.random.normal([BATCH, 3], seed=self.seeds)
            with tf.GradientTape() as tape:
                fake = self.generator(noise, training=True)
                d_loss = ops.mean(ops.softplus(self.discriminator(fake))) + ops.mean(
                    ops.softplus(-self.discriminator(real))
                )
            weights = self.discriminator.trainable_weights
            self.d_optimizer.apply(tape.gradient(d_loss, weights), weights)
        noise = keras.random.normal([BATCH, 3], seed=self.seeds)
        with tf.GradientTape() as tape:
            g_loss = ops.mean(ops.softplus(-self.discriminator(self.generator(noise))))
        weights = self.generator.trainable_weights
        self.g_optimizer.apply(tape.gradient(g_loss, weights), weights)
        return {"d_loss": d_loss, "g_loss": g_loss}


def fit_gan(callback, times=1):
    gan = GAN(times)
    gan.compile(keras.optimizers.Adam(1e-3), keras.optimizers.RMSprop(1e-3))
    gan.fit(numbers()[0], batch_size=BATCH, epochs=2, verbose=0, callbacks=[callback])


@slow_specimen
def gan():
    """Two optimizers; the optimizer of compile() never steps."""
    fit_gan(swarm())


@slow_specimen
def gan_with_more_discriminator_steps():
    """The discriminator steps three times a batch."""
    fit_gan(swarm(), times=3)


@specimen
def gan_with_averaged_slots():
    """The slots of both optimizers are averaged."""
    fit_gan(swarm(average_optimizer=True))


class VAE(keras.Model):
    """Keras' example "Variational AutoEncoder": no call(), and the data is x only."""

    def __init__(self):
        super().__init__()
        x = keras.Input([INPUTS])
        hidden = layers.Dense(8, "relu")(x)
        self.encoder = keras.Model(x, [layers.Dense(2)(hidden), layers.Dense(2)(hidden)])
        self.decoder = keras.Sequential([keras.Input([2]), layers.Dense(8), layers.Dense(INPUTS)])
        self.seeds = keras.random.SeedGenerator(swarm_tf.rank())
        self.total = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.total]

    def train_step(self, x):
        with tf.GradientTape() as tape:
            mean, log_variance = self.encoder(x)
            noise = keras.random.normal(ops.shape(mean), seed=self.seeds)
            decoded = self.decoder(mean + ops.exp(0.5 * log_variance) * noise)
            kl = -0.5 * (1 + log_variance - ops.square(mean) - ops.exp(log_variance))
            loss = ops.mean(ops.square(decoded - x)) + 0.01 * ops.mean(kl)
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        self.total.update_state(loss)
        return {"loss": self.total.result()}


@slow_specimen
def vae():
    """A model without call(), trained on inputs without labels."""
    vae = VAE()
    vae.compile(keras.optimizers.Adam(0.01))
    vae.fit(
        tf.data.Dataset.from_tensor_slices(numbers()[0]).batch(BATCH),
        verbose=0,
        callbacks=[swarm()],
    )


@specimen
def two_optimizers_in_one_step():
    """A tuple of two optimizers, one for each half of the weights."""

    class Pair(keras.Sequential):
        def compile(self, *both):
            super().compile()
            self.both = both

        def train_step(self, data):
            x, y = data
            with tf.GradientTape(persistent=True) as tape:
                loss = ops.mean(ops.square(self(x) - y))
            for optimizer, layer in zip(self.both, self.layers, strict=True):
                weights = layer.trainable_weights
                optimizer.apply(tape.gradient(loss, weights), weights)
            return {"loss": loss}

    model = Pair([keras.Input([INPUTS]), layers.Dense(8, "tanh"), layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), keras.optimizers.SGD(0.01))
    model.fit(*numbers(), batch_size=BATCH, epochs=2, verbose=0, callbacks=[swarm()])


@slow_specimen
def contrastive():
    """Two optimizers of a model with two parts (Keras' example "SimCLR")."""

    class Contrastive(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder, self.probe = network(4), keras.Sequential([layers.Dense(1)])

        def compile(self, contrastive_optimizer, probe_optimizer, **options):
            super().compile(**options)
            self.contrastive_optimizer = contrastive_optimizer
            self.probe_optimizer = probe_optimizer

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                a, b = self.encoder(x), self.encoder(x + 0.1)
                loss = ops.mean(ops.square(a - b)) - 0.01 * ops.mean(ops.abs(a))
            weights = self.encoder.trainable_weights
            self.contrastive_optimizer.apply(tape.gradient(loss, weights), weights)
            with tf.GradientTape() as tape:
                loss = ops.mean(ops.square(self.probe(self.encoder(x)) - y))
            weights = self.probe.trainable_weights
            self.probe_optimizer.apply(tape.gradient(loss, weights), weights)
            return {"loss": loss}

    model = Contrastive()
    model.compile(keras.optimizers.Adam(0.01), keras.optimizers.Adam(0.01))
    model.fit(*numbers(), batch_size=BATCH, epochs=2, verbose=0, callbacks=[swarm()])


def batches():
    x, y = numbers()
    return [(x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, len(x), BATCH)]


@slow_specimen
def train_on_batch():
    """A loop that drives a CallbackList by hand."""
    model = network()
    model.compile(keras.optimizers.Adam(0.01), "mse")
    callbacks = keras.callbacks.CallbackList([swarm()], model=model)
    callbacks.on_train_begin()
    for epoch in range(2):
        callbacks.on_epoch_begin(epoch)
        for number, (x, y) in enumerate(batches()):
            callbacks.on_train_batch_begin(number)
            logs = model.train_on_batch(x, y, return_dict=True)
            callbacks.on_train_batch_end(number, logs)
        callbacks.on_epoch_end(epoch)
    callbacks.on_train_end()


@specimen
def train_on_batch_with_the_callback_alone():
    """Only its own hooks are called, and on_train_batch_begin is not among them."""
    model = network()
    model.compile("sgd", "mse")
    callback = swarm()
    callback.set_model(model)
    callback.on_train_begin()
    for number, (x, y) in enumerate(batches()):
        model.train_on_batch(x, y)
        callback.on_train_batch_end(number)
    callback.on_train_end()


@slow_specimen
def gan_by_train_on_batch():
    """The older style: a compiled discriminator, frozen within a compiled whole model."""
    discriminator, generator = network(), network(INPUTS)
    discriminator.compile("adam", "mse")
    x = keras.Input([INPUTS])
    discriminator.trainable = False
    whole = keras.Model(x, discriminator(generator(x)))
    whole.compile("adam", "mse")
    discriminator.trainable = True
    callback = swarm()
    callback.set_model(whole)
    callback.on_train_begin()
    for number, (x, y) in enumerate(batches()):
        callback.on_train_batch_begin(number)
        discriminator.train_on_batch(x, y)
        whole.train_on_batch(x, y)
        callback.on_train_batch_end(number)
    callback.on_train_end()


@specimen
def gradient_tape():
    """A tf.function with an optimizer that the model does not know; the model is not compiled."""
    model, optimizer = network(), keras.optimizers.Adam(0.01)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    callback = swarm()
    callback.set_model(model)
    callback.on_train_begin()
    for number, (x, y) in enumerate(batches()):
        callback.on_train_batch_begin(number)
        step(x, y)
        callback.on_train_batch_end(number)
    callback.on_train_end()


@slow_specimen
def two_models_in_one_loop():
    """Each model has its own callback."""
    models, callbacks = [network(), network()], [swarm(), swarm(local_steps=2)]
    for model, callback in zip(models, callbacks, strict=True):
        model.compile("sgd", "mse")
        callback.set_model(model)
        callback.on_train_begin()
    for number, (x, y) in enumerate(batches()):
        for model, callback in zip(models, callbacks, strict=True):
            callback.on_train_batch_begin(number)
            model.train_on_batch(x, y)
            callback.on_train_batch_end(number)
    for callback in callbacks:
        callback.on_train_end()


@slow_specimen
def swarm_tf_trainer():
    """The library's Trainer."""
    model = network()
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    data = tf.data.Dataset.from_tensor_slices(numbers()).batch(BATCH).repeat()
    swarm_tf.Trainer(model).fit(data, steps=40, steps_per_epoch=20, callbacks=[swarm()])


@slow_specimen
def trainer_with_a_gan():
    """The library's Trainer with two optimizers."""
    gan = GAN()
    gan.compile(keras.optimizers.Adam(1e-3), keras.optimizers.RMSprop(1e-3))
    data = tf.data.Dataset.from_tensor_slices(numbers()[0]).batch(BATCH).repeat()
    swarm_tf.Trainer(gan).fit(data, steps=40, steps_per_epoch=20, callbacks=[swarm()])


@slow_specimen
def trainer_with_a_vae():
    """The library's Trainer on a model without call(), without labels."""
    vae = VAE()
    vae.compile(keras.optimizers.Adam(0.01))
    data = tf.data.Dataset.from_tensor_slices(numbers()[0]).batch(BATCH).repeat()
    swarm_tf.Trainer(vae).fit(data, steps=40, steps_per_epoch=20, callbacks=[swarm()])


@slow_specimen
def distillation():
    """A frozen teacher within the student's model, whose call() is the student's."""

    class Distiller(keras.Model):
        def __init__(self, student, teacher):
            super().__init__()
            self.student, self.teacher = student, teacher
            teacher.trainable = False

        def call(self, x):
            return self.student(x)

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            taught = ops.mean(ops.square(y_pred - self.teacher(x, training=False)))
            return taught + super().compute_loss(x, y, y_pred, sample_weight)

    model = Distiller(network(), network())
    model.compile("adam", "mse")
    model.fit(*numbers(), batch_size=BATCH, verbose=0, callbacks=[swarm()])
