"""Ensembles and their diversity, from the logits of their members alone: no network is run again.

An ensemble predicts the mean of its members' probabilities; the mean of their logits has its own name. Members are
weighted with their share of the ensemble, so that one program scores ensembles of all sizes.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Float64, Integer, Real

from subspaces_jax import metrics
from subspaces_jax.arrays import Array

AT_ONCE = 16  # ensembles in one program
Logits = Array | Sequence[Array]
Labels = Array | Sequence[int]


def member_scores(logits: Logits, labels: Labels) -> dict[str, Float[np.ndarray, " M"]]:
    """Scores of each member alone: logits [M, N, C], labels [N] -> {name of `metrics.summary`: [M]}."""
    logits, labels = _checked(logits, labels)
    return {name: np.asarray(values) for name, values in _summaries(logits, labels).items()}


def ensemble_scores(logits: Logits, labels: Labels, subset: Sequence[int] | None = None) -> dict[str, float]:
    """Scores of one ensemble and the diversity of its members.

    Args:
        logits: [M, N, C] of M members.
        labels: [N] integer classes.
        subset: which members; default all. One may be named twice.

    Returns:
        The names of `metrics.summary`; "logit_mean_accuracy"; "member_accuracy", the members' mean; and means over
        pairs of members, 0 for one: "total_variation", "disagreement", "disagreement_correct" (they differ and one is
        right).

    Raises:
        ValueError: shapes that do not fit, or a member that is not there.
    """
    subset = range(len(logits)) if subset is None else subset
    return {name: float(values[0]) for name, values in subset_scores(logits, labels, [subset]).items()}


def subset_scores(
    logits: Logits, labels: Labels, subsets: Iterable[Sequence[int]]
) -> dict[str, Float[np.ndarray, " E"]]:
    """Scores of several ensembles of the same members, in the order given.

    Args:
        logits: [M, N, C].
        labels: [N].
        subsets: E of them, at least one; each as in `ensemble_scores`.

    Returns:
        {name: [E]}, the names of `ensemble_scores`.

    Raises:
        ValueError: shapes that do not fit, no subset, or a member that is not there.
    """
    logits, labels = _checked(logits, labels)
    num, subsets = logits.shape[0], [tuple(subset) for subset in subsets]
    if not subsets:
        raise ValueError("expected at least one subset of the members, got none")
    for subset in subsets:
        if not subset or min(subset) < 0 or max(subset) >= num:
            raise ValueError(f"members {subset} of {num}: name some of 0 to {num - 1}")
    probs = jax.nn.softmax(logits)
    shares = np.stack([np.bincount(subset, minlength=num) / len(subset) for subset in subsets])
    accuracies = np.asarray(metrics.accuracy(logits, labels), np.float64)
    matrices = {name: np.asarray(matrix, np.float64) for name, matrix in pair_matrices(logits, labels).items()}
    scores = _of_all(probs, logits, labels, shares.astype(np.float32))
    rows = []
    for number, subset in enumerate(subsets):
        i, j = np.array(list(itertools.combinations(subset, 2)), np.int64).reshape(-1, 2).T
        row = {name: float(values[number]) for name, values in scores.items()}
        row["member_accuracy"] = float(np.mean(accuracies[list(subset)]))
        rows.append(row | {name: float(np.mean(matrix[i, j])) if len(i) else 0.0 for name, matrix in matrices.items()})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def by_size(logits: Logits, labels: Labels, max_subsets: int = 20, seed: int = 0) -> dict[str, Float[np.ndarray, " M"]]:
    """Ensembles of 1, 2, ... M members.

    Args:
        logits: [M, N, C].
        labels: [N].
        max_subsets: at most this many distinct subsets of a size, drawn at random where there are more.
        seed: of the draws.

    Returns:
        {name: [M]}: for each name of `ensemble_scores` the mean over subsets of size 1 to M, and under name + "_std"
        their sample standard deviation (n - 1), 0 of one.

    Raises:
        ValueError: shapes that do not fit, or `max_subsets` below 1.
    """
    if max_subsets < 1:
        raise ValueError(f"each size needs at least 1 subset, got max_subsets = {max_subsets}")
    logits, labels = _checked(logits, labels)
    num, rng = logits.shape[0], np.random.default_rng(seed)
    subsets = [_subsets(num, size, max_subsets, rng) for size in range(1, num + 1)]
    ends = np.cumsum([len(of_size) for of_size in subsets])[:-1]
    scores = subset_scores(logits, labels, itertools.chain(*subsets))
    parts = {name: np.split(values, ends) for name, values in scores.items()}
    means = {name: np.array([np.mean(part) for part in of_sizes]) for name, of_sizes in parts.items()}
    return means | {f"{name}_std": np.array([_spread(part) for part in of_sizes]) for name, of_sizes in parts.items()}


@jax.jit
def pair_matrices(
    logits: Real[Array, "M N C"], labels: Integer[Array, " N"] | None = None
) -> dict[str, Float[jax.Array, "M M"]]:
    """How far members are from one another.

    Args:
        logits: [M, N, C].
        labels: [N], or None.

    Returns:
        {"total_variation", "disagreement"}, and "disagreement_correct" where there are labels; each [M, M], symmetric.
    """
    probs = jax.nn.softmax(jnp.asarray(logits, jnp.float32))
    distances: dict[str, Callable] = {"total_variation": metrics.total_variation, "disagreement": metrics.disagreement}
    if labels is not None:
        distances["disagreement_correct"] = lambda a, b: metrics.disagreement_correct(a, b, labels)
    against = lambda distance: jax.lax.map(lambda one: jax.vmap(lambda other: distance(one, other))(probs), probs)
    return {name: against(distance) for name, distance in distances.items()}


def feature_cosines(features: Array | Iterable[Array], squared: bool = False) -> Float64[np.ndarray, "M M"]:
    """Means over examples of the cosine of every two members' features, or of its square.

    Args:
        features: [M, N, ...], or its parts [M, B, ...] one after another (a generator holds one part at a time); sizes
            B may differ, and each example counts once.
        squared: as in `metrics.feature_cosine`.

    Returns:
        [M, M], symmetric.

    Raises:
        ValueError: no parts, or parts of different numbers of members.
    """
    total, num_examples = None, 0
    for part in [features] if hasattr(features, "shape") else features:
        cosines = np.asarray(_mean_cosines(part, squared), np.float64)
        if total is not None and cosines.shape != total.shape:
            raise ValueError(f"parts have features of {len(total)} and of {len(cosines)} members")
        total = part.shape[1] * cosines + (0.0 if total is None else total)
        num_examples += part.shape[1]
    if total is None:
        raise ValueError("expected features [M, N, ...] or their parts [M, B, ...], got none")
    return total / num_examples


@partial(jax.jit, static_argnames="squared")
def _mean_cosines(features: Real[Array, "M ..."], squared: bool) -> Float[jax.Array, "M M"]:
    vectors = jnp.asarray(features).reshape(*features.shape[:2], -1)
    against = lambda one: jax.vmap(lambda other: metrics.feature_cosine(one, other, squared))(vectors)
    return jax.lax.map(against, vectors)


@jax.jit
def _summaries(logits: Float[Array, "M N C"], labels: Integer[Array, " N"]) -> dict[str, Float[jax.Array, " M"]]:
    return metrics.summary(jax.nn.softmax(logits), labels)


def _of_all(probs: jax.Array, logits: Array, labels: Array, shares: np.ndarray) -> dict[str, np.ndarray]:
    """Of the ensembles with shares [E, M], AT_ONCE in a program, which is so one for any number of them."""
    parts = []
    for start in range(0, len(shares), AT_ONCE):
        part = shares[start : start + AT_ONCE]
        padded = np.concatenate([part, np.repeat(part[-1:], AT_ONCE - len(part), axis=0)])
        found = jax.device_get(_of_some(probs, logits, labels, padded))
        parts.append({name: values[: len(part)] for name, values in found.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@jax.jit
def _of_some(probs: jax.Array, logits: Array, labels: Array, shares: Array) -> dict[str, jax.Array]:
    """Where member m has the share shares[:, m]; those without one do not count, whatever they predict."""

    def mean(values, share):
        # member by member: XLA's sum over a leading axis takes forty times as long on a CPU
        add = lambda total, one: (total + jnp.where(one[0] > 0, one[0] * one[1], 0.0), None)
        return jax.lax.scan(add, jnp.zeros_like(values[0]), (share, values))[0]

    def of_one(share):
        scores = metrics.summary(mean(probs, share), labels)
        return scores | {"logit_mean_accuracy": metrics.accuracy(mean(logits, share), labels)}

    return jax.lax.map(of_one, shares)


def _subsets(num: int, size: int, at_most: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """All subsets of a size, or `at_most` distinct ones at random."""
    if math.comb(num, size) <= at_most:
        return list(itertools.combinations(range(num), size))
    drawn: set[tuple[int, ...]] = set()
    while len(drawn) < at_most:
        drawn.add(tuple(sorted(rng.choice(num, size, replace=False).tolist())))
    return sorted(drawn)


def _spread(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _checked(logits: Logits, labels: Labels) -> tuple[Float32[jax.Array, "M N C"], Integer[jax.Array, " N"]]:
    """Both as arrays, logits in float32."""
    shapes = {np.shape(member) for member in logits} if isinstance(logits, (list, tuple)) else set()
    if len(shapes) > 1:
        raise ValueError(f"members differ in examples or classes: they have logits of shapes {sorted(shapes)}")
    logits, labels = jnp.asarray(logits, jnp.float32), jnp.asarray(labels)
    if logits.ndim != 3 or labels.ndim != 1 or logits.shape[1] != len(labels) or not len(logits):
        found = f"{logits.shape} and {labels.shape}"
        raise ValueError(f"expected logits [M, N, C] of at least one member and labels [N], got {found}")
    return logits, labels
