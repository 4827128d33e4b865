"""Regularity of weights over depth: norms, single entries and p-variation of the path that layers make.

The path over depth of L layers of one shape is X_k = L^beta W_k, k = 1, ..., L, drawn at k/L; the weights have a limit
in depth at the scale beta where paths of different L lie on each other. A variation here is the rooted one,

    (max over partitions of sum |X_{k+1} - X_k|^p)^(1/p),   in units of the weights,

with Frobenius norms; it does not increase with p, and is the length of the path at p = 1.

Reference: Cont, Rossier, Xu, Convergence and Implicit Regularization Properties of Gradient Descent for Deep Residual
Networks, 2022, arXiv:2204.07261.
"""

import fnmatch
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64

from subspaces_jax import trees
from subspaces_jax.arrays import Array
from subspaces_jax.networks import axes
from subspaces_jax.networks.axes import AxisTable
from subspaces_jax.pvariation import p_variation

PyTree = Any


class OverDepth(NamedTuple):
    """A measure of parameters, for `evaluation.along`: params -> {name of the stack: [P] variations over depth}.

    Attributes:
        exponents: p, at least 1.
        beta: of the scale L^beta.
        layers: as of `layer_stacks`, as a tuple.
        table: the rows of the axis table, `tuple(table.items())`, or none.
    """

    exponents: tuple[float, ...] = (1.0, 2.0)
    beta: float = 0.0
    layers: tuple[str, ...] = ()
    table: tuple[tuple[str, tuple[str | None, ...]], ...] = ()

    def __call__(self, params: PyTree) -> dict[str, jax.Array]:
        stacks = layer_stacks(params, dict(self.table), self.layers)
        return {name: variations(scaled(stack, self.beta), self.exponents) for name, stack in stacks.items()}


def layer_stacks(params: PyTree, table: AxisTable | None = None, layers: Sequence[str] = ()) -> dict[str, Array]:
    """The layers of one network that have the same shape, in the order of the forward pass.

    These are kernels [L, d, d] of L layers, see `is_stack`, and kernels of dense layers and convolutions, at least two
    of each shape.

    Args:
        params: one network.
        table: its axis table, whose order is that of the layers; without it names are sorted, Conv_2 before Conv_10.
        layers: patterns of names, as "Dense_*" or "BasicBlock_*/Conv_0": the layers that are wanted, which then make
            one path; none for all, a path for each shape.

    Returns:
        {name: [L, ...]}: "blocks" of a kernel blocks/kernel [L, d, d], of others the first and the last layer's names.

    Raises:
        ValueError: no two layers of one shape; no layer of a pattern; or layers of a pattern that differ in shape.
    """
    leaves, table = trees.leaf_names(params), table or {}
    order = [name for name in table if name in leaves] or sorted(leaves, key=trees.natural)
    every = {name.rpartition("/")[0]: name for name in order if trees.is_kernel(name)}
    whole = {name: leaves[leaf] for name, leaf in every.items() if is_stack(leaf, leaves[leaf], table)}
    of_kernels = {name: leaves[leaf] for name, leaf in every.items() if name not in whole}
    if not layers:
        groups: dict[tuple[int, ...], dict[str, Any]] = {}
        for name, kernel in of_kernels.items():
            groups.setdefault(kernel.shape, {})[name] = kernel
        found = whole | {_name_of(group): _stacked(group) for group in groups.values() if len(group) > 1}
        if not found:
            shapes = ", ".join(f"{name} {kernel.shape}" for name, kernel in of_kernels.items()) or ", ".join(leaves)
            raise ValueError(f"no two layers have the same shape, so that they make no path over depth: {shapes}")
        return found
    matches = lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in layers)
    chosen = {name: kernel for name, kernel in of_kernels.items() if matches(name)}
    found = {name: leaf for name, leaf in whole.items() if matches(name)}
    if len({kernel.shape for kernel in chosen.values()}) > 1:
        shapes = ", ".join(f"{name} {kernel.shape}" for name, kernel in chosen.items())
        raise ValueError(f"layers of one path have the same shape, {', '.join(layers)} names {shapes}")
    if len(chosen) > 1:
        found[_name_of(chosen)] = _stacked(chosen)
    if not found:
        there = ", ".join([*whole, *of_kernels]) or "none"
        raise ValueError(f"{', '.join(layers)} names {len(chosen)} layers, a path has at least two; layers are {there}")
    return found


