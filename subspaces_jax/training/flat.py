"""Stacks whose thin leaves are flat, [K, n] instead of [K, 3, 3, 16, 16]: what a TPU computes with fewer bytes.

A TPU lays the last two axes of an array in tiles of 8 x 128, so that a thin kernel of 16 x 16 takes 8 times its bytes,
in every pass that contraction, penalty and optimizer make over the endpoints. A flat leaf has next to no padding, and
only the point of a sample is brought to the shapes that the network wants. The K rows of a flat leaf are themselves
padded to a power of two, five to eight: where that costs more than to fill up the numbers of each row to whole tiles,
a leaf is [K, m, 128] with zeros at the end of each row, which stay zeros. Leaves that fill their tiles stay as they
are: to bring them to another shape is a pass over them, too.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from subspaces_jax.geometry.penalties import default_weights
from subspaces_jax.training.state import State

PyTree = Any
TILE = (8, 128)


def of_state(state: State) -> State:
    """A training's state, or one of members, with the leaves of its stack flat, and those of its optimizer."""
    params, opt_state = flattened((state.params, state.opt_state), _num_kept(state))
    return state._replace(params=params, opt_state=opt_state)


def as_shaped(state: State, like: State) -> State:
    """A state of flat leaves as one like `like`, whose leaves are not."""
    kept = _num_kept(like)
    return jax.tree.map(lambda leaf, like: _whole(leaf, like.shape, kept), state, like)


def shapes_of(state: State) -> PyTree:
    """The shapes of one network's leaves in a state whose leaves are not flat, as jax.ShapeDtypeStruct."""
    kept = _num_kept(state)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[kept:], leaf.dtype), state.params)


def flattened(tree: PyTree, num_kept: int) -> PyTree:
    """Each thin leaf with its first `num_kept` axes, the last of them that of K rows, and all others as one, or as two
    with zeros at the end; the others as they are."""

    def flat(leaf):
        kept, shape = leaf.shape[:num_kept], leaf.shape[num_kept:]
        if not is_thin(shape):
            return leaf
        leaf, missing = leaf.reshape(*kept, -1), _missing(kept[-1], math.prod(shape))
        if missing is None:
            return leaf
        padded = jnp.pad(leaf, [(0, 0)] * num_kept + [(0, missing)])
        return padded.reshape(*kept, -1, TILE[1])

    return jax.tree.map(flat, tree)


def shaped(point: PyTree, shapes: PyTree | None) -> PyTree:
    """The leaves of one network in the given shapes, and as they are where there are none."""
    return point if shapes is None else jax.tree.map(lambda leaf, like: _whole(leaf, like.shape, 0), point, shapes)


def _whole(leaf: jax.Array, shape: tuple[int, ...], num_kept: int) -> jax.Array:
    """A flat leaf in its shape, without the zeros at the end; one that is not flat as it is."""
    if leaf.shape == shape:
        return leaf
    return leaf.reshape(*leaf.shape[:num_kept], -1)[..., : math.prod(shape[num_kept:])].reshape(shape)


def _missing(num_rows: int, size: int) -> int | None:
    """Zeros that fill up each of K rows of `size` numbers to whole tiles; None where it is better to pad rows."""
    in_tiles = _up(size, math.prod(TILE))
    rows = _up(num_rows, TILE[0]) if num_rows > TILE[0] else 1 << (num_rows - 1).bit_length()
    return in_tiles - size if num_rows * in_tiles < rows * _up(size, TILE[1]) else None


def _up(length: int, side: int) -> int:
    return math.ceil(length / side) * side


def is_thin(shape: Sequence[int]) -> bool:
    """Whether a leaf of that shape fills less than two thirds of its tiles."""
    if len(shape) < 2:
        return False
    last = shape[-2:]
    tiles = [_up(length, side) for length, side in zip(last, TILE)]
    return 3 * math.prod(last) < 2 * math.prod(tiles)


def weights(shapes: PyTree | None) -> Callable[[str], bool] | None:
    """Which leaves `geometry.cosine_penalty` takes by default, by name, since flat leaves do not tell by their axes."""
    return None if shapes is None else default_weights(shapes, 0).__contains__


def _num_kept(state: State) -> int:
    """Axes of endpoints, and of members before them."""
    return 1 + len(state.step.shape)
