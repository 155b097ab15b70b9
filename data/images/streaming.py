"""From TFRecord files to the tf.data pipelines of one rank: for sets too large to be held.

A rank holds `_SHUFFLED` encoded records (0.2 GB of ImageNet's, of 110 kB each), a few decoded
images and batches, and with dirichlet a byte an example. About 16 files are open at a time.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from data import AHEAD
from data.images import crops
from data.images.pipeline import Scale, normalise
from data.images.sources import Records
from data.partition import Ranges

# The customary mean and deviation of ImageNet's channels, red first (Gross and Wilber 2016,
# github.com/facebookarchive/fb.resnet.torch; torchvision has the same), here of pixels 0..255.
# Another streamed set gets them too: one pass over it only for its own would take long.
SCALE = Scale(
    255 * np.array([0.485, 0.456, 0.406], np.float32),
    255 * np.array([0.229, 0.224, 0.225], np.float32),
)

_TOGETHER = 8  # ranges read by turns, so that neighbours in a file come apart
_SHUFFLED = 2048  # records among which the next one is drawn

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
) -> tf.data.Dataset:
    """The training batches of one rank, without end; every iteration starts at the beginning.

    Args:
      epochs: a call gives the ranges of records that the rank reads in epoch 0, 1, 2, ... afresh.
      side: height and width of the images.
      key: seed of order, crops and flips; (seed, rank) for those of one rank.
      augment: crops and flips as of Szegedy et al. 2015; otherwise as in `test`.
      keep: [records], which ones are this rank's; None keeps all that are read. The others are
        read and dropped undecoded.

    Returns:
      Batches of static shape: float32 images [batch_size, side, side, 3] and int32 labels
      [batch_size].
    """
    with tf.device("CPU:0"):
        order_key, image_key = tf.unstack(tf.random.split(tf.constant(key, tf.int64)))
        kept = tf.constant(True if keep is None else keep)

    def epoch(number: tf.Tensor, ranges: tf.Tensor) -> tf.data.Dataset:
        records = _read(split, tf.data.Dataset.from_tensor_slices(ranges), _TOGETHER)
        if keep is not None:
            records = records.filter(lambda index, _: kept[index])
        # Within the epoch: what is in the buffer at its end belongs to it, not to the next.
        own = tf.random.fold_in(order_key, number)
        # Sets the seed of this function's graph alone. Otherwise the order would follow the
        # global seed as well, and a global seed of 0 takes no tensor beside it.
        tf.random.set_seed(1)
        return records.shuffle(_SHUFFLED, seed=own[0], reshuffle_each_iteration=False)

    def augmented(step: tf.Tensor, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # Random numbers follow from (key, step) alone, whatever thread computes them.
        crop, flip = tf.unstack(tf.random.split(tf.random.fold_in(image_key, step)))
        encoded, label = split.parse(record)
        image = crops.decode(encoded, lambda shape: crops.random(shape, crop), side)
        return tf.image.stateless_random_flip_left_right(image, flip), label

    stream = tf.data.Dataset.from_generator(
        epochs, output_signature=tf.TensorSpec([None, 2], tf.int64)
    )
    records = stream.enumerate().flat_map(epoch).map(lambda _, record: record).enumerate()
    example = augmented if augment else lambda _, record: _central(split, record, side)
    return _batches(records, example, batch_size, drop_remainder=True)


def test(split: Records, batch_size: int, side: int) -> tf.data.Dataset:
    """All examples in order, cropped at the centre; as `train`, but the last batch may be
    smaller."""
    records = _read(split, _whole(split), 1)
    return _batches(records, lambda _, record: _central(split, record, side), batch_size)


def labels(split: Records) -> npt.NDArray[np.int32]:
    """[records], the class of each. Reads the whole split, without decoding an image: minutes for
    ImageNet."""
    records = _read(split, _whole(split), _TOGETHER)
    pairs = records.map(lambda index, record: (index, split.parse_label(record)))
    found = np.empty(sum(split.counts), np.int32)
    for indices, classes in pairs.batch(1024).as_numpy_iterator():
        found[indices] = classes
    return found


def _whole(split: Records) -> tf.data.Dataset:
    """One range a file."""
    first = np.cumsum([0, *split.counts[:-1]])
    return tf.data.Dataset.from_tensor_slices(np.stack([first, split.counts], axis=1))


def _read(split: Records, ranges: tf.data.Dataset, together: int) -> tf.data.Dataset:
    """The records of the ranges, `together` of them by turns: number (int64) and string."""
    with tf.device("CPU:0"):
        paths = tf.constant(split.paths)
        starts = tf.constant(np.cumsum([0, *split.counts[:-1]]), tf.int64)

    def records(row: tf.Tensor) -> tf.data.Dataset:
        first, count = row[0], row[1]
        file = tf.searchsorted(starts, row[:1], side="right")[0] - 1
        stored = tf.data.TFRecordDataset(paths[file]).skip(first - starts[file])
        return tf.data.Dataset.zip(tf.data.Dataset.range(first, first + count), stored)

    return ranges.interleave(
        records, cycle_length=together, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
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
