"""Paths of several pieces between two networks: which weights move in each, and how.

In a piece of local time s from 0 to 1 some leaves are still, some move together as samples of a connect method, a row a
unit, and one kernel at most is fitted to the others by weight adjustment at every s.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from subspaces_jax import trees
from subspaces_jax.connecting import adjustment
from subspaces_jax.connecting.features import Features
from subspaces_jax.connecting.matching import units_of_leaf
from subspaces_jax.connecting.methods import METHODS, Method, State
from subspaces_jax.connecting.permutations import Permutations, with_leaves

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

    def samples(self, leaves: Leaves) -> jax.Array:
        """The rows [num, d] of a network's leaves."""
        return np.concatenate([units_of_slot(leaves[name], dim, self.num) for name, dim in self.slots], axis=1)

    def leaves(self, samples: jax.Array, shapes: dict[str, tuple[int, ...]]) -> Leaves:
        """Samples [num, d] -> the leaves, of the shapes given."""
        found, start = {}, 0
        for name, dimension in self.slots:
            size = int(np.prod(shapes[name])) // self.num
            found[name] = _leaf_of_units(samples[:, start : start + size], dimension, shapes[name])
            start += size
        return found


class Fit(NamedTuple):
    """A kernel that is fitted to what its layer takes at each s.

    Attributes:
        leaf, layer: names of the kernel and its layer.
        kernel: what is to be reproduced, as of network `before`.
        before: the network whose features it took.
        features: of the data.
        floor, ridge: as in `adjustment.solve`.
        exact: whether the kernel at s = 0 is the one that the piece starts with.
        determined: whether that one is what the fit gives there. Else what the fit misses of it is added (1 - s) times:
            it is what features that do not determine a kernel leave open, and does next to nothing on them.
    """

    leaf: str
    layer: str
    kernel: jax.Array
    before: PyTree
    features: Features
    floor: float
    ridge: float
    exact: bool = True
    determined: bool = True

    def solve(self, params: PyTree) -> adjustment.Adjusted:
        """The kernel fitted to what the layer takes in a network."""
        found = self.features.grams(self.layer, self.kernel.shape, self.before, params)
        return adjustment.solve(found, self.kernel, floor=self.floor, ridge=self.ridge)


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """One piece of a path.

    Attributes:
        start, end: the networks at s = 0 and s = 1.
        moves: of leaves that are in no other move.
        fit: the kernel that is fitted at each s, None for none.
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
        moved = {name for move in self.moves for name, _ in move.slots} | ({self.fit.leaf} if self.fit else set())
        return {name: leaf for name, leaf in trees.leaf_names(self.start).items() if name not in moved}

    def params(self, s: float) -> PyTree:
        """The network at s in [0, 1]; a fit is solved anew."""
        shapes = tuple((name, leaf.shape) for name, leaf in trees.leaf_names(self.start).items())
        params = with_leaves(self.start, self.still | _moved(self.moves, shapes, self.states, np.float32(s)))
        return params if self.fit is None else with_leaves(params, {self.fit.leaf: self._fitted(params, s)})

    def _fitted(self, params: PyTree, s: float) -> jax.Array:
        if s == 1.0:
            return jnp.asarray(trees.leaf_names(self.end)[self.fit.leaf])
        if s == 0.0 and self.fit.exact:
            return jnp.asarray(trees.leaf_names(self.start)[self.fit.leaf])
        kernel = self.fit.solve(params).kernel
        return kernel if self.fit.determined else kernel + (1.0 - s) * self._missed

    @functools.cached_property
    def _missed(self) -> jax.Array:
        """What the fit misses of the kernel that the piece begins with."""
        return trees.leaf_names(self.start)[self.fit.leaf] - self.fit.solve(self.start).kernel


class Sampled(NamedTuple):
    """A path at given t, for `evaluation.along(*sampled, ...)`.

    Attributes:
        tree: arrays that the path is made of, each once.
        points: [T], the t.
        params_at: (tree, t) -> params; jittable, hashable, equal for paths of one form. It takes any t; kernels that
            are fitted are those of the t given, and linear between them.
    """

    tree: PyTree
    points: jax.Array
    params_at: "ParamsAt"


@dataclasses.dataclass(frozen=True, eq=False)
class Path:
    """A path from one network to another of the same function up to the order of its units.

    Attributes:
        pieces: in their order; each ends where the next one starts, but in `reference` forms.
        permutations: of network b: permuted by them it is the path's end, exactly. {} where none was permuted.
        ranks: {layer: (rank, number)} of the features that weights were adjusted to.
    """

    pieces: tuple[Piece, ...]
    permutations: Permutations = dataclasses.field(default_factory=dict)
    ranks: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    @property
    def num_pieces(self) -> int:
        return len(self.pieces)

    def params(self, t: float) -> PyTree:
        """The network at t in [0, num_pieces]; at a joint that of the later piece.

        Raises:
            ValueError: a t outside of the path.
        """
        piece, s = self._local(t)
        return self.pieces[piece].params(s)

    def grid(self, num: int) -> np.ndarray:
        """`num` equally spaced t from 0 to num_pieces, both included, [num]."""
        if num < 2:
            raise ValueError(f"a grid has at least its 2 ends, got num = {num}")
        return np.linspace(0.0, self.num_pieces, num)

    def at(self, ts: Sequence[float]) -> Sampled:
        """The path for evaluation at given t [T] in [0, num_pieces]; what is fitted is solved once for each, here.

        Raises:
            ValueError: a t outside of the path, or none.
        """
        if not len(ts):
            raise ValueError("expected at least one t, got none")
        local = [self._local(t) for t in ts]
        values: dict[str, list[jax.Array]] = {}
        forms, states, fits = [], [], []
        for number, piece in enumerate(self.pieces):
            still = tuple((name, _place(values.setdefault(name, []), leaf)) for name, leaf in piece.still.items())
            forms.append(_Form(still, piece.moves, piece.fit and piece.fit.leaf))
            states.append(piece.states)
            fits.append(_solved(piece, sorted({s for of, s in local if of == number})))
        leaves, structure = jax.tree.flatten(self.pieces[0].start)
        names = trees.leaf_names(self.pieces[0].start)
        params_at = ParamsAt(tuple(forms), structure, tuple((name, leaf.shape) for name, leaf in names.items()))
        tree = {"values": values, "states": states, "fits": fits}
        return Sampled(tree, jnp.asarray(np.asarray(ts, np.float32)), params_at)

    def then(self, other: "Path") -> "Path":
        """This path and another that starts where it ends, as one; its permutations are those of the last network."""
        return Path(self.pieces + other.pieces, other.permutations, self.ranks | other.ranks)

    def _local(self, t: float) -> tuple[int, float]:
        """The piece that t lies in, and s in [0, 1]; in float32 as on the device."""
        if not 0 <= t <= self.num_pieces:
            raise ValueError(f"t lies in [0, {self.num_pieces}], the pieces of this path, got {t}")
        t = np.float32(t)
        piece = min(int(t), self.num_pieces - 1)
        return piece, float(t - np.float32(piece))


class _Form(NamedTuple):
    """A piece without its arrays: (leaf, place among its values) of what is still, the moves, and what is fitted."""

    still: tuple[tuple[str, int], ...]
    moves: tuple[Move, ...]
    fitted: str | None


@dataclasses.dataclass(frozen=True)
class ParamsAt:
    """(tree, t) -> params, see `Sampled`."""

    forms: tuple[_Form, ...]
    structure: Any
    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    def __call__(self, tree: PyTree, t: jax.Array) -> PyTree:
        t = jnp.clip(jnp.asarray(t, jnp.float32), 0.0, len(self.forms))
        piece = jnp.minimum(jnp.floor(t).astype(jnp.int32), len(self.forms) - 1)
        of_piece = [functools.partial(self._in_piece, number) for number in range(len(self.forms))]
        return lax.switch(piece, of_piece, tree, t - piece.astype(jnp.float32))

    def _in_piece(self, number: int, tree: PyTree, s: jax.Array) -> PyTree:
        form = self.forms[number]
        found = {name: tree["values"][name][place] for name, place in form.still}
        found |= _moved(form.moves, self.shapes, tree["states"][number], s)
        if form.fitted is not None:
            found[form.fitted] = _interpolated(tree["fits"][number], s)
        return jax.tree.unflatten(self.structure, [jnp.asarray(found[name]) for name, _ in self.shapes])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _moved(moves, shapes, states, s):
    """The leaves that moves give at s."""
    found = {}
    for move, state in zip(moves, states):
        found |= move.leaves(move.method.point(state, s), dict(shapes))
    return found


def units_of_slot(leaf: jax.Array, dimension: int | None, num: int) -> np.ndarray:
    """A leaf as samples [num, d] of its units along a dimension, or as one sample."""
    leaf = np.asarray(leaf)
    return leaf.reshape(1, -1) if dimension is None else units_of_leaf(leaf, dimension, num)


def _leaf_of_units(samples: jax.Array, dimension: int | None, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `units_of_slot`."""
    if dimension is None:
        return samples.reshape(shape)
    behind = int(np.prod(shape[dimension + 1 :]))
    return samples.reshape(samples.shape[0], -1, behind).swapaxes(0, 1).reshape(shape)


