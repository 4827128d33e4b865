"""How far endpoints are from each other in direction and length, over all selected weights together."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from subspaces_jax import trees

PyTree = Any


def cosine_penalty(
    stacked: PyTree, i: int | jax.Array, j: int | jax.Array, select: Callable[[str], bool] | None = None
) -> jax.Array:
    """Squared cosine between endpoints i and j: (sum <w_i, w_j>)^2 / (sum |w_i|^2 sum |w_j|^2).

    The sums run over all selected leaves together, not layer by layer. Scale-invariant in each endpoint; 1 for parallel
    and antiparallel endpoints, 0 for orthogonal ones.

    Args:
        stacked: tree with leaves [K, ...].
        i, j: endpoints, Python or traced integers in [0, K).
        select: which leaves count, by name ("Conv_0/kernel"). Default: those named "kernel"; where there are none,
            those of two axes or more.

    Returns:
        A scalar in [0, 1].

    Reference: Wortsman et al., Learning Neural Network Subspaces, 2021, arXiv:2102.10472, equation 3.
    """
    leaves = _selected(stacked, select)
    a, b = [leaf[i] for leaf in leaves], [leaf[j] for leaf in leaves]
    return _dot(a, b) ** 2 / jnp.maximum(_dot(a, a) * _dot(b, b), jnp.finfo(jnp.float32).tiny)


def random_pair(key: jax.Array, num_endpoints: int) -> tuple[int | jax.Array, int | jax.Array]:
    """Two different endpoints i < j, each pair as probable as any other. Static (0, 1) where there are only two."""
    if num_endpoints < 2:
        raise ValueError(f"a pair needs at least 2 endpoints, got {num_endpoints}")
    if num_endpoints == 2:
        return 0, 1
    rows, columns = jnp.triu_indices(num_endpoints, 1)
    pair = jax.random.randint(key, (), 0, rows.shape[0])
    return rows[pair], columns[pair]


def pairwise_products(stacked: PyTree, select: Callable[[str], bool] | None = None) -> jax.Array:
    """Inner products <w_i, w_j> over all selected leaves, [K, K]: cosines and distances follow from it."""
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in _selected(stacked, select)]
    return sum(jnp.einsum("id,jd->ij", leaf, leaf, precision="highest") for leaf in leaves)


def endpoint_statistics(stacked: PyTree, select: Callable[[str], bool] | None = None) -> dict[str, jax.Array]:
    """Means over all pairs of endpoints: "cosine_squared" in [0, 1] and "distance" (L2). Needs K >= 2."""
    products = pairwise_products(stacked, select)
    rows, columns = jnp.triu_indices(products.shape[0], 1)
    squares = jnp.diagonal(products)
    cross = products[rows, columns]
    squared_distance = squares[rows] + squares[columns] - 2 * cross
    return {
        "cosine_squared": jnp.mean(cross**2 / (squares[rows] * squares[columns])),
        "distance": jnp.mean(jnp.sqrt(jnp.maximum(squared_distance, 0.0))),
    }


def _selected(stacked: PyTree, select: Callable[[str], bool] | None) -> list[jax.Array]:
    leaves = trees.select(stacked, select or trees.is_kernel)
    if not leaves and select is None:  # a module from elsewhere may name its weights as it likes
        leaves = [leaf for leaf in jax.tree.leaves(stacked) if leaf.ndim > 2]  # the first axis is that of endpoints
    if not leaves:
        raise ValueError(f"no leaf is selected among {', '.join(trees.leaf_names(stacked))}; pass select=")
    return leaves


def _dot(a: list[jax.Array], b: list[jax.Array]) -> jax.Array:
    return sum(jnp.sum(x * y) for x, y in zip(a, b))
