"""Orders of units, and networks with their units in another order.

Permutations are a dictionary {unit axis of the axis table: order [n]}: unit i of the permuted network is unit order[i]
of the network. Axes that it does not name stay as they are.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subspaces_jax import trees
from subspaces_jax.networks import axes
from subspaces_jax.networks.axes import FLATTENED, AxisTable

PyTree = Any
Permutations = dict[str, np.ndarray]


def permute(params: PyTree, table: AxisTable, permutations: Mapping[str, np.ndarray]) -> PyTree:
    """A network with its units in another order, which computes the same function.

    Args:
        params: of the network; BatchNorm's statistics have `permute_batch_stats`.
        table: its axis table, see `networks.axes`.
        permutations: {axis: order [n]}, see the top of this file.

    Raises:
        ValueError: a parameter that the table does not cover, an axis that it does not know, or no permutation.
    """
    check(permutations, axes.units(table, params))
    permuted = {name: _permuted(leaf, table[name], permutations) for name, leaf in trees.leaf_names(params).items()}
    return with_leaves(params, permuted)


def permute_batch_stats(batch_stats: PyTree, table: AxisTable, permutations: Mapping[str, np.ndarray]) -> PyTree:
    """BatchNorm's statistics in another order: each has the axis of the scale beside it.

    Raises:
        ValueError: a statistic of a module without a scale in the table.
    """
    names = trees.leaf_names(batch_stats)
    scales = {name: f"{name.rpartition('/')[0]}/scale" for name in names}
    if unknown := [name for name, scale in scales.items() if scale not in table]:
        raise ValueError(f"the axis table has no scale beside {', '.join(unknown)}")
    permuted = {name: _permuted(leaf, table[scales[name]], permutations) for name, leaf in names.items()}
    return with_leaves(batch_stats, permuted)


def identity(params: PyTree, table: AxisTable) -> Permutations:
    """The permutations that change nothing, one for each unit axis."""
    return {axis: np.arange(size) for axis, size in axes.units(table, params).items()}


def compose(first: Mapping[str, np.ndarray], then: Mapping[str, np.ndarray]) -> Permutations:
    """The permutations that do what permuting by `first` and what comes of it by `then` does."""
    named = dict.fromkeys([*first, *then])
    both = {axis: np.asarray(first[axis])[then[axis]] for axis in named if axis in first and axis in then}
    alone = {axis: np.asarray(order) for axis, order in (*then.items(), *first.items())}
    return {axis: both[axis] if axis in both else alone[axis] for axis in named}


def invert(permutations: Mapping[str, np.ndarray]) -> Permutations:
    """The permutations that undo these."""
    return {axis: np.argsort(order) for axis, order in permutations.items()}


def function_difference(
    apply: Callable[[PyTree, jax.Array], jax.Array], variables_a: PyTree, variables_b: PyTree, images: jax.Array
) -> float:
    """How far the outputs of two networks are from each other: the greatest difference over the greatest output.

    About float32's rounding, 1e-7 times a small factor, between a network and the same with its units permuted.

    Args:
        apply: (variables, images [B, ...]) -> outputs [B, ...].
        variables_a, variables_b: of the two networks.
        images: [B, ...].
    """
    a, b = (np.asarray(apply(variables, images), np.float64) for variables in (variables_a, variables_b))
    return float(np.max(np.abs(a - b)) / max(np.max(np.abs(a)), np.finfo(np.float32).tiny))


def check(permutations: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> None:
    """Whether all are permutations of the units of an axis that there is.

    Args:
        permutations: {axis: order}.
        sizes: {axis: n}, as of `axes.units`.

    Raises:
        ValueError: names the axis.
    """
    for axis, order in permutations.items():
        if axis not in sizes:
            raise ValueError(f"there are no units {axis!r}: the axis table has {', '.join(sizes)}")
        if not np.array_equal(np.sort(np.asarray(order)), np.arange(sizes[axis])):
            raise ValueError(f"the order of {axis} is no permutation of its {sizes[axis]} units")


def positions_first(order: np.ndarray, rows: int) -> np.ndarray:
    """The order of the rows of a kernel that reads a flattened map of these units, channels last."""
    return (np.arange(0, rows, len(order))[:, None] + np.asarray(order)[None]).ravel()


def with_leaves(tree: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    """`tree` with other leaves, {name: leaf} as of `trees.leaf_names`; those that are not named stay."""
    found = trees.leaf_names(tree)
    return jax.tree.unflatten(jax.tree.structure(tree), [leaves.get(name, leaf) for name, leaf in found.items()])


def _permuted(leaf: Any, names: tuple[str | None, ...], permutations: Mapping[str, np.ndarray]) -> Any:
    for dimension, axis in enumerate(names):
        order = None if axis is None else permutations.get(axis.removeprefix(FLATTENED))
        if axis is not None and order is not None:
            order = positions_first(order, leaf.shape[dimension]) if axis.startswith(FLATTENED) else np.asarray(order)
            leaf = (np if isinstance(leaf, np.ndarray) else jnp).take(leaf, order, axis=dimension)
    return leaf
