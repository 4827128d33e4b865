"""Flax checkpoints that other programs wrote: files of flax.serialization, and folders of Orbax.

A network lies in them as its parameters alone, as variables {"params": ..., "batch_stats": ...}, as a state of an NNX
module, or in a state of a training that has these, maybe within "model" or "state"; in a folder of a CheckpointManager
each of them may be an item of its own. Of a folder nothing is read but the network.
"""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization

from subspaces_jax import records, trees
from subspaces_jax.checkpoints import boxes
from subspaces_jax.checkpoints.failures import Damage, reading, without_tracebacks
from subspaces_jax.checkpoints.items import as_numpy, origin_of
from subspaces_jax.errors import CheckpointError, first_line

PyTree = Any
Keys = tuple[str, ...]
FILE, METADATA, OF_STEP, UNFINISHED = ".msgpack", "_METADATA", "_CHECKPOINT_METADATA", ".orbax-checkpoint-tmp"
PARAMS, STATS = "params", "batch_stats"
WITHIN = ("default", "model", "state", "target", "variables")  # where other programs keep what has the parameters


class _Opened(NamedTuple):
    """Attributes:
    tree: all that a checkpoint holds, of a folder as names and shapes.
    read: (keys) -> what is there, with arrays.
    """

    tree: PyTree
    read: Callable[[Keys], PyTree]


def is_flax(path: str | pathlib.Path) -> bool:
    """Whether a name is that of a Flax checkpoint of another program: a .msgpack or a file without an ending, or a
    folder that Orbax wrote."""
    path = pathlib.Path(path).expanduser()
    if path.suffix == FILE or UNFINISHED in path.name or (path.is_file() and not path.suffix):
        return True
    if not path.is_dir() or (path / records.CONFIG).exists():
        return False
    return bool(_is_folder_of_arrays(path) or (path / OF_STEP).exists() or _items(path) or _steps(path))


def restore_flax(path: str | pathlib.Path, step: int | None = None, like: PyTree = None) -> dict[str, PyTree]:
    """The network in a Flax checkpoint that another program wrote.

    Args:
        path: a file as of flax.serialization.to_bytes; or what Orbax wrote, a checkpoint, the folder of a step
            of a CheckpointManager, or the folder of all its steps.
        step: of a folder of steps, default the last.
        like: parameters of the expected names and shapes (arrays or jax.ShapeDtypeStruct); others are refused. Without
            it, names alone tell where the parameters are.

    Returns:
        {"params": tree, "batch_stats": tree}, leaves [...] of one network, NumPy arrays of the dtypes in the
        checkpoint; {} where there are no statistics.

    Raises:
        CheckpointError: it is missing, half-written, damaged, no Flax checkpoint, or of another architecture.
        OSError, MemoryError, ...: a reason outside the checkpoint.
    """
    path = pathlib.Path(path).expanduser().absolute()
    if not path.exists():
        raise CheckpointError(f"there is no Flax checkpoint {path}: name a {FILE} file or a folder that Orbax wrote")
    if UNFINISHED in path.name:
        raise CheckpointError(f"{path} is half-written: name a checkpoint that its program finished")
    with without_tracebacks():
        try:
            opened = _folder(path, step) if path.is_dir() else _file(path, step)
            params, stats = _network(opened.tree, path, like)
            found = _parts(opened.read(params), opened.read(stats) if stats else {}, like)
        except Damage as error:
            raise CheckpointError(
                f"{path} cannot be read as a Flax checkpoint ({error}): it is half-written or damaged, get it anew"
            ) from None
    if like is not None:
        by_name = trees.leaf_names(found[0])
        ordered = [by_name[name] for name in trees.leaf_names(like)]
        found = jax.tree.unflatten(jax.tree.structure(like), ordered), found[1]
    return dict(zip((PARAMS, STATS), jax.tree.map(np.asarray, found)))


def _file(path: pathlib.Path, step: int | None) -> _Opened:
    """The tree of a file, which has no steps."""
    _refuse_step(path, step)
    try:
        tree = serialization.msgpack_restore(path.read_bytes())
    except (MemoryError, OSError):
        raise
    except Exception as error:  # whatever other bytes make of a reader
        if "incomplete input" in str(error):
            raise CheckpointError(f"{path} is half-written, it ends too early: get it anew") from None
        raise CheckpointError(
            f"{path} is no Flax checkpoint ({first_line(error)}): name a file of flax.serialization.to_bytes"
        ) from None
    return _Opened(tree, lambda keys: _at(tree, keys))


