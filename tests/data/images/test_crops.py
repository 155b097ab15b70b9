"""Crops of encoded images against Pillow, and the distribution of random crops."""

import functools
import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data.images import crops


def _picture(height, width, seed=0):
    """uint8 [height, width, 3], smooth as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _encoded(pixels, kind="JPEG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def _pillow(encoded):
    return Image.open(io.BytesIO(encoded)).convert("RGB")


@functools.cache
def _windows(height, width, draws):
    seeds = tf.stack([tf.range(draws), tf.range(draws)], axis=1)
    shape = tf.constant([height, width, 3])
    return tf.map_fn(lambda seed: crops.random(shape, seed), seeds).numpy()


def test_random_windows_have_the_given_areas_and_aspect_ratios():
    row, column, height, width = _windows(375, 500, 2000).T
    assert min(row.min(), column.min()) >= 0
    assert (row + height).max() <= 375
    assert (column + width).max() <= 500
    area, aspect = height * width / (375 * 500), width / height
    rounding = 2 / height.min()  # of the sides, to whole pixels
    assert area.min() > 0.08 * (1 - rounding)
    assert area.min() < 0.12
    assert area.max() > 0.9
    assert aspect.min() > 3 / 4 * (1 - rounding)
    assert aspect.max() < 4 / 3 * (1 + rounding)
    # Aspect ratios are uniform, but for windows too high for this wide image.
    counts, _ = np.histogram(aspect[area < 0.4], 4, (3 / 4, 4 / 3))
    assert counts.min() > 0.7 * counts.mean()


def test_random_windows_are_placed_uniformly():
    row, column, height, width = _windows(375, 500, 2000).T
    for free, begin in ((375 - height, row), (500 - width, column)):
        loose = free > 50
        place = begin[loose] / free[loose]
        assert place.mean() == pytest.approx(1 / 2, abs=0.03)  # uniform: deviation 0.29 / 40
        assert place.std() == pytest.approx(np.sqrt(1 / 12), abs=0.02)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 1000), (3, 40), (224, 224)])
def test_windows_lie_within_images_of_unusual_shapes(height, width):
    for window in (*_windows(height, width, 20), crops.centre(tf.constant([height, width, 3]))):
        row, column, high, wide = (int(v) for v in window)
        assert 0 <= row < row + high <= height
        assert 0 <= column < column + wide <= width


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("seed", range(4))
def test_a_random_crop_equals_pillows_crop_and_resize(kind, seed):
    encoded = _encoded(_picture(150, 200), kind)
    window = lambda shape: crops.random(shape, tf.constant([seed, 1]))  # noqa: E731
    actual = crops.decode(tf.constant(encoded), window, 64).numpy()
    row, column, height, width = window(tf.constant([150, 200, 3])).numpy()
    box = (column, row, column + width, row + height)
    cut = _pillow(encoded).crop(box).resize((64, 64), Image.Resampling.BILINEAR)
    difference = np.abs(actual - np.asarray(cut, np.float32))
    assert difference.mean() < 1.5  # Pillow rounds, and decoders of JPEG differ by some levels
    assert difference.max() < 8


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (256, 256), (90, 120)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_centre_crop_is_224_of_an_image_whose_shorter_side_is_256(height, width, kind):
    encoded = _encoded(_picture(height, width), kind)
    actual = crops.decode(tf.constant(encoded), crops.centre, 224).numpy()
    scale = 256 / min(height, width)
    whole = _pillow(encoded).resize(
        (round(width * scale), round(height * scale)), Image.Resampling.BILINEAR
    )
    left, top = (whole.width - 224) // 2, (whole.height - 224) // 2
    expected = np.asarray(whole.crop((left, top, left + 224, top + 224)), np.float32)
    difference = np.abs(actual - expected)
    # The window begins at a whole pixel of the original, which may be larger than one of 224.
    pixel = max(scale, 1)
    assert difference.mean() < 1.5 * pixel
    assert np.quantile(difference, 0.999) < 12 * pixel


def test_grey_images_become_rgb():
    grey = _picture(40, 50)[..., 0]
    for kind in ("JPEG", "PNG"):
        image = crops.decode(tf.constant(_encoded(grey, kind)), crops.centre, 16).numpy()
        assert image.shape == (16, 16, 3)
        np.testing.assert_array_equal(image[..., 0], image[..., 2])