def is_stack(name: str, leaf: Any, table: AxisTable | None = None) -> bool:
    """Whether a leaf holds the square kernels of L layers, [L, d, d]: as its axis table says, or without one its shape
    (which that of an attention with as many heads as units is, too)."""
    if table:
        return name in axes.layer_stacks(table)
    return trees.is_kernel(name) and np.ndim(leaf) == 3 and leaf.shape[0] > 1 and leaf.shape[1] == leaf.shape[2]


def depths(num_layers: int) -> Float64[np.ndarray, " L"]:
    """k/L of the layers k = 1, ..., L."""
    return np.arange(1, num_layers + 1) / num_layers


def scaled(stack: Float[Array, "L ..."], beta: float) -> Float[Array, "L ..."]:
    """L^beta W_k of layers [L, ...]."""
    return stack * jnp.asarray(stack.shape[0] ** beta, stack.dtype)


@jax.jit
def norms(stack: Float[Array, "L ..."]) -> Float[jax.Array, " L"]:
    """Frobenius norms of layers [L, ...] -> [L]."""
    return jnp.linalg.vector_norm(stack.reshape(stack.shape[0], -1), axis=-1)


def entries(stack: Float[Array, "L ... rows columns"], positions: Sequence[tuple[int, int]]) -> Float[jax.Array, "P L"]:
    """Single entries of layers as paths over depth.

    Args:
        stack: [L, ..., rows, columns]; of axes between, as of a convolution's kernel, the middle counts.
        positions: (row, column), from 0.

    Returns:
        [P, L].

    Raises:
        ValueError: a position outside the layers.
    """
    rows, columns = stack.shape[-2:]
    for row, column in positions:
        if not (0 <= row < rows and 0 <= column < columns):
            raise ValueError(f"position ({row},{column}) lies outside layers of {rows} x {columns}; both count from 0")
    middle = tuple(size // 2 for size in stack.shape[1:-2])
    return jnp.stack([stack[(slice(None), *middle, row, column)] for row, column in positions])


def variations(path: Float[Array, "L ..."], exponents: Sequence[float]) -> Float[jax.Array, " P"]:
    """Rooted p-variations of a path [L, ...] -> [P], in its units."""
    return p_variation(path.reshape(path.shape[0], -1), tuple(exponents), rooted=True)


def over_depth(
    params: PyTree,
    exponents: Sequence[float] = (1.0, 2.0),
    *,
    beta: float = 0.0,
    positions: Sequence[tuple[int, int]] = ((0, 0),),
    table: AxisTable | None = None,
    layers: Sequence[str] = (),
) -> dict[str, dict[str, np.ndarray]]:
    """How regular the weights of one network are over its depth.

    Args:
        params: one network.
        exponents: p, at least 1.
        beta: of the scale L^beta; 0 for the weights as they are.
        positions: as of `entries`.
        table, layers: as of `layer_stacks`.

    Returns:
        {name of the stack: {"depth": [L], "norm": [L], "entries": [positions, L], "variation": [P]}}, all of the scaled
        weights.

    Raises:
        ValueError: weights that are not finite, exponents below 1, and as of `layer_stacks` and `entries`.
    """
    check_exponents(exponents)
    check_finite(params)
    found = {}
    for name, stack in layer_stacks(params, table, layers).items():
        path = scaled(jnp.asarray(stack), beta)
        of_path = {
            "depth": depths(len(stack)),
            "norm": norms(path),
            "entries": entries(path, positions),
            "variation": variations(path, exponents),
        }
        found[name] = {key: np.asarray(value) for key, value in of_path.items()}
    return found


def check_exponents(exponents: Sequence[float]) -> None:
    """Refuses exponents that p-variation does not have."""
    if not exponents or not all(np.isfinite(p) and p >= 1.0 for p in exponents):
        raise ValueError(f"exponents of p-variation are finite numbers of at least 1, got {tuple(exponents)}")


def check_finite(params: PyTree) -> None:
    """Refuses weights that are NaN or infinite, by the names of their leaves."""
    wrong = [name for name, leaf in trees.leaf_names(params).items() if not np.all(np.isfinite(np.asarray(leaf)))]
    if wrong:
        raise ValueError(f"weights are not finite in {', '.join(wrong)}: it has diverged; take an earlier checkpoint")


def _stacked(kernels: dict[str, Any]) -> Array:
    return jnp.stack(list(kernels.values()))


def _name_of(kernels: dict[str, Any]) -> str:
    names = list(kernels)
    return f"{names[0]} to {names[-1]}"
