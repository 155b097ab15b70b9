"""The tf.data pipelines of one rank, from TFRecord files: for sets that do not fit into memory.

A rank holds `_SHUFFLE_BUFFER` encoded records (0.2 GB for ImageNet, 110 kB each), a few
decoded images and batches, and with dirichlet a byte per example. At most about 16 files are open.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from data import AHEAD
from data.images import crops
from data.images.pipeline import Scale, normalise
from data.images.sources import Records
from data.partition import Ranges

# The usual mean and standard deviation of ImageNet's RGB channels (Gross and Wilber 2016,
# github.com/facebookarchive/fb.resnet.torch; torchvision has the same), for pixels 0..255.
# Other streamed sets use them too, since computing their own would take a pass over the set.
SCALE = Scale(
    255 * np.array([0.485, 0.456, 0.406], np.float32),
    255 * np.array([0.229, 0.224, 0.225], np.float32),
)

_INTERLEAVED = 8  # ranges that are read in turn, which separates neighbouring records
_SHUFFLE_BUFFER = 2048  # records from which the next one is drawn

_Examples = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def train(
    split: Records,
    epochs: Callable[[], Iterator[Ranges]],
    batch_size: int,
    side: int,
    *,
    key: tuple[int, int],
    augment: bool,
    keep: npt.NDArray[np.bool_] | None = None,
    first: int = 0,
) -> tf.data.Dataset:
    """The training batches of one rank, without end; every iterator starts at batch `first`.

    Args:
      epochs: each call returns a new iterator over the rank's ranges of epoch 0, 1, 2, ...
      side: height and width of the images.
      key: (seed, rank), the seed of the order, crops and flips.
      augment: crops and flips as in Szegedy et al. 2015; if False, images are cropped as in `test`.
      keep: [records], which records belong to this rank; other records are read and dropped without
        decoding. None: all.

    Returns:
      Batches of static shape: float32 images [batch_size, side, side, 3] and int32 labels
      [batch_size].
    """
    with tf.device("CPU:0"):
        order_key, image_key = tf.unstack(tf.random.split(tf.constant(key, tf.int64)))
        kept = tf.constant(True if keep is None else keep)

    def epoch(number: tf.Tensor, ranges: tf.Tensor) -> tf.data.Dataset:
        records = _read(split, tf.data.Dataset.from_tensor_slices(ranges), _INTERLEAVED)
        if keep is not None:
            records = records.filter(lambda index, _: kept[index])
        # Each epoch is shuffled by itself, so that its records do not appear in the next epoch.
        own = tf.random.fold_in(order_key, number)
        # This sets the seed of this function's graph only. Without it the order would also depend
        # on the global seed, and a global seed of 0 cannot be combined with a tensor as seed.
        tf.random.set_seed(1)
        return records.shuffle(_SHUFFLE_BUFFER, seed=own[0], reshuffle_each_iteration=False)

    def augmented(step: tf.Tensor, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # Random numbers depend only on (key, step), not on the thread that computes them.
        crop, flip = tf.unstack(tf.random.split(tf.random.fold_in(image_key, step)))
        encoded, label = split.parse(record)
        image = crops.decode(encoded, lambda shape: crops.random(shape, crop), side)
        return tf.image.stateless_random_flip_left_right(image, flip), label

    number, used = _position(epochs(), keep, first * batch_size)
    stream = tf.data.Dataset.from_generator(
        lambda: itertools.islice(epochs(), number, None),
        output_signature=tf.TensorSpec([None, 2], tf.int64),
    )
    records = stream.enumerate(number).flat_map(epoch).map(lambda _, record: record)
    # Records that a resumed run has used are read, but not decoded.
    records = records.skip(used).enumerate(first * batch_size)
    example = augmented if augment else lambda _, record: _central(split, record, side)
    return _batches(records, example, batch_size, drop_remainder=True)


def _position(
    epochs: Iterator[Ranges], keep: npt.NDArray[np.bool_] | None, records: int
) -> tuple[int, int]:
    """The epoch that a rank is in after so many records, and how many of them are of that epoch."""
    for number, ranges in enumerate(epochs):
        count = int(ranges[:, 1].sum())
        if keep is not None:
            count = sum(int(keep[low : low + length].sum()) for low, length in ranges)
        if records < count:
            return number, records
        records -= count
    raise ValueError("epochs must not end")


def test(split: Records, batch_size: int, side: int) -> tf.data.Dataset:
    """All examples in order, cropped at the centre, in batches as of `train`; the last batch may be
    smaller."""
    records = _read(split, _whole(split), 1)
    return _batches(records, lambda _, record: _central(split, record, side), batch_size)


def labels(split: Records) -> npt.NDArray[np.int32]:
    """The class of each record, int32 [records].

    Reads the whole split without decoding images, which takes minutes for ImageNet.
    """
    records = _read(split, _whole(split), _INTERLEAVED)
    pairs = records.map(lambda index, record: (index, split.parse_label(record)))
    found = np.empty(sum(split.counts), np.int32)
    for indices, classes in pairs.batch(1024).as_numpy_iterator():
        found[indices] = classes
    return found


def _whole(split: Records) -> tf.data.Dataset:
    """One range per file."""
    first = np.cumsum([0, *split.counts[:-1]])
    return tf.data.Dataset.from_tensor_slices(np.stack([first, split.counts], axis=1))


def _read(split: Records, ranges: tf.data.Dataset, interleaved: int) -> tf.data.Dataset:
    """The number (int64) and string of each record, read from `interleaved` ranges in turn."""
    with tf.device("CPU:0"):
        paths = tf.constant(split.paths)
        starts = tf.constant(np.cumsum([0, *split.counts[:-1]]), tf.int64)

    def records(row: tf.Tensor) -> tf.data.Dataset:
        first, count = row[0], row[1]
        file = tf.searchsorted(starts, row[:1], side="right")[0] - 1
        stored = tf.data.TFRecordDataset(paths[file]).skip(first - starts[file])
        return tf.data.Dataset.zip(tf.data.Dataset.range(first, first + count), stored)

    return ranges.interleave(
        records, cycle_length=interleaved, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )


def _central(split: Records, record: tf.Tensor, side: int) -> tuple[tf.Tensor, tf.Tensor]:
    encoded, label = split.parse(record)
    return crops.decode(encoded, crops.centre, side), label


def _batches(
    records: tf.data.Dataset, example: _Examples, batch_size: int, drop_remainder: bool = False
) -> tf.data.Dataset:
    examples = records.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return (
        examples.batch(batch_size, drop_remainder)
        .map(lambda images, labels: (normalise(images, SCALE), labels))
        .prefetch(AHEAD)
    )
