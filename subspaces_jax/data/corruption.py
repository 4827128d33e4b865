"""Corrupted training data: noisy labels and shuffled pixels, the same in every run and process of one seed."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from subspaces_jax.errors import ConfigError


def noisy_labels(
    labels: np.ndarray, fraction: float, num_classes: int, seed: int = 0, exclude_true: bool = False
) -> np.ndarray:
    """Labels of which the first int(N * fraction) of a fixed order are replaced by uniform draws.

    Order and draws depend on the seed and N alone, so that the examples touched by a smaller fraction are touched by a
    larger one too, in the same way.

    Args:
        labels: [N] integer classes in [0, C).
        fraction: in [0, 1].
        num_classes: C.
        seed: of order and draws.
        exclude_true: whether the draws are among the other C - 1 classes, so that every touched label changes. Without
            it the true class is among them, and a touched label changes with probability (C - 1) / C.

    Returns:
        [N], a copy, of the dtype of `labels`.

    Raises:
        ConfigError: the fraction is outside [0, 1], or there is no other class.

    Reference: Wortsman et al., Learning Neural Network Subspaces, 2021, arXiv:2102.10472, section 4.
    """
    touched = _touched(len(labels), fraction, seed)
    if exclude_true and num_classes < 2:
        raise ConfigError(f"exclude_true needs two classes, there are {num_classes}: leave it False")
    draws = _uniform(num_classes - exclude_true, len(touched), seed, "label noise, classes")
    noisy = labels.copy()
    noisy[touched] = (labels[touched] + 1 + draws) % num_classes if exclude_true else draws
    return noisy


def label_noise(num: int, fraction: float, num_classes: int, seed: int = 0) -> np.ndarray:
    """The draws of `noisy_labels` for N examples whose labels are not at hand: int32 [N], -1 where a label is kept."""
    return noisy_labels(np.full(num, -1, np.int32), fraction, num_classes, seed)


def wrong_labels(labels: np.ndarray, fraction: float, num_classes: int, seed: int = 0) -> np.ndarray:
    """Labels each of which is, with a probability, another class, uniformly: never the true one.

    Example i is touched where u_i <= fraction, with u_1 to u_N uniform; those that are get (y + k) mod C, where k is
    uniform on 1 to C - 1 and drawn after all u, from NumPy's legacy generator. So at 1 every label is wrong.

    Args:
        labels: [N] integer classes in [0, C).
        fraction: the probability, in [0, 1].
        num_classes: C, at least 2.
        seed: of the draws.

    Returns:
        [N], a copy, of the dtype of `labels`.

    Raises:
        ConfigError: the fraction is outside [0, 1], or there is no other class.

    Reference: Gamba et al., Hyperplane Arrangements of Trained ConvNets Are Biased, 2020, arXiv:2003.07797 (its code).
    """
    if not 0.0 <= fraction <= 1.0:
        raise ConfigError(f"label_noise is {fraction}: it is the probability of a wrong label, in [0, 1]")
    if num_classes < 2:
        raise ConfigError(f"a wrong label needs two classes, there are {num_classes}: set label_noise=0")
    draws, wrong = np.random.RandomState(seed), labels.copy()
    touched = np.flatnonzero(draws.uniform(size=len(labels)) <= fraction) if fraction else np.arange(0)
    wrong[touched] = (labels[touched] + draws.randint(1, num_classes, size=len(touched))) % num_classes
    return wrong


def pixel_shuffle(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Images with their pixels in one other order, the same for all: what a convolution can no longer make use of.

    Args:
        images: [N, H, W, channels], of NumPy or JAX; channels stay together.
        seed: of the order, which depends on it and on H * W alone.

    Returns:
        [N, H, W, channels].

    Reference: Zhang et al., Understanding Deep Learning Requires Rethinking Generalization, 2017, arXiv:1611.03530.
    """
    return _reordered(images, _pixel_order(images, seed))


def pixel_unshuffle(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """The inverse of `pixel_shuffle` with the same seed."""
    return _reordered(images, np.argsort(_pixel_order(images, seed)))


def with_orders(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Images that carry an order of their pixels each, for `in_order`: two more channels, its low and its high byte.

    So that pixels can be moved after all augmentation, which must leave these channels alone.

    Args:
        images: uint8 [N, H, W, channels], H W at most 65,536.
        seed: of NumPy's legacy generator, which draws the orders one after another.

    Returns:
        uint8 [N, H, W, channels + 2].

    Raises:
        ConfigError: larger images.
    """
    num, height, width, _ = images.shape
    if height * width > 2**16:
        raise ConfigError(f"pixels of {height}x{width} images are too many for orders of their own: at most 65,536")
    draws = np.random.RandomState(seed)
    orders = np.stack([draws.permutation(height * width) for _ in range(num)]).astype(np.uint16)
    bytes_of = np.stack([orders & 255, orders >> 8], axis=-1).astype(np.uint8)
    return np.concatenate([images, bytes_of.reshape(num, height, width, 2)], axis=-1)


def in_order(images: jax.Array, channels: int) -> jax.Array:
    """Images with their pixels in the order that each carries: pixel i of the result is pixel order[i].

    Args:
        images: [B, H, W, channels + 2] of `with_orders`; [B, H, W, channels] carry none and stay as they are.
        channels: of the images proper.

    Returns:
        [B, H, W, channels].
    """
    if images.shape[-1] == channels:
        return images
    flat = images.reshape(images.shape[0], -1, images.shape[-1])
    order = flat[..., -2].astype(jnp.int32) + 256 * flat[..., -1].astype(jnp.int32)
    moved = jax.vmap(lambda pixels, order: pixels[order])(flat[..., :channels], order)
    return moved.reshape(*images.shape[:-1], channels)


def _reordered(images: np.ndarray, order: np.ndarray) -> np.ndarray:
    num, _, _, channels = images.shape
    return images.reshape(num, -1, channels)[:, order].reshape(images.shape)


def _pixel_order(images: np.ndarray, seed: int) -> np.ndarray:
    return _order(images.shape[1] * images.shape[2], seed, "pixel shuffle")


def _touched(num: int, fraction: float, seed: int) -> np.ndarray:
    if not 0.0 <= fraction <= 1.0:
        raise ConfigError(f"label_noise is {fraction}: it is the fraction of labels drawn anew, in [0, 1]")
    return _order(num, seed, "label noise, order")[: int(num * fraction)]


def _order(num: int, seed: int, name: str) -> np.ndarray:
    return np.argsort(_words(num, seed, name), kind="stable")


def _uniform(num_values: int, num: int, seed: int, name: str) -> np.ndarray:
    """int64 [num], uniform on [0, num_values) up to one part in 2^32."""
    return ((_words(num, seed, name) >> np.uint64(32)) * np.uint64(num_values) >> np.uint64(32)).astype(np.int64)


def _words(num: int, seed: int, name: str) -> np.ndarray:
    """Random uint64 [num]. NumPy guarantees the words of a bit generator for good, but not what its Generator makes of
    them, and data sets of one seed are to be the same in years to come."""
    return np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(name.encode())])).random_raw(num)
