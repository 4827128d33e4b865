"""results/<name>.npz and .json: arrays, and facts on them."""

import json
import math
import os
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from subspaces_jax.errors import RunDirectoryError
from subspaces_jax.records.files import (
    DamagedError,
    NotWhatWasWritten,
    read_arrays,
    read_json,
    resolve,
)
from subspaces_jax.records.header import read_header
from subspaces_jax.records.names import RESULTS
from subspaces_jax.writing import replacing, write_text

MAKERS = {  # of each kind of folder, the command that makes its results, and what more it is to be told
    "train": ("evaluate", ""),
    "connect": ("connect", " with its config"),
    "study": ("analyze", " with its config"),
    "sweep": ("plot", ""),
}


def save_results(workdir: str | os.PathLike, name: str, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Writes results/<name>.npz (arrays) and results/<name>.json (facts, in their order), each whole or not at all.

    Raises:
        TypeError: an array of objects, which could not be read again.
    """
    for key, values in arrays.items():
        if np.asarray(values).dtype.hasobject:
            raise TypeError(f"results/{name}: {key} is an array of objects, numbers are expected")
    folder = resolve(workdir) / RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"{name}.npz", folder / f".{name}.{os.getpid()}.npz") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # a name may be a flag of NumPy's
    write_text(folder / f"{name}.json", json.dumps(facts, indent=2) + "\n")


def save_json(workdir: str | os.PathLike, name: str, tree: Any) -> pathlib.Path:
    """Writes results/<name>.json whole or not at all, strict JSON of what `plain` makes of a tree; returns its path."""
    path = resolve(workdir) / RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(plain(tree), allow_nan=False) + "\n")
    return path


def plain(tree: Any) -> Any:
    """Nested dicts and lists as strict JSON has them: arrays are lists, numbers that are not finite None."""
    if isinstance(tree, dict):
        return {name: plain(value) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [plain(value) for value in tree]
    if isinstance(tree, (np.ndarray, np.generic)):
        return plain(tree.tolist())
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def load_results(workdir: str | os.PathLike, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and facts that `save_results` wrote.

    Raises:
        RunDirectoryError: they are not there; names the command that makes them.
        DamagedError: they are there and cannot be read.
    """
    with _of_results(workdir, name) as path:
        return read_arrays(path.with_name(f"{name}.npz")), read_json(path.with_name(f"{name}.json"))


def below(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The arrays that are named "<name>/...", without that."""
    return {key.removeprefix(f"{name}/"): of for key, of in arrays.items() if key.startswith(f"{name}/")}


def load_facts(workdir: str | os.PathLike, name: str) -> dict[str, Any]:
    """The facts alone, as `load_results`."""
    with _of_results(workdir, name) as path:
        return read_json(path.with_name(f"{name}.json"))


@contextmanager
def _of_results(workdir: str | os.PathLike, name: str) -> Iterator[pathlib.Path]:
    """Gives the results' path without its ending, and says what to do where a file of it is not there or damaged."""
    path = resolve(workdir) / RESULTS / name
    try:
        yield path
    except FileNotFoundError:
        raise RunDirectoryError(f"no results '{name}' in {path.parent}: run {_maker(workdir, name)} first") from None
    except NotWhatWasWritten as error:
        raise DamagedError(
            f"results '{name}' in {path.parent} are damaged ({error}): make them again, {_maker(workdir, name)}"
        ) from None


def _maker(workdir: str | os.PathLike, name: str) -> str:
    """The command that makes the results `name` of a folder."""
    try:
        kind = "train" if name.startswith("points") else read_header(workdir).kind  # a path is evaluated as a run is
    except RunDirectoryError:
        kind = "train"
    command, more = MAKERS[kind]
    return f"python -m launch.{command} --workdir={workdir}{more}"
