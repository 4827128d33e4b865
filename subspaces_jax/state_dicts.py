"""Files of weights from elsewhere: state dicts in safetensors and PyTorch files, read without PyTorch.

A PyTorch file is a pickle, which may run anything. Here it is read by an unpickler that knows tensors, plain values and
nothing else, and refuses whatever else it is asked for.
"""

import collections
import math
import pathlib
import pickle
import struct
import zipfile
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from subspaces_jax import writing
from subspaces_jax.errors import CheckpointError, ConfigError, first_line

SAFE = ".safetensors"
TORCH = (".pth", ".pt", ".tar")
SUFFIXES = (SAFE, *TORCH)
WITHIN = ("state_dict", "model")  # where a snapshot of a training keeps its network
LEGACY = 0x1950A86A20F9469CFC6C  # what a PyTorch file of before 1.6 begins with
STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


def is_weights(path: str) -> bool:
    """Whether a name is that of a file of weights, by its ending."""
    return path.endswith(SUFFIXES)


def load(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The state dict of a file, arrays by name.

    Args:
        path: .safetensors, or .pth, .pt or .tar of PyTorch: a state dict, or a dict that has one as "state_dict" or
            "model".

    Raises:
        CheckpointError: the file is missing, damaged, no state dict, or holds something else than tensors and plain
            values.
        ConfigError: the safetensors package is missing.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f"there is no file of weights {path}: name one that ends in {', '.join(SUFFIXES)}")
    try:
        return _safe(path) if path.suffix == SAFE else _state_dict(_torch(path))
    except (ConfigError, CheckpointError):
        raise
    except _Refused as error:
        raise CheckpointError(f"{path} cannot be read ({error}): save its state dict alone") from None
    except Exception as error:  # whatever damage makes of a reader
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}): it is damaged, get it anew") from None


def save(path: str | pathlib.Path, state: dict[str, np.ndarray]) -> None:
    """Writes a state dict, whole or not at all, as .safetensors, which PyTorch reads with safetensors.torch.load_file.

    Raises:
        ConfigError: another ending, or the safetensors package is missing.
    """
    path = pathlib.Path(path).expanduser()
    if path.suffix != SAFE:
        raise ConfigError(f"weights are written as {SAFE}, got {path}: rename it")
    path.parent.mkdir(parents=True, exist_ok=True)
    writing.write_bytes(path, _package().save({name: np.ascontiguousarray(array) for name, array in state.items()}))


def _package() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ConfigError(f"files of {SAFE} need the safetensors package: pip install -e '.[weights]'") from None
    return safetensors.numpy


def _safe(path: pathlib.Path) -> dict[str, np.ndarray]:
    return _package().load_file(path)


def _state_dict(found: Any) -> dict[str, np.ndarray]:
    for name in WITHIN:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict) or not found:
        raise ValueError(f"it holds {type(found).__name__}, no state dict")
    if len(within := [value for value in found.values() if _is_state(value)]) == 1:  # whatever it is called
        return dict(within[0])
    if wrong := [name for name, value in found.items() if not isinstance(value, np.ndarray)]:
        raise _Refused(f"{wrong[0]!r} is no tensor")
    return dict(found)


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(of, np.ndarray) for of in value.values())


class _Storage(NamedTuple):
    dtype: Any
    key: str
    num: int


class _Tensor(NamedTuple):
    """A tensor whose storage has not been read yet."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self, content: bytes) -> np.ndarray:
        """Its values, from those of its storage."""
        values = np.frombuffer(content, self.storage.dtype)
        num, last = math.prod(self.shape), sum((size - 1) * stride for size, stride in zip(self.shape, self.strides))
        if (
            min(self.offset, *self.strides, *self.shape, 0) < 0
            or num > len(values)
            or self.offset + last >= len(values) > 0
        ):
            raise ValueError(f"a tensor {self.shape} lies outside its storage of {len(values)}")
        strides = [stride * values.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, strides, writeable=False).copy()


def _tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


def _parameter(data: _Tensor, *_: Any) -> _Tensor:
    return data


class _Refused(Exception):
    """What a file asks for and does not get."""


class _Unpickler(pickle.Unpickler):
    """Knows tensors, ordered dicts and plain values."""

    known = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        **{("torch", name): dtype for name, dtype in STORAGES.items()},
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.known:
            raise _Refused(f"it asks for {module}.{name}, and may hold tensors alone")
        return self.known[module, name]

    def persistent_load(self, found: tuple) -> _Storage:
        _, dtype, key, _, num = found[:5]
        return _Storage(dtype, str(key), int(num))


def _torch(path: pathlib.Path) -> Any:
    """What a PyTorch file holds, tensors as arrays."""
    with open(path, "rb") as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                return _of_archive(archive)
        file.seek(0)
        return _of_legacy(file)


def _of_archive(archive: zipfile.ZipFile) -> Any:
    (content,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    root = content.removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("its bytes are in the order of another machine")
    with archive.open(content) as file:
        found = _Unpickler(file).load()
    return _resolved(found, lambda key: archive.read(f"{root}data/{key}"))


def _of_legacy(file: IO[bytes]) -> Any:
    if _Unpickler(file).load() != LEGACY:
        raise ValueError("it is no file of PyTorch")
    _protocol, _machine = _Unpickler(file).load(), _Unpickler(file).load()
    found, storages = _Unpickler(file).load(), {}
    sizes: dict[str, _Storage] = {}
    _walk(found, lambda tensor: sizes.setdefault(tensor.storage.key, tensor.storage))
    for key in _Unpickler(file).load():
        (num,) = struct.unpack("<q", file.read(8))
        storages[key] = file.read(num * np.dtype(sizes[key].dtype).itemsize)
    return _resolved(found, storages.__getitem__)


def _resolved(found: Any, content: Any) -> Any:
    return _walk(found, lambda tensor: tensor.read(content(tensor.storage.key)))


def _walk(found: Any, of_tensor: Any) -> Any:
    if isinstance(found, _Tensor):
        return of_tensor(found)
    return {key: _walk(value, of_tensor) for key, value in found.items()} if isinstance(found, dict) else found
