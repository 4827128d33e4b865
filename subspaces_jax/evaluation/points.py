"""All points of a path, each with its own BatchNorm statistics."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh

from subspaces_jax import parallel
from subspaces_jax.batch_stats import ApplyTrain, refresh_batch_stats
from subspaces_jax.evaluation.pairs import feature_cosine, pair_scores
from subspaces_jax.evaluation.passes import (
    CLASSIFICATION,
    Apply,
    Images,
    Measure,
    PyTree,
    Targets,
    labels_only,
    measure,
    on_device,
    or_all,
)  # fmt: skip
from subspaces_jax.geometry import contract
from subspaces_jax.tasks import Task


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
    mesh = or_all(mesh)
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


def _mirror_images_together(num: int) -> list[int]:
    """0, T-1, 1, T-2, ...: so that the variables of no more than two points are held."""
    pairs = [(t, num - 1 - t) for t in range((num + 1) // 2)]
    return [t for pair in pairs for t in dict.fromkeys(pair)]
