"""Evaluation of points: predictions, scores, BatchNorm statistics of a point, and all points of a path.

Two functions stand for a network here, both of raw images as the data set holds them:

    apply(variables, images [B, ...]) -> outputs [B, C]                    eval mode
    apply_train(variables, images [B, ...], key) -> (outputs, batch_stats) train mode

Everything jitted compiles once for all points, and data are arguments, never constants of the program. What does not
fit on the device streams: in the place of images [N, ...] every function here takes a function without arguments that
begins one pass, an iterable of batches (images [B, ...], labels [B], mask [B]) as of `data.stream`.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from subspaces_jax import metrics
from subspaces_jax.data import batches
from subspaces_jax.geometry import contract

PyTree = Any
Images = jax.Array | Callable[[], Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]]
Apply = Callable[[PyTree, jax.Array], jax.Array]
ApplyTrain = Callable[[PyTree, jax.Array, jax.Array], tuple[jax.Array, PyTree]]


def on_device(images: Images) -> Images:
    """Images moved to the device, where all evaluation of them then is; a stream stays as it is."""
    return images if callable(images) else jax.device_put(images)


def predict(apply: Apply, variables: PyTree, images: Images, batch_size: int = 500) -> jax.Array:
    """Outputs of one network for every example, in order.

    Args:
        apply: eval mode, (variables, images [B, ...]) -> [B, ...]; hashable, compiled once for each.
        variables: {"params": ..., "batch_stats": ...}.
        images: [N, ...], or a stream.
        batch_size: B; the last batch is padded, and what it pads is cut off. Streamed images have their own.

    Returns:
        [N, ...].
    """
    if callable(images):
        return np.concatenate([np.asarray(_outputs(apply, variables, batch))[mask] for batch, _, mask in images()])
    return _predict(apply, variables, images, batch_size)


@partial(jax.jit, static_argnames=("apply",))
def _outputs(apply, variables, images):
    return apply(variables, images)


@partial(jax.jit, static_argnames=("apply", "batch_size"))
def _predict(apply, variables, images, batch_size):
    indices, _ = batches.every_example(images.shape[0], min(batch_size, images.shape[0]))
    outputs = lax.map(lambda rows: apply(variables, jnp.take(images, rows, axis=0)), jnp.asarray(indices))
    return outputs.reshape(-1, *outputs.shape[2:])[: images.shape[0]]


def score(
    apply: Apply, variables: PyTree, images: Images, labels: jax.Array, batch_size: int = 500
) -> dict[str, float]:
    """Scores of one network's softmax over every example once: accuracy, nll, brier, ece_15, ece_20.

    Args:
        apply, variables, images, batch_size: as in `predict`.
        labels: [N] integer classes.

    Returns:
        Fractions, nats for "nll".
    """
    logits = predict(apply, variables, images, batch_size)
    return {name: float(value) for name, value in _summary_of_logits(logits, labels).items()}


def refresh_batch_stats(
    apply_train: ApplyTrain, variables: PyTree, images: Images, key: jax.Array, batch_size: int = 500
) -> PyTree:
    """BatchNorm statistics of the network `variables`: the means over one pass of each batch's mean and variance.

    Conventions: the cumulative mean, every batch counting the same (batches are of equal size; the last is filled up
    with examples from the beginning of the pass), and every call of a layer that is called several times; variances
    are the biased ones of each batch, as Flax stores them, so the variance of the batch means is not in them. The
    statistics that `variables` came with have no influence.

    This is what happens to the statistics of every `nn.BatchNorm` that does not use its running ones in training. What
    else a module keeps in batch_stats (`nn.SpectralNorm` its singular vectors) goes on from the values in `variables`
    from batch to batch, as in training.

    Args:
        apply_train: train mode, (variables, images, key) -> (outputs, batch_stats), augmenting as in training if the
            statistics shall be those of training images; hashable, compiled once for each.
        variables: {"params": ..., "batch_stats": ...}.
        images: [N, ...], visited in a random order drawn from `key`; or a stream, as it comes.
        key: PRNG key.
        batch_size: B.

    Returns:
        The new batch_stats; {} where the network has none.
    """
    stats = variables.get("batch_stats", {})
    if not jax.tree.leaves(stats):
        return stats
    if not callable(images):
        return _refresh(apply_train, variables, images, key, batch_size)
    averaged, number = None, 0
    for number, (batch, _, _) in enumerate(images(), start=1):
        if averaged is None:
            averaged = _averaged(apply_train, variables, batch, key)
        batch_key = jax.random.fold_in(key, number)
        stats = _added(averaged, stats, _stats_of_batch(apply_train, variables, stats, batch, batch_key), number)
    return _divided(averaged, stats, number)


@partial(jax.jit, static_argnames=("apply_train", "batch_size"))
def _refresh(apply_train, variables, images, key, batch_size):
    order = jax.random.permutation(key, images.shape[0])
    indices = order[batches.full_batches(images.shape[0], batch_size)]
    take = lambda rows: jnp.take(images, rows, axis=0)
    averaged = _averaged(apply_train, variables, take(indices[0]), key)

    def add_batch(stats, batch):
        i, rows = batch
        found = _stats_of_batch(apply_train, variables, stats, take(rows), jax.random.fold_in(key, i))
        return _added(averaged, stats, found, i + 1), None

    stats, _ = lax.scan(add_batch, variables["batch_stats"], (jnp.arange(indices.shape[0]), indices))
    return _divided(averaged, stats, indices.shape[0])


@partial(jax.jit, static_argnames=("apply_train",))
def _stats_of_batch(apply_train, variables, stats, images, key):
    """`stats` after one batch: of each BatchNorm that batch's own, without influence of the old ones."""
    with nn.intercept_methods(_BatchAlone()):
        return apply_train({**variables, "batch_stats": stats}, images, key)[1]


