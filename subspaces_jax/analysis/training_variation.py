"""Regularity of weights over training: p-variation of the path that they make through the checkpoints of a run.

The points of a path are flattened weights, of a layer or of the whole network; a variation is the rooted one, as in
`variation`. At p = 1 it is the length of the polygon through the checkpoints.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subspaces_jax import trees
from subspaces_jax.analysis import variation
from subspaces_jax.networks.axes import AxisTable
from subspaces_jax.pvariation import p_variation, running_p_variation

PyTree = Any
NET = "net"  # the whole network


def over_training(
    stacked: PyTree, exponents: Sequence[float] = (1.0, 2.0), *, table: AxisTable | None = None
) -> dict[str, np.ndarray]:
    """How regular the way of the weights through a training is: rooted p-variation over S checkpoints.

    Of each part, the points are its flattened weights. Distances do not change where points are given by their
    coordinates in the space that they span, of at most S - 1 dimensions, which are found in float64 on the host: so the
    running variation of a large network costs little.

    Args:
        stacked: leaves [S, ...], the networks in the order of the steps.
        exponents: p, at least 1.
        table: the axis table, whose order is that of the layers.

    Returns:
        {"net": [P] of the whole network, "running": [S, P] of its training up to each checkpoint, "layers/<name>": [P]
        of the parameters of a layer, or [L, P] of a kernel [L, d, d], one row a layer}.

    Raises:
        ValueError: fewer than two checkpoints, weights that are not finite, or exponents below 1.
    """
    variation.check_exponents(exponents)
    variation.check_finite(stacked)
    exponents, leaves = tuple(exponents), trees.leaf_names(stacked)
    num = len(next(iter(leaves.values())))
    if num < 2:
        raise ValueError(f"a training has a variation from two checkpoints on, got {num}")
    parts: list[np.ndarray] = []  # [S, S] coordinates of every layer
    places: dict[str, Any] = {}
    for name, of_layer in _layers(leaves, table).items():
        first = of_layer[0]
        is_stack = len(of_layer) == 1 and variation.is_stack(f"{name}/kernel", first[0], table)
        own = [[first[:, k]] for k in range(first.shape[1])] if is_stack else [of_layer]
        places[name] = slice(len(parts), len(parts) + len(own)) if is_stack else len(parts)
        parts += [_coordinates(*of) for of in own]
    rows = jnp.asarray(np.stack(parts), jnp.float32)
    of_layers = np.moveaxis(np.asarray(p_variation(rows, exponents, rooted=True)), 0, -1)
    running = _running(_coordinates(*parts), exponents)
    found = {f"layers/{name}": of_layers[place] for name, place in places.items()}
    return {NET: running[-1], "running": running} | found


def _running(path: np.ndarray, exponents: Sequence[float]) -> np.ndarray:
    """[S, D] -> [S, P] rooted variations of the path up to each of its points."""
    size = np.max(np.abs(path)) or 1.0  # powers of distances of order 1 neither overflow nor vanish
    # the first steps may be so much shorter than the last that float32 has no powers of them
    with jax.enable_x64(True):
        points = jnp.asarray(path / size, jnp.float64)
        return size * np.stack([np.asarray(running_p_variation(points, p)) ** (1.0 / p) for p in exponents], axis=-1)


def _layers(leaves: dict[str, Any], table: AxisTable | None) -> dict[str, list[np.ndarray]]:
    """The leaves [S, ...] of each layer, in order; a leaf that is itself layers, or of no layer, stands alone."""
    order = [name for name in table or {} if name in leaves]
    order += sorted(leaves.keys() - set(order), key=trees.natural)
    found: dict[str, list[np.ndarray]] = {}
    for name in order:
        found.setdefault(name.rpartition("/")[0] or name, []).append(np.asarray(leaves[name], np.float64))
    return found


def _coordinates(*leaves: np.ndarray) -> np.ndarray:
    """Leaves [S, ...] -> the same S points in S dimensions, [S, S], the first at the origin."""
    num = len(leaves[0])
    rows = np.concatenate([leaf.reshape(num, -1) - leaf.reshape(num, -1)[:1] for leaf in leaves], axis=1)
    if rows.shape[1] > num:
        return np.asarray(np.linalg.qr(rows.T, mode="r")).T
    return np.pad(rows, ((0, 0), (0, num - rows.shape[1])))
