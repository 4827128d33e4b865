"""Matching three networks or more at once, to one frame that all share, so that matchings agree along every cycle."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subspaces_jax import trees
from subspaces_jax.connecting.matching import assign, check_same, match_networks
from subspaces_jax.connecting.permutations import Permutations, check
from subspaces_jax.networks import axes
from subspaces_jax.networks.axes import FLATTENED, AxisTable

PyTree = Any
DEGREE = 4  # of the objective along a line: two axes of a leaf, two networks


class Universe(NamedTuple):
    """What `match_universe` finds.

    Attributes:
        permutations: of each network to the frame: permuting every network by its own brings all units side by side.
            The matching of network p with network q is `compose(permutations[q], invert(permutations[p]))`.
        objective: after the start and after each step of Frank-Wolfe, the sum over pairs of networks of the inner
            products of all their parameters; it never falls. Last that of the permutations themselves.
    """

    permutations: list[Permutations]
    objective: np.ndarray


def match_universe(
    networks: Sequence[PyTree],
    table: AxisTable,
    *,
    start: Sequence[Permutations] | None = None,
    max_steps: int = 100,
    tolerance: float = 1e-6,
) -> Universe:
    """Permutations of n >= 2 networks to one common frame, by the Frank-Wolfe algorithm over all of them together.

    Maximises the sum over pairs of <P_p w_p, P_q w_q> over doubly stochastic matrices P, one for each network and unit
    axis; each step goes towards the permutations that the exact assignment finds for the gradient, as far as the
    maximum along the line, a polynomial of degree 4. What is left is rounded by assignment, and kept only where that is
    no worse than the start. Cycle-consistent by construction.

    Args:
        networks: n parameter trees of one architecture.
        table: their axis table.
        start: permutations of each network to begin with; by default each network matched to the first.
        max_steps: of Frank-Wolfe.
        tolerance: it ends where a step gains less than this share of the objective's size.

    Raises:
        ValueError: fewer than two networks, networks that differ, or a parameter that the table does not cover.

    Reference: Crisostomi et al., C2M3: Cycle-Consistent Multi-Model Merging, 2024, arXiv:2405.17897; Frank and Wolfe,
    An algorithm for quadratic programming, 1956.
    """
    if len(networks) < 2:
        raise ValueError(f"expected at least 2 networks to match, got {len(networks)}")
    for other in networks[1:]:
        check_same(networks[0], other)
    sizes = axes.units(table, networks[0])
    if start is None:
        first = {axis: np.arange(size) for axis, size in sizes.items()}
        start = [first, *(match_networks(networks[0], other, table) for other in networks[1:])]
    for permutations in start:
        check(permutations, sizes)
    rows = tuple(table.items())
    leaves = {name: jnp.asarray(np.stack([trees.leaf_names(net)[name] for net in networks])) for name in table}
    begin = point = {axis: np.stack([_matrix(one[axis]) for one in start]) for axis in sizes}
    value, gradient = _objective_gradient(point, leaves, rows)
    values = [float(value)]
    for _ in range(max_steps):
        towards = _vertices(gradient)
        share = _best_share(np.asarray(_along(point, towards, leaves, rows), np.float64))
        moved = {axis: np.float32(1.0 - share) * point[axis] + np.float32(share) * towards[axis] for axis in point}
        value, gradient = _objective_gradient(moved, leaves, rows)
        if share == 0.0 or float(value) <= values[-1]:
            break
        gained, point = float(value) - values[-1], moved
        values.append(float(value))
        if gained <= tolerance * abs(values[-1]):
            break
    end = _vertices(point)
    if float(_objective(end, leaves, rows)) < values[0]:
        end = begin
    values.append(float(_objective(end, leaves, rows)))
    orders = {axis: np.argmax(np.asarray(matrices), axis=-1) for axis, matrices in end.items()}
    found = [{axis: order[p] for axis, order in orders.items()} for p in range(len(networks))]
    return Universe(found, np.array(values))


@partial(jax.jit, static_argnums=2)
def _objective(matrices, leaves, rows):
    """Sum over pairs of inner products: half of the square of the sum less the sum of squares."""
    total = 0.0
    for name, names in rows:
        moved = leaves[name]
        for dimension, axis in enumerate(names, start=1):
            if axis is not None:
                moved = _applied(matrices[axis.removeprefix(FLATTENED)], moved, dimension)
        total += 0.5 * (jnp.sum(jnp.sum(moved, axis=0) ** 2) - jnp.sum(moved**2))
    return total


_objective_gradient = jax.jit(jax.value_and_grad(_objective), static_argnums=2)


@partial(jax.jit, static_argnums=3)
def _along(point, towards, leaves, rows):
    """The objective at DEGREE + 1 equally spaced points between two."""
    at = lambda share: jax.tree.map(lambda a, b: (1.0 - share) * a + share * b, point, towards)
    return jnp.stack([_objective(at(k / DEGREE), leaves, rows) for k in range(DEGREE + 1)])


def _applied(matrices: jax.Array, leaf: jax.Array, dimension: int) -> jax.Array:
    """One matrix a network on one dimension of its leaf; that of a flattened map holds several positions."""
    num, units = matrices.shape[:2]
    ahead, size, behind = leaf.shape[1:dimension], leaf.shape[dimension], leaf.shape[dimension + 1 :]
    split = leaf.reshape(num, int(np.prod(ahead)) * (size // units), units, int(np.prod(behind)))
    return jnp.einsum("puv,pavb->paub", matrices, split, precision="highest").reshape(leaf.shape)


def _matrix(order: np.ndarray) -> np.ndarray:
    """[n] -> [n, n], row i 1 at order[i]."""
    return np.eye(len(order), dtype=np.float32)[np.asarray(order)]


def _vertices(matrices: PyTree) -> PyTree:
    """The permutation matrices with the greatest inner product with these."""
    best = lambda of: np.stack([_matrix(assign(np.asarray(matrix, np.float64))) for matrix in of])
    return {axis: best(of) for axis, of in matrices.items()}


def _best_share(values: np.ndarray) -> float:
    """The share of [0, 1] at which the polynomial through equally spaced values is greatest."""
    shares = np.linspace(0.0, 1.0, len(values))
    polynomial = np.polynomial.Polynomial.fit(shares, values - values[0], DEGREE)
    roots = polynomial.deriv().roots()
    inner = roots.real[(np.abs(roots.imag) < 1e-9) & (roots.real > 0.0) & (roots.real < 1.0)]
    candidates = np.concatenate([[0.0, 1.0], inner])
    return float(candidates[np.argmax(polynomial(candidates))])