def _added(averaged, stats, found, number):
    """The sum over batches where it is to be averaged, which the first batch begins; else what was found last."""
    add = lambda is_averaged, old, new: jnp.where(number == 1, new, old + new) if is_averaged else new
    return jax.tree.map(add, averaged, stats, found)


def _divided(averaged, stats, number):
    return jax.tree.map(lambda is_averaged, leaf: leaf / number if is_averaged else leaf, averaged, stats)


def _averaged(apply_train, variables, images, key) -> PyTree:
    """Which leaves of batch_stats are a BatchNorm's, found by tracing: names alone do not tell."""
    found = set()

    def note(next_method, args, keywords, context):
        if _uses_batch(args, keywords, context):
            found.add(context.module.scope.path)
        return next_method(*args, **keywords)

    with nn.intercept_methods(note):
        jax.eval_shape(lambda *of: apply_train(*of), variables, images, key)  # a new function: traced every time
    is_averaged = lambda path, _: tuple(entry.key for entry in path[:-1]) in found
    return jax.tree_util.tree_map_with_path(is_averaged, variables["batch_stats"])


def _uses_batch(args: Sequence, keywords: dict, context: nn.module.InterceptorContext) -> bool:
    """Whether this is a call of a BatchNorm that normalises with its batch's statistics and stores them."""
    if not isinstance(context.module, nn.BatchNorm) or context.method_name != "__call__":
        return False
    given = keywords.get("use_running_average", args[1] if len(args) > 1 else None)
    return not (context.module.use_running_average if given is None else given)


class _BatchAlone:
    """An interceptor, for one trace, that makes each BatchNorm store its batch's own statistics.

    From 0 a BatchNorm stores (1 - decay) times them, so divide; of a layer's n-th call, the mean over n calls.
    """

    def __init__(self):
        self._calls: dict[Any, int] = {}  # by scope; that of a trace inside a lifted transformation is another

    def __call__(self, next_method, args, keywords, context):
        module = context.module
        if not _uses_batch(args, keywords, context) or not module.has_variable("batch_stats", "mean"):
            return next_method(*args, **keywords)
        calls = self._calls.get(module.scope, 0)
        self._calls[module.scope] = calls + 1
        before = dict(module.variables["batch_stats"])
        for name, value in before.items():
            module.put_variable("batch_stats", name, jnp.zeros_like(value))
        outputs = next_method(*args, **keywords)
        for name, old in before.items():
            of_batch = module.get_variable("batch_stats", name) / (1.0 - module.momentum)
            mean = of_batch if calls == 0 else old + (of_batch - old) / (calls + 1)
            module.put_variable("batch_stats", name, mean)
        return outputs


