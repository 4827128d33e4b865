"""Feed-forward networks as chains of layers, read from their axis table."""

from typing import NamedTuple

from subspaces_jax.networks import axes
from subspaces_jax.networks.axes import FLATTENED, AxisTable


class Layer(NamedTuple):
    """A layer of a chain.

    Attributes:
        name: of the module with the kernel.
        kernel: name of the leaf; its last axis runs over the units that it writes, the one before over those it reads.
        units: the axis that it writes, None for the classes.
        vectors: names of leaves with a number for each of these units: biases, and scales.
    """

    name: str
    kernel: str
    units: str | None
    vectors: tuple[str, ...]


def layers_of(table: AxisTable) -> tuple[Layer, ...]:
    """The layers of a feed-forward network, in order: each reads what the one before writes, and nothing else does.

    Raises:
        ValueError: a network that is no such chain, or one without hidden units.
    """
    layers, before = [], None
    for kernel in axes.kernels(table):
        name, units = kernel.rpartition("/")[0], table[kernel][-1]
        read = [axis.removeprefix(FLATTENED) for axis in table[kernel][:-1] if axis is not None]
        if read != ([] if before is None else [before]) or (layers and before is None):
            raise ValueError(
                f"{name} reads {' and '.join(read) or 'the inputs'} where a feed-forward network reads "
                f"{before or 'nothing more'}: networks with branches can be matched and connected at once, not in steps"
            )
        same = [leaf for leaf, row in table.items() if row == (units,) and (units or leaf.rpartition("/")[0] == name)]
        layers.append(Layer(name, kernel, units, tuple(same)))
        before = units
    covered = {leaf for layer in layers for leaf in (layer.kernel, *layer.vectors)}
    if others := [leaf for leaf in table if leaf not in covered]:
        raise ValueError(f"{', '.join(others)} belong to no layer of a feed-forward network")
    if len(layers) < 2 or layers[-1].units is not None:
        raise ValueError("expected hidden units between the inputs and the outputs, the axis table has none")
    return tuple(layers)


def is_chain(table: AxisTable) -> bool:
    """Whether a network is one of `layers_of`."""
    try:
        return bool(layers_of(table))
    except ValueError:
        return False
