"""Losses: one value per example; the caller averages."""

import chex
import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
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
    if label_smoothing == 0.0:
        return nll
    uniform = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
    return (1.0 - label_smoothing) * nll + label_smoothing * uniform
