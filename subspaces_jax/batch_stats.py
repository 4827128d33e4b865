"""BatchNorm statistics of a point: the pass over data that refreshes them.

`apply_train(variables, images [B, ...], key) -> (outputs, batch_stats)` stands for a network in train mode on clean
inputs, see `evaluation`.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from subspaces_jax import parallel
from subspaces_jax.data import batches

PyTree = Any
ApplyTrain = Callable[[PyTree, jax.Array, jax.Array], tuple[Any, PyTree]]


def refresh_batch_stats(
    apply_train: ApplyTrain,
    variables: PyTree,
    images: Any,
    key: PRNGKeyArray,
    batch_size: int = 500,
    mesh: Mesh | None = None,
) -> PyTree:
    """BatchNorm statistics of the network `variables`: the means over one pass of each batch's mean and variance.

    Conventions: the cumulative mean, every batch counting the same (batches are of equal size; the last is filled up
    with examples from the beginning of the pass), and every call of a layer that is called several times; variances
    are the biased ones of each batch, as Flax stores them, so the variance of the batch means is not in them. The
    statistics that `variables` came with have no influence, nor has the layers' momentum.

    This is what happens to the statistics of every `nn.BatchNorm` that does not use its running ones in training. What
    else a module keeps in batch_stats (`nn.SpectralNorm` its singular vectors) goes on from the values in `variables`
    from batch to batch, as in training.

    Args:
        apply_train: train mode, (variables, images, key) -> (outputs, batch_stats), augmenting as in training if the
            statistics shall be those of training images; hashable, compiled once for each.
        variables: {"params": ..., "batch_stats": ...}.
        images: [N, ...], visited in a random order drawn from `key`; or a stream, as it comes, of whole batches.
        key: PRNG key.
        batch_size: B.
        mesh: each batch is split over its devices, and its statistics are those of the whole batch; None for all
            devices.

    Returns:
        The new batch_stats; {} where the network has none.

    Raises:
        ValueError: a batch of a stream is filled up.
    """
    variables = flax.core.unfreeze(variables)
    stats = variables.get("batch_stats", {})
    if not jax.tree.leaves(stats):
        return stats
    mesh = parallel.device_mesh() if mesh is None else mesh
    if not callable(images):
        mesh = parallel.for_batches(mesh, min(batch_size, jax.tree.leaves(images)[0].shape[0]))
        variables, images, key = parallel.replicate((variables, images, key), mesh)
        return parallel.waited_for(_refresh(apply_train, variables, images, key, batch_size, mesh))
    averaged: tuple[bool, ...] = ()  # of each leaf of the statistics
    number = 0
    for number, (batch, *rest) in enumerate(images(), start=1):
        if len(rest) > 1 and rest[1] is not None and not np.all(rest[1]):
            raise ValueError(f"batch {number} of the stream is filled up, which statistics would count: leave it out")
        if number == 1:
            mesh = parallel.for_batches(mesh, len(batch) * jax.process_count())
            variables, key = parallel.replicate((variables, key), mesh)
            stats = variables["batch_stats"]
        batch = parallel.spread(batch, mesh)
        if number == 1:
            averaged = _averaged_of_shapes(apply_train, *_shapes(variables, batch, key))
        stats = parallel.waited_for(_with_batch(apply_train, averaged, variables, stats, batch, key, number))
    return _divided(jax.tree.unflatten(jax.tree.structure(stats), averaged), stats, number)


@partial(jax.jit, static_argnames=("apply_train", "batch_size", "mesh"))
def _refresh(apply_train, variables, images, key, batch_size, mesh):
    num = jax.tree.leaves(images)[0].shape[0]
    order = jax.random.permutation(key, num)
    indices = order[batches.full_batches(num, batch_size)]
    take = lambda rows: parallel.constrained(jnp.take(images, rows, axis=0), mesh)
    averaged = _averaged(apply_train, variables, take(indices[0]), key)

    def add_batch(stats, batch):
        i, rows = batch
        found = of_batch(apply_train, variables, stats, take(rows), jax.random.fold_in(key, i))
        return _added(averaged, stats, found, i + 1), None

    stats, _ = lax.scan(add_batch, variables["batch_stats"], (jnp.arange(indices.shape[0]), indices))
    return parallel.constrained(_divided(averaged, stats, indices.shape[0]), mesh, whole=True)


@partial(jax.jit, static_argnames=("apply_train", "averaged"))
def _with_batch(apply_train, averaged, variables, stats, images, key, number):
    found = of_batch(apply_train, variables, stats, images, jax.random.fold_in(key, number))
    return _added(jax.tree.unflatten(jax.tree.structure(stats), averaged), stats, found, number)


def _shapes(*given):
    leaves, structure = jax.tree.flatten(given)
    return structure, tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)


@lru_cache(16)
def _averaged_of_shapes(apply_train, structure, shapes) -> tuple[bool, ...]:
    """`_averaged`, traced once for the same shapes; its leaves."""
    return tuple(jax.tree.leaves(_averaged(apply_train, *jax.tree.unflatten(structure, shapes))))


def of_batch(apply_train, variables, stats, images, key):
    """`stats` after one batch: of each BatchNorm that batch's own, without influence of the old ones."""
    with nn.intercept_methods(_BatchAlone()):
        return flax.core.unfreeze(apply_train({**variables, "batch_stats": stats}, images, key)[1])


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
        if not _uses_batch(args, keywords, context):
            return next_method(*args, **keywords)
        found.add(context.module.scope.path)
        with _changed(context.module, axis_name=None):
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

    Without momentum a BatchNorm stores just these; of a layer's n-th call, the mean over n calls. The batch is whole
    here, on however many devices it lies, so that no axis is to be averaged over.
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
            module.put_variable("batch_stats", name, jnp.zeros_like(value))  # 0 times NaN would be NaN
        with _changed(module, momentum=0.0, axis_name=None):
            outputs = next_method(*args, **keywords)
        for name, old in before.items():
            of_batch = module.get_variable("batch_stats", name)
            module.put_variable("batch_stats", name, of_batch if calls == 0 else old + (of_batch - old) / (calls + 1))
        return outputs


@contextmanager
def _changed(module: nn.Module, **attributes: Any):
    """A module with other attributes for the time of a call: Flax's modules are frozen, and a clone has no scope."""
    before = {name: getattr(module, name) for name in attributes}
    try:
        for name, value in attributes.items():
            object.__setattr__(module, name, value)
        yield
    finally:
        for name, value in before.items():
            object.__setattr__(module, name, value)
