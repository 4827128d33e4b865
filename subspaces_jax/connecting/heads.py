"""Ensembles that share a trunk: the last layers of each network, adjusted to what the first network gives them.

WA(n) keeps n layers of every member, counted from the outputs. Of dense networks that is the paper's number; of VGG16
the paper counts from the inputs, and its WA(j) is WA(16 - j) here.

Reference: Anokhin and Yarotsky, Low-loss connection of weight vectors: distribution-based approaches, 2020,
arXiv:2008.00741, section 5.
"""

from typing import Any

import jax
import numpy as np

from subspaces_jax import trees
from subspaces_jax.arrays import Array
from subspaces_jax.connecting import adjustment
from subspaces_jax.connecting.chains import Layer, layers_of
from subspaces_jax.connecting.features import Features
from subspaces_jax.connecting.matching import check_same
from subspaces_jax.connecting.permutations import with_leaves
from subspaces_jax.networks import axes
from subspaces_jax.networks.axes import AxisTable

PyTree = Any


def with_trunk(
    params: PyTree,
    trunk: PyTree,
    table: AxisTable,
    num_layers: int,
    features: Features,
    *,
    bias: bool = False,
    floor: float = adjustment.FLOOR,
    ridge: float = 0.0,
) -> PyTree:
    """A network on another one's trunk: its last layers, of which the first is adjusted to the features found there.

    Args:
        params: the network whose last layers are kept.
        trunk: the network whose other layers are taken, of the same feed-forward architecture without BatchNorm.
        table: their axis table.
        num_layers: n of WA(n), in [1, L]; with all L it is the network itself.
        features: of the data.
        bias: whether the bias of the adjusted layer is fitted together with its kernel; else it stays, as in the paper.
        floor, ridge: as in `adjustment.solve`.

    Raises:
        ValueError: networks that differ or are no chain of layers, another number of layers, or `bias` where there is
            none.
    """
    check_same(params, trunk)
    axes.units(table, params)
    layers = _checked(table, num_layers)
    if num_layers == len(layers):
        return params
    own, first = layers[-num_layers:], layers[-num_layers]
    leaves = trees.leaf_names(params)
    _check_bias(leaves, first.name, bias)
    products = features.grams(first.name, leaves[first.kernel], params, trunk)
    kept = {name: leaves[name] for layer in own for name in (layer.kernel, *layer.vectors)}
    return with_leaves(trunk, kept | _fitted(leaves, first.name, products, bias, floor, ridge))


def with_last_layer(
    params: PyTree,
    trunk: PyTree,
    layer: str,
    before: Array,
    taken: Array,
    *,
    bias: bool = False,
    floor: float = adjustment.FLOOR,
    ridge: float = 0.0,
) -> PyTree:
    """WA(1) of any network: its last layer on another one's trunk, whatever lies in the trunk.

    Args:
        params, trunk: as in `with_trunk`, of one architecture.
        layer: the name of the last layer.
        before: [N, in], the features that it takes in its own network.
        taken: [N, in], those of the same images that the trunk gives it.
        bias, floor, ridge: as in `with_trunk`.

    Raises:
        ValueError: networks that differ, features that the layer does not take, or `bias` where there is none.
    """
    check_same(params, trunk)
    leaves = trees.leaf_names(params)
    _check_bias(leaves, layer, bias)
    products = adjustment.grams([(before, taken)], kernel=leaves[f"{layer}/kernel"])
    kept = {name: leaf for name, leaf in leaves.items() if name.rpartition("/")[0] == layer}
    return with_leaves(trunk, kept | _fitted(leaves, layer, products, bias, floor, ridge))


def _check_bias(leaves: dict[str, Any], layer: str, bias: bool) -> None:
    if bias and f"{layer}/bias" not in leaves:
        raise ValueError(f"bias=True fits the bias of {layer}, which has none: leave it out")


def _fitted(
    leaves: dict[str, Any], layer: str, products: adjustment.Grams, bias: bool, floor: float, ridge: float
) -> dict[str, Any]:
    """The kernel of a layer that is adjusted, and its bias where that is fitted, too."""
    of_kernel, of_bias = f"{layer}/kernel", f"{layer}/bias"
    found = adjustment.solve(products, leaves[of_kernel], leaves[of_bias] if bias else None, floor=floor, ridge=ridge)
    return {of_kernel: found.kernel} | ({of_bias: found.bias} if bias else {})


def operations(params: PyTree, table: AxisTable, features: Features, image_shape: tuple[int, ...]) -> np.ndarray:
    """Floating-point operations of each layer for one image, [L]: two a weight and place of the layer's input.

    Args:
        params, table: of a feed-forward network whose convolutions have stride 1; arrays or shapes.
        features: its `inputs`.
        image_shape: (H, W, channels).
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    shapes = {name: value.shape for name, value in jax.eval_shape(features.inputs, params, image).items()}
    leaves, counts = trees.leaf_names(params), []
    for layer in layers_of(table):
        kernel = leaves[layer.kernel].shape
        places = np.prod(shapes.get(layer.name, image.shape)[1:3]) if len(kernel) == 4 else 1
        counts.append(2 * int(places) * int(np.prod(kernel)))
    return np.array(counts)


def cost_ratio(counts: np.ndarray, num_layers: int, num_members: int = 7) -> float:
    """Operations of WA(n) over those of as many separate networks, in (0, 1].

    Args:
        counts: [L] of each layer, as of `operations`.
        num_layers: n.
        num_members: M.

    Raises:
        ValueError: a number of layers or members that cannot be.
    """
    if not 0 <= num_layers <= len(counts) or num_members < 1:
        raise ValueError(f"expected 0 to {len(counts)} layers of at least 1 member, got {num_layers} of {num_members}")
    own = np.sum(counts[len(counts) - num_layers :])
    return float((np.sum(counts) + (num_members - 1) * own) / (num_members * np.sum(counts)))


def _checked(table: AxisTable, num_layers: int) -> tuple[Layer, ...]:
    layers = layers_of(table)
    if not 1 <= num_layers <= len(layers):
        raise ValueError(f"a member keeps 1 to {len(layers)} layers of its own, got {num_layers}")
    return layers
