"""Losses: one value per example; the caller averages."""

from functools import lru_cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Float32, Integer

from subspaces_jax.arrays import Array

TAPS = np.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16.0  # of the pyramid's blur, along each side


def cross_entropy(
    logits: Float[Array, "*shape C"], labels: Integer[Array, "..."], label_smoothing: float | jax.Array = 0.0
) -> Float32[jax.Array, "*shape"]:
    """Cross-entropy in nats of softmax(logits) against smoothed labels.

    With smoothing s the loss is (1 - s) * (-log p[label]) + s * mean over classes of (-log p).

    Args:
        logits: [..., C], any float type; computed in float32.
        labels: [...], integer classes in [0, C).
        label_smoothing: s in [0, 1].

    Returns:
        [...], nats, float32.

    Reference: Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2016, arXiv:1512.00567.
    """
    chex.assert_equal(logits.shape[:-1], labels.shape)
    logits = logits.astype(jnp.float32)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if isinstance(label_smoothing, (int, float)) and label_smoothing == 0:
        return nll
    uniform = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
    return (1.0 - label_smoothing) * nll + label_smoothing * uniform


def laplacian_pyramid_loss(images_a: Array, images_b: Array, num_levels: int) -> Float32[jax.Array, ""]:
    """Mean over examples of `laplacian_pyramid`. Both [B, H, W, channels], a scalar."""
    return jnp.mean(laplacian_pyramid(images_a, images_b, num_levels))


def laplacian_pyramid(
    images_a: Array, images_b: Array, num_levels: int, residual: bool = False
) -> Float32[jax.Array, " B"]:
    """The L1 distance of the Laplacian pyramids of two images, every level with weight 1.

    With g_0 the image, g_{k+1} = down(g_k) and bands b_k = g_k - up(g_{k+1}), it is the sum over k < num_levels of the
    mean of |b_k(a) - b_k(b)| over pixels and channels. `down` blurs with (1, 4, 6, 4, 1) / 16 along each side and keeps
    every other pixel; `up` puts the pixels two apart, between zeros, and blurs with twice that. At the borders both
    mirror about the last pixel. The bands of a constant are 0, so that the distance does not see a shift of a whole
    channel, brightness or tint; with `residual` the mean of |g_L(a) - g_L(b)| is added, which does.

    Pyramids are linear: this is the pyramid of the difference, each level two small matrices from the left and the
    right. Unlike convolutions they are as fast in a loop as out of it, and compile in a tenth of the time of shifts.

    Args:
        images_a, images_b: [B, H, W, channels]; computed in float32.
        num_levels: L, from 1 up; at most `max_levels`: 5 for 64x64, 2 for 8x8.
        residual: whether what is left below the bands counts too.

    Returns:
        [B], at least 0, float32.

    Raises:
        ValueError: unlike shapes, or a pyramid too deep for the images.

    Reference: Burt and Adelson, The Laplacian Pyramid as a Compact Image Code, 1983.
    """
    if images_a.ndim != 4 or images_a.shape != images_b.shape:
        raise ValueError(f"expected two arrays [B, H, W, channels], got {images_a.shape} and {images_b.shape}")
    check_levels(num_levels, images_a.shape[1:])
    mean = lambda values: jnp.mean(jnp.abs(values), axis=(1, 2, 3))
    low = images_a.astype(jnp.float32) - images_b.astype(jnp.float32)
    total = jnp.zeros(len(low), jnp.float32)
    for _ in range(num_levels):
        matrices = [_pyramid_matrices(side) for side in low.shape[1:3]]
        lower = _along_sides([down for down, _ in matrices], low)
        total += mean(low - _along_sides([up for _, up in matrices], lower))
        low = lower
    return total + mean(low) if residual else total


def max_levels(image_shape: tuple[int, ...]) -> int:
    """The levels of the deepest pyramid of images (H, W, channels): halved sides stay whole and are 4 or more before.

    0 where there is none, as of inputs that are no images.
    """
    levels = 0
    while len(image_shape) == 3 and all(side % 2 ** (levels + 1) == 0 for side in image_shape[:2]):
        if min(image_shape[:2]) < 2 ** (levels + 2):  # the mirrored border of two pixels needs a side of three
            break
        levels += 1
    return levels


def check_levels(num_levels: int, image_shape: tuple[int, ...]) -> None:
    """Refuses, with a ValueError, a pyramid that images (H, W, channels) do not have."""
    if type(num_levels) is not int or num_levels < 1:
        raise ValueError(f"the levels of a pyramid are a whole number from 1 up, got {num_levels!r}")
    if num_levels > (most := max_levels(image_shape)):
        advice = f"choose at most {most}" if most else "choose another loss"
        raise ValueError(
            f"a pyramid of {num_levels} levels is too deep for inputs of shape {tuple(image_shape)}: it takes images "
            f"whose sides are multiples of {2**num_levels} from {2 ** (num_levels + 1)} up; {advice}, or resize them"
        )


@lru_cache
def _pyramid_matrices(side: int) -> tuple[np.ndarray, np.ndarray]:
    """`down` [side / 2, side] and `up` [side, side / 2] along one side."""
    blur = lambda rows: sum(tap * rows[k : k + side] for k, tap in enumerate(TAPS))
    mirrored = lambda rows: np.pad(rows, ((2, 2), (0, 0)), "reflect")
    pixels = np.eye(side)
    down, up = blur(mirrored(pixels))[::2], 2.0 * blur(mirrored(pixels[:, ::2]))
    return down.astype(np.float32), up.astype(np.float32)


def _along_sides(
    matrices: list[np.ndarray], images: Float[Array, "B H W channels"]
) -> Float[jax.Array, "B h w channels"]:
    """Each column of images [B, H, W, channels] times the first matrix, each row times the second."""
    return jnp.einsum("ih,bhwc,jw->bijc", matrices[0], images, matrices[1], precision="highest")
