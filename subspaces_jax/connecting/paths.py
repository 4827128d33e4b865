"""Paths of several pieces between two networks, and their form for evaluation."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from subspaces_jax import trees
from subspaces_jax.connecting.permutations import Permutations
from subspaces_jax.connecting.pieces import Move, Piece, moved_leaves

PyTree = Any


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

    def around(self, ts: Sequence[float] | np.ndarray, index: int, num: int) -> np.ndarray:
        """`num` equally spaced t from the one before a point of a grid to the one after, to look closer at the worst.

        Args:
            ts: [T], increasing.
            index: of the point, in [0, T).
            num: at least 2.
        """
        if not 0 <= index < len(ts) or num < 2:
            raise ValueError(f"expected a point of {len(ts)} and at least 2 t around it, got point {index} and {num}")
        return np.linspace(ts[max(index - 1, 0)], ts[min(index + 1, len(ts) - 1)], num)

    def at(self, ts: Sequence[float] | np.ndarray) -> Sampled:
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
            forms.append(_Form(still, piece.moves, piece.fit.leaves if piece.fit else ()))
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
        rounded = np.float32(t)
        piece = min(int(rounded), self.num_pieces - 1)
        return piece, float(rounded - np.float32(piece))


class _Form(NamedTuple):
    """A piece without its arrays: (leaf, place among its values) of what is still, the moves, and what is fitted."""

    still: tuple[tuple[str, int], ...]
    moves: tuple[Move, ...]
    fitted: tuple[str, ...]


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
        found |= moved_leaves(form.moves, self.shapes, tree["states"][number], s)
        if form.fitted:
            found |= _interpolated(tree["fits"][number], s)
        return jax.tree.unflatten(self.structure, [jnp.asarray(found[name]) for name, _ in self.shapes])


def _place(values: list[jax.Array], leaf: jax.Array) -> int:
    """Where a leaf is among the values of its name, to which it is added if it is new."""
    for place, value in enumerate(values):
        if value is leaf:
            return place
    values.append(leaf)
    return len(values) - 1


def _solved(piece: Piece, shares: list[float]) -> dict[str, Any]:
    """The fitted leaves at some s, or at both ends where none is wanted; {} where none is fitted."""
    if piece.fit is None:
        return {}
    if shares:
        points = [trees.leaf_names(piece.params(s)) for s in shares]
    else:
        shares, points = [0.0, 1.0], [trees.leaf_names(end) for end in (piece.start, piece.end)]
    leaves = {name: jnp.stack([point[name] for point in points]) for name in piece.fit.leaves}
    return {"shares": jnp.asarray(shares, jnp.float32), "leaves": leaves}


def _interpolated(solved: dict[str, Any], s: jax.Array) -> dict[str, jax.Array]:
    shares = solved["shares"]
    below = jnp.clip(jnp.searchsorted(shares, s, side="right") - 1, 0, len(shares) - 1)
    above = jnp.minimum(below + 1, len(shares) - 1)
    width = shares[above] - shares[below]
    share = jnp.where(width > 0, jnp.clip((s - shares[below]) / jnp.where(width > 0, width, 1.0), 0.0, 1.0), 0.0)
    return {name: leaf[below] + share * (leaf[above] - leaf[below]) for name, leaf in solved["leaves"].items()}