def _folder(path: pathlib.Path, step: int | None) -> _Opened:
    """What Orbax says of a checkpoint, of the items of a step, or of the last or another step."""
    if _is_folder_of_arrays(path):
        _refuse_step(path, step)
        tree = _metadata(path)
        return _Opened(tree, lambda keys: _read(path, tree, keys))
    if items := _items(path):
        _refuse_step(path, step)
        found = {item.name: _metadata(item) for item in items}
        read = lambda name, keys: _read(path / name, found[name], keys)
        return _Opened(
            found, lambda keys: read(keys[0], keys[1:]) if keys else {name: read(name, ()) for name in found}
        )
    if not (there := _steps(path)):
        raise CheckpointError(f"{path} is no Flax checkpoint: there is nothing in it that Orbax finished")
    if step is not None and step not in there:
        raise CheckpointError(f"there is no checkpoint of step {step} in {path}: there are {there}")
    return _folder(path / str(there[-1] if step is None else step), None)


def _refuse_step(path: pathlib.Path, step: int | None) -> None:
    if step is not None:
        raise CheckpointError(f"{path} is one checkpoint and has no steps: leave out @{step}")


def _is_folder_of_arrays(path: pathlib.Path) -> bool:
    return (path / METADATA).is_file()


def _items(path: pathlib.Path) -> list[pathlib.Path]:
    return sorted(item for item in path.iterdir() if _is_folder_of_arrays(item) and UNFINISHED not in item.name)


def _steps(path: pathlib.Path) -> list[int]:
    """The steps of a CheckpointManager's folder."""
    return sorted(int(folder.name) for folder in path.iterdir() if folder.name.isdecimal() and _items(folder))


def _metadata(folder: pathlib.Path) -> PyTree:
    """Names and shapes of the arrays of a folder.

    Raises:
        CheckpointError: it is within a run of this package.
    """
    with reading():
        metadata = ocp.StandardCheckpointHandler().metadata(folder)
    if origin_of(metadata) is not None:
        raise CheckpointError(
            f"{folder.parent} is a checkpoint of a run of this package: name the run, as in runs/a@200"
        )
    return metadata.tree


def _read(folder: pathlib.Path, tree: PyTree, keys: Keys) -> PyTree:
    """The arrays below some keys, and no others."""
    wanted = _at(tree, keys)
    for key in reversed(keys):
        wanted = {key: wanted}
    args = ocp.args.PyTreeRestore(wanted, as_numpy(wanted).restore_args, partial_restore=True)
    with reading():
        return _at(ocp.PyTreeCheckpointHandler().restore(folder, args=args), keys)


def _at(tree: PyTree, keys: Keys) -> PyTree:
    for key in keys:
        tree = tree[key]
    return tree


def _network(tree: PyTree, path: pathlib.Path, like: PyTree) -> tuple[Keys, Keys]:
    """The keys of the parameters and of their statistics, () where there are none: of the outermost tree that fits, or
    without `like` of the innermost."""
    of_place = lambda place: _parts(_at(tree, place[0]), {}, like)[0]
    places = [place for place in _places(tree) if _is_of_arrays(of_place(place))]
    if not places:
        raise CheckpointError(f"{path} is no Flax checkpoint of a network: it has no tree of arrays as parameters")
    if like is None:
        return places[-1]
    for place in places:
        difference = trees.describe_mismatch(of_place(place), like)
        if difference is None:
            return place
    raise CheckpointError(f"{path} is of another architecture: {difference}")


def _parts(params: PyTree, stats: PyTree, like: PyTree) -> tuple[PyTree, PyTree]:
    """Parameters and statistics as Linen has them."""
    params, stats = boxes.unboxed(params), boxes.unboxed(stats)
    names = lambda tree: trees.leaf_names(tree).keys()
    is_whole = stats or not isinstance(params, dict) or (like and names(params) == names(like))
    return (params, stats) if is_whole else boxes.parted(params)


def _places(tree: PyTree) -> Iterator[tuple[Keys, Keys]]:
    """(keys of what may be parameters, keys of the statistics beside it), from outside inwards."""
    keys: Keys = ()
    stats: Keys = ()
    while isinstance(tree, dict):
        yield keys, stats
        stats = (*keys, STATS) if jax.tree.leaves(tree.get(STATS)) else stats
        inner = [name for name in (PARAMS, *WITHIN) if isinstance(tree.get(name), dict)]
        if not inner or (PARAMS in keys and inner[0] != PARAMS):
            return
        keys, tree = (*keys, inner[0]), tree[inner[0]]


def _is_of_arrays(tree: PyTree) -> bool:
    leaves = jax.tree.leaves(tree)
    return bool(leaves) and all(hasattr(leaf, "shape") for leaf in leaves)
