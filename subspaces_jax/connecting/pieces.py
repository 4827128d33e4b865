"""Pieces of paths: which weights move, how, and which are fitted to the others.

In a piece of local time s from 0 to 1 some leaves are still, some move together as samples of a connect method, a row a
unit, and one kernel at most, or a kernel and its bias, is fitted to the others by weight adjustment at every s.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subspaces_jax import trees
from subspaces_jax.connecting import adjustment
from subspaces_jax.connecting.features import Features
from subspaces_jax.connecting.matching import units_of_leaf
from subspaces_jax.connecting.methods import METHODS, Method, State
from subspaces_jax.connecting.permutations import with_leaves

PyTree = Any
Leaves = dict[str, jax.Array]


class Move(NamedTuple):
    """Leaves that a method connects, side by side as samples [num, d].

    Attributes:
        slots: (leaf, dimension of its units) each; None for a leaf that is one sample.
        num: of units.
        method: the connect method.
    """

    slots: tuple[tuple[str, int | None], ...]
    num: int
    method: Method = METHODS["linear"]

    def samples(self, leaves: Leaves) -> np.ndarray:
        """The rows [num, d] of a network's leaves."""
        return np.concatenate([_units_of_slot(leaves[name], dim, self.num) for name, dim in self.slots], axis=1)

    def leaves(self, samples: jax.Array, shapes: dict[str, tuple[int, ...]]) -> Leaves:
        """Samples [num, d] -> the leaves, of the shapes given."""
        found, start = {}, 0
        for name, dimension in self.slots:
            size = int(np.prod(shapes[name])) // self.num
            found[name] = _leaf_of_units(samples[:, start : start + size], dimension, shapes[name])
            start += size
        return found


class Fit(NamedTuple):
    """A kernel, alone or with its bias, that is fitted to what its layer takes at each s.

    Attributes:
        leaves: names of the kernel and, where it is fitted too, of the bias.
        layer: name of their layer.
        kernel, bias: what is to be reproduced, as of network `before`; no bias where it is not fitted.
        before: the network whose features it took.
        features: of the data.
        floor, ridge: as in `adjustment.solve`.
        exact: whether the kernel at s = 0 is the one that the piece starts with.
        determined: whether that one is what the fit gives there. Else what the fit misses of it is added (1 - s) times:
            it is what features that do not determine a kernel leave open, and does next to nothing on them.
    """

    leaves: tuple[str, ...]
    layer: str
    kernel: jax.Array
    bias: jax.Array | None
    before: PyTree
    features: Features | None
    floor: float
    ridge: float
    exact: bool = True
    determined: bool = True

    def solve(self, params: PyTree) -> adjustment.Adjusted:
        """What is fitted to what the layer takes in a network."""
        assert self.features is not None, "fits are of data"
        found = self.features.grams(self.layer, self.kernel, self.before, params)
        return adjustment.solve(found, self.kernel, self.bias, floor=self.floor, ridge=self.ridge)

    def of(self, params: PyTree) -> Leaves:
        """The leaves of a network that are fitted."""
        leaves = trees.leaf_names(params)
        return {name: jnp.asarray(leaves[name]) for name in self.leaves}

    def named(self, adjusted: adjustment.Adjusted) -> Leaves:
        """The leaves of what `solve` finds."""
        found = {self.leaves[0]: adjusted.kernel}
        return found if adjusted.bias is None else found | {self.leaves[1]: adjusted.bias}


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """One piece of a path.

    Attributes:
        start, end: the networks at s = 0 and s = 1.
        moves: of leaves that are in no other move.
        fit: what is fitted at each s, None for nothing.
    """

    start: PyTree
    end: PyTree
    moves: tuple[Move, ...]
    fit: Fit | None = None

    @functools.cached_property
    def states(self) -> list[State]:
        """What each move's method needs to know."""
        start, end = trees.leaf_names(self.start), trees.leaf_names(self.end)
        return [move.method.state(move.samples(start), move.samples(end)) for move in self.moves]

    @functools.cached_property
    def still(self) -> Leaves:
        """The leaves that are neither moved nor fitted."""
        moved = {name for move in self.moves for name, _ in move.slots} | set(self.fit.leaves if self.fit else ())
        return {name: leaf for name, leaf in trees.leaf_names(self.start).items() if name not in moved}

    def params(self, s: float) -> PyTree:
        """The network at s in [0, 1]; a fit is solved anew."""
        shapes = tuple((name, leaf.shape) for name, leaf in trees.leaf_names(self.start).items())
        params = with_leaves(self.start, self.still | moved_leaves(self.moves, shapes, self.states, np.float32(s)))
        return params if self.fit is None else with_leaves(params, self._fitted(self.fit, params, s))

    def _fitted(self, fit: Fit, params: PyTree, s: float) -> Leaves:
        if s == 1.0:
            return fit.of(self.end)
        if s == 0.0 and fit.exact:
            return fit.of(self.start)
        found = fit.named(fit.solve(params))
        if fit.determined:
            return found
        return {name: leaf + (1.0 - s) * self._missed[name] for name, leaf in found.items()}

    @functools.cached_property
    def _missed(self) -> Leaves:
        """What the fit, where there is one, misses of that which the piece begins with."""
        if self.fit is None:
            return {}
        begin, found = self.fit.of(self.start), self.fit.named(self.fit.solve(self.start))
        return {name: begin[name] - found[name] for name in begin}


@functools.partial(jax.jit, static_argnums=(0, 1))
def moved_leaves(moves, shapes, states, s):
    """The leaves that moves give at s."""
    found = {}
    for move, state in zip(moves, states):
        found |= move.leaves(move.method.point(state, s), dict(shapes))
    return found


def _units_of_slot(leaf: Any, dimension: int | None, num: int) -> np.ndarray:
    """A leaf as samples [num, d] of its units along a dimension, or as one sample."""
    leaf = np.asarray(leaf)
    return leaf.reshape(1, -1) if dimension is None else units_of_leaf(leaf, dimension, num)


def _leaf_of_units(samples: jax.Array, dimension: int | None, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `_units_of_slot`."""
    if dimension is None:
        return samples.reshape(shape)
    behind = int(np.prod(shape[dimension + 1 :]))
    return samples.reshape(samples.shape[0], -1, behind).swapaxes(0, 1).reshape(shape)
