"""Directions in weight space that a plane may take: random ones at the scale of the weights, and principal ones."""

from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64, PRNGKeyArray

from subspaces_jax import rngs, trees
from subspaces_jax.arrays import Array
from subspaces_jax.geometry.contraction import num_endpoints

PyTree = Any
NORMALISATIONS = ("filter", "layer", "none")


def random_directions(
    params: PyTree,
    key: PRNGKeyArray,
    num: int = 2,
    normalise: str = "filter",
    ignore_one_dimensional: bool = True,
    *,
    orthogonal: bool = False,
    fixed: Collection[str] = (),
    layer_stacks: Collection[str] = (),
) -> PyTree:
    """Independent Gaussian directions, each rescaled to the norms of the weights of one network.

    A filter is a slice along the last axis of a kernel in Flax's layout (HWIO, [in, out]): the weights into one unit. A
    filter of zeros has a direction of zeros. Of attention's queries, keys and values, [in, heads, units], a slice holds
    one unit of every head.

    The figures of the paper leave out biases and parameters of normalisations, which its code does with the option
    "biasbn" alone. Without it, the code copies these weights into every direction in the place of random numbers, so
    that the directions are not independent, and a step of -1 along one removes all biases; here they are random, one
    filter a leaf. The code counts filters by the first axis, which is that of units in PyTorch's layout only.

    Args:
        params: one network.
        key: a PRNG key; each leaf has a stream of its own, by name.
        num: how many.
        normalise: "filter": each filter has the L2 norm of the network's; "layer": each leaf; "none": standard normal.
        ignore_one_dimensional: whether directions are zero in leaves of at most one axis and in those named "bias" or
            "scale".
        orthogonal: whether each filter, or each layer where these are not normalised by filters, is made orthogonal to
            that of the directions before (Gram-Schmidt), and so are the directions to each other. Of more directions
            than a filter has weights, the last are zero there.
        fixed: names of leaves in which directions are zero, those that are not trained for example.
        layer_stacks: names of leaves [L, ..., in, out] that are the kernels of L layers: each is normalised by itself.

    Returns:
        A stack, leaves [num, ...].

    Raises:
        ValueError: an unknown `normalise`, `num` below 1, or no leaf that a direction may move.

    Reference: Li et al., Visualizing the Loss Landscape of Neural Nets, 2018, arXiv:1712.09913, section 4.
    """
    if normalise not in NORMALISATIONS:
        raise ValueError(f"normalise is one of {', '.join(NORMALISATIONS)}, got {normalise!r}")
    if num < 1:
        raise ValueError(f"expected at least 1 direction, got num = {num}")
    named = trees.leaf_names(params)
    zero = {name for name, leaf in named.items() if ignore_one_dimensional and _is_one_dimensional(name, leaf)}
    zero |= set(fixed)
    if zero.issuperset(named):
        found = ", ".join(named) or "none"
        raise ValueError(f"no leaf has two axes and moves, so that all directions are zero; the leaves are {found}")
    given = (named, key, num, normalise, orthogonal, frozenset(zero), frozenset(layer_stacks))
    within = any(isinstance(leaf, jax.core.Tracer) for leaf in (*named.values(), key))  # a program with its own options
    leaves = (_drawn if within else _compiled(jax.default_backend()))(*given)
    return jax.tree.unflatten(jax.tree.structure(params), [leaves[name] for name in named])


class Principal(NamedTuple):
    """What `principal_directions` finds.

    Attributes:
        directions: a stack of orthogonal directions of unit L2 norm, leaves [num, ...], those that explain most first.
        explained: [num], the fraction of the sum of squared distances from the origin, in [0, 1].
        coordinates: [M, num] of the networks along the directions, L2 distances from the origin.
    """

    directions: PyTree
    explained: np.ndarray
    coordinates: np.ndarray


