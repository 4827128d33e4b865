"""Stacks whose thin leaves are flat, [K, n] instead of [K, 3, 3, 16, 16]: what a TPU computes with fewer bytes.

A TPU lays the last two axes of an array in tiles of 8 x 128, so that a thin kernel of 16 x 16 takes 8 times its bytes,
in every pass that contraction, penalty and optimizer make over the endpoints. A flat leaf has next to no padding, and
only the point of a sample is brought to the shapes that the network wants. Leaves that fill their tiles stay as they
are: to bring them to another shape is a pass over them, too.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

from subspaces_jax.geometry.penalties import default_weights
from subspaces_jax.training.state import State

PyTree = Any
TILE = (8, 128)


def of_state(state: State) -> State:
    """A training's state, or one of members, with the leaves of its stack flat, and those of its optimizer."""
    params, opt_state = flattened((state.params, state.opt_state), _num_kept(state))
    return state._replace(params=params, opt_state=opt_state)


def shapes_of(state: State) -> PyTree:
    """The shapes of one network's leaves in a state whose leaves are not flat, as jax.ShapeDtypeStruct."""
    kept = _num_kept(state)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[kept:], leaf.dtype), state.params)


def flattened(tree: PyTree, num_kept: int) -> PyTree:
    """Each thin leaf with its first `num_kept` axes, and all others as one; the others as they are."""

    def flat(leaf):
        return leaf.reshape(*leaf.shape[:num_kept], -1) if is_thin(leaf.shape[num_kept:]) else leaf

    return jax.tree.map(flat, tree)


def is_thin(shape: Sequence[int]) -> bool:
    """Whether a leaf of that shape fills less than two thirds of its tiles."""
    if len(shape) < 2:
        return False
    last = shape[-2:]
    tiles = [math.ceil(length / side) * side for length, side in zip(last, TILE)]
    return 3 * math.prod(last) < 2 * math.prod(tiles)


def shaped(point: PyTree, shapes: PyTree | None) -> PyTree:
    """The leaves of one network in the given shapes, and as they are where there are none."""
    return point if shapes is None else jax.tree.map(lambda leaf, like: leaf.reshape(like.shape), point, shapes)


def weights(shapes: PyTree | None) -> Callable[[str], bool] | None:
    """Which leaves `geometry.cosine_penalty` takes by default, by name, since flat leaves do not tell by their axes."""
    return None if shapes is None else default_weights(shapes, 0).__contains__


def _num_kept(state: State) -> int:
    """Axes of endpoints, and of members before them."""
    return 1 + len(state.step.shape)