def along(
    stack: PyTree,
    points: PyTree,
    *,
    apply: Apply,
    images: Images,
    labels: jax.Array,
    batch_stats: PyTree | None = None,
    apply_train: ApplyTrain | None = None,
    train_images: Images | None = None,
    key: jax.Array | None = None,
    batch_size: int = 500,
    params_at: Callable[[PyTree, PyTree], PyTree] = contract,
    variables_at: Callable[..., PyTree] | None = None,
    with_pairs: bool = True,
    features: Apply | None = None,
    visit: Callable[[int, PyTree], Any] = lambda t, variables: None,
    progress: Callable[[Sequence[int]], Any] = iter,
) -> dict[str, np.ndarray]:
    """Every point of a path scored, and each with its mirror image as a two-point ensemble.

    Statistics are refreshed at each point where `apply_train` and `train_images` are given. The logits of a point are
    computed once; scores and ensembles are taken from them afterwards. One compilation serves all points.

    Args:
        stack: leaves [K, ...]; whatever `params_at` takes.
        points: [T, K] coordinates, or a tree whose leaves have a leading axis T.
        apply, apply_train: see the top of this file.
        images, labels: [N, ...] and [N], scored once each.
        batch_stats: statistics of the network's form; {} or None where it has none.
        train_images: [N', ...] for the refresh; the same draws at every point.
        key: PRNG key of the refresh.
        batch_size: for both passes.
        params_at: (stack, point) -> params; `contract` unless the path is more than coordinates.
        variables_at: from `point_variables`, for callers that score several stacks and compile once for all of them.
        with_pairs: whether to score the two-point ensembles too.
        features: (variables, images) -> [B, ...]; adds "pair_feature_cosine" and "pair_feature_cosine_squared".
        visit: called with (t, variables) of each point, for whatever else they are wanted for.
        progress: wraps the range over points, for a progress bar.

    Returns:
        {name: [T]}: the names of `metrics.summary` for the point itself, those of `pair_scores` for point t with point
        T - 1 - t (with_pairs); and "logits" [T, N, C] float32.
    """
    refresh = apply_train if train_images is not None else None
    variables_at = variables_at or point_variables(params_at, refresh, batch_size)
    num = jax.tree.leaves(points)[0].shape[0]
    logits, cosines, mirrored = [None] * num, np.ones((2, num)), None
    for t in progress(_mirror_images_together(num)):
        point = jax.tree.map(lambda leaf: leaf[t], points)
        variables = variables_at(stack, point, batch_stats or {}, train_images, key)
        visit(t, variables)
        logits[t] = np.asarray(predict(apply, variables, images, batch_size), np.float32)
        if with_pairs and features is not None:
            if t >= (num + 1) // 2:
                values = feature_cosine(features, mirrored, variables, images, batch_size)
                cosines[:, [t, num - 1 - t]] = np.array(values)[:, None]
            mirrored = variables
    stacked = np.stack(logits)
    scores = _summary_of_logits(stacked, labels)
    if with_pairs:
        scores |= pair_scores(stacked, labels)
        if features is not None:
            scores |= {"pair_feature_cosine": cosines[0], "pair_feature_cosine_squared": cosines[1]}
    return {name: np.asarray(value) for name, value in scores.items()} | {"logits": stacked}


