"""Paths of one piece: all weights move at once."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from subspaces_jax import trees
from subspaces_jax.connecting.chains import layers_of
from subspaces_jax.connecting.matching import check_same, match_networks
from subspaces_jax.connecting.methods import Method, by_name
from subspaces_jax.connecting.paths import Path
from subspaces_jax.connecting.permutations import permute
from subspaces_jax.connecting.pieces import Move, Piece
from subspaces_jax.networks import axes
from subspaces_jax.networks.axes import AxisTable

PyTree = Any


def simultaneous(
    params_a: PyTree,
    params_b: PyTree,
    table: AxisTable | None = None,
    *,
    interpolation: str = "linear",
    num_components: int | None = None,
) -> Path:
    """Every leaf by itself: kernels by the units that they write, a vector as one sample.

    Args:
        params_a, params_b: two networks of any one architecture.
        table: not needed.
        interpolation: the connect method, a name of `methods.METHODS`.
        num_components: of methods that take principal components, None for all.

    Raises:
        ValueError: networks that differ, or another method.

    Reference: Anokhin and Yarotsky, Low-loss connection of weight vectors: distribution-based approaches, 2020,
    arXiv:2008.00741 ("Linear" and "Arc" of deep networks).
    """
    check_same(params_a, params_b)
    method = by_name(interpolation, num_components)
    moves = tuple(move_of(name, leaf.shape, method) for name, leaf in trees.leaf_names(params_a).items())
    return Path((Piece(params_a, params_b, moves),))


def whole_neurons(
    params_a: PyTree,
    params_b: PyTree,
    table: AxisTable,
    *,
    interpolation: str = "linear",
    num_components: int | None = None,
) -> Path:
    """With one hidden layer: neurons as samples, what they read, their biases and what reads them side by side.

    Args, Raises: as in `simultaneous`; a table is needed, and a network with one hidden layer.
    """
    check_same(params_a, params_b)
    method = by_name(interpolation, num_components)
    slots, num, vectors = neurons_of(params_a, table)
    outputs = tuple(move_of(name, shape, method) for name, shape in vectors.items())
    return Path((Piece(params_a, params_b, (Move(slots, num, method), *outputs)),))


def direct(
    params_a: PyTree,
    params_b: PyTree,
    table: AxisTable | None = None,
    *,
    interpolation: str = "linear",
    num_components: int | None = None,
) -> Path:
    """The paper's "Linear" and "Arc": `whole_neurons` where there is one hidden layer, else `simultaneous`.

    Args, Raises: as in `simultaneous`; without a table the number of hidden layers is not known, and every leaf is
    connected by itself.
    """
    make = whole_neurons if table and _is_single(params_a, table) else simultaneous
    return make(params_a, params_b, table or {}, interpolation=interpolation, num_components=num_components)


def _is_single(params: PyTree, table: AxisTable) -> bool:
    """Whether there is one hidden layer."""
    return len(axes.units(table, params)) == 1 and len(axes.kernels(table)) == 2


def neurons_of(params: PyTree, table: AxisTable) -> tuple[tuple[tuple[str, int], ...], int, dict[str, tuple[int, ...]]]:
    """Of a network with one hidden layer: the slots of its neurons, their number, and shapes of what the outputs own.

    Raises:
        ValueError: a network with another number of hidden layers.
    """
    axes.units(table, params)
    layers = layers_of(table)
    if len(layers) != 2:
        raise ValueError(
            f"neurons of one hidden layer are connected as a whole, this network has {len(layers) - 1}: "
            "take simultaneous or butterfly"
        )
    shapes = {name: leaf.shape for name, leaf in trees.leaf_names(params).items()}
    hidden, output = layers
    slots = writing_slots(hidden, shapes) + reading_slots(output, shapes)
    return slots, shapes[hidden.kernel][-1], {name: shapes[name] for name in output.vectors}


def transported(
    params_a: PyTree,
    params_b: PyTree,
    table: AxisTable,
    *,
    interpolation: str = "linear",
    num_components: int | None = None,
    rule: str | None = None,
    seed: int = 0,
) -> Path:
    """Network b with its units matched to those of a, then all weights at once.

    Args:
        params_a, params_b, interpolation, num_components: as in `simultaneous`.
        table: the networks' axis table.
        rule, seed: of `match_networks`; None matches whole neurons and connects them so where there is one hidden
            layer, and takes "weights" where there are more or where there are branches.

    Raises:
        ValueError: as `simultaneous` and `match_networks` do.
    """
    check_same(params_a, params_b)
    single = _is_single(params_a, table)
    permutations = match_networks(params_a, params_b, table, rule or ("full" if single else "weights"), seed=seed)
    connected = whole_neurons if single else simultaneous
    matched = permute(params_b, table, permutations)
    path = connected(params_a, matched, table, interpolation=interpolation, num_components=num_components)
    return Path(path.pieces, permutations)


def move_of(name: str, shape: tuple[int, ...], method: Method) -> Move:
    """A leaf that moves by itself, a kernel by the units that it writes."""
    if len(shape) < 2:
        return Move(((name, None),), 1, method)
    return Move(((name, len(shape) - 1),), shape[-1], method)


def writing_slots(layer: Any, shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[str, int], ...]:
    """The kernel, biases and scales of a layer, by the units that it writes."""
    return ((layer.kernel, len(shapes[layer.kernel]) - 1), *((name, 0) for name in layer.vectors))


def reading_slots(layer: Any, shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[str, int], ...]:
    """The kernel of a layer, by the units that it reads."""
    return ((layer.kernel, len(shapes[layer.kernel]) - 2),)


def joint_samples(leaves: Mapping[str, Any], slots: tuple[tuple[str, int], ...], num: int) -> np.ndarray:
    """The rows [num, d] of some slots."""
    return Move(slots, num).samples(dict(leaves))
