"""Stacks of which some endpoints stay: within a dispatch they are read, and have no gradient, momentum or update.

The state that a step takes then holds the free endpoints alone, [F, ...], and the whole stack, [K, ...], lies beside it
as what does not change. Before and after the dispatch it is the state that checkpoints hold.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from subspaces_jax.geometry import contract
from subspaces_jax.training.state import State

PyTree = Any


def free_part(state: State, still: Sequence[int]) -> State:
    """The state of the endpoints that move: rows of the stack, and of what the optimizer keeps for each of them."""
    free = lambda leaf: jnp.take(leaf, _free(leaf.shape[_axis(state)], still), axis=_axis(state))
    opt_state = _of_stacks(lambda tree: jax.tree.map(free, tree), state.opt_state, state)
    return state._replace(params=jax.tree.map(free, state.params), opt_state=opt_state)


def put_back(state: State, whole: State, still: Sequence[int]) -> State:
    """`whole` with a later state of its free part."""
    at = (slice(None),) * _axis(whole)

    def rows(tree: PyTree, later: PyTree) -> PyTree:
        return jax.tree.map(
            lambda leaf, new: leaf.at[(*at, _free(leaf.shape[len(at)], still))].set(new, unique_indices=True),
            tree,
            later,
        )

    params = rows(whole.params, state.params)
    opt_state = _of_stacks(rows, whole.opt_state, whole, state.opt_state)
    return state._replace(params=params, opt_state=opt_state)


def point(free: PyTree, coordinates: PyTree, still: Sequence[int], stack: PyTree | None) -> PyTree:
    """`geometry.contract` of a stack [K, ...] of which the free rows are `free`, and the gradient is by these alone.

    Args:
        free: leaves [F, ...].
        coordinates: [K], or a prefix tree with one [K] a module.
        still: rows that stay, taken from `stack`; where there are none, `free` is the stack.
        stack: leaves [K, ...].
    """
    if not still:
        return contract(free, coordinates)
    found = contract(free, jax.tree.map(lambda c: c[_free(len(c), still)], coordinates))
    for k in still:

        def with_row(weights: jax.Array, of_free: PyTree, rows: PyTree) -> PyTree:
            return jax.tree.map(lambda leaf, row: leaf + weights[k] * row[k], of_free, rows)

        found = jax.tree.map(with_row, coordinates, found, stack)
    return found


def _free(num: int, still: Sequence[int]) -> jax.Array:
    return jnp.array([k for k in range(num) if k not in still])


def _axis(state: State) -> int:
    """Of the endpoints: behind that of members."""
    return len(state.step.shape)


def _of_stacks(function: Callable[..., PyTree], tree: PyTree, state: State, *others: PyTree) -> PyTree:
    """`function` of each part of a tree that has a leaf for each leaf of the stack, with rows for its endpoints."""
    like: Any = jax.tree.structure(state.params)
    axis = _axis(state)
    num = jax.tree.leaves(state.params)[0].shape[axis]

    def is_stack(node: PyTree) -> bool:
        if jax.tree.structure(node) != like:
            return False
        return all(leaf.shape[axis : axis + 1] == (num,) for leaf in jax.tree.leaves(node))

    return jax.tree.map(
        lambda node, *rest: function(node, *rest) if is_stack(node) else (rest[0] if rest else node),
        tree, *others, is_leaf=is_stack,
    )  # fmt: skip
