"""Weights of `networks.CifarResNet` under the names and in the layouts of PyTorch, and back; NumPy only.

A convolution has its kernel [k, k', in, out] in Flax and its weight [out, in, k, k'] in PyTorch.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

NORM = {"params": {"scale": "weight", "bias": "bias"}, "batch_stats": {"mean": "running_mean", "var": "running_var"}}
Tree = Mapping[str, Any]


def to_torch(params: Tree, batch_stats: Tree | None = None) -> dict[str, np.ndarray]:
    """A network as a state dict of `launch.peers.residual.resnet`, without PyTorch's counts of batches.

    Args:
        params: of one network.
        batch_stats: None for parameters alone.

    Raises:
        ValueError: the tree has modules that a CifarResNet has not, or lacks one.
    """
    found, places = {}, _places(num_blocks(params))
    modules = _modules(params)
    required = {flax for flax in places if "Conv_2" not in flax and "BatchNorm_2" not in flax}  # some have no shortcut
    if wrong := sorted((modules.keys() - places.keys()) | (required - modules.keys())):
        raise ValueError(f"these weights are no CifarResNet's, look at {wrong[0]}: the peer has no other network")
    for path, leaves in modules.items():
        if "kernel" in leaves:
            found[f"{places[path]}.weight"] = np.ascontiguousarray(np.transpose(leaves["kernel"], (3, 2, 0, 1)))
        else:
            found |= {f"{places[path]}.{NORM['params'][name]}": np.asarray(leaf) for name, leaf in leaves.items()}
    for path, leaves in _modules(batch_stats or {}).items():
        found |= {f"{places[path]}.{NORM['batch_stats'][name]}": np.asarray(leaf) for name, leaf in leaves.items()}
    return found


def to_flax(state: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(params, batch_stats) of such a state dict; one of parameters alone gives {} for the statistics."""
    blocks = len({name.split(".")[0] for name in state if ".branch." in name})
    params, batch_stats = {}, {}
    for path, place in _places(blocks).items():
        if f"{place}.weight" not in state:
            continue
        if "Conv" in path:
            kernel = np.transpose(state[f"{place}.weight"], (2, 3, 1, 0))
            _put(params, path, {"kernel": np.ascontiguousarray(kernel)})
            continue
        for tree, names in zip((params, batch_stats), NORM.values()):
            own = {name: state[f"{place}.{other}"] for name, other in names.items() if f"{place}.{other}" in state}
            if own:
                _put(tree, path, own)
    return params, batch_stats


def num_blocks(params: Tree) -> int:
    """Residual blocks of a network, 3n of depth 6n + 2."""
    return sum(name.startswith("BasicBlock_") for name in params)


def _places(blocks: int) -> dict[str, str]:
    """{"BasicBlock_0/Conv_0": "3.branch.0", ...}: Flax's modules by path, and where PyTorch has them."""
    table = {"Conv_0": "0", "BatchNorm_0": "1", "Conv_1": f"{blocks + 4}"}
    for i in range(blocks):
        for n, place in enumerate(("branch.{}", "branch.{}", "shortcut.{}")):
            first = 3 if n == 1 else 0
            for module, at in (("Conv", first), ("BatchNorm", first + 1)):
                table[f"BasicBlock_{i}/{module}_{n}"] = f"{i + 3}.{place.format(at)}"
    return table


def _modules(tree: Tree, path: str = "") -> dict[str, Tree]:
    """{path: leaves} of the modules that own some."""
    found: dict[str, Tree] = {}
    for name, inner in tree.items():
        at = f"{path}/{name}" if path else name
        if any(isinstance(value, Mapping) for value in inner.values()):
            found |= _modules(inner, at)
        else:
            found[at] = inner
    return found


def _put(tree: dict[str, Any], path: str, leaves: dict[str, Any]) -> None:
    *outer, last = path.split("/")
    for name in outer:
        tree = tree.setdefault(name, {})
    tree[last] = leaves
