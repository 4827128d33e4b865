"""Averages of weights: SWA and SWAG over a sequence of checkpoints, and mixtures of a stack of them.

What sees one set of weights after another is a triple of pure functions (init, update, read); all of them jit. What
sees all at once takes a stack, leaves [M, ...]; most such mixtures are coordinates for `geometry.contract`.

BatchNorm statistics do not average: refresh them at every point that is read here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from subspaces_jax import trees
from subspaces_jax.geometry import Simplex, num_endpoints

PyTree = Any


class Average(NamedTuple):
    """init(params) -> state that has seen nothing; update(state, params) -> state; read(state) -> params."""

    init: Callable[[PyTree], Any]
    update: Callable[[Any, PyTree], Any]
    read: Callable[[Any], PyTree]


class SwagState(NamedTuple):
    """Attributes:
    count: int32 scalar, iterates seen.
    mean: of all of them.
    squares: sum of squared deviations from the mean (Welford's, which rounding cannot make negative).
    latest: the last R iterates, leaves [R, ...], in no particular order.
    """

    count: jax.Array  # type: ignore[assignment]  # the field hides tuple.count
    mean: PyTree
    squares: PyTree
    latest: PyTree


def swag(rank: int) -> Average:
    """Running mean, variance and last `rank` iterates of the weights; `read` gives the mean, `swag_sample` a draw.

    With rank 0 this is SWA: the equal average of what it has seen.

    Args:
        rank: R, iterates kept for the low-rank part of the covariance; 0 for none.

    Raises:
        ValueError: a negative rank; in `update`, weights of another architecture.

    Reference: Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018,
    arXiv:1803.05407 (SWA); Maddox et al., A Simple Baseline for Bayesian Uncertainty in Deep Learning, 2019,
    arXiv:1902.02476 (SWAG).
    """

    if rank < 0:
        raise ValueError(f"swag keeps the last `rank` iterates, at least 0, got {rank}")

    def init(params: PyTree) -> SwagState:
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
        latest = jax.tree.map(lambda leaf: jnp.zeros((rank, *leaf.shape), jnp.float32), params)
        return SwagState(jnp.int32(0), zeros, zeros, latest)

    def update(state: SwagState, params: PyTree) -> SwagState:
        if difference := trees.describe_mismatch(params, state.mean):
            raise ValueError(f"weights of another architecture cannot join an average: {difference}")
        count = state.count + 1
        params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), trees.alike(params, state.mean))
        mean = jax.tree.map(lambda mean, w: mean + (w - mean) / count, state.mean, params)
        squares = jax.tree.map(
            lambda total, w, before, after: total + (w - before) * (w - after), state.squares, params, state.mean, mean
        )
        latest = state.latest
        if rank:
            latest = jax.tree.map(lambda rows, w: rows.at[state.count % rank].set(w), state.latest, params)
        return SwagState(count, mean, squares, latest)

    return Average(init, update, lambda state: state.mean)


SWA = swag(rank=0)


def swag_sample(state: SwagState, key: jax.Array, low_rank: bool = True, scale: float | jax.Array = 1.0) -> PyTree:
    """One draw of weights from the Gaussian that SWAG fits.

    theta = mean + sd * z / sqrt(2) + sum_i (w_i - mean) y_i / sqrt(2 (R - 1)), with z and y standard normal, sd the
    population standard deviation of all iterates and w_i the last R of them, less where fewer were seen. Deviations are
    from the mean of all, not from the running mean of the paper. With fewer than two rows, or without `low_rank`, it is
    mean + sd * z.

    Args:
        state: of `swag`.
        key: PRNG key.
        low_rank: whether the iterates kept take part.
        scale: factor of the covariance, at least 0.

    Returns:
        A parameter tree; all iterates being equal, that of the mean.
    """
    rank = jax.tree.leaves(state.latest)[0].shape[0]
    rows = jnp.minimum(state.count, rank)
    kept = jnp.arange(rank) < rows
    factors = jnp.where(kept, jax.random.normal(jax.random.fold_in(key, 0), (rank,), jnp.float32), 0.0)
    both, root = low_rank & (rows > 1), jnp.sqrt(jnp.asarray(scale, jnp.float32))
    factors *= root * jnp.where(both, lax.rsqrt(2.0 * jnp.maximum(rows - 1, 1).astype(jnp.float32)), 0.0)
    share, seen = jnp.where(both, np.float32(np.sqrt(0.5)), 1.0), jnp.maximum(state.count, 1).astype(jnp.float32)
    diagonal = root * share * lax.rsqrt(seen)

    flat, unravel = ravel_pytree(state.mean)
    # all at once: a draw a leaf compiles for a minute
    noises = unravel(jax.random.normal(jax.random.fold_in(key, 1), flat.shape, jnp.float32))

    def draw(noise, mean, squares, latest):
        deviations = jnp.tensordot(factors, latest - mean[None], axes=1, precision="highest")
        return mean + diagonal * jnp.sqrt(squares) * noise + deviations

    return jax.tree.map(draw, noises, state.mean, state.squares, state.latest)


def of_stack(average: Average, stack: PyTree) -> Any:
    """The state of `average` after the rows of a stack [M, ...], one after another."""
    num_endpoints(stack)  # raises where leaves differ in M
    state = average.init(jax.tree.map(lambda leaf: leaf[0], stack))
    return lax.scan(lambda state, params: (average.update(state, params), None), state, stack)[0]


def per_weight(stack: PyTree, key: jax.Array) -> PyTree:
    """A random mixture of M networks, with barycentric coordinates of its own, uniform on the simplex, for every
    scalar.

    Args:
        stack: leaves [M, ...].
        key: PRNG key.

    Returns:
        A parameter tree.
    """
    simplex = Simplex(num_endpoints(stack))
    flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], stack))
    weights = jax.vmap(unravel)(simplex.sample(key, flat.shape).astype(flat.dtype).T)
    return jax.tree.map(lambda share, leaf: jnp.sum(share * leaf, axis=0), weights, stack)


def endpoint_coordinates(num_members: int, t: float) -> jax.Array:
    """M points, [M, M]: point j has weight t for network j and (1 - t) / (M - 1) for each other.

    Args:
        num_members: M, at least 2.
        t: in [0, 1]; 1 gives the networks themselves, 1 / M their mean.
    """
    if num_members < 2:
        raise ValueError(f"points towards each of several networks need at least 2, got {num_members}")
    others = (1.0 - t) / (num_members - 1)
    return jnp.full((num_members, num_members), others) + (t - others) * jnp.eye(num_members)
