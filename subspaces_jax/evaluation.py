"""Evaluation of points: predictions, scores, and measures at all points of a path.

Two functions stand for a network here, both of raw images as the data set holds them:

    apply(variables, images [B, ...]) -> outputs [B, ...]                  eval mode
    apply_train(variables, images [B, ...], key) -> (outputs, batch_stats) train mode, for `batch_stats`

Everything jitted compiles once for all points, and data are arguments, never constants of the program. Every pass over
data splits each batch over the devices of a mesh, with the numbers of one device. What does not fit on the device
streams: in the place of images [N, ...] every function here takes a function without arguments that begins one pass, an
iterable of batches (images [B, ...], labels [B], mask [B]) as of `data.stream`; of several processes each gives its own
share of every batch.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Shaped

from subspaces_jax import metrics, parallel, tasks
from subspaces_jax.arrays import Array
from subspaces_jax.batch_stats import ApplyTrain, refresh_batch_stats
from subspaces_jax.data import batches
from subspaces_jax.errors import NonFiniteOutputError
from subspaces_jax.geometry import contract
from subspaces_jax.tasks import Task

__all__ = [
    "Measure",
    "along",
    "feature_cosine",
    "measure",
    "on_device",
    "pair_scores",
    "predict",
    "refresh_batch_stats",
    "score",
]

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
    return images if callable(images) else parallel.replicate(images, _mesh(mesh))


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
    mesh = _mesh(mesh)
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
        sums, bad, outputs = parallel.settled(found)
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
        sums, bad, outputs = parallel.settled(found)
        total = (sums, bad) if total is None else jax.tree.map(jnp.add, total, (sums, bad))
        if keep:
            kept.append(np.asarray(outputs)[np.asarray(parallel.gathered(shares[2], mesh))])
    return (*total, np.concatenate(kept) if keep else None)


def along(
    tree: PyTree,
    points: PyTree,
    params_at: Callable[[PyTree, PyTree], PyTree] = contract,
    measures: Sequence[Measure] = (),
    *,
    apply: Apply,
    images: Images,
    labels: PyTree = (),
    task: Task = CLASSIFICATION,
    targets: Targets = labels_only,
    of_params: Mapping[str, Callable[[PyTree], Any]] = {},
    batch_stats: PyTree | None = None,
    apply_train: ApplyTrain | None = None,
    train_images: Images | None = None,
    key: jax.Array | None = None,
    batch_size: int = 500,
    mesh: Mesh | None = None,
    with_pairs: bool = True,
    keep_outputs: bool = True,
    finite: bool = True,
    features: Apply | None = None,
    visit: Callable[[int, PyTree], Any] = lambda t, variables: None,
    progress: Callable[[Sequence[int]], Any] = iter,
) -> dict[str, np.ndarray]:
    """Measures at every point of a path, and of each point with its mirror image as a two-point ensemble.

    Statistics are refreshed at each point where `apply_train` and `train_images` are given. A point's measures share
    one forward pass; outputs are kept on the host, never those of all points on a device. One compilation serves all
    points.

    Args:
        tree: leaves [K, ...]; whatever `params_at` takes.
        points: [T, K] coordinates, or a tree whose leaves have a leading axis T.
        params_at: (tree, point) -> params, the whole interface of a path; `contract` unless it is more than
            coordinates. Hashable: what is made anew for each call compiles anew.
        measures: of outputs, beside the scores of `task`.
        apply, apply_train: see the top of this file.
        images, labels: [N, ...] and [N, ...] or (), each example counted once.
        task, targets: as in `score`.
        of_params: measures of parameters, {name: params -> scalar, array or tree of them}, jitted.
        batch_stats: statistics of the network's form; {} or None where it has none.
        train_images: [N', ...] for the refresh; the same draws at every point.
        key: PRNG key of the refresh.
        batch_size, mesh: of all passes, see `predict`.
        with_pairs: whether to score the two-point ensembles too.
        keep_outputs: whether outputs are wanted.
        finite: whether outputs that are not finite end it.
        features: (variables, images) -> [B, ...]; adds "pair_feature_cosine" and "pair_feature_cosine_squared".
        visit: called with (t, variables) of each point, for whatever else they are wanted for.
        progress: wraps the range over points, for a progress bar.

    Returns:
        {name: [T, ...]}: the scores of the task and what the measures read at each point; with_pairs, "pair_" and the
        names of the task's scores for the ensemble of point t and point T - 1 - t, and of `Task.compare`; and "logits"
        [T, N, C] float32, or "outputs" [T, N, ...] of other tasks.

    Raises:
        NonFiniteOutputError: names the point.
    """
    mesh = _mesh(mesh)
    tree, points, batch_stats, key = parallel.replicate((tree, points, batch_stats or {}, key), mesh)
    images, labels, train_images = (on_device(data, mesh) for data in (images, labels, train_images))
    measures, num = (Measure(task.scores, task.read), *measures), jax.tree.leaves(points)[0].shape[0]
    rows: list[dict[str, Any]] = [{} for _ in range(num)]
    outputs: list[Any] = [None] * num
    mirrored = None
    for t in progress(_mirror_images_together(num)):
        variables = _variables_at(params_at, tree, points, t, batch_stats)
        if apply_train is not None and train_images is not None:
            stats = refresh_batch_stats(apply_train, variables, train_images, key, batch_size, mesh)
            variables = variables | {"batch_stats": stats}
        visit(t, variables)
        found, outputs[t] = measure(
            apply, variables, images, labels, measures, targets=targets, batch_size=batch_size, mesh=mesh,
            keep_outputs=keep_outputs or with_pairs, finite=finite, where=f"point {t} of {num}",
        )  # fmt: skip
        rows[t] = _fetched(found + [{name: _of_params(of, variables["params"])} for name, of in of_params.items()])
        other = num - 1 - t
        if with_pairs and rows[other]:
            pair = pair_scores(task, outputs[t], outputs[other], labels, images, targets)
            if features is not None:
                cosines = (1.0, 1.0)
                if t != other:
                    cosines = feature_cosine(features, mirrored, variables, images, batch_size, mesh)
                pair |= dict(zip(("pair_feature_cosine", "pair_feature_cosine_squared"), cosines))
            rows[t] |= pair
            rows[other] |= pair
            if not keep_outputs:
                outputs[t] = outputs[other] = None
        mirrored = variables
    stacked = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}
    if keep_outputs:
        stacked["logits" if task.name == "classification" else "outputs"] = np.stack(outputs).astype(np.float32)
    return stacked


@partial(jax.jit, static_argnames=("params_at",))
def _variables_at(params_at, tree, points, t, batch_stats):
    point = jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, t, keepdims=False), points)
    return {"params": params_at(tree, point), "batch_stats": batch_stats}


@partial(jax.jit, static_argnums=0)
def _of_params(of, params):
    return of(params)


def _fetched(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Measures by name, those of trees by name/leaf, on the host."""
    row: dict[str, Any] = {}
    for one in found:
        for name, value in jax.device_get(dict(one)).items():
            is_tree = isinstance(value, Mapping)
            row |= {f"{name}/{inner}": leaf for inner, leaf in value.items()} if is_tree else {name: value}
    return row


def pair_scores(
    task: Task, outputs: Shaped[Array, "*shape"], others: Shaped[Array, "*shape"], labels: PyTree = (),
    images: Any = None, targets: Targets = labels_only,
) -> dict[str, Any]:  # fmt: skip
    """Scores of the ensemble of two networks, and how far they are from each other, from their outputs.

    Args:
        task, labels, targets: as in `score`.
        outputs, others: [N, ...] of the two.
        images: [N, ...] where targets need them; a stream counts for None.

    Returns:
        "pair_" and the names of the task's scores, and of `Task.compare`.
    """
    images = None if callable(images) else images
    sums, apart = _pair_sums(task.scores, task.mean, task.compare, targets, outputs, others, images, labels)
    scores = {f"pair_{name}": value for name, value in task.read(sums).items()}
    return jax.device_get(scores | {f"pair_{name}": value for name, value in tasks.read(apart).items()})


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _pair_sums(scores, mean, compare, targets, outputs, others, images, labels):
    wanted, mask = targets(images, labels), jnp.ones(outputs.shape[0])
    together = mean(jnp.stack([outputs, others]).astype(jnp.float32))
    return scores(together, wanted, mask), compare(outputs, others, wanted, mask)


def feature_cosine(
    features: Apply,
    variables_a: PyTree,
    variables_b: PyTree,
    images: Images,
    batch_size: int = 500,
    mesh: Mesh | None = None,
) -> tuple[float, float]:
    """Means over examples of the cosine of two networks' features, and of its square.

    Args:
        features: (variables, images [B, ...]) -> [B, ...]; hashable, compiled once for each.
        variables_a, variables_b: of the two networks.
        images: [N, ...], each counted once, or a stream.
        batch_size, mesh: as in `predict`.

    Returns:
        Two scalars, in [-1, 1] and [0, 1]; features that are all zero have cosine 0 with everything.
    """
    both = {"a": variables_a, "b": variables_b}
    values = predict(_CosinesOf(features), both, images, batch_size, mesh)  # type: ignore[arg-type]  # a NamedTuple can be called, too
    return float(np.mean(values)), float(np.mean(np.square(values)))


class _CosinesOf(NamedTuple):
    """(variables of two networks, images) -> cosines of their features [B]; equal where the features are."""

    features: Apply

    def __call__(self, both: PyTree, images: Shaped[jax.Array, "b ..."]) -> Float[jax.Array, " b"]:
        a, b = (
            self.features(both[name], images).reshape(images.shape[0], 1, -1).astype(jnp.float32) for name in ("a", "b")
        )
        return metrics.feature_cosine(a, b)


def _mirror_images_together(num: int) -> list[int]:
    """0, T-1, 1, T-2, ...: so that the variables of no more than two points are held."""
    pairs = [(t, num - 1 - t) for t in range((num + 1) // 2)]
    return [t for pair in pairs for t in dict.fromkeys(pair)]


def _mesh(mesh: Mesh | None) -> Mesh:
    return parallel.device_mesh() if mesh is None else mesh
