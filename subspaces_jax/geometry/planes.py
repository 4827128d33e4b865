"""The plane through three networks, with coordinates in units of distance in weight space."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subspaces_jax.geometry.contraction import stack

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

    def coordinates(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """x, y [...], L2 distances in weight space -> affine coordinates [..., 3], rows sum to 1."""
        x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
        c = y / self.height
        b = (x - c * self.offset) / self.length
        return jnp.stack([1.0 - b - c, b, c], axis=-1)

    def project(self, params: PyTree) -> tuple[float, float]:
        """The coordinates (x, y) of the point of the plane that is nearest to `params`."""
        to_b, to_c = _difference(self.endpoints, 1), _difference(self.endpoints, 2)
        to_params = jax.tree.map(lambda leaf, ends: leaf - ends[0], params, self.endpoints)
        x = _dot(to_params, to_b) / self.length
        return x, (_dot(to_params, to_c) - x * self.offset) / self.height


def plane_through(params_a: PyTree, params_b: PyTree, params_c: PyTree) -> Plane:
    """The plane through three networks of one architecture.

    Raises:
        ValueError: the three lie on one line, or differ in architecture.

    Reference: Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, 2018, arXiv:1802.10026,
    figure 1.
    """
    endpoints = stack([params_a, params_b, params_c])
    to_b, to_c = _difference(endpoints, 1), _difference(endpoints, 2)
    length = np.sqrt(_dot(to_b, to_b))
    offset = _dot(to_b, to_c) / length if length else 0.0
    height = np.sqrt(max(_dot(to_c, to_c) - offset**2, 0.0))
    if not length or height <= 1e-5 * max(length, abs(offset)):
        raise ValueError("the three networks lie on one line and span no plane; take three that do not")
    return Plane(endpoints, float(length), float(offset), float(height))


def _difference(endpoints: PyTree, k: int) -> PyTree:
    return jax.tree.map(lambda ends: ends[k] - ends[0], endpoints)


def _dot(a: PyTree, b: PyTree) -> float:
    """Inner product of two trees, accumulated in float64 on the host: three networks may lie close together."""
    products = jax.tree.map(lambda x, y: np.vdot(np.asarray(x, np.float64), np.asarray(y, np.float64)), a, b)
    return float(sum(jax.tree.leaves(products)))
