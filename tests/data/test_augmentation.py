"""Crops and flips against NumPy, image by image."""

import jax
import jax.numpy as jnp
import numpy as np

from subspaces_jax.data import augmentation


def images_and_keys(num=64, size=6):
    images = np.random.default_rng(0).integers(1, 256, (num, size, size, 3)).astype(np.uint8)  # no black pixels
    return jnp.asarray(images), jax.random.split(jax.random.key(0), num)


def test_a_crop_is_a_shift_with_black_borders():
    images, keys = images_and_keys()
    cropped = np.asarray(augmentation.random_crop(keys, images, padding=2))
    padded = np.pad(np.asarray(images), ((0, 0), (2, 2), (2, 2), (0, 0)))
    offsets = set()
    for i in range(len(images)):
        matches = [
            (y, x) for y in range(5) for x in range(5) if np.array_equal(padded[i, y : y + 6, x : x + 6], cropped[i])
        ]
        assert len(matches) == 1
        offsets.add(matches[0])
    assert len(offsets) > 18  # of 25, from 64 draws
    assert cropped.dtype == np.uint8


def test_about_half_of_the_images_are_mirrored():
    images, keys = images_and_keys(400)
    flipped = np.asarray(augmentation.random_flip(keys, images))
    mirrored = np.all(flipped == np.asarray(images)[:, :, ::-1], axis=(1, 2, 3))
    assert np.all(mirrored | np.all(flipped == np.asarray(images), axis=(1, 2, 3)))
    assert 150 < mirrored.sum() < 250


def test_an_image_is_augmented_the_same_in_any_batch():
    images, keys = images_and_keys()
    augment = augmentation.compose(augmentation.random_crop, augmentation.random_flip)
    np.testing.assert_array_equal(augment(keys, images)[10:20], augment(keys[10:20], images[10:20]))
    np.testing.assert_array_equal(augmentation.compose()(keys, images), images)


def test_normalisation_is_that_of_pixels_scaled_to_one():
    images, _ = images_and_keys()
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    expected = (np.asarray(images, np.float64) / 255 - mean) / std
    np.testing.assert_allclose(augmentation.normalise(images, mean, std), expected, rtol=1e-5, atol=1e-5)
    assert augmentation.normalise(images, mean, std, jnp.bfloat16).dtype == jnp.bfloat16