def principal_directions(stacked: PyTree, num: int = 2, about: str = "last") -> Principal:
    """The directions along which M networks, those of a training run for example, lie furthest from an origin.

    The right singular vectors of the differences w_m - origin, [M, D]; found from their Gram matrix [M, M], in float64
    on the host, so that D may be large. The sign of a direction makes its largest coordinate positive.

    Args:
        stacked: leaves [M, ...].
        num: of directions, at most the number of independent differences.
        about: the origin: "last", the last network, as in the paper; or "mean", that of all, which is the usual
            principal component analysis and that of the paper's code (its library subtracts the mean again).

    Raises:
        ValueError: another `about`, or networks that span fewer than `num` directions.

    Reference: Li et al., Visualizing the Loss Landscape of Neural Nets, 2018, arXiv:1712.09913, section 7.2.
    """
    if about not in ("last", "mean"):
        raise ValueError(f"about is 'last' or 'mean', got {about!r}")
    num_networks = num_endpoints(stacked)
    gram = np.zeros((num_networks, num_networks))
    for leaf in jax.tree.leaves(stacked):
        rows = _about(leaf, about)
        gram += rows @ rows.T
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1], vectors[:, ::-1]
    smallest = num_networks * np.finfo(np.float64).eps * values[0]  # below it are rounding errors of the Gram matrix
    rank = int(np.sum(values > smallest))
    if not 1 <= num <= rank:
        raise ValueError(f"{num_networks} networks span {rank} directions about their {about}, got num = {num}")
    lengths, vectors = np.sqrt(values[:num]), vectors[:, :num]
    vectors = vectors * np.sign(vectors[np.argmax(np.abs(vectors), axis=0), np.arange(num)])

    def direction(leaf):
        return jnp.asarray(((vectors / lengths).T @ _about(leaf, about)).reshape(num, *leaf.shape[1:]), leaf.dtype)

    total = np.sum(values[values > smallest])
    return Principal(jax.tree.map(direction, stacked), values[:num] / total, vectors * lengths)


@lru_cache
def _compiled(platform: str) -> Callable[..., dict[str, jax.Array]]:
    """LLVM takes a minute to optimise the random numbers of a ResNet-8 on a CPU, and seconds not to."""
    options = {"xla_backend_optimization_level": 0} if platform == "cpu" else None
    return jax.jit(_drawn, static_argnums=(2, 3, 4, 5, 6), compiler_options=options)


def _drawn(named, key, num, normalise, orthogonal, zero, layer_stacks):
    def direction(name, leaf):
        if name in zero:
            return jnp.zeros((num, *leaf.shape), leaf.dtype)
        draws = jax.random.normal(rngs.stream(key, name), (num, *leaf.shape), jnp.float32)
        first = 1 + (name in layer_stacks)
        axes = tuple(range(first, draws.ndim - (normalise == "filter" and leaf.ndim > 1)))
        norm = lambda of: jnp.linalg.vector_norm(of, axis=axes, keepdims=True)
        if orthogonal:
            draws = _orthogonal(draws, axes)
        if normalise != "none":
            weights = norm(leaf[None].astype(jnp.float32))
            draws = draws * (weights / jnp.maximum(norm(draws), jnp.finfo(jnp.float32).tiny))
        return draws.astype(leaf.dtype)

    return {name: direction(name, leaf) for name, leaf in named.items()}


def _orthogonal(draws, axes):
    """Each of draws [num, ...] without its components along those before it, over `axes`; what rounding leaves is 0."""
    inner = lambda a, b: jnp.sum(a * b, axis=axes, keepdims=True)
    found = [draws[:1]]
    for one in jnp.split(draws[1:], len(draws) - 1) if len(draws) > 1 else ():
        rest = one
        for _ in range(2):  # once is not enough in float32 where directions nearly coincide
            for before in found:
                squared = inner(before, before)
                rest = (
                    rest - jnp.where(squared > 0, inner(rest, before) / jnp.where(squared > 0, squared, 1), 0) * before
                )
        vanished = inner(rest, rest) <= 1e-8 * inner(one, one)
        found.append(jnp.where(vanished, 0, rest))
    return jnp.concatenate(found)


def _is_one_dimensional(name: str, leaf: Any) -> bool:
    return np.ndim(leaf) < 2 or name.rsplit("/", 1)[-1] in ("bias", "scale")


def _about(leaf: Float[Array, "M ..."], about: str) -> Float64[np.ndarray, "M D"]:
    """[M, ...] -> differences from the origin, [M, D] float64."""
    rows = np.asarray(leaf, np.float64).reshape(leaf.shape[0], -1)
    return rows - (rows[-1] if about == "last" else np.mean(rows, axis=0))
