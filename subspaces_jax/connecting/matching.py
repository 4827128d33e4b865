"""Which unit of one network is which of another: exact assignment of units by their weights.

Both networks' units are permuted through the axis table, so that streams which residual blocks share get one
permutation. Matching by what units do is in `activations.py`, of three networks and more in `universe.py`.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float64, Integer, Real

from subspaces_jax import trees
from subspaces_jax.arrays import Array
from subspaces_jax.connecting.permutations import Permutations, check, identity, permute
from subspaces_jax.connecting.products import inner_products
from subspaces_jax.networks import axes
from subspaces_jax.networks.axes import FLATTENED, AxisTable

PyTree = Any
RULES = ("weights", "incoming", "full")
MAX_SWEEPS = 100


def match(
    units_a: Real[Array, "..."], units_b: Real[Array, "..."], where: str | None = None
) -> Integer[np.ndarray, " n"]:
    """The assignment of units to units with the smallest sum of squared Euclidean distances; exact.

    Uniform optimal transport between two sets of one size is this assignment. The squares of the vectors themselves
    add the same to every assignment, so that the costs are inner products, taken about the common mean in float64.

    Args:
        units_a: [n, d], a row a unit.
        units_b: [n, d].
        where: as in `products.inner_products`; the assignment is solved on the host.

    Returns:
        [n] int: unit permutation[i] of b is matched with unit i of a.

    Raises:
        ValueError: other shapes than these, or entries that are not finite.

    >>> match(np.array([[0.0], [1.0], [5.0]]), np.array([[4.0], [0.2], [1.1]]))
    array([1, 2, 0])

    Reference: Anokhin and Yarotsky, Low-loss connection of weight vectors: distribution-based approaches, 2020,
    arXiv:2008.00741, section 3; solved by Crouse, On implementing 2D rectangular assignment algorithms, 2016 (SciPy).
    """
    if np.ndim(units_a) != 2 or np.shape(units_a) != np.shape(units_b):
        raise ValueError(f"expected units [n, d] of two networks, got shapes {np.shape(units_a)}, {np.shape(units_b)}")
    a, b = (np.asarray(units, np.float64) for units in (units_a, units_b))
    mean = np.mean(np.concatenate([a, b]), axis=0)
    return assign(inner_products((a - mean).T, (b - mean).T, where))


def assign(similarities: Real[np.ndarray, "n n"]) -> Integer[np.ndarray, " n"]:
    """[n, n] -> the order [n] of columns with the greatest sum of similarities; exact.

    Raises:
        ValueError: entries that are not finite.
    """
    if not np.all(np.isfinite(similarities)):
        raise ValueError("units to be matched are not finite: one of the networks has diverged")
    from scipy.optimize import linear_sum_assignment  # takes half a second to import

    return linear_sum_assignment(similarities, maximize=True)[1]


def match_networks(
    params_a: PyTree,
    params_b: PyTree,
    table: AxisTable,
    rule: str = "weights",
    *,
    start: Permutations | None = None,
    seed: int = 0,
    where: str | None = None,
) -> Permutations:
    """The permutations that bring the units of network b next to those of network a.

    Args:
        params_a, params_b: two networks of one architecture.
        table: its axis table; it may be residual for "weights".
        rule: "weights" maximises the inner product of all parameters of a and of permuted b by coordinate descent,
            one axis after the other in a random order, each solved exactly, until none changes. "incoming" goes through
            the units once, in the order of the forward pass, and matches what they read, biases too; "full" adds what
            reads them, where the reader's own units are not matched yet in the order that b has.
        start: what "weights" begins with; None for what "incoming" finds, where the paper begins with the identity: a
            local maximum is then rarer, and a permuted copy is recovered at once.
        seed: of the order of axes.
        where: as in `products.inner_products`.

    Returns:
        {axis: order [n]} for `permute(params_b, table, ...)`.

    Raises:
        ValueError: networks that differ, a parameter that the table does not cover, or another `rule`.

    Reference: Ainsworth et al., Git Re-Basin: Merging Models modulo Permutation Symmetries, 2023, arXiv:2209.04836,
    section 3.2 ("weights"); Anokhin and Yarotsky, 2020, arXiv:2008.00741 (the others).
    """
    if rule not in RULES:
        raise ValueError(f"rule is one of {', '.join(RULES)}, got {rule!r}")
    check_same(params_a, params_b)
    params_a, params_b = (jax.tree.map(np.asarray, params) for params in (params_a, params_b))
    permutations = identity(params_b, table)
    if rule == "weights" and start is not None:
        check(start, axes.units(table, params_b))
        return _descend(params_a, params_b, table, permutations | start, seed, where)
    for axis in _in_forward_order(table):
        moved = permute(params_b, table, permutations)
        a, b = (unit_vectors(params, table, axis, reads=rule == "full") for params in (params_a, moved))
        permutations[axis] = permutations[axis][match(a, b, where)]
    return _descend(params_a, params_b, table, permutations, seed, where) if rule == "weights" else permutations


def unit_vectors(params: PyTree, table: AxisTable, axis: str, reads: bool = True) -> Float64[np.ndarray, "n d"]:
    """All parameters of the units of one axis, a row a unit.

    Args:
        params, table: of the network.
        axis: whose units.
        reads: whether what reads the units counts, beside what writes them, their biases and scales.

    Returns:
        [n, d] float64.
    """
    leaves, rows, num = trees.leaf_names(params), [], axes.units(table, params)[axis]
    for name, names in table.items():
        for dimension, other in enumerate(names):
            if other is None or other.removeprefix(FLATTENED) != axis:
                continue
            if reads or dimension == len(names) - 1:
                rows.append(units_of_leaf(np.asarray(leaves[name], np.float64), dimension, num))
    return np.concatenate(rows, axis=1)


def units_of_leaf(leaf: Any, dimension: int, num: int) -> Any:
    """A leaf as vectors of the units along one of its dimensions, [num, d]; those of a flattened map come last."""
    ahead, behind = leaf.shape[:dimension], leaf.shape[dimension + 1 :]
    by_unit = leaf.reshape(int(np.prod(ahead)) * (leaf.shape[dimension] // num), num, int(np.prod(behind)))
    return by_unit.swapaxes(0, 1).reshape(num, -1)


def check_same(params_a: PyTree, params_b: PyTree) -> None:
    """Whether two networks have one architecture.

    Raises:
        ValueError: names and shapes that differ.
    """
    if difference := trees.describe_mismatch(params_b, params_a):
        raise ValueError(f"network b is of another architecture than network a: {difference}")


def _descend(
    params_a: PyTree, params_b: PyTree, table: AxisTable, permutations: Permutations, seed: int, where: str | None
) -> Permutations:
    generator = np.random.default_rng(seed)
    sizes, by_axis = axes.units(table, params_a), list(permutations)
    for _ in range(MAX_SWEEPS):
        changed = False
        for axis in generator.permutation(by_axis):
            moved = permute(params_b, table, permutations)
            vectors_a, vectors_b = (unit_vectors(params, table, axis).T for params in (params_a, moved))
            similarities = inner_products(vectors_a, vectors_b, where)
            order = assign(similarities)
            gain = np.sum(similarities[np.arange(sizes[axis]), order]) - np.trace(similarities)
            if gain > 1e-12 * np.sum(np.abs(np.diag(similarities))):
                permutations[axis], changed = permutations[axis][order], True
        if not changed:
            break
    check(permutations, sizes)
    return permutations


def _in_forward_order(table: AxisTable) -> list[str]:
    """The unit axes in the order in which kernels write them."""
    written = (table[kernel][-1] for kernel in axes.kernels(table))
    return list(dict.fromkeys(axis for axis in written if axis is not None))
