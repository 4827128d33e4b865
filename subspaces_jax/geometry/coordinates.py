"""Subspaces as coordinates: where a point lies between K endpoints, what is drawn in training, what is evaluated.

A subspace is a frozen dataclass with five members, and nothing else knows which one it is:

    num_endpoints              K
    coordinates(t)             t -> [..., K]
    sample(key, shape=())      the training distribution, [*shape, K]
    grid(num)                  evaluation points, [T, K]
    midpoint                   [K]

The ends of a curve are its first and its last endpoint, rows 0 and K - 1: what starts or freezes ends relies on it.
Adding one is adding a class here and a row to the table CURVES of tests/geometry/test_coordinates.py.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray, Real

from subspaces_jax.arrays import Array

PyTree = Any
Time = Real[Array, "*shape"] | float


class _Curve:
    """What one-dimensional subspaces share: t is uniform in [0, 1], and so is the grid."""

    def coordinates(self, t: Time) -> Float[jax.Array, "*shape K"]:
        """Coordinates [..., K] of t in [0, 1]."""
        raise NotImplementedError

    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> Float[jax.Array, "..."]:
        """Coordinates [*shape, K] of t drawn uniformly from [0, 1)."""
        return self.coordinates(jax.random.uniform(key, shape))

    def grid(self, num: int) -> Float[jax.Array, "T K"]:
        """Coordinates [num, K] of `num` equally spaced t from 0 to 1, both included."""
        return self.coordinates(_spaced(num))

    @property
    def midpoint(self) -> Float[jax.Array, " K"]:
        """Coordinates [K] of t = 1/2."""
        return self.coordinates(jnp.float32(0.5))


@dataclasses.dataclass(frozen=True)
class Line(_Curve):
    """The segment (1 - t) w_0 + t w_1.

    Reference: Wortsman et al., Learning Neural Network Subspaces, 2021, arXiv:2102.10472.
    """

    @property
    def num_endpoints(self) -> int:
        return 2

    def coordinates(self, t: Time) -> Float[jax.Array, "*shape 2"]:
        """t [...] in [0, 1] -> [..., 2], rows sum to 1."""
        t = jnp.asarray(t, jnp.float32)
        return jnp.stack([1.0 - t, t], axis=-1)


@dataclasses.dataclass(frozen=True)
class Bezier(_Curve):
    """The Bezier curve of K control points, in the order in which the curve meets them: ends first and last.

    Coordinates are the Bernstein polynomials C(K-1, k) t^k (1-t)^(K-1-k), built by de Casteljau's recursion; in the
    power form their derivative is NaN at t = 0 and 1.

    Reference: Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, 2018, arXiv:1802.10026.
    """

    num_endpoints: int = 3

    def __post_init__(self):
        _check_num_endpoints(self, at_least=2)

    def coordinates(self, t: Time) -> Float[jax.Array, "*shape K"]:
        """t [...] in [0, 1] -> [..., K], rows sum to 1.

        >>> Bezier(3).coordinates(0.5)
        Array([0.25, 0.5 , 0.25], dtype=float32)
        """
        t = jnp.asarray(t, jnp.float32)
        rows = [jnp.ones_like(t)]
        for _ in range(self.num_endpoints - 1):
            stay, move = [row * (1.0 - t) for row in rows], [row * t for row in rows]
            rows = [stay[0]] + [a + b for a, b in zip(stay[1:], move[:-1])] + [move[-1]]
        return jnp.stack(rows, axis=-1)


@dataclasses.dataclass(frozen=True)
class Chain(_Curve):
    """The polygonal chain through K knots, each piece taking the same share of t. Coordinates are hat functions.

    Reference: Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, 2018, arXiv:1802.10026.
    """

    num_endpoints: int = 3

    def __post_init__(self):
        _check_num_endpoints(self, at_least=2)

    def coordinates(self, t: Time) -> Float[jax.Array, "*shape K"]:
        """t [...] in [0, 1] -> [..., K], rows sum to 1, at most two entries of a row differ from 0. The derivative at a
        knot is that of the piece after it, at t = 1 that of the last."""
        position = jnp.asarray(t, jnp.float32)[..., None] * (self.num_endpoints - 1)
        knots = jnp.arange(self.num_endpoints, dtype=jnp.float32).reshape((1,) * (position.ndim - 1) + (-1,))
        piece = jnp.clip(jnp.floor(position), 0, self.num_endpoints - 2)
        falls, rises = 1.0 - (position - knots), 1.0 - (knots - position)
        return jnp.where(knots == piece, falls, jnp.where(knots == piece + 1, rises, 0.0))


@dataclasses.dataclass(frozen=True)
class Arc(_Curve):
    """The arc from A to B around a centre: endpoints (A, B, centre), w = c + cos(pi t/2) (A-c) + sin(pi t/2) (B-c).

    The sums of squares of its first two coordinates is 1, so that a mixture of two independent draws from one
    distribution of weights around the centre keeps that distribution's variance.

    Reference: Anokhin and Yarotsky, Low-loss connection of weight vectors: distribution-based approaches, 2020,
    arXiv:2008.00741.
    """

    @property
    def num_endpoints(self) -> int:
        return 3

    def coordinates(self, t: Time) -> Float[jax.Array, "*shape 3"]:
        """t [...] in [0, 1] -> [..., 3], rows sum to 1 (the third entry is at most 0)."""
        t = jnp.asarray(t, jnp.float32)
        cosine, sine = jnp.sin(jnp.pi / 2 * (1.0 - t)), jnp.sin(jnp.pi / 2 * t)  # both exactly 0 or 1 at the ends
        return jnp.stack([cosine, sine, 1.0 - cosine - sine], axis=-1)


@dataclasses.dataclass(frozen=True)
class Simplex:
    """All convex combinations of K vertices; K = 1 is one network, K = 2 a line.

    Reference: Wortsman et al., Learning Neural Network Subspaces, 2021, arXiv:2102.10472.
    """

    num_endpoints: int

    def __post_init__(self):
        _check_num_endpoints(self, at_least=1)

    def coordinates(self, t: Any) -> Float[jax.Array, "..."]:
        """Barycentric t [..., K] -> itself, as float32."""
        t = jnp.asarray(t, jnp.float32)
        if t.ndim == 0 or t.shape[-1] != self.num_endpoints:
            raise ValueError(f"expected barycentric coordinates [..., {self.num_endpoints}], got shape {t.shape}")
        return t

    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> Float[jax.Array, "..."]:
        """Uniform on the simplex, [*shape, K]: a flat Dirichlet, drawn as normalised exponentials."""
        draws = jax.random.exponential(key, (*shape, self.num_endpoints), jnp.float32)
        draws = jnp.maximum(draws, jnp.finfo(draws.dtype).tiny)  # one in 2^23 is 0
        return draws / jnp.sum(draws, axis=-1, keepdims=True)

    def grid(self, num: int) -> Float[jax.Array, "T K"]:
        """The lattice with `num` points to a side, [C(num + K - 2, K - 1), K]; the first row is the first vertex."""
        side = _num_points(num) - 1
        return jnp.asarray(np.array(list(_compositions(side, self.num_endpoints))) / side, jnp.float32)

    @property
    def midpoint(self) -> Float[jax.Array, " K"]:
        """The barycentre, [K]."""
        return jnp.full(self.num_endpoints, 1.0 / self.num_endpoints, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Layerwise:
    """A subspace in which every module draws its own point; made by `layerwise`.

    `sample` gives a tree that is a prefix of the parameters; grid, midpoint and coordinates are those of the subspace
    itself, one point for all modules.
    """

    subspace: Any
    structure: Any  # nested tuples (name, None for a leaf | structure of a module)

    @property
    def num_endpoints(self) -> int:
        return self.subspace.num_endpoints

    def coordinates(self, t: Any) -> Float[jax.Array, "..."]:
        """One point for all modules, [..., K]."""
        return self.subspace.coordinates(t)

    def grid(self, num: int) -> Float[jax.Array, "T K"]:
        """One point for all modules, [T, K]."""
        return self.subspace.grid(num)

    @property
    def midpoint(self) -> Float[jax.Array, " K"]:
        """One point for all modules, [K]."""
        return self.subspace.midpoint

    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> PyTree:
        """One independent draw a module that owns parameters: a prefix tree of the parameters, leaves [*shape, K]."""
        counter = itertools.count()

        def draw(structure):
            own = [name for name, inner in structure if inner is None]
            coordinates = self.subspace.sample(jax.random.fold_in(key, next(counter)), shape) if own else None
            if len(own) == len(structure):
                return coordinates
            return {name: coordinates if inner is None else draw(inner) for name, inner in structure}

        return draw(self.structure)


def layerwise(subspace: Any, params: PyTree) -> Layerwise:
    """`subspace`, drawn independently for each module that owns parameters (a convolution and the BatchNorm after it
    are two modules).

    Args:
        subspace: any subspace of this file.
        params: a parameter tree of nested dicts, stacked or not, arrays or shapes; only its names are read.

    Returns:
        A subspace whose `sample` gives a prefix tree of `params` with one [K] a module. `contract` takes it as it is.
    """
    if not isinstance(params, dict) or not params:
        raise ValueError(f"expected parameters as a non-empty nested dict, got {type(params).__name__}")

    def structure(node):
        return tuple(
            (name, structure(node[name]) if isinstance(node[name], Mapping) else None) for name in sorted(node)
        )

    return Layerwise(subspace, structure(params))


def _spaced(num: int) -> Float[jax.Array, " num"]:
    return jnp.linspace(0.0, 1.0, _num_points(num), dtype=jnp.float32)


def _num_points(num: int) -> int:
    if num < 2:
        raise ValueError(f"a grid has at least its 2 ends, got num = {num}")
    return num


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write `total` as an ordered sum of `parts` integers from 0 up, largest first entry first."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total, -1, -1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)


def _check_num_endpoints(subspace: Any, at_least: int) -> None:
    name, num = type(subspace).__name__, subspace.num_endpoints
    if not isinstance(num, int) or num < at_least:
        raise ValueError(f"{name} needs an integer num_endpoints of at least {at_least}, got {num!r}")
