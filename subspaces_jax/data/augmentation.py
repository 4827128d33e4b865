"""Augmentation and normalisation on the device, inside the jitted step.

Random augmentations take one PRNG key an image, so that an image's crop depends on its place in the batch and never on
how the batch is split over devices or samples.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def random_crop(keys: jax.Array, images: jax.Array, padding: int = 4) -> jax.Array:
    """Pads with black and crops back to the size at a random place: a shift of up to `padding` pixels each way.

    Args:
        keys: [B] PRNG keys.
        images: [B, H, W, channels].
        padding: pixels on each side.

    Returns:
        [B, H, W, channels] of the same dtype.
    """
    _, height, width, _ = images.shape
    offsets = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, 2 * padding + 1))(keys)
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows = offsets[:, :1] + jnp.arange(height)[None]
    columns = offsets[:, 1:] + jnp.arange(width)[None]
    # image by image, so that a batch which is split over devices stays split
    return jax.vmap(lambda image, row, column: image[row[:, None], column[None, :]])(padded, rows, columns)


def random_flip(keys: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability 1/2. keys [B], images [B, H, W, channels]."""
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


def normalise(images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: Any = jnp.float32) -> jax.Array:
    """(images / 255 - mean) / std in float32, then cast to `dtype`. Images uint8 [..., C]; mean, std [C]."""
    scale = 1.0 / (255.0 * jnp.asarray(std, jnp.float32))
    shift = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    shape = (1,) * (images.ndim - 1) + (-1,)
    return (images.astype(jnp.float32) * scale.reshape(shape) - shift.reshape(shape)).astype(dtype)


def compose(*augmentations: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Augmentations one after another as one function (keys [B], images) -> images, each with keys of its own."""

    def augment(keys: jax.Array, images: jax.Array) -> jax.Array:
        for i, augmentation in enumerate(augmentations):
            images = augmentation(jax.vmap(lambda key: jax.random.fold_in(key, i))(keys), images)
        return images

    return augment
