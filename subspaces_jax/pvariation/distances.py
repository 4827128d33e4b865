"""Distances between points of a path, to a power, fast and without the cancellation of far-away origins.

A size is what a distance is made of: of "l2" its square, of other norms the distance itself.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from subspaces_jax.arrays import Array

NORMS = ("l2", "l1", "linf")
BAND = 4  # sizes of points that are at most so many steps apart are found from their differences
SLACK = 1e-5  # of bounds, a fraction of what they are made of
FEW = 1 << 22  # coordinates of all pairs, of which differences are quick


def sizes(differences: Float[Array, "*shape D"], norm: str) -> Float[Array, "*shape"]:
    """Of differences [..., D]: [...]."""
    if norm == "l2":
        return jnp.sum(differences * differences, axis=-1)
    of = jnp.abs(differences)
    return jnp.sum(of, axis=-1) if norm == "l1" else jnp.max(of, axis=-1, initial=0.0)


def distance(sizes: Float[Array, "*shape"], norm: str) -> Float[Array, "*shape"]:
    """The distances that sizes stand for."""
    return jnp.sqrt(sizes) if norm == "l2" else sizes


def powers(sizes: Float[Array, "*shape"], p: float, norm: str) -> Float[jax.Array, "*shape"]:
    """The p-th powers of the distances; by roots and products where p is a multiple of a half ("l2") or a quarter."""
    exponent = p / 2 if norm == "l2" else p
    if exponent > 16 or (4 * exponent) % 1:
        return jnp.exp(jnp.asarray(exponent, sizes.dtype) * jnp.log(sizes))  # a power is no vector operation on a CPU
    whole, quarters = divmod(round(4 * exponent), 4)
    found = lax.integer_pow(sizes, whole) if whole else jnp.ones_like(sizes)
    if quarters:
        root = jnp.sqrt(sizes)
        found = found * {1: jnp.sqrt(root), 2: root, 3: root * jnp.sqrt(root)}[quarters]
    return found


def between(
    a: Float[Array, "N D"],
    b: Float[Array, "M D"],
    norm: str,
    direct: bool = False,
    extents: Float[Array, " N"] | None = None,
) -> Float[Array, "N M"]:
    """Sizes of all differences, [N, D] and [M, D] -> [N, M].

    Of "l2", unless `direct`, by a matrix product, whose rounding errors are in proportion to the squares of both: give
    points about an origin that is near to them, as the mean of `a`. `extents` are the sizes of `a` where they are
    known.
    """
    if norm != "l2" or direct:
        return sizes(a[:, None] - b[None], norm)
    products = jnp.matmul(a, b.T, precision=lax.Precision.HIGHEST)
    extents = sizes(a, norm) if extents is None else extents
    return jnp.maximum(extents[:, None] + sizes(b, norm)[None] - 2 * products, 0)


def reaches(centres: Float[Array, "n D"], extents: Float[Array, " n"], norm: str, direct: bool) -> Float[Array, "n n"]:
    """Sizes that no difference of points in two balls exceeds: [n, D] centres and [n] sizes of radii -> [n, n]."""
    apart = between(centres, centres, norm, direct)
    if norm == "l2":
        squares = sizes(centres, norm)
        apart = apart + SLACK * (squares[:, None] + squares[None])  # of products of matrices
    radii = distance(extents, norm) * (1 + SLACK)
    found = distance(apart, norm) + radii[:, None] + radii[None]
    return found * found if norm == "l2" else found


def is_direct(num: int, dim: int) -> bool:
    """Whether differences of all pairs of points cost no more than a matrix product is worth."""
    return dim <= 8 or num * num * dim <= FEW


def bands(points: Float[jax.Array, "L D"], norm: str, most: int = BAND) -> Float[jax.Array, "most L"]:
    """Sizes of the differences of each point and those 1 to `most` steps before it, [most, L]; at the start 0."""
    of_gap = [
        sizes(points[min(gap, len(points)) :] - points[: max(len(points) - gap, 0)], norm) for gap in range(1, most + 1)
    ]
    return jnp.stack([jnp.pad(found, (len(points) - len(found), 0)) for found in of_gap])


def banded(found: Float[jax.Array, "L L"], near: Float[jax.Array, "steps L"]) -> Float[jax.Array, "L L"]:
    """Sizes [L, L] with those of near points from `bands`."""
    steps = np.arange(len(found)) - np.arange(len(found))[:, None]
    for gap, of_gap in enumerate(near, start=1):
        found = jnp.where(steps == gap, of_gap[None], found)
    return found
