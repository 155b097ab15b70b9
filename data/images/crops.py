"""Which part of an encoded image is decoded and resized; pixels outside it are not decoded."""

from collections.abc import Callable

import tensorflow as tf

# A crop of 224 out of a shorter side of 256 (Krizhevsky et al. 2012; He et al. 2016).
_CENTRE = 224 / 256

_AREA = (0.08, 1.0)  # of the image, and
_ASPECT = (3 / 4, 4 / 3)  # width over height of a training crop; Szegedy et al. 2015, 6

Window = Callable[[tf.Tensor], tf.Tensor]


def centre(shape: tf.Tensor) -> tf.Tensor:
    """The window of evaluation: the central square of 224/256 of the shorter side.

    Resized to 224, it is what one gets by resizing the shorter side to 256 and taking the central
    224 x 224, up to rounding to whole pixels.

    Args:
      shape: int32 [3], (height, width, channels).

    Returns:
      int32 [4], (row, column, height, width), in the image.
    """
    shorter = tf.cast(tf.minimum(shape[0], shape[1]), tf.float32)
    side = tf.maximum(tf.cast(tf.round(shorter * _CENTRE), tf.int32), 1)
    return tf.stack([(shape[0] - side) // 2, (shape[1] - side) // 2, side, side])


def random(shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """The window of training: 8% to 100% of the area, 3:4 to 4:3, anywhere (Szegedy et al. 2015).

    An image in which a hundred tries find none such (it is too long) is taken whole.

    Args, returns: as `centre`; seed is int [2].
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        bounding_boxes=tf.zeros([1, 0, 4]),
        seed=seed,
        min_object_covered=0.0,
        aspect_ratio_range=_ASPECT,
        area_range=_AREA,
        max_attempts=100,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], size[:2]], axis=0)


def decode(encoded: tf.Tensor, window: Window, side: int) -> tf.Tensor:
    """The window of an encoded image, resized.

    Bilinear, over all the pixels that a new one covers (antialiased), as Pillow does it.

    Args:
      encoded: scalar string, JPEG, PNG, GIF (its first frame) or BMP; grey becomes RGB.
      window: `centre`, or `random` with its seed.
      side: of the result, in pixels.

    Returns:
      float32 [side, side, 3] of 0..255.
    """

    def jpeg() -> tf.Tensor:
        shape = tf.io.extract_jpeg_shape(encoded)
        return tf.io.decode_and_crop_jpeg(encoded, window(shape), channels=3)

    def other() -> tf.Tensor:
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        row, column, height, width = tf.unstack(window(tf.shape(image)))
        return image[row : row + height, column : column + width]

    image = tf.cond(tf.io.is_jpeg(encoded), jpeg, other)
    image.set_shape([None, None, 3])
    return tf.image.resize(image, [side, side], antialias=True)
