"""Corrupted training data: noisy labels and shuffled pixels, the same in every run of one seed."""

import numpy as np

from subspaces_jax.errors import ConfigError


def noisy_labels(labels: np.ndarray, fraction: float, num_classes: int, seed: int = 0) -> np.ndarray:
    """Labels of which the first int(N * fraction) of a fixed order are replaced by uniform draws.

    Order and draws depend on the seed and N alone, so that the examples touched by a smaller fraction are touched by a
    larger one too, in the same way. The true class is among the draws: (C - 1) / C of what is touched changes.

    Args:
        labels: [N] integer classes in [0, C).
        fraction: in [0, 1].
        num_classes: C.
        seed: of order and draws.

    Returns:
        [N], a copy, of the dtype of `labels`.

    Raises:
        ConfigError: the fraction is outside [0, 1].

    Reference: Wortsman et al., Learning Neural Network Subspaces, 2021, arXiv:2102.10472, section 4.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ConfigError(f"label_noise is {fraction}: it is the fraction of labels drawn anew, in [0, 1]")
    rng = np.random.default_rng([seed, _NOISE])
    order, draws = rng.permutation(len(labels)), rng.integers(0, num_classes, len(labels))
    touched = order[: int(len(labels) * fraction)]
    noisy = labels.copy()
    noisy[touched] = draws[: len(touched)]
    return noisy


def pixel_shuffle(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Images with their pixels in one other order, the same for all: what a convolution can no longer make use of.

    Args:
        images: [N, H, W, channels]; channels stay together.
        seed: of the order, which depends on it and on H * W alone.

    Returns:
        [N, H, W, channels].

    Reference: Zhang et al., Understanding Deep Learning Requires Rethinking Generalization, 2017, arXiv:1611.03530.
    """
    num, height, width, channels = images.shape
    order = np.random.default_rng([seed, _PIXELS]).permutation(height * width)
    return images.reshape(num, -1, channels)[:, order].reshape(images.shape)


_NOISE, _PIXELS = 1, 2  # streams of one seed
