"""Trees of arrays as NNX and partitioned Linen modules leave them, brought to Linen's parameters and statistics.

A variable of an `nnx.State`, and a parameter with a partitioning, lie in a checkpoint as {"value": array}. A state of
NNX has BatchNorm's statistics beside the parameters of its layer, and the counts and keys of its random streams.
"""

from typing import Any

PyTree = Any
VALUE, STREAMS, STATISTICS = "value", "rngs", ("mean", "var")


def unboxed(tree: PyTree) -> PyTree:
    """The tree with each {"value": leaf} as that leaf, and without random streams."""
    if not isinstance(tree, dict):
        return tree
    if tree.keys() == {VALUE} and not isinstance(tree[VALUE], dict):
        return tree[VALUE]
    return {name: unboxed(item) for name, item in tree.items() if name != STREAMS}


def parted(tree: PyTree) -> tuple[PyTree, PyTree]:
    """Parameters and BatchNorm's statistics of an unboxed tree that has them in the same modules: leaves "mean" and
    "var" are statistics where a module has both."""
    return _leaves(tree, statistics=False), _leaves(tree, statistics=True)


def _leaves(tree: dict[str, Any], statistics: bool) -> dict[str, Any]:
    has_both = all(name in tree and not isinstance(tree[name], dict) for name in STATISTICS)
    found: dict[str, Any] = {}
    for name, item in tree.items():
        if not isinstance(item, dict):
            if (has_both and name in STATISTICS) == statistics:
                found[name] = item
        elif below := _leaves(item, statistics):
            found[name] = below
    return found
