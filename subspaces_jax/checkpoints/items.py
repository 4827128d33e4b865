"""The items of one checkpoint: their shapes, whose they are, and the arrays in them."""

import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from subspaces_jax import records, trees
from subspaces_jax.checkpoints.failures import Damage, Misplaced, reading
from subspaces_jax.errors import CheckpointError

PyTree = Any
WEIGHTS, OPTIMIZER = ("params", "batch_stats"), "optimizer"
ORIGIN = "__origin__"


class Checkpoint(NamedTuple):
    """Attributes:
    params: stack of the endpoints, leaves [K, ...], NumPy arrays.
    batch_stats: BatchNorm statistics ({} where there are none).
    step: the training step.
    config: the resolved config of the run that wrote it, a nested dict.
    """

    params: PyTree
    batch_stats: PyTree
    step: int
    config: dict[str, Any]


def read(folder: pathlib.Path, step: int, like: PyTree, run_id: str | None) -> Checkpoint:
    """The weights of one checkpoint. Without a manager, which looks into all checkpoints of its folder."""
    with reading():
        found = metadata_of(folder, step)
        check_origins(found, WEIGHTS, step, run_id)
    if like is not None:
        check_architecture(folder, step, found, like)
    with reading(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        arrays = {name: as_numpy(found[name].tree) for name in WEIGHTS if name in found}
        items = ocp.args.Composite(config=ocp.args.JsonRestore(), **arrays)
        read = reader.restore(folder / str(step), args=items)
        config = dict(read["config"])
        if config.pop(ORIGIN, None) != origin_of(found["params"]):
            raise Misplaced("config and params are of different runs or steps")
    return Checkpoint(read["params"], read.get("batch_stats") or {}, step, config)


def manager_of(folder: pathlib.Path, **options: Any) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(**options))


def as_numpy(tree: PyTree) -> ocp.args.PyTreeRestore:
    """Arrays of the host, whatever devices they were saved from."""
    return ocp.args.PyTreeRestore(restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree))


def metadata_of(folder: pathlib.Path, step: int) -> dict[str, Any]:
    """Names, shapes and origins of the arrays of each item that is there."""
    handler, items = ocp.StandardCheckpointHandler(), folder / str(step)
    there = [name for name in (*WEIGHTS, OPTIMIZER) if (items / name).exists()]
    return {name: handler.metadata(items / name) for name in there}


def origin_of(metadata: Any) -> dict[str, Any] | None:
    return (metadata.custom_metadata or {}).get(ORIGIN)


def check_origins(found: dict[str, Any], needed: Iterable[str], step: int, run_id: str | None) -> None:
    """Whether what is there is of this step and run, and complete; `run_id` None: nobody knows it, they must agree."""
    origins = {name: origin_of(metadata) for name, metadata in found.items()}
    if "params" not in origins:
        raise Damage("params is missing")
    if run_id is None:
        run_id = (origins["params"] or {}).get("run_id", "")
    if not run_id and not any(origins.values()):  # of the first version of the package, all of it
        return
    for name, origin in origins.items():
        if origin is None:
            raise Misplaced(f"{name} does not say which run it is of")
        if (origin["run_id"], origin["step"]) != (run_id, step):
            other = f"another run ({origin['run_id'] or 'without an id'})"
            raise Misplaced(
                f"{name} is of step {origin['step']} of {'this run' if origin['run_id'] == run_id else other}"
            )
    whole = (origins["params"] or {})["items"]
    for name in origins.keys() - set(whole):
        raise Misplaced(f"{name} was not in it")
    for name in set(whole).intersection(needed) - origins.keys():
        raise Damage(f"{name} is missing")


def run_id_of(workdir: pathlib.Path) -> str | None:
    """The id of the run, "" for one of format 1, None where config.json is gone or damaged: weights need none."""
    if not (workdir / records.CONFIG).exists():
        return None
    try:
        return records.read_header(workdir).run_id
    except records.DamagedError:
        return None


def check_architecture(folder: pathlib.Path, step: int, found: dict[str, Any], expected: PyTree) -> None:
    if difference := trees.describe_mismatch(found["params"].tree, expected):
        raise CheckpointError(f"checkpoint {step} in {folder} is of another architecture than the config: {difference}")