def _place(values: list[jax.Array], leaf: jax.Array) -> int:
    """Where a leaf is among the values of its name, to which it is added if it is new."""
    for place, value in enumerate(values):
        if value is leaf:
            return place
    values.append(leaf)
    return len(values) - 1


def _solved(piece: Piece, shares: list[float]) -> dict[str, jax.Array]:
    """The fitted kernels at some s, or at both ends where none is wanted; {} where none is fitted."""
    if piece.fit is None:
        return {}
    if shares:
        kernels = [trees.leaf_names(piece.params(s))[piece.fit.leaf] for s in shares]
    else:
        shares, kernels = [0.0, 1.0], [trees.leaf_names(end)[piece.fit.leaf] for end in (piece.start, piece.end)]
    return {"shares": jnp.asarray(shares, jnp.float32), "kernels": jnp.stack(kernels)}


def _interpolated(solved: dict[str, jax.Array], s: jax.Array) -> jax.Array:
    shares, kernels = solved["shares"], solved["kernels"]
    below = jnp.clip(jnp.searchsorted(shares, s, side="right") - 1, 0, len(shares) - 1)
    above = jnp.minimum(below + 1, len(shares) - 1)
    width = shares[above] - shares[below]
    share = jnp.where(width > 0, jnp.clip((s - shares[below]) / jnp.where(width > 0, width, 1.0), 0.0, 1.0), 0.0)
    return kernels[below] + share * (kernels[above] - kernels[below])
