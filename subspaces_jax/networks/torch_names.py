"""Weights of PyTorch's networks as variables of ours, and back, by the names of torchvision's layers.

A state dict maps names such as "features.0.weight" to arrays. Kernels lie as [out, in, k, k'] there and
[k, k', in, out] here, dense ones as [out, in] and [in, out]; a dense layer that reads a flattened map reads its
channels first there and last here.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from subspaces_jax import trees
from subspaces_jax.networks import axes
from subspaces_jax.networks.alexnet import AlexNet
from subspaces_jax.networks.axes import FLATTENED
from subspaces_jax.networks.imagenet_resnet import ImageNetResNet
from subspaces_jax.networks.imagenet_vgg import ImageNetVGG
from subspaces_jax.networks.vgg import blocks_of

PyTree = Any
StateDict = Mapping[str, np.ndarray]
PARAMS = {"kernel": "weight", "scale": "weight", "bias": "bias"}
STATISTICS = {"mean": "running_mean", "var": "running_var"}
WRAPPERS = ("_orig_mod.", "module.")  # in names of what torch.compile, DataParallel and AveragedModel wrap, or parts
COUNTS = ("num_batches_tracked", "n_averaged")  # of batches and of averages, which nothing here needs
SIDE = 224  # pixels of an image that all these networks take


def from_torch(network: nn.Module, state: StateDict) -> PyTree:
    """Variables of a network, {"params": ..., "batch_stats": ...}, from the state dict of torchvision's.

    Args:
        network: an AlexNet, an ImageNetVGG or an ImageNetResNet (with classifier_bias) of the same sizes.
        state: arrays by PyTorch's names; what WRAPPERS put into names is left out.

    Returns:
        float32 arrays of NumPy; "batch_stats" only where there are statistics.

    Raises:
        ValueError: another network, or names or shapes that are not its own.
    """
    state = {_unwrapped(name): array for name, array in state.items() if not name.endswith(COUNTS)}
    table, names = network.unit_axes(), _names(network)
    wanted = {name for of in names.values() for name in of.values()}
    if parts := [f"- {name}" for name in sorted(wanted - state.keys())] + [
        f"+ {name}" for name in sorted(state.keys() - wanted)
    ]:
        more = f", and {len(parts) - trees.MAX_DIFFERENCES} more" if len(parts) > trees.MAX_DIFFERENCES else ""
        raise ValueError(f"weights of another network ({', '.join(parts[: trees.MAX_DIFFERENCES])}{more}): "
                         f"{type(network).__name__} has other layers{_hint(network)}")  # fmt: skip
    for name in sorted(wanted):
        if not jnp.issubdtype(state[name].dtype, jnp.floating):
            raise ValueError(f"{name} of {state[name].dtype}: weights are real floating-point numbers")
        if name.endswith("weight") and not np.ndim(state[name]):
            raise ValueError(f"a {name} that is a single number")
    channels = {table[leaf][-1]: len(state[name]) for leaf, name in names["params"].items() if leaf.endswith("/kernel")}
    variables = {}
    for collection, of in names.items():
        leaves = {
            leaf: _to_ours(np.asarray(state[name]), table.get(leaf, (None,)), channels) for leaf, name in of.items()
        }
        if leaves:
            variables[collection] = traverse_util.unflatten_dict(leaves, sep="/")
    first = next(name for name in names["params"].values() if name.endswith("weight"))
    _check_shapes(network, variables, state[first].shape[1])
    return variables


def _unwrapped(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def to_torch(network: nn.Module, variables: PyTree) -> dict[str, np.ndarray]:
    """The state dict of torchvision's network, the inverse of `from_torch`; float32, without counts of batches.

    Args:
        network: as in `from_torch`.
        variables: {"params": ..., "batch_stats": ...} of one network.

    Raises:
        ValueError: another network, or variables that are not its own.
    """
    table, names = network.unit_axes(), _names(network)
    sizes = axes.units(table, variables["params"])
    state = {}
    for collection, of in names.items():
        leaves = trees.leaf_names(variables.get(collection, {}))
        for leaf, name in of.items():
            state[name] = _to_theirs(np.asarray(leaves[leaf], np.float32), table.get(leaf, (None,)), sizes)
            if name == "fc.weight":
                state[name] = state[name][:, :, 0, 0]
    return state


def layer_names(network: nn.Module) -> dict[str, str]:
    """Our layers with parameters, "Conv_0", by torchvision's names of them, "features.0".

    Raises:
        ValueError: torchvision has no such network.
    """
    if isinstance(network, AlexNet):
        return _sequential((0, 3, 6, 8, 10), (1, 4, 6))
    if isinstance(network, ImageNetVGG):
        places, place, step = [], 0, 3 if network.batch_norm else 2
        for number in blocks_of(network.depth):
            places += [place + step * i for i in range(number)]
            place += step * number + 1  # the pool
        return _sequential(places, (0, 3, 6), network.batch_norm)
    if isinstance(network, ImageNetResNet):
        return _residual(network)
    raise ValueError(
        f"torchvision's layers are known of AlexNet, ImageNetVGG and ImageNetResNet, not of {type(network).__name__}"
    )


def _sequential(convolutions: Any, dense: Any, batch_norm: bool = False) -> dict[str, str]:
    names = {f"Conv_{i}": f"features.{place}" for i, place in enumerate(convolutions)}
    if batch_norm:
        names |= {f"BatchNorm_{i}": f"features.{place + 1}" for i, place in enumerate(convolutions)}
    return names | {f"Dense_{i}": f"classifier.{place}" for i, place in enumerate(dense)}


def _residual(network: ImageNetResNet) -> dict[str, str]:
    layers, names = axes.layers(network.unit_axes()), {"Conv_0": "conv1", "BatchNorm_0": "bn1", "Conv_1": "fc"}
    block, num_convs = ("BottleneckBlock", 3) if network.bottleneck else ("BasicBlock", 2)
    blocks = [(stage, i) for stage, size in enumerate(network.stage_sizes) for i in range(size)]
    for index, (stage, i) in enumerate(blocks):
        ours, theirs = f"{block}_{index}", f"layer{stage + 1}.{i}"
        for conv in range(num_convs):
            names |= {
                f"{ours}/Conv_{conv}": f"{theirs}.conv{conv + 1}",
                f"{ours}/BatchNorm_{conv}": f"{theirs}.bn{conv + 1}",
            }
        if f"{ours}/Conv_{num_convs}" in layers:
            names |= {
                f"{ours}/Conv_{num_convs}": f"{theirs}.downsample.0",
                f"{ours}/BatchNorm_{num_convs}": f"{theirs}.downsample.1",
            }
    return names


def _names(network: nn.Module) -> dict[str, dict[str, str]]:
    """{"params": {leaf: PyTorch's name}, "batch_stats": likewise}."""
    layers, params = layer_names(network), {}
    for leaf in network.unit_axes():
        layer, _, kind = leaf.rpartition("/")
        params[leaf] = f"{layers[layer]}.{PARAMS[kind]}"
    norms = [layer for layer in layers if layer.rpartition("/")[2].startswith("BatchNorm")]
    stats = {f"{layer}/{ours}": f"{layers[layer]}.{theirs}" for layer in norms for ours, theirs in STATISTICS.items()}
    return {"params": params, "batch_stats": stats}


def _to_ours(array: np.ndarray, table: tuple[str | None, ...], channels: dict[str | None, int]) -> np.ndarray:
    array = np.asarray(array, np.float32)
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if len(table) == 4 and array.ndim == 2:  # a classifier that is a 1x1 convolution here
        return array.T[None, None]
    if array.ndim == 2 and (rows := table[0]) and rows.startswith(FLATTENED):
        of_map = channels[rows.removeprefix(FLATTENED)]
        if array.shape[1] % of_map == 0:
            return array.reshape(len(array), of_map, -1).transpose(2, 1, 0).reshape(-1, len(array))
    return array.T


def _to_theirs(array: np.ndarray, table: tuple[str | None, ...], sizes: dict[str, int]) -> np.ndarray:
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if array.ndim == 2 and (rows := table[0]) and rows.startswith(FLATTENED):
        of_map = sizes[rows.removeprefix(FLATTENED)]
        return array.reshape(-1, of_map, array.shape[1]).transpose(2, 1, 0).reshape(array.shape[1], -1)
    return array.T


def _check_shapes(network: nn.Module, variables: PyTree, num_channels: int) -> None:
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, num_channels), jnp.float32)
    expected = dict(jax.eval_shape(network.init, jax.eval_shape(lambda: jax.random.key(0)), image))
    if difference := trees.describe_mismatch(variables, expected):
        raise ValueError(f"weights of other sizes than those of {type(network).__name__}: {difference}")


def _hint(network: nn.Module) -> str:
    if isinstance(network, ImageNetResNet) and not network.classifier_bias:
        return "; torchvision's have classifier_bias=True"
    return ""
