"""Paths in weight space: how long they are, what is scored along them, how high their barriers are."""

import functools
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jaxtyping import Float, Float64

from subspaces_jax.arrays import Array
from subspaces_jax.geometry import contract

PyTree = Any
ENDS = ("line", "mean")


def point_distances(
    tree: PyTree, points: PyTree, params_at: Callable[[PyTree, PyTree], PyTree] = contract
) -> Float64[np.ndarray, " T"]:
    """L2 distances in weight space from each point of a path to the one before it.

    Accumulated in float64 on the host. Of contractions, all distances follow from the inner products of the first
    endpoint and of what the others differ from it by; of other paths, two networks are made at a time.

    Args:
        tree: leaves [K, ...]; whatever `params_at` takes.
        points: [T, K] coordinates, or a tree whose leaves have a leading axis T, as of `evaluation.along`.
        params_at: (tree, point) -> params; hashable.

    Returns:
        [T], the first 0. Its sum is the length of the polygonal path through the points.

    Raises:
        ValueError: `points` without a common leading axis.
    """
    lengths = {leaf.shape[0] if np.ndim(leaf) else None for leaf in jax.tree.leaves(points)}
    (length,) = lengths if len(lengths) == 1 else (None,)
    if length is None:
        raise ValueError(f"expected points [T, ...], got leading axes {lengths}")
    if params_at is contract:
        squares = functools.reduce(operator.add, jax.tree.leaves(jax.tree.map(_squared_steps, points, tree)))
    else:
        squares = np.zeros(length - 1)
        before = _on_host(_params_at(params_at, tree, points, 0))
        for t in range(1, len(squares) + 1):
            after = _on_host(_params_at(params_at, tree, points, t))
            squares[t - 1] = sum(np.vdot(step, step) for step in map(np.subtract, after, before))
            before = after
    return np.concatenate([[0.0], np.sqrt(np.maximum(squares, 0.0))])


def path_statistics(lengths: Any, values: Any) -> dict[str, float]:
    """The smallest and the largest value of a path, and its means over points and over arc length.

    Args:
        lengths: [T], the distance of each point from the one before, as of `point_distances`; the first counts as 0.
        values: [T], T >= 2.

    Returns:
        {"min", "max", "avg", "int"}, in units of the values; "avg" is the mean over points, "int" the trapezoidal
        sum_i (v_{i-1} + v_i) / 2 dl_i / sum_i dl_i, which is "avg" where the path has no length.

    Raises:
        ValueError: shapes that do not fit, fewer than 2 points, or a distance below 0.

    Reference: Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, 2018, arXiv:1802.10026,
    equation 1.
    """
    lengths, values = np.asarray(lengths, np.float64), np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) < 2 or lengths.shape != values.shape:
        raise ValueError(f"expected lengths and values [T] of at least 2, got {lengths.shape} and {values.shape}")
    steps = lengths[1:]
    if not np.all(steps >= 0):
        raise ValueError(f"distances are numbers of at least 0, got {steps[~(steps >= 0)][0]}")
    mean = float(np.mean(values))
    over_length = np.dot(0.5 * (values[:-1] + values[1:]), steps) / np.sum(steps) if np.any(steps) else mean
    return {"min": float(np.min(values)), "max": float(np.max(values)), "avg": mean, "int": float(over_length)}


def barrier(values: Any, ts: Any = None, ends: str = "line") -> Any:
    """How far what should be low rises along a path above its ends.

    max_t v(t) - ((1 - t) v(0) + t v(1)) with ends = "line", which is 0 where no point lies
    above the line; max_t v(t) - (v(0) + v(1)) / 2 with ends = "mean", the error barrier height of the paper, which of
    ends that differ is at least half their difference.

    Args:
        values: [..., T], losses or errors; of accuracies give 1 - accuracy. A NaN makes a barrier NaN.
        ts: [T], increasing; by default equally spaced.
        ends: "line" or "mean".

    Returns:
        [...], in units of the values.

    Raises:
        ValueError: fewer than 2 points, `ts` of another length or not increasing, or another `ends`.

    Reference: Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2020, arXiv:1912.05671,
    section 2.
    """
    values = np.asarray(values, np.float64)
    if values.ndim == 0 or values.shape[-1] < 2:
        raise ValueError(f"a barrier lies between two ends: expected values [..., T], T >= 2, got shape {values.shape}")
    if ends not in ENDS:
        raise ValueError(f"ends is one of {', '.join(ENDS)}, got {ends!r}")
    ts = np.linspace(0.0, 1.0, values.shape[-1]) if ts is None else np.asarray(ts, np.float64)
    if ts.shape != values.shape[-1:] or not np.all(np.diff(ts) > 0):
        raise ValueError(f"expected {values.shape[-1]} increasing ts, got {ts.tolist()}")
    shares = (ts - ts[0]) / (ts[-1] - ts[0]) if ends == "line" else np.full(len(ts), 0.5)
    between = (1.0 - shares) * values[..., :1] + shares * values[..., -1:]
    return np.max(values - between, axis=-1)


def _squared_steps(coordinates: Float[Array, "T K"], subtree: PyTree) -> Float64[np.ndarray, " T-1"]:
    """[T, K] coordinates of a part of a stack -> [T - 1], its share of the squared distances."""
    steps = np.diff(np.asarray(coordinates, np.float64), axis=0)
    steps[:, 0] = np.sum(steps, axis=1)  # that of the first endpoint itself: rounding, or a sum that is not 1
    gram = np.zeros((steps.shape[1], steps.shape[1]))
    for leaf in jax.tree.leaves(subtree):
        rows = np.asarray(leaf, np.float64).reshape(leaf.shape[0], -1)
        rows = np.concatenate([rows[:1], rows[1:] - rows[:1]])
        gram += rows @ rows.T
    return np.einsum("ti,ij,tj->t", steps, gram, steps)


@partial(jax.jit, static_argnames="params_at")
def _params_at(params_at, tree, points, t):
    return params_at(tree, jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, t, keepdims=False), points))


def _on_host(params: PyTree) -> list[np.ndarray]:
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(params)]
