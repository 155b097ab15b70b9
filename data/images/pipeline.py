"""The tf.data pipelines of one rank, from arrays in memory."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from data import AHEAD
from data.images.sources import Split
from data.partition import Indices

_PAD = 4  # pixels of padding on each side; He et al. 2016, 4.2


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of each channel, float32 [channels], to normalise pixels."""

    mean: npt.NDArray[np.float32]
    deviation: npt.NDArray[np.float32]


def scale_of(images: npt.NDArray[np.uint8]) -> Scale:
    """Mean and standard deviation of each channel over all images [n, height, width, channels].

    Computed from a histogram, which is exact: ranks with the same images get the same values.
    """
    levels = np.arange(256)
    moments = []
    for channel in range(images.shape[-1]):
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        mean = np.average(levels, weights=counts)
        moments.append((mean, np.average((levels - mean) ** 2, weights=counts)))
    mean, variance = np.array(moments).T
    # The lower limit avoids NaN for a channel whose pixels are all equal.
    return Scale(mean.astype(np.float32), np.sqrt(np.maximum(variance, 1e-6)).astype(np.float32))


def normalise(images: tf.Tensor, scale: Scale) -> tf.Tensor:
    """(images - mean) / deviation as float32; images [batch, height, width, channels]."""
    shape = images.shape[1:]
    # Each image becomes one row: broadcasting over the last axis of 3 channels is 5 times slower.
    mean = np.broadcast_to(scale.mean, shape).ravel()
    factor = np.broadcast_to(1 / scale.deviation, shape).ravel()
    rows = tf.cast(tf.reshape(images, [-1, shape.num_elements()]), tf.float32)
    return tf.reshape((rows - mean) * factor, [-1, *shape])


def batches(epochs: Iterable[Indices], batch_size: int) -> Iterator[Indices]:
    """Divides the stream of epochs into batches of batch_size indices; no index is dropped.

    A batch that is not full at the end of an epoch is filled from the next epoch.
    """
    remaining: Indices = np.empty(0, np.int64)
    for epoch in epochs:
        remaining = np.concatenate([remaining, epoch])
        whole = len(remaining) - len(remaining) % batch_size
        yield from remaining[:whole].reshape(-1, batch_size)
        remaining = remaining[whole:]


def train(
    split: Split,
    scale: Scale,
    indices: Callable[[], Iterator[Indices]],
    *,
    augment: tuple[int, int] | None = None,
    first: int = 0,
) -> tf.data.Dataset:
    """The training batches of one rank, without end; every iterator starts at batch `first`.

    Args:
      indices: each call returns a new iterator over the indices of all batches, of one size.
      augment: seed of the random crops and flips; None leaves the images as they are.

    Returns:
      Batches of static shape: float32 images [batch_size, height, width, channels] and int32
      labels [batch_size].
    """
    fetch = _fetch(split, scale)

    # Per batch, Python passes only one array of indices to TensorFlow, no pixels.
    chosen = tf.data.Dataset.from_generator(
        lambda: itertools.islice(indices(), first, None),
        output_signature=tf.TensorSpec([len(next(indices()))], tf.int64),
    )
    if augment is None:
        return chosen.map(fetch).prefetch(AHEAD)

    def augmented(step: tf.Tensor, chosen: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # Random numbers depend only on (seed, step), not on the thread that computes them.
        key = tf.random.fold_in(tf.constant(augment, tf.int64), step)
        images, labels = fetch(chosen)
        return crop_and_flip(images, key), labels

    return chosen.enumerate(first).map(augmented).prefetch(AHEAD)


def test(split: Split, scale: Scale, batch_size: int) -> tf.data.Dataset:
    """All examples in order, in batches as of `train`; the last batch may be smaller."""
    indices = tf.data.Dataset.range(len(split.labels)).batch(batch_size)
    return indices.map(_fetch(split, scale)).prefetch(AHEAD)


def crop_and_flip(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Pads images by 4 pixels, crops them at random, and flips them with probability 1/2.

    Each image has its own crop and left-right flip. The padding is 0, the mean of normalised pixels
    (He et al. 2016, 4.2, also pad after subtracting the mean).

    Args:
      images: [batch, height, width, channels].
      seed: int [2].

    Returns:
      Images of the same shape and dtype.
    """
    count, (height, width) = tf.shape(images)[0], images.shape[1:3]
    draws = tf.random.stateless_uniform([3, count, 1], seed, 0, 2**31 - 1, tf.int32)
    rows = tf.range(height) + draws[0] % (2 * _PAD + 1)
    columns = tf.range(width)
    # The crop reads the columns in reverse order to flip, so a flip costs nothing more.
    columns = tf.where(draws[2] % 2 == 1, width - 1 - columns, columns)
    columns += draws[1] % (2 * _PAD + 1)
    padded = tf.pad(images, [[0, 0], [_PAD, _PAD], [_PAD, _PAD], [0, 0]])
    cropped = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(cropped, columns, axis=2, batch_dims=1)


def _fetch(split: Split, scale: Scale) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """A function from indices [k] to normalised images [k, ...] and labels [k]."""
    # tf.data runs on the CPU; without this line TensorFlow would first copy the set to a GPU.
    with tf.device("CPU:0"):
        images, labels = tf.constant(split.images), tf.constant(split.labels)

    def fetch(indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return normalise(tf.gather(images, indices), scale), tf.gather(labels, indices)

    return fetch
