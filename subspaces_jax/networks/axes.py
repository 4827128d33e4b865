"""Axis tables: which units each parameter's axes run over, as data.

A table maps a leaf's name to one axis name per dimension, None where the dimension runs over no units:

    {"Dense_0/kernel": (None, "h0"), "Dense_0/bias": ("h0",), "Dense_1/kernel": ("h0", None), ...}

Axes of one name are the same units: permuting them together in all leaves leaves the network's function unchanged.
Residual streams share one name. Inputs and classes are not units and stay None. Flattened maps list their channels
last, as NHWC does; a kernel that reads a flattened map of several positions carries FLATTENED(name) so that readers
know each unit owns every `units`-th row. The last axis of a kernel is what it writes, the others are what it reads.

The table's order is the order in which a forward pass calls the layers, that of the code where branches run side by
side: a residual block's shortcut comes after its convolutions, of attention query, key, value, out.

A network sows its activations under the names of its units, as the layers that read them take them, after ReLU,
pooling or LayerNorm, [B, ..., units]; a map that is flattened next is sown unflattened. One value a reading: a residual
stream has one for every module of the network that reads it, in the table's order ("s0" for BasicBlock_0, BasicBlock_1,
...; a block's shortcut shares its block's). Where a shortcut takes something else than its block's branch does, the
stream has one for every layer instead. Units that no kernel reads, queries and keys, are sown where they meet.
Blocks sow their inner units in their own scope; `sown` finds all by name.
"""

from collections.abc import Collection, Sequence
from typing import Any

import jax

from subspaces_jax import trees

AxisTable = dict[str, tuple[str | None, ...]]
FLATTENED = "flattened:"


def layers(table: AxisTable) -> list[str]:
    """The modules that own parameters, "BasicBlock_0/Conv_1", in the order of the forward pass.

    Parameters of the network itself, such as a transformer's positions, are of no layer.
    """
    return list(dict.fromkeys(leaf.rpartition("/")[0] for leaf in table if "/" in leaf))


def table_of(network: Any) -> AxisTable:
    """What the network's `unit_axes` gives; empty where it has no such method."""
    return getattr(network, "unit_axes", dict)()


def kernels(table: AxisTable) -> list[str]:
    """The names of all kernels, "BasicBlock_0/Conv_1/kernel", in the order of the forward pass."""
    return list(filter(trees.is_kernel, table))


def layer_stacks(table: AxisTable) -> list[str]:
    """The names of kernels [L, d, d] that are those of L layers, each of which reads and writes the same units."""
    return [name for name in kernels(table) if len(table[name]) == 3 and _is_of_layers(*table[name])]


def stage_starts(network: Any) -> tuple[str, ...]:
    """The layers that begin a stage, the first stage's left out: the first after each pooling of maximum values, and
    of residual networks the first of each stage of blocks. They are what the network's `stage_starts` gives, none
    where it has no such method."""
    return tuple(getattr(network, "stage_starts", tuple)())


def stages(ordered: Sequence[str], starts: Sequence[str], counted: Collection[str]) -> dict[str, tuple[int, int]]:
    """{layer: (stage, block)}, both from 0, blocks of a stage in order, as Gamba et al. 2020 (arXiv:2003.07797) count.

    Args:
        ordered: all layers in the order of the forward pass, as of `layers`.
        starts: as of `stage_starts`; the stage begins there whether the layer is counted or not.
        counted: the layers that are wanted; no other one advances the block.

    Raises:
        ValueError: a start that is no layer.
    """
    if missing := [name for name in starts if name not in ordered]:
        raise ValueError(f"a stage is said to begin with {', '.join(missing)}, which is no layer of the network")
    found, stage, block = {}, 0, 0
    for name in ordered:
        if name in starts:
            stage, block = stage + 1, 0
        if name in counted:
            found[name], block = (stage, block), block + 1
    return found