def feature_cosine(
    features: Apply, variables_a: PyTree, variables_b: PyTree, images: Images, batch_size: int = 500
) -> tuple[float, float]:
    """Means over examples of the cosine of two networks' features, and of its square.

    Args:
        features: (variables, images [B, ...]) -> [B, ...]; hashable, compiled once for each.
        variables_a, variables_b: of the two networks.
        images: [N, ...], each counted once.
        batch_size: B.

    Returns:
        Two scalars, in [-1, 1] and [0, 1]; features that are all zero have cosine 0 with everything.
    """
    if callable(images):
        values = [_cosines(features, variables_a, variables_b, batch)[mask] for batch, _, mask in images()]
        values = np.concatenate(values)
    else:
        values = _all_cosines(features, variables_a, variables_b, images, batch_size)
    return float(np.mean(values)), float(np.mean(np.square(values)))


@partial(jax.jit, static_argnames=("features",))
def _cosines(features, variables_a, variables_b, images):
    """[B]."""
    a, b = (
        features(variables, images).reshape(images.shape[0], 1, -1).astype(jnp.float32)
        for variables in (variables_a, variables_b)
    )
    return metrics.feature_cosine(a, b)


@partial(jax.jit, static_argnames=("features", "batch_size"))
def _all_cosines(features, variables_a, variables_b, images, batch_size):
    """[N]."""
    indices, _ = batches.every_example(images.shape[0], min(batch_size, images.shape[0]))
    of = lambda rows: _cosines(features, variables_a, variables_b, jnp.take(images, rows, axis=0))
    return lax.map(of, jnp.asarray(indices)).ravel()[: images.shape[0]]


def _mirror_images_together(num: int) -> list[int]:
    """0, T-1, 1, T-2, ...: so that the variables of no more than two points are held."""
    pairs = [(t, num - 1 - t) for t in range((num + 1) // 2)]
    return [t for pair in pairs for t in dict.fromkeys(pair)]


@jax.jit
def pair_scores(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Two-point ensembles of each point t with its mirror image T - 1 - t, and how far the two are from each other.

    Args:
        logits: [T, N, C].
        labels: [N].

    Returns:
        {name: [T]}: "pair_" and a name of `metrics.summary` for the mean of the two probabilities,
        "pair_total_variation" and "pair_disagreement" between the two, and "pair_logit_mean_accuracy" for the mean of
        the two logits.
    """
    probs, mirrored = jax.nn.softmax(logits), jax.nn.softmax(logits[::-1])
    scores = {f"pair_{name}": value for name, value in metrics.summary(0.5 * (probs + mirrored), labels).items()}
    return scores | {
        "pair_total_variation": metrics.total_variation(probs, mirrored),
        "pair_disagreement": metrics.disagreement(probs, mirrored),
        "pair_logit_mean_accuracy": metrics.accuracy(0.5 * (logits + logits[::-1]), labels),
    }


@jax.jit
def _summary_of_logits(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    return metrics.summary(jax.nn.softmax(logits.astype(jnp.float32)), labels)


def point_variables(
    params_at: Callable[[PyTree, PyTree], PyTree], apply_train: ApplyTrain | None, batch_size: int
) -> Callable[..., PyTree]:
    """(stack, point, batch_stats, train_images, key) -> variables of the point, statistics refreshed, compiled once.

    Without `apply_train`, or where there are no statistics, they stay as they are.
    """

    @jax.jit
    def contracted(stack, point, batch_stats):
        return {"params": params_at(stack, point), "batch_stats": batch_stats}

    @jax.jit
    def on_device(stack, point, batch_stats, train_images, key):
        return refreshed(contracted(stack, point, batch_stats), train_images, key)

    def refreshed(variables, train_images, key):
        return variables | {"batch_stats": refresh_batch_stats(apply_train, variables, train_images, key, batch_size)}

    def variables_at(stack, point, batch_stats, train_images, key):
        if apply_train is None or not jax.tree.leaves(batch_stats):
            return contracted(stack, point, batch_stats)
        if callable(train_images):
            return refreshed(contracted(stack, point, batch_stats), train_images, key)
        return on_device(stack, point, batch_stats, train_images, key)

    return variables_at
