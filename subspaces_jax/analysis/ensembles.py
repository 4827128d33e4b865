"""Ensembles and their diversity, from the logits of their members alone: no network is run again.

An ensemble predicts the mean of its members' probabilities; the mean of their logits has its own name.
"""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from subspaces_jax import metrics


def ensemble_scores(logits: jax.Array, labels: jax.Array, subset: Sequence[int] | None = None) -> dict[str, float]:
    """Scores of one ensemble and the diversity of its members.

    Args:
        logits: [M, N, C] of M members.
        labels: [N] integer classes.
        subset: which members; default all. One may be named twice.

    Returns:
        The names of `metrics.summary`; "logit_mean_accuracy"; "member_accuracy", the members' mean; and means over pairs of
        members, 0 for one: "total_variation", "disagreement", "disagreement_correct" (they differ and one is right).

    Raises:
        ValueError: shapes that do not fit, or a member that is not there.
    """
    _check(logits, labels)
    subset = tuple(range(logits.shape[0])) if subset is None else tuple(subset)
    if not subset or min(subset) < 0 or max(subset) >= logits.shape[0]:
        raise ValueError(f"members {subset} of {logits.shape[0]}: name some of 0 to {logits.shape[0] - 1}")
    scores = _scores(jnp.asarray(logits)[jnp.asarray(subset)], jnp.asarray(labels))
    return {name: float(value) for name, value in scores.items()}


def by_size(
    logits: jax.Array, labels: jax.Array, max_subsets: int = 20, seed: int = 0
) -> dict[str, np.ndarray]:
    """Ensembles of 1, 2, ... M members.

    Args:
        logits: [M, N, C].
        labels: [N].
        max_subsets: at most this many distinct subsets of a size, drawn at random where there are more.
        seed: of the draws.

    Returns:
        {name: [M]}: for each name of `ensemble_scores` the mean over subsets of size 1 to M, and under name + "_std" their
        population standard deviation.
    """
    _check(logits, labels)
    num = logits.shape[0]
    rng = np.random.default_rng(seed)
    rows = []
    for size in range(1, num + 1):
        scores = [ensemble_scores(logits, labels, subset) for subset in _subsets(num, size, max_subsets, rng)]
        columns = {name: [score[name] for score in scores] for name in scores[0]}
        means = {name: np.mean(values) for name, values in columns.items()}
        rows.append(means | {f"{name}_std": np.std(values) for name, values in columns.items()})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


@jax.jit
def pair_matrices(logits: jax.Array) -> dict[str, jax.Array]:
    """How far members are from one another: [M, N, C] -> {"total_variation", "disagreement"}, each [M, M], symmetric."""
    probs = jax.nn.softmax(jnp.asarray(logits, jnp.float32))
    against = lambda distance: jax.lax.map(lambda one: jax.vmap(lambda other: distance(one, other))(probs), probs)
    return {"total_variation": against(metrics.total_variation), "disagreement": against(metrics.disagreement)}


@jax.jit
def _scores(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    probs = jax.nn.softmax(logits.astype(jnp.float32))
    scores = metrics.summary(jnp.mean(probs, axis=0), labels)
    scores["logit_mean_accuracy"] = metrics.accuracy(jnp.mean(logits, axis=0), labels)
    scores["member_accuracy"] = jnp.mean(metrics.accuracy(logits, labels))
    pairs = list(itertools.combinations(range(logits.shape[0]), 2))
    distances = {
        "total_variation": [metrics.total_variation(probs[i], probs[j]) for i, j in pairs],
        "disagreement": [metrics.disagreement(probs[i], probs[j]) for i, j in pairs],
        "disagreement_correct": [metrics.disagreement_correct(probs[i], probs[j], labels) for i, j in pairs],
    }
    return scores | {name: jnp.mean(jnp.stack(values)) if pairs else jnp.zeros(()) for name, values in distances.items()}


def _subsets(num: int, size: int, at_most: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """All subsets of a size, or `at_most` distinct ones at random."""
    if math.comb(num, size) <= at_most:
        return list(itertools.combinations(range(num), size))
    drawn: set[tuple[int, ...]] = set()
    while len(drawn) < at_most:
        drawn.add(tuple(sorted(rng.choice(num, size, replace=False).tolist())))
    return sorted(drawn)


def _check(logits: jax.Array, labels: jax.Array) -> None:
    if np.ndim(logits) != 3 or np.ndim(labels) != 1 or np.shape(logits)[1] != len(labels) or not np.shape(logits)[0]:
        raise ValueError(f"expected logits [M, N, C] of at least one member and labels [N], got {np.shape(logits)} and {np.shape(labels)}")
