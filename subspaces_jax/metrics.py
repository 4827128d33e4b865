"""Scores of predicted probabilities: fractions and nats, one number per leading index.

All take probabilities [..., N, C] and labels [N], so that one call scores a network, an ensemble or all points of a
path. A point of a line and its two-point ensemble are scored by the same functions.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Integer, Real

from subspaces_jax.arrays import Array

SMALLEST = float(jnp.finfo(jnp.float32).tiny)


def accuracy(probs: Float[Array, "..."], labels: Integer[Array, "..."]) -> Float[jax.Array, "..."]:
    """Fraction of examples whose most probable class is the label.

    Args:
        probs: [..., N, C] probabilities (or logits).
        labels: [N] integer classes.

    Returns:
        [...], in [0, 1]; NaN where a probability is.

    >>> accuracy(jnp.array([[0.7, 0.3], [0.6, 0.4]]), jnp.array([0, 1]))
    Array(0.5, dtype=float32)
    """
    _check(probs, labels)
    return jnp.mean(_correct(probs, _align(labels, probs.ndim - 1)), axis=-1)


def class_accuracy(probs: Float[Array, "..."], labels: Integer[Array, "..."]) -> Float[jax.Array, "..."]:
    """Accuracy within each class: the fraction of its examples whose most probable class it is (its recall).

    Args:
        probs: [..., N, C] probabilities (or logits).
        labels: [N] integer classes.

    Returns:
        [..., C], in [0, 1]; NaN for a class that has no examples, or one whose probabilities are NaN.

    >>> class_accuracy(jnp.array([[0.7, 0.3], [0.6, 0.4], [0.2, 0.8]]), jnp.array([0, 1, 1]))
    Array([1. , 0.5], dtype=float32)
    """
    _check(probs, labels)
    right = _correct(probs, _align(labels, probs.ndim - 1))
    bins = jnp.broadcast_to(labels, right.shape)
    return _sum_bins(right, bins, probs.shape[-1]) / _sum_bins(jnp.ones_like(right), bins, probs.shape[-1])


def negative_log_likelihood(probs: Float[Array, "..."], labels: Integer[Array, "..."]) -> Float[jax.Array, "..."]:
    """Mean of -log p[label] in nats; probabilities below the smallest normal float32 count as that number.

    Args:
        probs: [..., N, C] probabilities.
        labels: [N] integer classes.

    Returns:
        [...], nats, at least 0.
    """
    _check(probs, labels)
    of_label = jnp.take_along_axis(single(probs), _align(labels, probs.ndim - 1)[..., None], axis=-1)[..., 0]
    return jnp.mean(-jnp.log(jnp.maximum(of_label, SMALLEST)), axis=-1)


def brier_score(probs: Float[Array, "..."], labels: Integer[Array, "..."]) -> Float[jax.Array, "..."]:
    """Mean over examples of sum_c (p_c - [c = label])^2, in [0, 2]. Probs [..., N, C], labels [N] -> [...].

    Reference: Brier, Verification of Forecasts Expressed in Terms of Probability, 1950.
    """
    _check(probs, labels)
    probs = single(probs)
    one_hot = jax.nn.one_hot(labels, probs.shape[-1], dtype=probs.dtype)
    return jnp.mean(jnp.sum((probs - _align(one_hot, probs.ndim)) ** 2, axis=-1), axis=-1)


def expected_calibration_error(
    probs: Float[Array, "..."], labels: Integer[Array, "..."], num_bins: int = 15
) -> Float[jax.Array, "..."]:
    """Expected calibration error (ECE) over equal-width bins of the confidence.

    ECE = (1 / N) sum over bins of | sum of correct - sum of confidence |, the bin of a confidence q being
    min(floor(num_bins * q), num_bins - 1).

    Args:
        probs: [..., N, C] probabilities.
        labels: [N] integer classes.
        num_bins: the field's usual 15; the subspace paper uses 20.

    Returns:
        [...], in [0, 1].

    Reference: Guo et al., On Calibration of Modern Neural Networks, 2017, arXiv:1706.04599.
    """
    _check(probs, labels)
    confidence, correct, bins = _binned(probs, labels, num_bins)
    gaps = _sum_bins(correct - confidence, bins, num_bins)
    return jnp.sum(jnp.abs(gaps), axis=-1) / labels.shape[0]


def total_variation(probs_a: Float[Array, "..."], probs_b: Float[Array, "..."]) -> Float[jax.Array, "..."]:
    """Mean over examples of half the L1 distance between two predictions. Both [..., N, C] -> [...], in [0, 1]."""
    _check_pair(probs_a, probs_b)
    return jnp.mean(0.5 * jnp.sum(jnp.abs(single(probs_a) - single(probs_b)), axis=-1), axis=-1)


def disagreement(probs_a: Float[Array, "..."], probs_b: Float[Array, "..."]) -> Float[jax.Array, "..."]:
    """Fraction of examples with different most probable classes. Both [..., N, C] -> [...], in [0, 1]."""
    _check_pair(probs_a, probs_b)
    return jnp.mean((_predictions(probs_a) != _predictions(probs_b)).astype(jnp.float32), axis=-1)


def disagreement_correct(
    probs_a: Float[Array, "..."], probs_b: Float[Array, "..."], labels: Integer[Array, "..."]
) -> Float[jax.Array, "..."]:
    """Fraction of examples with different most probable classes, one of them the label. Both [..., N, C] -> [...]."""
    _check_pair(probs_a, probs_b)
    _check(probs_a, labels)
    a, b = _predictions(probs_a), _predictions(probs_b)
    label = _align(labels, a.ndim)
    return jnp.mean(((a != b) & ((a == label) | (b == label))).astype(jnp.float32), axis=-1)


def among_top(logits: Float[Array, "..."], labels: Integer[Array, "..."], k: int) -> Bool[jax.Array, "..."]:
    """Whether the class is among those of the k largest logits, of all where there are fewer.

    Args:
        logits: [..., C].
        labels: [...] integer classes, or what broadcasts to that.
        k: at least 1.
    """
    logits = jnp.where(logits == 0, 0, logits)  # -0 is 0, not less
    best = jax.lax.top_k(single(logits), min(k, logits.shape[-1]))[1]
    return jnp.any(best == labels[..., None], axis=-1)


def feature_cosine(features_a: Array, features_b: Array, squared: bool = False) -> jax.Array:
    """Mean over examples of the cosine of two feature vectors, or of its square.

    Args:
        features_a, features_b: [..., N, D], each example's features as one vector.
        squared: of its square.

    Returns:
        [...], in [-1, 1], or [0, 1] if squared. A vector of zeros has cosine 0 with every other.
    """
    _check_pair(features_a, features_b)
    cosines = jnp.sum(_directions(features_a) * _directions(features_b), axis=-1)
    return jnp.mean(cosines**2 if squared else cosines, axis=-1)


def reliability(probs: Array, labels: Array, num_bins: int = 15) -> dict[str, jax.Array]:
    """The bins of a reliability diagram, those of `expected_calibration_error`.

    Args:
        probs: [..., N, C] probabilities.
        labels: [N] integer classes.
        num_bins: equal widths of the confidence.

    Returns:
        {"count", "confidence", "accuracy"}: each [..., num_bins]: examples, and their mean confidence and accuracy, 0
        in a bin without examples.
    """
    _check(probs, labels)
    confidence, correct, bins = _binned(probs, labels, num_bins)
    sums = lambda values: _sum_bins(values, bins, num_bins)
    count = sums(jnp.ones_like(confidence))
    full = jnp.maximum(count, 1.0)
    return {"count": count, "confidence": sums(confidence) / full, "accuracy": sums(correct) / full}


def power_of_two(largest: Float[Array, "*shape"]) -> Float[jax.Array, "*shape"]:
    """The power of two that divides `largest` down or up to [1, 4); 1/4 for 0. A constant to gradients.

    Dividing by it rounds nothing, and squares of the quotients and their products neither overflow nor underflow.
    """
    _, exponent = jnp.frexp(jax.lax.stop_gradient(largest))
    return jnp.ldexp(jnp.ones_like(largest), jnp.maximum(exponent - 2, jnp.finfo(largest.dtype).minexp))


def summary(probs: Float[Array, "..."], labels: Integer[Array, "..."]) -> dict[str, Float[jax.Array, "..."]]:
    """All scores of one set of predictions by name: accuracy, nll, brier, ece_15, ece_20; each [...]."""
    return {
        "accuracy": accuracy(probs, labels),
        "nll": negative_log_likelihood(probs, labels),
        "brier": brier_score(probs, labels),
        "ece_15": expected_calibration_error(probs, labels, 15),
        "ece_20": expected_calibration_error(probs, labels, 20),
    }


def summary_sums(
    probs: Float[Array, "*batch N C"], labels: Integer[Array, " N"], mask: Real[Array, " N"] | Bool[Array, " N"]
) -> dict[str, Float[jax.Array, "..."]]:
    """`summary` before it is divided: sums over examples, which add up over the parts of a split.

    Args:
        probs: [N, C] probabilities.
        labels: [N] integer classes.
        mask: [N], 1 (or True) for examples that count; what is predicted for the others has no influence.

    Returns:
        {"count", "accuracy", "nll", "brier"}: scalars; {"ece_15", "ece_20"}: the gaps of the bins, [15] and [20].
    """
    _check(probs, labels)
    mask = mask.astype(jnp.float32)
    probs = jnp.where(mask[:, None] > 0, probs.astype(jnp.float32), 1.0 / probs.shape[-1])
    of_label = jnp.take_along_axis(probs, labels[:, None], axis=-1)[:, 0]
    one_hot = jax.nn.one_hot(labels, probs.shape[-1], dtype=probs.dtype)
    sums = {
        "count": jnp.sum(mask),
        "accuracy": jnp.sum(mask * _correct(probs, labels)),
        "nll": jnp.sum(mask * -jnp.log(jnp.maximum(of_label, SMALLEST))),
        "brier": jnp.sum(mask * jnp.sum((probs - one_hot) ** 2, axis=-1)),
    }
    for num_bins in (15, 20):
        confidence, correct, bins = _binned(probs, labels, num_bins)
        sums[f"ece_{num_bins}"] = _sum_bins(mask * (correct - confidence), bins, num_bins)
    return sums


CONFUSION = ("true_positives", "predicted", "labelled")


def confusion_sums(
    probs: Float[Array, "N C"], labels: Integer[Array, " N"], mask: Real[Array, " N"] | Bool[Array, " N"]
) -> dict[str, Float[jax.Array, " C"]]:
    """Counts of each class over the examples whose mask is 1, additive over batches: CONFUSION, each [C].

    Args:
        probs: [N, C] probabilities (or logits).
        labels: [N] integer classes.
        mask: [N].
    """
    _check(probs, labels)
    one_hot = lambda classes: jax.nn.one_hot(classes, probs.shape[-1]) * mask.astype(jnp.float32)[:, None]
    predicted, labelled = one_hot(_predictions(probs)), one_hot(labels)
    counts = (predicted * (labels == _predictions(probs))[:, None], predicted, labelled)
    return {name: jnp.sum(count, axis=0) for name, count in zip(CONFUSION, counts)}


def of_confusion(sums: Mapping[str, Array]) -> dict[str, jax.Array]:
    """Accuracy, precision and recall of `confusion_sums`, [..., C] -> [...], fractions.

    "..._micro" pools the classes, which makes all three the fraction of examples that are right. "..._macro" is a mean
    over the classes that are present, labelled or predicted; precision of a class that is never predicted is 0, recall
    of one that is never labelled, too. "accuracy_macro" is the mean over classes of the accuracy within a class, which
    is its recall.
    """
    right, predicted, labelled = (sums[name] for name in CONFUSION)
    present = (predicted + labelled > 0).astype(jnp.float32)
    mean = lambda of: jnp.sum(right / jnp.maximum(of, 1.0) * present, axis=-1) / jnp.maximum(present.sum(-1), 1.0)
    pooled = jnp.sum(right, axis=-1) / jnp.maximum(jnp.sum(labelled, axis=-1), 1.0)
    found = {f"{name}_micro": pooled for name in ("accuracy", "precision", "recall")}
    return found | {
        "accuracy_macro": mean(labelled),
        "precision_macro": mean(predicted),
        "recall_macro": mean(labelled),
    }


def _directions(features: Real[Array, "*shape D"]) -> Float[jax.Array, "*shape D"]:
    """Vectors [..., D] in float32 at length 1, those of zeros as they are, with gradient 0."""
    features = features.astype(jnp.float32)
    features = features / power_of_two(jnp.max(jnp.abs(features), axis=-1, keepdims=True))
    squares = jnp.sum(features**2, axis=-1, keepdims=True)
    is_zero = squares == 0
    return jnp.where(is_zero, 0.0, features / jnp.sqrt(jnp.where(is_zero, 1.0, squares)))


def single(values: Array) -> Array:
    """Floating numbers in float32 at least, in which sums, and squares of what is near 1, are safe."""
    return values.astype(jnp.float32) if jnp.finfo(values.dtype).bits < 32 else values


def _correct(probs: Float[Array, "*shape C"], labels: Integer[Array, "..."]) -> Float[jax.Array, "*shape"]:
    """1 where the most probable class is the label, NaN where there is none, probabilities being NaN."""
    is_nan = jnp.isnan(jnp.max(probs, axis=-1))
    return jnp.where(is_nan, jnp.nan, (_predictions(probs) == labels).astype(jnp.float32))


def _predictions(probs: Float[Array, "*shape C"]) -> Integer[jax.Array, "*shape"]:
    return jnp.argmax(probs, axis=-1)


def _binned(
    probs: Float[Array, "*batch N C"], labels: Integer[Array, " N"], num_bins: int
) -> tuple[Float[jax.Array, "*batch N"], Float[jax.Array, "*batch N"], Integer[jax.Array, "*batch N"]]:
    """Confidence, whether it was right, and the bin of every prediction, each [..., N]."""
    confidence = jnp.max(single(probs), axis=-1)
    correct = (_predictions(probs) == _align(labels, probs.ndim - 1)).astype(confidence.dtype)
    return confidence, correct, jnp.clip(jnp.floor(num_bins * confidence).astype(jnp.int32), 0, num_bins - 1)


def _sum_bins(
    values: Float[Array, "*batch N"], bins: Integer[jax.Array, "*batch N"], num_bins: int
) -> Float[jax.Array, "*batch bins"]:
    sums = lambda values, bins: jax.ops.segment_sum(values, bins, num_segments=num_bins)
    return jnp.vectorize(sums, signature="(n),(n)->(b)")(values, bins)


def _align(array: Array, ndim: int) -> Array:
    return array.reshape((1,) * (ndim - array.ndim) + array.shape)


def _check(probs: Array, labels: Array) -> None:
    if probs.ndim < 2 or labels.ndim != 1 or probs.shape[-2] != labels.shape[0]:
        raise ValueError(f"expected probs [..., N, C] and labels [N], got {probs.shape} and {labels.shape}")


def _check_pair(probs_a: Array, probs_b: Array) -> None:
    if probs_a.ndim < 2 or probs_a.shape[-2:] != probs_b.shape[-2:]:
        raise ValueError(f"expected two arrays [..., N, C], got {probs_a.shape} and {probs_b.shape}")
