"""One pass over data at one network: predictions, scores, measures."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Bool, Shaped

from subspaces_jax import parallel, tasks
from subspaces_jax.arrays import Array
from subspaces_jax.data import batches
from subspaces_jax.errors import NonFiniteOutputError
from subspaces_jax.tasks import Task

PyTree = Any
Images = Array | Callable[[], Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]]
Apply = Callable[[PyTree, Shaped[jax.Array, "b ..."]], Shaped[jax.Array, "b ..."]]
Targets = Callable[[Any, PyTree], PyTree]
CLASSIFICATION = tasks.classification()


class Measure(NamedTuple):
    """A measure of outputs, additive over examples; all measures of a point share one forward pass.

    Attributes:
        sums: (outputs [B, ...], targets, mask [B]) -> tree of sums over the examples whose mask is 1.
        read: sums -> {name: scalar or array}.
    """

    sums: Callable[[Shaped[jax.Array, "b ..."], PyTree, Bool[jax.Array, " b"]], PyTree]
    read: Callable[[PyTree], dict[str, Any]]


def labels_only(images: Any, labels: PyTree) -> PyTree:
    """The targets of tasks that are given by labels."""
    return labels


def on_device(images: PyTree, mesh: Mesh | None = None) -> PyTree:
    """Arrays moved to the devices, where all evaluation of them then is; a stream stays as it is."""
    return images if callable(images) else parallel.replicate(images, or_all(mesh))


def predict(
    apply: Apply, variables: PyTree, images: Images, batch_size: int = 500, mesh: Mesh | None = None
) -> Shaped[Array, "n ..."]:
    """Outputs of one network for every example, in order.

    Args:
        apply: eval mode, (variables, images [B, ...]) -> [B, ...]; hashable, compiled once for each.
        variables: {"params": ..., "batch_stats": ...}.
        images: [N, ...], or a stream.
        batch_size: B; the last batch is padded, and what it pads is cut off. Streamed images have their own.
        mesh: each batch is split over its devices; None for all.

    Returns:
        [N, ...].
    """
    return measure(apply, variables, images, (), batch_size=batch_size, mesh=mesh, keep_outputs=True)[1]


def score(
    apply: Apply,
    variables: PyTree,
    images: Images,
    labels: PyTree = (),
    batch_size: int = 500,
    *,
    task: Task = CLASSIFICATION,
    targets: Targets = labels_only,
    mesh: Mesh | None = None,
) -> dict[str, float]:
    """Scores of one network over every example once; of a classification accuracy, nll, brier, ece_15, ece_20.

    Args:
        apply, variables, images, batch_size, mesh: as in `predict`.
        labels: [N, ...], or ().
        task: whose scores.
        targets: (images, labels) -> what outputs are scored against; the default are the labels.

    Returns:
        Fractions; nats for "nll".

    Raises:
        NonFiniteOutputError: outputs that are NaN or infinite.
    """
    of_task = Measure(task.scores, task.read)
    (found,), _ = measure(
        apply, variables, images, labels, (of_task,), targets=targets, batch_size=batch_size, mesh=mesh
    )
    return {name: float(value) for name, value in found.items()}


def measure(
    apply: Apply,
    variables: PyTree,
    images: Images,
    labels: PyTree = (),
    measures: Sequence[Measure] = (),
    *,
    targets: Targets = labels_only,
    batch_size: int = 500,
    mesh: Mesh | None = None,
    keep_outputs: bool = False,
    finite: bool = True,
    where: str = "the network",
) -> tuple[list[dict[str, Any]], Any]:
    """All measures of one network from one pass over the data.

    Args:
        apply, variables, images, batch_size, mesh: as in `predict`.
        labels, targets: as in `score`; of a stream its own labels count.
        measures: of outputs.
        keep_outputs: whether outputs are wanted too, on the host.
        finite: whether outputs that are not finite end it.
        where: what the message calls the network.

    Returns:
        What each measure reads, and the outputs [N, ...] or None.

    Raises:
        NonFiniteOutputError: see `finite`.
        ValueError: no images, or labels of another number.
    """
    mesh = or_all(mesh)
    if not callable(images):
        _check_lengths(images, labels)
    functions = tuple(of.sums for of in measures)
    if callable(images):
        sums, bad, outputs = _streamed(apply, functions, targets, variables, images, mesh, keep_outputs)
    else:
        size = min(batch_size, jax.tree.leaves(images)[0].shape[0])
        mesh = parallel.for_batches(mesh, size)
        variables, images, labels = parallel.replicate((variables, images, labels), mesh)
        found = _pass(apply, functions, targets, variables, images, labels, size, mesh, keep_outputs)
        sums, bad, outputs = parallel.waited_for(found)
        outputs = np.asarray(outputs) if keep_outputs else None
    if finite and (count := int(bad)):
        raise NonFiniteOutputError(
            f"the outputs of {where} are not finite for {count} examples: it has diverged, or its BatchNorm statistics "
            "have; look at its weights, or evaluate another checkpoint"
        )
    return [of.read(of_sums) for of, of_sums in zip(measures, sums)], outputs


def _check_lengths(images: PyTree, labels: PyTree) -> None:
    num = jax.tree.leaves(images)[0].shape[0]
    if not num:
        raise ValueError("there are no images to evaluate on")
    for leaf in jax.tree.leaves(labels):
        if leaf.shape[:1] != (num,):
            raise ValueError(f"there are {num} images and labels of shape {leaf.shape}")


@partial(jax.jit, static_argnames=("apply", "functions", "targets", "batch_size", "mesh", "keep"))
def _pass(apply, functions, targets, variables, images, labels, batch_size, mesh, keep):
    num = jax.tree.leaves(images)[0].shape[0]
    indices, masks = map(jnp.asarray, batches.every_example(num, batch_size))

    def of_batch(batch):
        rows, mask = batch
        take = lambda leaf: parallel.constrained(jnp.take(leaf, rows, axis=0), mesh)
        return _of_batch(
            apply, functions, targets, variables, jax.tree.map(take, images), jax.tree.map(take, labels), mask, keep
        )

    sums, bad, outputs = lax.map(of_batch, (indices, masks))
    sums, bad = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), (sums, bad))
    if keep:
        outputs = outputs.reshape(-1, *outputs.shape[2:])[:num]
    return parallel.constrained((sums, bad, outputs), mesh, whole=True)


@partial(jax.jit, static_argnames=("apply", "functions", "targets", "keep", "mesh"))
def _one_batch(apply, functions, targets, variables, images, labels, mask, keep, mesh):
    found = _of_batch(apply, functions, targets, variables, images, labels, mask, keep)
    return parallel.constrained(found, mesh, whole=True)


def _of_batch(apply, functions, targets, variables, images, labels, mask, keep):
    outputs = apply(variables, images)
    wanted = targets(images, labels)
    finite = jnp.all(jnp.isfinite(outputs).reshape(outputs.shape[0], -1), axis=-1)
    return [of(outputs, wanted, mask) for of in functions], jnp.sum(~finite & mask), outputs if keep else ()


def _streamed(apply, functions, targets, variables, images, mesh, keep):
    total, kept = None, []
    for batch in images():
        if total is None:
            mesh = parallel.for_batches(mesh, len(batch[0]) * jax.process_count())
            variables = parallel.replicate(variables, mesh)
        shares = parallel.spread(tuple(batch), mesh)
        found = _one_batch(apply, functions, targets, variables, *shares, keep, mesh)
        sums, bad, outputs = parallel.waited_for(found)
        total = (sums, bad) if total is None else jax.tree.map(jnp.add, total, (sums, bad))
        if keep:
            kept.append(np.asarray(outputs)[np.asarray(parallel.gathered(shares[2], mesh))])
    return (*total, np.concatenate(kept) if keep else None)


def or_all(mesh: Mesh | None) -> Mesh:
    """The mesh, that of all devices where none is given."""
    return parallel.device_mesh() if mesh is None else mesh
