"""p-variation, its partition, its gradient and its certificate.

The search for the best partition may round; the value is then the sum over that partition of distances found from
differences of points, so that it is that of a true partition, and it is what is differentiated.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Integer

from subspaces_jax.arrays import Array
from subspaces_jax.pvariation import distances, search

METHODS = ("auto", "push", "fixed_point", "blocked")


def p_variation(
    path: Array,
    p: Any,
    *,
    method: str = "auto",
    norm: str = "l2",
    block_size: int | None = None,
    rooted: bool = False,
) -> Float[jax.Array, "..."]:
    """The largest sum of p-th powers of distances between consecutive points of a subsequence of a path.

        V = max over 0 = k_0 < k_1 < ... < k_r = L - 1 of sum_i |x_{k_i} - x_{k_(i-1)}|^p

    without a root, unless asked for. Exact: the maximum is found by dynamic programming over all pairs of points, and
    its value is the sum over the partition that attains it. Differentiable (both modes, under jit and vmap) as that
    sum with the partition held, which is the gradient wherever the best partition is unique.

    Args:
        path: [..., L, D] points, L at least 1; computed in float32, or in float64 where it is.
        p: at least 1, or P of them, static. A vector's axis comes first, as in `numpy.quantile`; the distances are
            shared by its exponents.
        method: how the maximum is found; the answer is the same. "push": point after point; "fixed_point": all points
            at once until nothing grows; "blocked": either within blocks of points, whose distances are found when they
            are needed and where they can matter, with memory in proportion to L. "auto": blocks on a CPU and for long
            paths, the fixed point elsewhere.
        norm: "l2", "l1" or "linf".
        block_size: points of a block, for "blocked" and "auto".
        rooted: whether to return V^(1/p).

    Returns:
        [...], or [P, ...]. A path of one point has 0, one that is not finite NaN.

    Raises:
        ValueError: p below 1, an empty path, fewer than two axes, an unknown method or norm, or, outside of jit, a
            path that is not finite.

    >>> p_variation(jnp.array([[0.0], [1.0], [0.5], [2.0]]), 2.0)
    Array(4., dtype=float32)

    Reference: Butkus and Norvaisa, Computation of p-variation, Lithuanian Mathematical Journal 58, 2018, for the real
    line; this is Bellman's equation for points of a normed space.
    """
    points = _checked(path, method, norm, block_size)
    exponents = _exponents(p)
    found = _finite(_variation(points, exponents, norm, method, block_size, rooted))
    return found if np.ndim(p) else found[0]


def p_variation_partition(
    path: Array, p: float, *, method: str = "auto", norm: str = "l2", block_size: int | None = None
) -> tuple[Float[jax.Array, ""], Integer[np.ndarray, " r"]]:
    """The p-variation of one path and the subsequence that attains it.

    Of equally good predecessors of a point the earliest is taken, so that long steps win over short ones; but of p = 1,
    where no step can be better than several, all points.

    Args:
        path: [L, D], not traced.
        p: a number of at least 1.
        method, norm, block_size: see `p_variation`.

    Returns:
        V and indices [r + 1], increasing from 0 to L - 1.

    Raises:
        ValueError: as `p_variation`.
    """
    points = _checked(path, method, norm, block_size)
    if points.ndim != 2 or np.ndim(p):
        raise ValueError(f"a partition is of one path [L, D] and one p, got shape {points.shape} and p = {p}")
    if isinstance(points, jax.core.Tracer):
        raise ValueError("the length of a partition depends on the points: call p_variation_partition outside of jit")
    value, found = _partition(points, _exponents(p), norm, method, block_size)
    return _finite(value), np.flatnonzero(found)


def running_p_variation(
    path: Array, p: float, *, method: str = "auto", norm: str = "l2", block_size: int | None = None
) -> Float[jax.Array, "*batch L"]:
    """The p-variation of the path up to each of its points: [..., L, D] -> [..., L], not decreasing from 0.

    Arguments and errors as in `p_variation`, with a single p.
    """
    points = _checked(path, method, norm, block_size)
    if np.ndim(p):
        raise ValueError(f"a running p-variation has one p, got {p}")
    return _finite(_running(points, _exponents(p), norm, method, block_size))


def bellman_residual(path: Array, p: float, values: Array, *, norm: str = "l2") -> Float[jax.Array, "*batch"]:
    """By how much a path's running p-variation misses Bellman's equation, as a fraction of the last value.

        max over j of | values[j] - max over m < j of (values[m] + |x_m - x_j|^p) | / values[L - 1],  and |values[0]|

    A certificate: with a residual of r, no partition exceeds the last value by more than L r of it, and it costs one
    look at every pair, from differences of points, with memory L D.

    Args:
        path: [L, D].
        p: at least 1.
        values: [L], of `running_p_variation`.
        norm: see `p_variation`.

    Returns:
        A scalar, at least 0.
    """
    points = _checked(path, "auto", norm, None)
    if points.ndim != 2 or jnp.shape(values) != points.shape[:1]:
        raise ValueError(f"expected a path [L, D] and values [L], got shapes {points.shape} and {jnp.shape(values)}")
    if np.ndim(p):
        raise ValueError(f"expected one exponent, got {p}")
    return _residual(points, _exponents(p), jnp.asarray(values, points.dtype), norm)


@partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def _variation(points, exponents, norm, method, block_size, rooted):
    """[..., L, D] -> [P, ...]."""
    units, scale = _normalised(points)
    before = lax.stop_gradient(_predecessors(units, exponents, norm, method, block_size))
    terms = jnp.where(_visited(before), _costs(units, before, exponents, norm), 0)
    values = jnp.sum(terms, axis=-1)
    p = jnp.asarray(exponents, points.dtype).reshape(-1, *(1,) * scale.ndim)
    if rooted:
        positive = values > 0
        found = jnp.where(positive, jnp.where(positive, values, 1) ** (1 / p), 0) * scale[None]
    else:
        found = values * scale[None] ** p
    return found


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _partition(points, exponents, norm, method, block_size):
    units, scale = _normalised(points)
    before = _predecessors(units, exponents, norm, method, block_size)
    visited = _visited(before)
    terms = jnp.where(visited, _costs(units, before, exponents, norm), 0)
    return jnp.sum(terms[0]) * scale ** exponents[0], visited[0]


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _running(points, exponents, norm, method, block_size):
    units, scale = _normalised(points)
    before = _predecessors(units, exponents, norm, method, block_size, all_points=True)
    values = _costs(units, before, exponents, norm)
    for _ in range(_doublings(points.shape[-2])):
        values = values + jnp.take_along_axis(values, before, axis=-1)
        before = jnp.take_along_axis(before, before, axis=-1)
    return values[0] * (scale ** exponents[0])[..., None]


@partial(jax.jit, static_argnums=(1, 3))
def _residual(points, exponents, values, norm):
    units, scale = _normalised(points)
    total = scale ** exponents[0]
    total = jnp.where(total > 0, total, 1)
    values, index = values / total, jnp.arange(points.shape[0])

    def best(j):
        costs = distances.powers(distances.sizes(units - units[j][None], norm), exponents[0], norm)
        return jnp.max(jnp.where(index < j, values + costs, -jnp.inf), initial=-jnp.inf)

    misses = jnp.abs(values - lax.map(best, index).at[0].set(0))
    return jnp.max(misses) / jnp.where(values[-1] > 0, values[-1], 1)


def _normalised(points):
    """[..., L, D] -> the same in units of about their largest coordinate from the start, powers of two; units [...].

    The unit of a path that is not finite is NaN, and so is all that is found of it.
    """
    extent = jnp.max(jnp.abs(lax.stop_gradient(points) - lax.stop_gradient(points[..., :1, :])), axis=(-2, -1))
    largest = jnp.finfo(extent.dtype).maxexp - 2  # whose inverse is a normal number
    scale = jnp.ldexp(jnp.ones_like(extent), jnp.minimum(jnp.frexp(extent)[1], largest))
    scale = jnp.where(jnp.isfinite(extent), scale, jnp.nan)
    return points / scale[..., None, None], scale


def _predecessors(units, exponents, norm, method, block_size, all_points=False):
    """[..., L, D] -> [P, ..., L] int32; of p = 1 the point before: no step is longer than all it passes over."""
    *batch, num, dim = units.shape
    unit_steps = jnp.maximum(jnp.arange(num, dtype=jnp.int32) - 1, 0)
    rough = tuple(p for p in exponents if p > 1)
    found = iter(())
    if rough:
        flat = units.reshape(-1, num, dim)
        found = iter(search.predecessors(flat, rough, norm, method, block_size, all_points))
    steps = jnp.broadcast_to(unit_steps, (*batch, num))
    return jnp.stack([next(found).reshape(*batch, num) if p > 1 else steps for p in exponents])


def _costs(units, before, exponents, norm):
    """d(x_before[j], x_j)^p for all j: [..., L, D] and [P, ..., L] -> [P, ..., L]; its gradient at 0 is 0."""
    of_exponent, flat = [], units.reshape(-1, *units.shape[-2:])
    for p, index in zip(exponents, before):
        rows = jax.vmap(lambda points, index: points[index])(flat, index.reshape(len(flat), -1))
        differences = units - rows.reshape(units.shape)
        sizes = distances.sizes(differences, norm)
        apart = sizes > 0
        of_exponent.append(jnp.where(apart, distances.powers(jnp.where(apart, sizes, 1), p, norm), 0))
    return jnp.stack(of_exponent)


def _visited(before):
    """[..., L] predecessors -> bool, whether the best path to the last point has a point."""
    flat = before.reshape(-1, before.shape[-1])
    each = lambda flat: lax.map(_followed, flat)
    return lax.platform_dependent(flat, cpu=each, default=_doubled).reshape(before.shape)


def _followed(before):
    """[L] point after point, from the last one back to where it leads."""

    def back(at, given):
        index, before = given
        visited = at == index
        return jnp.where(visited, before, at), visited

    points = (jnp.arange(len(before), dtype=jnp.int32), before)
    return lax.scan(back, jnp.int32(len(before) - 1), points, reverse=True)[1]


def _doubled(before):
    """[B, L] by pointer doubling."""
    rows = jnp.arange(len(before))[:, None]
    visited = jnp.zeros(before.shape, bool).at[:, -1].set(True)
    for _ in range(_doublings(before.shape[-1])):
        visited = visited | jnp.zeros_like(visited).at[rows, before].max(visited)
        before = jnp.take_along_axis(before, before, axis=-1)
    return visited


def _doublings(num: int) -> int:
    return max(num - 1, 0).bit_length()


def _checked(path, method, norm, block_size):
    if method not in METHODS:
        raise ValueError(f"method is one of {', '.join(METHODS)}, got {method!r}")
    if norm not in distances.NORMS:
        raise ValueError(f"norm is one of {', '.join(distances.NORMS)}, got {norm!r}")
    if block_size is not None and block_size < 1:
        raise ValueError(f"a block has at least 1 point, got block_size = {block_size}")
    points = jnp.asarray(path)
    if jnp.issubdtype(points.dtype, jnp.complexfloating):
        raise ValueError(f"points are real, got {points.dtype}: give real and imaginary parts as coordinates")
    points = points.astype(jnp.promote_types(points.dtype, jnp.float32))
    if points.ndim < 2:
        raise ValueError(f"expected a path [..., L, D], got shape {points.shape}: of numbers, add an axis of length 1")
    if not points.shape[-2] or not points.shape[-1]:
        raise ValueError(f"a path has at least one point and one coordinate, got shape {points.shape}")
    return points


def _finite(found):
    """What was found, unless it says NaN where this can be seen, which is outside of jit."""
    if not isinstance(found, jax.core.Tracer) and np.isnan(np.asarray(found)).any():
        raise ValueError("the path has NaN or infinite coordinates: p-variation is of finite points")
    return found


def _exponents(p) -> tuple[float, ...]:
    if isinstance(p, jax.core.Tracer):
        raise ValueError("p is a constant of the program, got a traced value: give a number, or a tuple of numbers")
    exponents = np.asarray(p, np.float64)
    if exponents.ndim > 1 or not exponents.size or not np.all(np.isfinite(exponents)) or np.any(exponents < 1):
        raise ValueError(f"p is a number of at least 1, or a vector of such, got {p}")
    return tuple(float(one) for one in exponents.ravel())
