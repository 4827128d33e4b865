"""Matching units by what they do: their activations on the same examples, gathered batch by batch."""

import operator
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from subspaces_jax.connecting.matching import assign, check_same
from subspaces_jax.connecting.permutations import Permutations
from subspaces_jax.connecting.products import inner_products
from subspaces_jax.networks import axes
from subspaces_jax.networks.axes import AxisTable

PyTree = Any
MEASURES = ("correlation", "distance")


class _Moments(NamedTuple):
    """Sums over examples and positions of a_i b_j [n, n], and of a, b, a^2 and b^2 [n]."""

    cross: np.ndarray
    sums: np.ndarray
    squares: np.ndarray
    count: int  # type: ignore[assignment]  # the field hides tuple.count


def match_activations(
    activations: Callable[[PyTree, jax.Array], dict[str, list[jax.Array]]],
    variables_a: PyTree,
    variables_b: PyTree,
    table: AxisTable,
    batches: Iterable[jax.Array],
    measure: str = "correlation",
    *,
    where: str | None = None,
) -> Permutations:
    """The permutations that bring each unit of b next to the unit of a that answers most alike; axes apart, exact.

    Maps count every position as an example, residual streams every reading. No activation is kept longer than its
    batch.

    Args:
        activations: (variables, images [B, ...]) -> {unit: values [B, ..., n]}, as of `axes.sown`; jitted.
        variables_a, variables_b: of two networks of one architecture, what `activations` takes.
        table: their axis table.
        batches: images [B, ...], one pass.
        measure: "correlation" of activations, 0 where a unit never changes; or "distance", the least sum of squared
            differences.
        where: as in `products.inner_products`.

    Returns:
        {axis: order [n]} for `permutations.permute` of network b.

    Raises:
        ValueError: networks that differ, no batch, or another `measure`.

    Reference: Li et al., Convergent Learning: Do different neural networks learn the same representations?, 2016,
    arXiv:1511.07543 (correlation); Ainsworth et al., 2023, arXiv:2209.04836, section 3.1 (distance).
    """
    if measure not in MEASURES:
        raise ValueError(f"measure is one of {', '.join(MEASURES)}, got {measure!r}")
    check_same(variables_a, variables_b)
    names = dict.fromkeys(axis.removeprefix(axes.FLATTENED) for row in table.values() for axis in row if axis)
    moments: dict[str, _Moments] = {}
    for images in batches:
        found_a, found_b = activations(variables_a, images), activations(variables_b, images)
        for axis in names:
            for a, b in zip(found_a[axis], found_b[axis]):
                rows_a, rows_b = (np.asarray(values).reshape(-1, values.shape[-1]) for values in (a, b))
                found = _moments(rows_a, rows_b, where)
                moments[axis] = _Moments._make(map(operator.add, moments[axis], found)) if axis in moments else found
    if not moments:
        raise ValueError("no batch of images was given to match activations on")
    return {axis: assign(_similarities(found, measure)) for axis, found in moments.items()}


def _moments(a: np.ndarray, b: np.ndarray, where: str | None) -> _Moments:
    both = np.stack([a, b]).astype(np.float64)
    return _Moments(inner_products(a, b, where), np.sum(both, axis=1), np.sum(both**2, axis=1), len(a))


def _similarities(moments: _Moments, measure: str) -> np.ndarray:
    if measure == "distance":
        return moments.cross  # the squares of the activations themselves are the same for every order
    means = moments.sums / moments.count
    variances = moments.squares / moments.count - means**2
    alive = variances > 1e-12 * moments.squares / moments.count
    inverse = np.where(alive, 1.0 / np.sqrt(np.where(alive, variances, 1.0)), 0.0)
    covariances = moments.cross / moments.count - np.outer(*means)
    return covariances * np.outer(*inverse)
