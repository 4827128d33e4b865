"""How far endpoints are from each other in direction and length, over all selected weights together.

Values and gradients are finite wherever the weights are: directions are taken of weights scaled by a power of two,
which rounds nothing, so that no product overflows or underflows; an endpoint of zeros has no direction and counts as
orthogonal to every other, with gradient zero.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray, Shaped

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
    return squared_cosine(_selected(stacked, select), i, j)


def squared_cosine(leaves: list[Float[Array, "K ..."]], i: int | Array, j: int | Array) -> Float[jax.Array, ""]:
    """Squared cosine of rows i and j of all leaves together: a scalar in [0, 1], 0 where one of them is zero."""
    known = isinstance(i, int) and isinstance(j, int)
    return _squared_cosine(
        (i, j) if known else None, [metrics.single(leaf) for leaf in leaves], () if known else (i, j)
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _squared_cosine(known: tuple[int, int] | None, leaves: list[Any], pair: tuple[Any, ...]) -> jax.Array:
    return _cosine_terms(leaves, *(known or pair)).value


@_squared_cosine.defjvp
def _squared_cosine_jvp(known: Any, primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    """The derivative along row a is 2 <a, b> / (|a|^2 |b|^2) (b - <a, b> / |a|^2 a), along b likewise: in closed form
    the program is half as large as that of the derivatives of every product and scale."""
    i, j = known or primals[1]
    terms = _cosine_terms(primals[0], i, j)
    across = 2 * _ratio(terms.product, terms.square_i * terms.square_j)
    along_i, along_j = 2 * _ratio(terms.value, terms.square_i), 2 * _ratio(terms.value, terms.square_j)
    rows = jnp.arange(len(terms.scale))
    at_i, at_j = (jnp.where(rows == k, 1 / terms.scale, 0.0) for k in (i, j))
    changes = []
    for leaf, tangent in zip(terms.scaled, tangents[0]):
        a, b = _row(leaf, i)[None], _row(leaf, j)[None]
        gradient = _over(at_i, leaf) * (across * b - along_i * a) + _over(at_j, leaf) * (across * a - along_j * b)
        changes.append(jnp.sum(tangent * gradient))
    return terms.value, _total(changes)


class _Terms(NamedTuple):
    """Of two rows: their squared cosine; all rows, each divided by its scale to a largest entry of 1 to 4 (or all
    zeros), leaves [K, ...] and [K]; the inner product and the squares of the two of them."""

    value: jax.Array
    scaled: list[jax.Array]
    scale: jax.Array
    product: jax.Array
    square_i: jax.Array
    square_j: jax.Array


def _cosine_terms(leaves: list[Any], i: int | Array, j: int | Array) -> _Terms:
    """Sums are taken of all rows at once, each leaf being passed over three times."""
    scale = metrics.power_of_two(_largest(leaves))
    scaled = [leaf / _over(scale, leaf) for leaf in leaves]
    squares = _total([jnp.sum(leaf * leaf, axis=_inner(leaf)) for leaf in scaled])
    product = _total([jnp.sum(_row(leaf, i) * _row(leaf, j)) for leaf in scaled])
    square_i, square_j = squares[i], squares[j]
    return _Terms(_ratio(product**2, square_i * square_j), scaled, scale, product, square_i, square_j)


def _largest(leaves: list[Any]) -> Float[jax.Array, " K"]:
    """The largest entry of each row, a constant to gradients."""
    of_leaf = lambda leaf: jnp.max(jnp.abs(jax.lax.stop_gradient(leaf)), axis=_inner(leaf), initial=0.0)
    return functools.reduce(jnp.maximum, map(of_leaf, leaves))


def _inner(leaf: Any) -> tuple[int, ...]:
    """All axes of a leaf but that of rows."""
    return tuple(range(1, leaf.ndim))


def _total(parts: list[jax.Array]) -> jax.Array:
    return functools.reduce(operator.add, parts)


def _over(numbers: Shaped[Array, " K"], leaf: Float[Array, "K ..."]) -> Shaped[Array, "K ..."]:
    """One number a row, so that it meets all of its row's."""
    return numbers.reshape(-1, *[1] * len(_inner(leaf)))


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
    return _products(_rows_of(stacked, select))


def endpoint_statistics(
    stacked: PyTree, select: Callable[[str], bool] | None = None
) -> dict[str, Float[jax.Array, ""]]:
    """Means over all pairs of endpoints: "cosine_squared" in [0, 1] and "distance" (L2). Needs K >= 2."""
    leaves = [jnp.asarray(leaf) for leaf in _rows_of(stacked, select)]  # NumPy's take no traced index
    largest = _largest(leaves)
    overall = metrics.power_of_two(jnp.max(largest))
    own = jnp.minimum(metrics.power_of_two(largest), overall)  # that of zeros may be anything
    products = _products([leaf / own[:, None] for leaf in leaves])
    rows, columns = jnp.triu_indices(products.shape[0], 1)
    squares, cross = jnp.diagonal(products), products[rows, columns]
    # of differences: from products, little would be left of that of two rows that lie close together
    squared = lambda pair: sum(jnp.sum(jnp.square((leaf[pair[0]] - leaf[pair[1]]) / overall)) for leaf in leaves)
    apart = jax.lax.map(squared, (rows, columns))
    different = apart > 0  # the square root has no derivative at 0
    distance = jnp.where(different, jnp.sqrt(jnp.where(different, apart, 1.0)), 0.0)
    return {
        "cosine_squared": jnp.mean(jnp.minimum(_ratio(cross**2, squares[rows] * squares[columns]), 1.0)),
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
    return jnp.sum(jnp.where(_over(jnp.arange(leaf.shape[0]) == k, leaf), leaf, jnp.zeros_like(leaf)), axis=0)


def _rows_of(stacked: PyTree, select: Callable[[str], bool] | None) -> list[Any]:
    """The selected leaves as [K, N], see `metrics.single`."""
    return [metrics.single(leaf).reshape(leaf.shape[0], -1) for leaf in _selected(stacked, select)]


def _ratio(
    numerator: Float[jax.Array, "*shape"], denominator: Float[jax.Array, "*shape"]
) -> Float[jax.Array, "*shape"]:
    """The quotient, and 0 with gradient 0 where the denominator is 0."""
    is_zero = denominator == 0
    return jnp.where(is_zero, 0.0, numerator / jnp.where(is_zero, 1.0, denominator))


def _products(leaves: list[Any]) -> Float[jax.Array, "K K"]:
    return _total([jnp.einsum("id,jd->ij", leaf, leaf, precision="highest") for leaf in leaves])
