"""The tf.data pipelines of one rank, from TFRecord files: for sets that do not fit into memory.

A rank holds `_SHUFFLE_BUFFER` encoded records (0.2 GB for ImageNet, 110 kB each), a few
decoded images and batches, and with dirichlet a byte per example. At most about 16 files are open.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from data import AHEAD
from data.images import crops
from data.images.pipeline import Scale, normalise
from data.images.sources import Records
from data.partition import Indices, Ranges, Used

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


@dataclass(frozen=True)
class Reader:
    """The order in which one rank reads the records of its epochs.

    Attributes:
      epochs: each call returns a new iterator over the numbers of epochs and the rank's ranges.
      key: (seed, rank), the seed of the order.
      keep: [records], which records belong to this rank; other records are read and dropped without
        decoding. None: all.
      used: records that earlier ranks have used in some epochs; they are dropped too.
    """

    split: Records
    epochs: Callable[[], Iterator[tuple[int, Ranges]]]
    key: tuple[int, int]
    keep: npt.NDArray[np.bool_] | None
    used: Used

    def stream(self, first: int, *, numbers_only: bool = False) -> tf.data.Dataset:
        """(epoch, number, record) of all records from `first` on, without end.

        Args:
          numbers_only: read nothing; all records are empty.
        """
        # A record is dropped if any row of this table that counts in its epoch says so.
        numbers = [-1, *self.used.masks]
        dropped = np.zeros((len(numbers), sum(self.split.counts)), np.bool_)
        if self.keep is not None:
            dropped[0] = ~self.keep
        for row, mask in zip(dropped[1:], self.used.masks.values(), strict=True):
            row[:] = mask
        with tf.device("CPU:0"):
            order_key, _ = _keys(self.key)
            table, rows = tf.constant(dropped), tf.constant(numbers, tf.int64)

        def records(number: tf.Tensor, ranges: tf.Tensor) -> tf.data.Dataset:
            rows_of = tf.data.Dataset.from_tensor_slices(ranges)
            found = _read(None if numbers_only else self.split, rows_of, _INTERLEAVED)
            if len(numbers) > 1 or self.keep is not None:
                counts = (rows == -1) | (rows == number)
                found = found.filter(lambda index, _: ~tf.reduce_any(counts & table[:, index]))
            # Each epoch is shuffled by itself, so that its records do not appear in the next one.
            own = tf.random.fold_in(order_key, number)
            # This sets the seed of this function's graph only. Without it the order would also
            # depend on the global seed, and a global seed of 0 cannot be combined with a tensor as
            # seed.
            tf.random.set_seed(1)
            shuffled = found.shuffle(_SHUFFLE_BUFFER, seed=own[0], reshuffle_each_iteration=False)
            return shuffled.map(lambda index, record: (number, index, record))

        epochs, rest = self._position(first)
        signature = tf.TensorSpec([], tf.int64), tf.TensorSpec([None, 2], tf.int64)
        stream = tf.data.Dataset.from_generator(
            lambda: itertools.islice(self.epochs(), epochs, None), output_signature=signature
        )
        # Records that a resumed run has used are read, but not decoded.
        return stream.flat_map(records).skip(rest)

    def order(self, batch_size: int) -> Iterator[Indices]:
        """The numbers of the records of each batch, each with its epoch: `partition.used_by`."""
        examples = sum(self.split.counts)
        batches = self.stream(0, numbers_only=True).batch(batch_size)
        for epochs, numbers, _ in batches.as_numpy_iterator():
            yield epochs * examples + numbers

    def records(self) -> int:
        """How many records the rank has in its first epoch."""
        return self._count(*next(self.epochs()))

    def _count(self, epoch: int, ranges: Ranges) -> int:
        used = self.used.masks.get(epoch)
        if self.keep is None and used is None:
            return int(ranges[:, 1].sum())
        kept = np.ones(sum(self.split.counts), np.bool_) if self.keep is None else self.keep
        if used is not None:
            kept = kept & ~used
        return sum(int(kept[low : low + length].sum()) for low, length in ranges)

    def _position(self, records: int) -> tuple[int, int]:
        """The epochs before that of record number `records`, and how many come before it there."""
        for before, (number, ranges) in enumerate(self.epochs()):
            count = self._count(number, ranges)
            if records < count:
                return before, records
            records -= count
        raise ValueError("epochs must not end")


def train(
    reader: Reader, batch_size: int, side: int, *, augment: bool, first: int = 0
) -> tf.data.Dataset:
    """The training batches of one rank, without end; every iterator starts at batch `first`.

    Args:
      side: height and width of the images.
      augment: crops and flips as in Szegedy et al. 2015; if False, images are cropped as in `test`.

    Returns:
      Batches of static shape: float32 images [batch_size, side, side, 3] and int32 labels
      [batch_size].
    """
    split = reader.split
    with tf.device("CPU:0"):
        _, image_key = _keys(reader.key)

    def augmented(step: tf.Tensor, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # Random numbers depend only on (key, step), not on the thread that computes them.
        crop, flip = tf.unstack(tf.random.split(tf.random.fold_in(image_key, step)))
        encoded, label = split.parse(record)
        image = crops.decode(encoded, lambda shape: crops.random(shape, crop), side)
        return tf.image.stateless_random_flip_left_right(image, flip), label

    stream = reader.stream(first * batch_size).map(lambda _, __, record: record)
    records = stream.enumerate(first * batch_size)
    example = augmented if augment else lambda _, record: _central(split, record, side)
    return _batches(records, example, batch_size, drop_remainder=True)


def _keys(key: tuple[int, int]) -> list[tf.Tensor]:
    """Two keys: of the order, and of crops and flips."""
    return tf.unstack(tf.random.split(tf.constant(key, tf.int64)))


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


def _read(split: Records | None, ranges: tf.data.Dataset, interleaved: int) -> tf.data.Dataset:
    """The number (int64) and string of each record, read from `interleaved` ranges in turn.

    Without a split all strings are empty; the order is the same.
    """
    if split is not None:
        with tf.device("CPU:0"):
            paths = tf.constant(split.paths)
            starts = tf.constant(np.cumsum([0, *split.counts[:-1]]), tf.int64)

    def records(row: tf.Tensor) -> tf.data.Dataset:
        first, count = row[0], row[1]
        numbers = tf.data.Dataset.range(first, first + count)
        if split is None:
            return numbers.map(lambda number: (number, ""))
        file = tf.searchsorted(starts, row[:1], side="right")[0] - 1
        stored = tf.data.TFRecordDataset(paths[file]).skip(first - starts[file])
        return tf.data.Dataset.zip(numbers, stored)

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
