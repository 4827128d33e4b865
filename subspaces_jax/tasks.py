"""Tasks: what the outputs of a network are scored against, as a tuple of functions.

Sums are additive over examples, so that batches, devices and processes add up to the scores of a whole split; `read`
makes numbers of them. A score is its sum over examples divided by "count"; of calibration errors the sums are those of
the bins.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from subspaces_jax import losses, metrics

PyTree = Any
Sums = dict[str, jax.Array]
BATCHES = "batches"  # beside sums of training: how many batches they are of, all of one size


class Column(NamedTuple):
    """How a score is shown: its name, a title, a unit ("" for none) and the factor between the two."""

    name: str
    title: str
    unit: str = ""
    scale: float = 1.0


class Task(NamedTuple):
    """Attributes:
    name: of the task.
    output_shape: (shape of an example, number of classes, shape of its real label, () of others) -> the shape that the
        network's outputs of an example have.
    targets: (inputs [b, ...], labels [b, ...]) -> targets [b, ...]; inputs are floats after augmentation, before
        normalisation and noise; labels may be ().
    loss: (outputs, targets) -> [b], what training minimises.
    scores: (outputs, targets, mask [b]) -> sums over the examples whose mask is 1; in training as in evaluation.
    read: sums, in training with BATCHES among them -> {name: scalar}.
    mean: outputs of M networks [M, b, ...] -> those of their ensemble [b, ...].
    compare: (outputs, other outputs, targets, mask) -> sums of how far two networks are from each other.
    columns: the scores that tables and figures show, in order.
    keeps_outputs: whether outputs are small enough to be kept, for ensembles of points and of runs.
    """

    name: str
    output_shape: Callable[..., tuple[int, ...]]
    targets: Callable[[jax.Array, PyTree], PyTree]
    loss: Callable[[jax.Array, PyTree], jax.Array]
    scores: Callable[[jax.Array, PyTree, jax.Array], Sums]
    read: Callable[[Sums], dict[str, jax.Array]]
    mean: Callable[[jax.Array], jax.Array]
    compare: Callable[[jax.Array, jax.Array, PyTree, jax.Array], Sums]
    columns: tuple[Column, ...]
    keeps_outputs: bool = True


@jax.jit
def read(sums: Sums) -> dict[str, jax.Array]:
    """Scores of sums: those of "ece_..." are sums over bins of |gap|, all over "count"."""
    count = sums["count"]
    total = lambda name, value: jnp.sum(jnp.abs(value), axis=-1) if name.startswith("ece_") else value
    return {name: total(name, value) / count for name, value in sums.items() if name not in ("count", BATCHES)}


def classification(label_smoothing: float = 0.0, detailed: bool = False, top: int = 0) -> Task:
    """Outputs are logits [b, C], targets integer classes [b].

    Scores: accuracy, nll (nats), brier, ece_15, ece_20 of the softmax. An ensemble predicts the mean of its members'
    probabilities; two networks differ by "total_variation" and "disagreement", and "logit_mean_accuracy" is that of the
    mean of their logits.

    Args:
        label_smoothing: in [0, 1], of the loss alone.
        detailed: whether there are the scores of `read_gradients` and of `metrics.of_confusion`, too.
        top: k of a score "top_k", whether the true class is among the k of the greatest logits (of all where there are
            fewer); 0 for none.

    Raises:
        ValueError: label_smoothing outside [0, 1], or top below 0.
    """
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is a fraction in [0, 1], got {label_smoothing}")
    if top < 0:
        raise ValueError(f"top is a number of classes, or 0 for none, got {top}")

    def scores(logits, labels, mask):
        probs = jax.nn.softmax(logits.astype(jnp.float32))
        sums = metrics.summary_sums(probs, labels, mask)
        if top:
            sums |= _summed({f"top_{top}": metrics.among_top(logits, labels, top)}, mask)
        if not detailed:
            return sums
        num_classes = logits.shape[-1]
        smooth = (1.0 - label_smoothing) * jax.nn.one_hot(labels, num_classes) + label_smoothing / num_classes
        gradient = _summed({GRADIENT: jnp.sum(jnp.square(probs - smooth), axis=-1)}, mask)
        return sums | gradient | metrics.confusion_sums(probs, labels, mask)

    def read_all(sums):
        confusion = {name: sums[name] for name in metrics.CONFUSION}
        others = {name: value for name, value in sums.items() if name not in confusion}
        return read_gradients(others) | metrics.of_confusion(confusion)

    def compare(logits, others, labels, mask):
        logits, others = (x.astype(jnp.float32) for x in (logits, others))
        probs, other_probs, mean = jax.nn.softmax(logits), jax.nn.softmax(others), 0.5 * (logits + others)
        values = {
            "total_variation": 0.5 * jnp.sum(jnp.abs(probs - other_probs), axis=-1),
            "disagreement": jnp.argmax(probs, -1) != jnp.argmax(other_probs, -1),
            "logit_mean_accuracy": jnp.argmax(mean, -1) == labels,
        }
        return _summed(values, mask)

    return Task(
        "classification",
        output_shape=lambda shape, num_classes, label_shape=(): (num_classes,),
        targets=lambda inputs, labels: labels,
        loss=lambda logits, labels: losses.cross_entropy(logits, labels, label_smoothing),
        scores=scores,
        read=read_all if detailed else read,
        mean=lambda logits: jnp.log(jnp.maximum(jnp.mean(jax.nn.softmax(logits), axis=0), metrics.SMALLEST)),
        compare=compare,
        columns=(
            Column("accuracy", "accuracy", "%", 100.0),
            Column("nll", "nll", "nats"),
            Column("ece_20", "ECE", "%", 100.0),
            Column("brier", "Brier"),
            *[Column(f"top_{top}", f"top {top}", "%", 100.0)] * bool(top),
        ),
    )


def regression(p: float = 2.0, detailed: bool = False) -> Task:
    """Outputs are real numbers [b, d], targets the labels as such, [b, ...] of d numbers each, d = 1 of classes; the
    loss is sum_d |difference|^p.

    Scores, means over examples: "loss"; "mae" and "mse" over all d.

    Args:
        p: at least 1.
        detailed: whether there are the scores of `read_gradients`, too.

    Raises:
        ValueError: p below 1.
    """
    _check_power(p)
    loss = lambda outputs, targets: _power_sum(outputs - targets, p)

    def targets(inputs, labels):
        labels = jnp.asarray(labels, jnp.float32)
        return labels.reshape(labels.shape[0], -1)

    def gradients(outputs, targets):
        return {GRADIENT: p**2 * _power_sum(outputs - targets, 2.0 * p - 2.0)}

    made = _of_differences(
        "regression",
        lambda shape, num_classes, label_shape=(): (math.prod(label_shape),),
        targets,
        loss,
        (Column("loss", "loss"), Column("mae", "MAE"), Column("mse", "MSE")),
        *[gradients] * detailed,
    )
    return made._replace(read=read_gradients) if detailed else made


GRADIENT = "gradient_norm"


def read_gradients(sums: Sums) -> dict[str, jax.Array]:
    """Scores of sums, with Omega of Cont, Rossier and Xu (2022, arXiv:2204.07261) in both normalisations.

    "gradient_norm" is the mean over examples i of |g_i|^2, g_i the gradient of example i's loss in the network's
    outputs. In training "gradient_norm_of_mean" is that over N^2, N the examples of a batch: of gradients of the
    batch's mean loss, as the code beside the thesis on weights' regularity logs it.
    """
    found = read(sums)
    if BATCHES not in sums:
        return found
    size = sums["count"] / sums[BATCHES]
    return found | {f"{GRADIENT}_of_mean": found[GRADIENT] / size**2}


RECONSTRUCTION_LOSSES: dict[str, Callable[..., jax.Array]] = {  # (images, images, levels, residual) -> [b]
    "mae": lambda a, b, *of_pyramid: _mean_over_example(jnp.abs(a - b)),
    "mse": lambda a, b, *of_pyramid: _mean_over_example(jnp.square(a - b)),
    "laplacian": losses.laplacian_pyramid,
}


def reconstruction(loss: str = "mae", levels: int = 5, residual: bool = False) -> Task:
    """Outputs are what the network was given, [b, ...]: inputs after augmentation, before normalisation and noise.

    Scores, means over examples and entries: "loss", "mae", "mse", and "laplacian" of `losses.laplacian_pyramid` without
    its residual, where the inputs are images that have a pyramid of that many levels. The ensemble's reconstruction is
    the mean of its members'.

    Args:
        loss: a name of RECONSTRUCTION_LOSSES.
        levels: of the pyramid, from 1 up; 5 is for images of 64x64 pixels.
        residual: whether the laplacian loss counts what is left below its bands, without which it does not see
            brightness and tint.

    Raises:
        ValueError: another name, levels below 1, a residual of another loss; from `output_shape`, a laplacian loss of a
            pyramid too deep for the inputs.
    """
    if loss not in RECONSTRUCTION_LOSSES:
        raise ValueError(f"loss is one of {', '.join(RECONSTRUCTION_LOSSES)}, got {loss!r}")
    if levels < 1:
        raise ValueError(f"levels is a whole number from 1 up, got {levels}")
    if residual and loss != "laplacian":
        raise ValueError(f"residual belongs to the loss laplacian, got {loss!r}: leave it False")

    def output_shape(shape, num_classes, label_shape=()):
        if loss == "laplacian":
            losses.check_levels(levels, shape)
        return shape

    def of_images(outputs, targets):
        has_pyramid = losses.max_levels(outputs.shape[1:]) >= levels
        return {"laplacian": losses.laplacian_pyramid(outputs, targets, levels)} if has_pyramid else {}

    return _of_differences(
        "reconstruction",
        output_shape,
        lambda inputs, labels: inputs,
        lambda outputs, targets: RECONSTRUCTION_LOSSES[loss](outputs, targets, levels, residual),
        (Column("loss", "loss"), Column("mae", "MAE"), Column("mse", "MSE")),
        of_images,
    )._replace(keeps_outputs=False)


TASKS: dict[str, Callable[..., Task]] = {
    "classification": classification,
    "regression": regression,
    "reconstruction": reconstruction,
}


def _of_differences(name, output_shape, targets, loss, columns, more=lambda outputs, targets: {}) -> Task:
    """A task whose scores are norms of the difference between outputs and targets of one shape, and `more`."""

    def checked_loss(outputs, targets):
        if jnp.shape(outputs) != jnp.shape(targets):
            raise ValueError(f"{name} compares outputs and targets of one shape: {outputs.shape} and {targets.shape}")
        return loss(outputs, targets)

    def scores(outputs, targets, mask):
        outputs = outputs.astype(jnp.float32)
        per_example = checked_loss(outputs, targets)  # first: a difference may spread one over the other
        difference = outputs - targets
        values = {
            "loss": per_example,
            "mae": _mean_over_example(jnp.abs(difference)),
            "mse": _mean_over_example(jnp.square(difference)),
        }
        return _summed(values | more(outputs, targets), mask)

    compare = lambda outputs, others, targets, mask: _summed(
        {"squared_difference": _mean_over_example(jnp.square(outputs - others))}, mask
    )
    mean = lambda outputs: jnp.mean(outputs, axis=0)
    return Task(name, output_shape, targets, checked_loss, scores, read, mean, compare, columns)


def _summed(values: dict[str, jax.Array], mask: jax.Array) -> Sums:
    mask = mask.astype(jnp.float32)
    kept = lambda value: jnp.where(mask > 0, value.astype(jnp.float32), 0.0)  # whatever padding gives, NaN too
    return {"count": jnp.sum(mask)} | {name: jnp.sum(kept(value)) for name, value in values.items()}


def _mean_over_example(values: jax.Array) -> jax.Array:
    return jnp.mean(values.reshape(values.shape[0], -1), axis=-1)


def _power_sum(difference: jax.Array, p: float) -> jax.Array:
    powers = jnp.square(difference) if p == 2 else jnp.abs(difference) ** p
    return jnp.sum(powers.reshape(difference.shape[0], -1), axis=-1)


def _check_power(p: float) -> None:
    if not (p >= 1.0 and math.isfinite(p)):
        raise ValueError(f"p is a finite number of at least 1, got {p}")
