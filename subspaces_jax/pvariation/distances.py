"""Distances between points, and their powers."""

import jax
import jax.numpy as jnp

NORMS = ("l2", "l1", "linf")


def sizes(differences: jax.Array, norm: str) -> jax.Array:
    """What `powers` takes of differences [..., D]: their squared L2 norms, or their norms; [...]."""
    if norm == "l2":
        return jnp.sum(differences * differences, axis=-1)
    of = jnp.abs(differences)
    return jnp.sum(of, axis=-1) if norm == "l1" else jnp.max(of, axis=-1, initial=0.0)


def powers(sizes: jax.Array, p: float, norm: str) -> jax.Array:
    """The p-th powers of distances, of `sizes`; by roots and products where p is a multiple of a half (a quarter)."""
    exponent = p / 2 if norm == "l2" else p
    if exponent > 16 or (4 * exponent) % 1:
        return jnp.power(sizes, jnp.asarray(exponent, sizes.dtype))
    whole, quarters = divmod(round(4 * exponent), 4)
    found = jax.lax.integer_pow(sizes, whole) if whole else jnp.ones_like(sizes)
    if quarters:
        root = jnp.sqrt(sizes)
        found = found * {1: jnp.sqrt(root), 2: root, 3: root * jnp.sqrt(root)}[quarters]
    return found
