"""Stacks of networks, and the contraction that makes one network of a stack."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from jaxtyping import PRNGKeyArray

from subspaces_jax import trees

PyTree = Any


def stack(params: Sequence[PyTree]) -> PyTree:
    """K parameter trees of one architecture -> one tree whose leaves have shape [K, ...].

    Raises:
        ValueError: no trees, or trees that differ in names or shapes (the message lists them).
    """
    if not params:
        raise ValueError("expected at least one parameter tree, got none")
    for k, other in enumerate(params):
        if difference := trees.describe_mismatch(other, params[0]):
            raise ValueError(f"parameters {k} are of another architecture than parameters 0: {difference}")
    alike = [trees.alike(of, params[0]) for of in params]
    if _on_host(alike):
        return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *alike)
    return _stacked(alike)


def unstack(stacked: PyTree) -> list[PyTree]:
    """A stack with leaves [K, ...] -> K parameter trees; of NumPy arrays, which are not copied, NumPy arrays."""
    num = num_endpoints(stacked)
    on_device = lambda leaf: isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    of_one = _row if all(map(on_device, jax.tree.leaves(stacked))) else _row_on_host
    return [of_one(stacked, k) for k in range(num)]


# One program a tree: operations called one by one are compiled for every shape of a leaf, and of `stack` for every K.


@partial(jax.jit, inline=True)
def _stacked(params: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)


@jax.jit
def _row(stacked: PyTree, k: int | jax.Array) -> PyTree:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, k, keepdims=False), stacked)


def _row_on_host(stacked: PyTree, k: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[k], stacked)


def _on_host(tree: PyTree) -> bool:
    return all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(tree))


def num_endpoints(stacked: PyTree) -> int:
    """K, the length of the leading axis that all leaves of a stack share."""
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(stacked)}
    (length,) = lengths if len(lengths) == 1 else (None,)
    if length is None:
        raise ValueError(f"expected a stack whose leaves share their leading axis, got leading axes {lengths}")
    return length


@partial(jax.jit, inline=True)
def contract(stacked: PyTree, coordinates: PyTree) -> PyTree:
    """The point of a stack with the given coordinates: sum_k coordinates[k] * stack[k], at full float32 precision.

    One-hot coordinates give the endpoint exactly (where all endpoints are finite: 0 times infinity is not a number; and
    -0 becomes 0), and the gradient for endpoint k is coordinates[k] times the gradient at the point.

    Args:
        stacked: tree with leaves [K, ...].
        coordinates: [K], or a prefix tree of `stacked` with one [K] a module (see `layerwise`).

    Returns:
        A parameter tree with leaves [...].

    Raises:
        ValueError: another number of coordinates than of endpoints.
    """

    def contracted(weights, leaf):
        if jnp.shape(weights) != jnp.shape(leaf)[:1]:
            raise ValueError(f"expected {jnp.shape(leaf)[:1]} coordinates of a stack, got {jnp.shape(weights)}")
        return jnp.einsum("k,k...->...", weights, leaf, precision="highest")

    point = lambda weights, subtree: jax.tree.map(lambda leaf: contracted(weights, leaf), subtree)
    return jax.tree.map(point, coordinates, stacked)


def init_stack(module: Any, key: PRNGKeyArray, num_endpoints: int, *inputs: Any, **keywords: Any) -> PyTree:
    """The variables of K independent initialisations of one Flax module.

    Args:
        module: a Flax module; it knows nothing of stacks.
        key: a PRNG key.
        num_endpoints: K.
        *inputs, **keywords: what `module.init` takes after the key.

    Returns:
        The module's variables, out of the boxes of `nn.with_partitioning`, "params" stacked, leaves [K, ...]; every
        other collection ("batch_stats") is that of the first initialisation, not stacked, because it belongs to a point
        and not to an endpoint.
    """
    if num_endpoints < 1:
        raise ValueError(f"a stack has at least 1 endpoint, got num_endpoints = {num_endpoints}")
    keys = jax.random.split(key, num_endpoints)
    stacked = jax.vmap(lambda k: meta.unbox(module.init(k, *inputs, **keywords)))(keys)
    first = {name: jax.tree.map(lambda leaf: leaf[0], tree) for name, tree in stacked.items() if name != "params"}
    return first | {"params": stacked["params"]}
