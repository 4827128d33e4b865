"""Planes through three networks or along two directions, with coordinates in units of distance in weight space."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Real

from subspaces_jax import trees
from subspaces_jax.arrays import Array
from subspaces_jax.geometry.contraction import num_endpoints, stack

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Plane:
    """The plane through endpoints a, b, c: origin at a, x axis towards b, y axis towards c's side; made by
    `plane_through`.

    Attributes:
        endpoints: stack of (a, b, c), leaves [3, ...]; contract it with `coordinates(x, y)`.
        length: |b - a|, the x coordinate of b.
        offset, height: the x and y coordinates of c.
    """

    endpoints: PyTree
    length: float
    offset: float
    height: float

    def coordinates(
        self, x: Real[Array, "*shape"] | float, y: Real[Array, "*shape"] | float
    ) -> Float[jax.Array, "*shape 3"]:
        """x, y [...], L2 distances in weight space -> affine coordinates [..., 3], rows sum to 1."""
        x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
        c = y / self.height
        b = (x - c * self.offset) / self.length
        return jnp.stack([self._of_origin(b, c), b, c], axis=-1)

    @property
    def corners(self) -> Float[np.ndarray, "3 2"]:
        """x and y of a, b and c, [3, 2]."""
        return np.array([(0.0, 0.0), (self.length, 0.0), (self.offset, self.height)])

    def project(self, params: PyTree) -> tuple[float, float]:
        """The coordinates (x, y) of the point of the plane that is nearest to `params`."""
        to_b, to_c = self._axes()
        to_params = jax.tree.map(
            lambda leaf, ends: _exact(leaf) - _exact(ends[0]), trees.alike(params, self.endpoints), self.endpoints
        )
        x = _dot(to_params, to_b) / self.length
        return x, (_dot(to_params, to_c) - x * self.offset) / self.height

    def _axes(self) -> tuple[PyTree, PyTree]:
        return _difference(self.endpoints, 1), _difference(self.endpoints, 2)

    def _of_origin(self, b: Float[jax.Array, "*shape"], c: Float[jax.Array, "*shape"]) -> Float[jax.Array, "*shape"]:
        return 1.0 - b - c


@dataclasses.dataclass(frozen=True)
class DirectedPlane(Plane):
    """The plane along two directions, not necessarily orthogonal: x axis along the first, y axis towards the second's
    side; made by `plane_along`.

    Attributes:
        endpoints: stack of (origin, first direction, second direction), leaves [3, ...]. Its coordinates are those of a
            sum, (1, b, c), so that a small step from the origin loses no digits; they do not sum to 1.
        length: the L2 norm of the first direction.
        offset, height: the x and y components of the second.
    """

    def _axes(self) -> tuple[PyTree, PyTree]:
        return tuple(jax.tree.map(lambda leaf: leaf[k], self.endpoints) for k in (1, 2))

    def _of_origin(self, b: Float[jax.Array, "*shape"], c: Float[jax.Array, "*shape"]) -> Float[jax.Array, "*shape"]:
        return jnp.ones_like(b)


def plane_through(params_a: PyTree, params_b: PyTree, params_c: PyTree) -> Plane:
    """The plane through three networks of one architecture.

    Raises:
        ValueError: the three lie on one line, or differ in architecture.

    Reference: Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, 2018, arXiv:1802.10026,
    figure 1.
    """
    endpoints = stack([params_a, params_b, params_c])
    frame = _frame(_difference(endpoints, 1), _difference(endpoints, 2))
    if frame is None:
        raise ValueError("the three networks lie on one line and span no plane; take three that do not")
    return Plane(endpoints, *frame)


def plane_along(origin: PyTree, directions: PyTree) -> DirectedPlane:
    """The plane through a network along two directions, of any lengths and at any angle.

    Args:
        origin: the network at (0, 0).
        directions: a stack of two, leaves [2, ...], as of `random_directions` and `principal_directions`.

    Raises:
        ValueError: not two directions, another architecture than the origin's, or parallel directions.

    Reference: Li et al., Visualizing the Loss Landscape of Neural Nets, 2018, arXiv:1712.09913, section 4.
    """
    if (found := num_endpoints(directions)) != 2:
        raise ValueError(f"a plane has 2 directions, got {found}")
    first, second = (jax.tree.map(lambda leaf: leaf[k], directions) for k in (0, 1))
    if difference := trees.describe_mismatch(first, origin):
        raise ValueError(f"the directions are of another architecture than the origin: {difference}")
    frame = _frame(first, second)
    if frame is None:
        raise ValueError("the two directions are parallel, or one is zero, and span no plane; take two that do")
    return DirectedPlane(stack([origin, first, second]), *frame)


def _frame(to_b: PyTree, to_c: PyTree) -> tuple[float, float, float] | None:
    """Length, offset and height of a plane, or None where the two span none."""
    length = np.sqrt(_dot(to_b, to_b))
    offset = _dot(to_b, to_c) / length if length else 0.0
    height = np.sqrt(max(_dot(to_c, to_c) - offset**2, 0.0))
    if not length or height <= 1e-5 * max(length, abs(offset)):
        return None
    return float(length), float(offset), float(height)


def _difference(endpoints: PyTree, k: int) -> PyTree:
    return jax.tree.map(lambda ends: _exact(ends[k]) - _exact(ends[0]), endpoints)


def _exact(leaf: Any) -> np.ndarray:
    return np.asarray(leaf, np.float64)


def _dot(a: PyTree, b: PyTree) -> float:
    """Inner product of two trees, accumulated in float64 on the host: three networks may lie close together."""
    products = jax.tree.map(lambda x, y: np.vdot(np.asarray(x, np.float64), np.asarray(y, np.float64)), a, b)
    return float(sum(jax.tree.leaves(products)))
