"""Crops: a window of an encoded image is decoded and resized, without decoding the other pixels."""

from collections.abc import Callable

import tensorflow as tf

# A crop of 224 pixels when the shorter side has 256 (Krizhevsky et al. 2012; He et al. 2016).
_CENTRE = 224 / 256

# Of a training crop: its share of the image's area, and width / height (Szegedy et al. 2015, 6).
_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)

Window = Callable[[tf.Tensor], tf.Tensor]


def centre(shape: tf.Tensor) -> tf.Tensor:
    """The window for evaluation: the central square with 224/256 of the shorter side.

    Resizing it to 224 x 224 gives, up to rounding to whole pixels, the central 224 x 224 of the
    image resized to a shorter side of 256.

    Args:
      shape: int32 [3], (height, width, channels).

    Returns:
      int32 [4], (row, column, height, width), in pixels of the image.
    """
    shorter = tf.cast(tf.minimum(shape[0], shape[1]), tf.float32)
    side = tf.maximum(tf.cast(tf.round(shorter * _CENTRE), tf.int32), 1)
    return tf.stack([(shape[0] - side) // 2, (shape[1] - side) // 2, side, side])


def random(shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """A random window for training: 8% to 100% of the area, width / height from 3/4 to 4/3.

    After Szegedy et al. 2015. If a hundred draws give no such window (the image is too long), the
    window is the whole image.

    Args:
      shape: int32 [3], (height, width, channels).
      seed: int [2].

    Returns:
      As `centre`.
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
    """Decodes and resizes a window of an image.

    Bilinear interpolation with antialiasing, as in Pillow.

    Args:
      encoded: scalar string, JPEG, PNG, GIF (its first frame) or BMP; grey becomes RGB.
      window: `centre`, or `random` with its seed.
      side: height and width of the result, in pixels.

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
