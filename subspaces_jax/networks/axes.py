"""Axis tables: which units each parameter's axes run over, as data.

A table maps a leaf's name to one axis name per dimension, None where the dimension runs over no units:

    {"Dense_0/kernel": (None, "h0"), "Dense_0/bias": ("h0",), "Dense_1/kernel": ("h0", None), ...}

Axes of one name are the same units: permuting them together in all leaves leaves the network's function unchanged.
Residual streams share one name. Inputs and classes are not units and stay None. Flattened maps list their channels
last, as NHWC does; a kernel that reads a flattened map of several positions carries FLATTENED(name) so that readers
know each unit owns every `units`-th row.
"""

from typing import Any

from subspaces_jax import trees

AxisTable = dict[str, tuple[str | None, ...]]
FLATTENED = "flattened:"


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