def readers(table: AxisTable) -> dict[str, str]:
    """The axis that each layer with a kernel reads, "h0" or FLATTENED + "c1", in order; without those of the inputs."""
    read = {leaf: [axis for axis in table[leaf][:-1] if axis is not None] for leaf in kernels(table)}
    return {leaf.rpartition("/")[0]: axes[0] for leaf, axes in read.items() if axes}


def sown(intermediates: Any, table: AxisTable) -> dict[str, list[jax.Array]]:
    """The activations of all units of a table, from the "intermediates" of one forward pass.

    Args:
        intermediates: as `module.apply(..., mutable=["intermediates"])` returns them, nested by modules.
        table: the network's.

    Returns:
        {unit: values}, each value [B, ..., units]: one for each reading of the units, see the top of this file.

    Raises:
        ValueError: units that were not sown.
    """
    names = (axis.removeprefix(FLATTENED) for axes in table.values() for axis in axes if axis is not None)
    found: dict[str, list[jax.Array]] = {name: [] for name in names}
    for path, leaf in jax.tree.leaves_with_path(intermediates):
        name = path[-2].key  # what is sown is a tuple of values, in the order of sowing
        if name in found:
            found[name].append(leaf)
    if missing := [name for name, values in found.items() if not values]:
        raise ValueError(f"no activations were sown for the units {', '.join(missing)}")
    return found


def inputs(intermediates: Any, table: AxisTable) -> dict[str, jax.Array]:
    """What each layer of `readers` took in one forward pass, [B, ..., units]; flattened where it reads a flattened map.

    Args:
        intermediates, table: as `sown` takes them.

    Raises:
        ValueError: units that were not sown once for each module of the network that reads them, or for each layer.
    """
    values, of_layer = sown(intermediates, table), readers(table)
    found = {}
    for unit in values:
        reading = [layer for layer, axis in of_layer.items() if axis.removeprefix(FLATTENED) == unit]
        part_of = {layer: layer.split("/")[0] for layer in reading}
        parts = list(dict.fromkeys(part_of.values()))
        by_layer = len(values[unit]) == len(reading)
        if reading and not by_layer and len(parts) != len(values[unit]):
            raise ValueError(f"{unit} is read by {', '.join(parts)} but was sown {len(values[unit])} times")
        for number, layer in enumerate(reading):
            value = values[unit][number if by_layer else parts.index(part_of[layer])]
            found[layer] = value.reshape(value.shape[0], -1) if of_layer[layer].startswith(FLATTENED) else value
    return {layer: found[layer] for layer in of_layer}


def units(table: AxisTable, params: Any) -> dict[str, int]:
    """The number of units of each axis name, and a check that table and parameters agree.

    Raises:
        ValueError: a leaf without a row, a row without a leaf, or axes of one name with different lengths.
    """
    leaves = trees.leaf_names(params)
    if unmatched := sorted(set(leaves) ^ set(table)):
        raise ValueError(f"axis table and parameters differ in {', '.join(unmatched)}")
    sizes: dict[str, int] = {}
    for leaf, axes in table.items():
        shape = leaves[leaf].shape
        if len(axes) != len(shape):
            raise ValueError(f"{leaf} has shape {shape} but axes {axes}")
        for axis, size in zip(axes, shape):
            if axis is not None and not axis.startswith(FLATTENED) and sizes.setdefault(axis, size) != size:
                raise ValueError(f"axis {axis} has {sizes[axis]} units elsewhere but {size} in {leaf} {shape}")
    for leaf, axes in table.items():
        for axis, size in zip(axes, leaves[leaf].shape):
            if axis is not None and axis.startswith(FLATTENED) and size % sizes[axis.removeprefix(FLATTENED)]:
                raise ValueError(f"{leaf}: {size} rows are no whole number of positions of {axis}")
    return sizes


def _is_of_layers(layers: str | None, read: str | None, written: str | None) -> bool:
    return layers is None and read is not None and read == written
