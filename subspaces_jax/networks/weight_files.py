"""The weights of a `DeepResidual` as a file: an .npz of all of them, or the published code's list of blocks, a .pth.

In files weights are as published: blocks [L, d, d], each of which acts on columns, readin [d, n] and readout [C, d]. A
list has the blocks alone, so that it says where a path goes and not what the network gives.
"""

import importlib
import importlib.util
import os
import pathlib
import zipfile
from typing import Any

import numpy as np

from subspaces_jax import writing
from subspaces_jax.errors import DataError, first_line
from subspaces_jax.networks.deep_residual import published_weights

PyTree = Any
NAMES = ("blocks", "readin", "readout", "delta")
LISTS = (".pth", ".pt")


def of_params(params: PyTree) -> dict[str, np.ndarray]:
    """Params of one network, leaves [...], as NAMES, float32."""
    turned = {name: np.asarray(params[name]["kernel"]).T for name in ("readin", "readout")}
    found = {"blocks": published_weights(params), **turned, "delta": params["delta"]}
    return {name: np.asarray(value, np.float32) for name, value in found.items()}


def to_params(weights: dict[str, np.ndarray], params: PyTree | None = None) -> PyTree:
    """NAMES as params of a network.

    Args:
        weights: of `load`.
        params: a network's, from which comes what the weights lack.

    Raises:
        ValueError: weights that lack something, or of another shape than those of `params`.
    """
    if missing := [name for name in NAMES if name not in weights and params is None]:
        raise ValueError(f"the weights have no {', '.join(missing)}: give params of a network that has them")
    found = (of_params(params) if params is not None else {}) | weights
    if params is not None:
        for name, own in of_params(params).items():
            if found[name].shape != own.shape:
                raise ValueError(f"{name} has shape {found[name].shape}, and the network's has {own.shape}")
    return {
        "blocks": {"kernel": np.ascontiguousarray(found["blocks"].swapaxes(-1, -2))},
        "delta": found["delta"],
        "readin": {"kernel": np.ascontiguousarray(found["readin"].T)},
        "readout": {"kernel": np.ascontiguousarray(found["readout"].T)},
    }


def save(path: str | os.PathLike, params: PyTree) -> pathlib.Path:
    """Writes params of one network, whole or not at all: all of NAMES to an .npz; to a .pth the blocks alone, as a
    list of tensors.

    Raises:
        DataError: another ending, or a .pth where torch is not installed.
    """
    path, weights = pathlib.Path(path), of_params(params)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        with writing.replacing(path) as file:
            np.savez(file, **weights)  # type: ignore[arg-type]  # a name may be a flag of NumPy's
    elif path.suffix in LISTS:
        torch = _torch(path)
        with writing.replacing(path) as file:
            torch.save([torch.from_numpy(block.copy()) for block in weights["blocks"]], file)
    else:
        raise DataError(f"{path} ends in {path.suffix!r}: write .npz, or .pth for a list of blocks")
    return path


def load(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """What `save`, or the published code, has written: of NAMES those that are there, float32, "blocks" always.

    Raises:
        DataError: it is missing, damaged or of another form, or a .pth where torch is not installed.
    """
    path = pathlib.Path(path)
    try:
        if path.suffix in LISTS:
            found = {"blocks": _blocks_of_list(path)}
        else:
            with np.load(path) as arrays:
                found = {name: np.asarray(arrays[name], np.float32) for name in NAMES if name in arrays}
    except DataError:
        raise
    except (OSError, ValueError, KeyError, EOFError, AttributeError, RuntimeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as weights ({first_line(error)}): name an .npz or a .pth") from None
    shape = found["blocks"].shape if "blocks" in found else ()
    if len(shape) != 3 or shape[1] != shape[2] or not shape[0]:
        raise DataError(f"{path} has blocks of shape {shape}, expected [L, d, d]: it holds something else")
    return found


def _blocks_of_list(path: pathlib.Path) -> np.ndarray:
    torch = _torch(path)
    try:
        blocks = torch.load(path, map_location="cpu", weights_only=True)
        return np.stack([np.asarray(block.detach().float()) for block in blocks])
    except (OSError, ValueError):
        raise
    except Exception as error:  # torch raises whatever pickle meets
        raise ValueError(first_line(error)) from None


def _torch(path: pathlib.Path) -> Any:
    if importlib.util.find_spec("torch") is None:
        raise DataError(f"{path} is a list of tensors, which needs torch: pip install torch, or use an .npz")
    return importlib.import_module("torch")
