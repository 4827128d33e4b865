"""How far endpoints are from each other in direction and length, over all selected weights together.

Values and gradients are finite wherever the weights are: directions are taken of weights scaled by a power of two,
which rounds nothing, so that no product overflows or underflows; an endpoint of zeros has no direction and counts as
orthogonal to every other, with gradient zero.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from subspaces_jax import metrics, trees
from subspaces_jax.arrays import Array

PyTree = Any


def cosine_penalty(
    stacked: PyTree, i: int | jax.Array, j: int | jax.Array, select: Callable[[str], bool] | None = None
) -> Float[jax.Array, ""]:
    """Squared cosine between endpoints i and j: (sum <w_i, w_j>)^2 / (sum |w_i|^2 sum |w_j|^2).

    The sums run over all selected leaves together, not layer by layer. Scale-invariant in each endpoint; 1 for parallel
    and antiparallel endpoints, 0 for orthogonal ones, and for an endpoint of zeros.

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
    return squared_cosine([_row(leaf, i) for leaf in leaves], [_row(leaf, j) for leaf in leaves])


def squared_cosine(a: list[Float[Array, "..."]], b: list[Float[Array, "..."]]) -> Float[jax.Array, ""]:
    """Squared cosine of two vectors given in parts of any shapes: a scalar in [0, 1], 0 where one of them is zero."""
    a, b = _scaled(a), _scaled(b)
    return _ratio(_dot(a, b) ** 2, _dot(a, a) * _dot(b, b))


def weight_norms(params: PyTree) -> float:
    """The sum of the L2 norms, not squared, of all weights of one network: kernels and BatchNorm's scales, no biases.

    The regularisation value of Gamba et al., Hyperplane Arrangements of Trained ConvNets Are Biased, 2020,
    arXiv:2003.07797 (its code), is this times the coefficient of weight decay; it is not what decay minimises.
    """
    weights = trees.select(params, lambda name: name.rsplit("/", 1)[-1] in ("kernel", "scale"))
    return sum(float(np.linalg.norm(np.asarray(leaf, np.float64))) for leaf in weights)


def random_pair(key: PRNGKeyArray, num_endpoints: int) -> tuple[int | jax.Array, int | jax.Array]:
    """Two different endpoints i < j, each pair as probable as any other. Static (0, 1) where there are only two."""
    if num_endpoints < 2:
        raise ValueError(f"a pair needs at least 2 endpoints, got {num_endpoints}")
    if num_endpoints == 2:
        return 0, 1
    rows, columns = jnp.triu_indices(num_endpoints, 1)
    pair = jax.random.randint(key, (), 0, rows.shape[0])
    return rows[pair], columns[pair]


def pairwise_products(stacked: PyTree, select: Callable[[str], bool] | None = None) -> Float[jax.Array, "K K"]:
    """Inner products <w_i, w_j> over all selected leaves, [K, K]: cosines and distances follow from it."""
    return _products([leaf.reshape(leaf.shape[0], -1) for leaf in _selected(stacked, select)])


def endpoint_statistics(
    stacked: PyTree, select: Callable[[str], bool] | None = None
) -> dict[str, Float[jax.Array, ""]]:
    """Means over all pairs of endpoints: "cosine_squared" in [0, 1] and "distance" (L2). Needs K >= 2."""
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in _floats(_selected(stacked, select))]
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), axis=1, initial=0.0) for leaf in leaves]), axis=0)
    overall = metrics.power_of_two(jnp.max(largest))
    own = jnp.minimum(metrics.power_of_two(largest), overall)  # that of zeros may be anything
    products = _products([leaf / own[:, None] for leaf in leaves])
    rows, columns = jnp.triu_indices(products.shape[0], 1)
    squares, cross = jnp.diagonal(products), products[rows, columns]
    first, second = (own / overall)[rows], (own / overall)[columns]
    apart = first**2 * squares[rows] + second**2 * squares[columns] - 2 * first * second * cross
    different = apart > 0  # the square root has no derivative at 0
    distance = jnp.where(different, jnp.sqrt(jnp.where(different, apart, 1.0)), 0.0)
    return {
        "cosine_squared": jnp.mean(_ratio(cross**2, squares[rows] * squares[columns])),
        "distance": jnp.mean(distance * overall),
    }


def default_weights(tree: PyTree, num_kept: int) -> set[str]:
    """Names of the leaves that count where nothing is selected: kernels; of a module from elsewhere, which may name its
    weights as it likes, those of two axes or more behind the first `num_kept`."""
    leaves = trees.leaf_names(tree)
    kernels = {name for name in leaves if trees.is_kernel(name)}
    return kernels or {name for name, leaf in leaves.items() if len(leaf.shape) - num_kept > 1}


def _selected(stacked: PyTree, select: Callable[[str], bool] | None) -> list[Any]:
    leaves = trees.select(stacked, select or default_weights(stacked, 1).__contains__)
    if not leaves:
        raise ValueError(f"no leaf is selected among {', '.join(trees.leaf_names(stacked))}; pass select=")
    return leaves


def _row(leaf: Float[Array, "K ..."], k: int | Array) -> Float[Array, "..."]:
    """leaf[k]. That of a traced k as a sum over a mask: its gradient is a product, which fuses with what the optimizer
    does, and not zeros of the whole stack into which a row is written."""
    if isinstance(k, int):
        return leaf[k]
    is_k = (jnp.arange(leaf.shape[0]) == k).reshape(-1, *[1] * (leaf.ndim - 1))
    return jnp.sum(jnp.where(is_k, leaf, jnp.zeros_like(leaf)), axis=0)


def _scaled(parts: list[Any]) -> list[Any]:
    """With a largest entry of 1 to 4, or all zeros."""
    parts = _floats(parts)
    scale = metrics.power_of_two(jnp.max(jnp.stack([jnp.max(jnp.abs(part), initial=0.0) for part in parts])))
    return [part / scale for part in parts]


def _floats(parts: list[Any]) -> list[Any]:
    """In float32 at least, where sums of squares of what is near 1 are safe."""
    return [part.astype(jnp.float32) if jnp.finfo(part.dtype).bits < 32 else part for part in parts]


def _ratio(
    numerator: Float[jax.Array, "*shape"], denominator: Float[jax.Array, "*shape"]
) -> Float[jax.Array, "*shape"]:
    """The quotient, and 0 with gradient 0 where the denominator is 0."""
    is_zero = denominator == 0
    return jnp.where(is_zero, 0.0, numerator / jnp.where(is_zero, 1.0, denominator))


def _products(leaves: list[Any]) -> Float[jax.Array, "K K"]:
    return functools.reduce(operator.add, [jnp.einsum("id,jd->ij", leaf, leaf, precision="highest") for leaf in leaves])


def _dot(a: list[Any], b: list[Any]) -> jax.Array:
    return functools.reduce(operator.add, [jnp.sum(x * y) for x, y in zip(a, b)])
