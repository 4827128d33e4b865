"""Images on their way from a data set to a network: laid out, in an order, augmented, as numbers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subspaces_jax.data import augmentation, corruption
from subspaces_jax.data.catalogue import DatasetInfo
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import choices
from subspaces_jax.experiments.calls import AUGMENTATIONS, DTYPES, NORMALISATIONS


def flat(images: Any) -> Any:
    """Images [N, H, W, C] as [N, H W C], a stream as it is.

    This is how a data set is to lie on a TPU: with few channels last, it would be laid out anew for every dispatch.
    """
    return images if callable(images) else images.reshape(images.shape[0], -1)


def as_images(info: DatasetInfo, images: jax.Array) -> jax.Array:
    """Flat images as [B, H, W, channels], and two channels more where they carry an order of their pixels."""
    extra = images.size != images.shape[0] * int(np.prod(info.image_shape))
    shape = (*info.image_shape[:-1], info.image_shape[-1] + 2) if extra else info.image_shape
    return images.reshape(images.shape[0], *shape)


def with_own_order(info: DatasetInfo, images: jax.Array) -> jax.Array:
    """Images with their pixels in the order that they carry, if any."""
    return corruption.in_order(images, info.image_shape[-1]) if len(info.image_shape) == 3 else images


def floats(images: Any) -> jax.Array:
    """Images as floats: those of bytes scaled to [0, 1], others as they are."""
    return images.astype(jnp.float32) / 255.0 if images.dtype == jnp.uint8 else images.astype(jnp.float32)


def normaliser(normalisation: str, dtype: str, info: DatasetInfo) -> Callable[[jax.Array], jax.Array]:
    """Images -> inputs of that dtype, see fields `normalisation` and `dtype`."""
    chosen = choices.make("normalisation", normalisation, NORMALISATIONS)
    mean, std = (info.mean, info.std) if chosen is None else chosen
    channels = info.image_shape[-1] if info.image_shape else 1
    if len(mean) not in (0, 1, channels) or len(mean) != len(std):
        raise ConfigError(
            f"config.normalisation is {normalisation!r}: it takes as many numbers as {channels} channels, or 1"
        )

    def normalise(images):
        if not mean:
            return floats(images).astype(DTYPES[dtype])
        if images.dtype != jnp.uint8:
            images = images.astype(jnp.float32) * 255.0
        return augmentation.normalise(images, mean, std, DTYPES[dtype])

    return normalise


def augmenter(settings: Any, info: DatasetInfo) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
    """(keys [B], images) -> images as in training, of a model's settings; None changes nothing."""
    made = choices.make_all("augmentation", settings.augmentation, AUGMENTATIONS)
    parts = [part for parts in made for part in parts]
    if settings.pixel_seed is not None and not info.streams:  # a stream's images come augmented and shuffled
        parts.append(lambda keys, images: corruption.pixel_shuffle(images, settings.pixel_seed))
    if not settings.own_orders:
        return augmentation.compose(*parts) if parts else None
    augment, channels = augmentation.compose(*parts), info.image_shape[-1]

    def augment_carrying(keys, images):
        moved = jnp.concatenate([augment(keys, images[..., :channels]), images[..., channels:]], axis=-1)
        return corruption.in_order(moved, channels)

    return augment_carrying
