"""What a step minimises: a function of variables, a batch and one key an example, which knows nothing of subspaces.

    objective(variables, batch, keys [b]) -> (loss [b], Aux)

A batch is any tree of arrays [b, ...]; data are the same tree with leaves [N, ...]. Augmentation, normalisation and
noise live in the objective. Keys are those of examples by their place in the whole batch, so that many devices draw
what one draws.
"""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from subspaces_jax import rngs
from subspaces_jax.tasks import Sums, Task

PyTree = Any


class Aux(NamedTuple):
    """Attributes:
    batch_stats: the new BatchNorm statistics.
    sums: of the task's scores over the batch.
    features: [b, ...] for the diversity of features, () where they are not asked for.
    """

    batch_stats: PyTree
    sums: Sums
    features: Any = ()


Objective = Callable[[PyTree, PyTree, jax.Array], tuple[jax.Array, Aux]]
Forward = Callable[[PyTree, jax.Array, jax.Array], tuple[jax.Array, PyTree, Any]]


def supervised(
    forward: Forward,
    task: Task,
    *,
    normalise: Callable[[jax.Array], jax.Array],
    floats: Callable[[jax.Array], jax.Array],
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    noise: float = 0.0,
) -> Objective:
    """The objective of batches {"images": [b, ...], "labels": [b, ...] or ()}.

    Args:
        forward: train mode, (variables, inputs [b, ...], keys [b]) -> (outputs, new batch_stats, features or ()).
        task: what outputs are scored against.
        normalise: images as the data set holds them -> inputs of the network.
        floats: images -> what the task may take for targets, floats, neither normalised nor noisy.
        augment: (keys [b], images) -> images; None changes nothing.
        noise: standard deviation of what is added to the normalised inputs.
    """

    def objective(variables, batch, keys):
        images = batch["images"]
        images = augment(keys, images) if augment is not None else images
        targets = task.targets(floats(images), batch["labels"])
        inputs = normalise(images)
        if noise:
            draw = lambda key: jax.random.normal(rngs.stream(key, "noise"), inputs.shape[1:], inputs.dtype)
            inputs += noise * jax.vmap(draw)(keys)
        outputs, batch_stats, features = forward(variables, inputs, keys)
        sums = task.scores(jax.lax.stop_gradient(outputs), targets, jnp.ones(keys.shape))
        return task.loss(outputs, targets), Aux(batch_stats, sums, features)

    return objective


def dropout_by_example(keys: jax.Array) -> Any:
    """A context in which every `nn.Dropout` draws the mask of example i from keys[i], its own path and the number of
    its call: the same on one device as on several.

    A Dropout that shares its mask along axes, or whose input has another first axis than the batch, draws as it does
    outside.

    Args:
        keys: [b] PRNG keys.
    """
    calls: dict[Any, int] = {}  # by scope; a trace of its own is another scope

    def intercept(next_method, args, keywords, context):
        module = context.module
        if not isinstance(module, nn.Dropout) or context.method_name != "__call__":
            return next_method(*args, **keywords)
        inputs, given = args[0], args[1] if len(args) > 1 else keywords.get("deterministic")
        deterministic = module.deterministic if given is None else given
        of_batch = inputs.ndim > 0 and inputs.shape[0] == keys.shape[0]
        if deterministic or not 0.0 < module.rate < 1.0 or module.broadcast_dims or not of_batch:
            return next_method(*args, **keywords)
        number = calls.get(module.scope, 0)
        calls[module.scope] = number + 1
        name = zlib.crc32(f"dropout {'/'.join(module.scope.path)} {number}".encode())
        keep = lambda key: jax.random.bernoulli(jax.random.fold_in(key, name), 1.0 - module.rate, inputs.shape[1:])
        return jnp.where(jax.vmap(keep)(keys), inputs / (1.0 - module.rate), jnp.zeros_like(inputs))

    return nn.intercept_methods(intercept)
