"""Checkpoints: Orbax behind one small file.

A checkpoint has separate items, so that an evaluation reads the weights and nothing else:

    params         stack of the endpoints, leaves [K, ...]
    batch_stats    BatchNorm statistics, absent where the network has none
    optimizer      state of the optimizer and the PRNG key data, read only to resume
    config         the resolved config of the run, JSON
"""

import logging
import os
import pathlib
import re
import time
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from subspaces_jax import geometry, logs, trees
from subspaces_jax.errors import CheckpointError

PyTree = Any
FOLDER = "checkpoints"


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


class Resumable(NamedTuple):
    """All that a run needs to go on bit for bit. `key` holds the PRNG key's data."""

    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    key: jax.Array


@contextmanager
def open_manager(workdir: str | pathlib.Path, keep_last: int = 2, keep_steps: Sequence[int] = ()):
    """A checkpoint manager on `workdir`, closed (and its last save waited for) on leaving.

    Args:
        workdir: the run directory.
        keep_last: how many of the latest stay.
        keep_steps: checkpoints of these steps stay for good.

    Raises:
        OSError: a save, this or one that was begun before, met a full or read-only disk.
    """
    kept = [policies.LatestN(keep_last), policies.CustomSteps(list(keep_steps))]
    options = ocp.CheckpointManagerOptions(preservation_policy=policies.AnyPreservationPolicy(kept))
    folder = pathlib.Path(workdir).absolute() / FOLDER
    with logs.quiet(logging.CRITICAL):  # Orbax logs the tracebacks of what it raises, too
        manager = ocp.CheckpointManager(folder, options=options)
        try:
            yield manager
        finally:
            with _writing(folder):
                manager.close()


def save(manager: ocp.CheckpointManager, step: int, state: Resumable, config: dict[str, Any]) -> None:
    """Begins to write a checkpoint and returns; the arrays may be donated at once. A step saved before stays."""
    if step in manager.all_steps():
        return
    items = {
        "params": ocp.args.StandardSave(state.params),
        "optimizer": ocp.args.StandardSave({"opt_state": state.opt_state, "key": state.key}),
        "config": ocp.args.JsonSave(config),
    }
    if jax.tree.leaves(state.batch_stats):
        items["batch_stats"] = ocp.args.StandardSave(state.batch_stats)
    with _writing(manager.directory):
        manager.save(step, args=ocp.args.Composite(**items))


def resume(manager: ocp.CheckpointManager, like: Resumable) -> tuple[Resumable, int, list[str]] | None:
    """The latest good checkpoint as (state, step, notes on damaged ones passed over), or None where there is none.

    Damaged ones are moved to the folder "damaged" of the run directory, so that the run can write those steps again.

    Args:
        manager: from `open_manager`.
        like: a state of the expected structure, shapes and shardings (arrays or jax.ShapeDtypeStruct).

    Raises:
        CheckpointError: of another architecture, or all are damaged.
    """
    with_stats = bool(jax.tree.leaves(like.batch_stats))
    restore_args = {
        "params": ocp.args.StandardRestore(like.params),
        "optimizer": ocp.args.StandardRestore({"opt_state": like.opt_state, "key": like.key}),
    }
    if with_stats:
        restore_args["batch_stats"] = ocp.args.StandardRestore(like.batch_stats)
    notes: list[str] = []
    damaged: list[int] = []
    for step in sorted(manager.all_steps(), reverse=True):
        _check_architecture(manager, step, like.params)
        try:
            items = manager.restore(step, args=ocp.args.Composite(**restore_args))
        except Exception as error:  # Orbax raises many kinds for damage; none may end a run that an older step can save
            notes.append(f"checkpoint {step} is damaged ({_first_line(error)})")
            damaged.append(step)
            continue
        _set_aside(manager, damaged)
        optimizer = items["optimizer"]
        stats = items["batch_stats"] if with_stats else like.batch_stats
        return Resumable(items["params"], stats, optimizer["opt_state"], optimizer["key"]), step, notes
    if notes:
        raise CheckpointError(
            f"no checkpoint in {manager.directory} can be read: {'; '.join(notes)}; delete it to start over"
        )
    return None


def has_any(workdir: str | pathlib.Path) -> bool:
    """Whether a run has reached its first checkpoint."""
    return any(path.name.isdigit() for path in (pathlib.Path(workdir) / FOLDER).glob("*"))


def restore(workdir: str | pathlib.Path, step: int | None = None, like: PyTree = None) -> Checkpoint:
    """The weights of a run, for evaluation and notebooks.

    Args:
        workdir: a run directory.
        step: the training step; default the latest that can be read.
        like: stack of the expected names and shapes; another architecture is refused.

    Raises:
        CheckpointError: no checkpoint, a damaged one or another architecture.
    """
    folder = pathlib.Path(workdir).absolute() / FOLDER
    if not folder.is_dir():  # Orbax would create it
        raise CheckpointError(
            f"no checkpoints in {folder.parent}: train with --workdir={workdir}, or name another workdir"
        )
    with logs.quiet(), ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
        steps = sorted(manager.all_steps(), reverse=True)
        if not steps:
            raise CheckpointError(f"no finished checkpoint in {folder}: let the run reach its first one")
        if step is not None and step not in steps:
            raise CheckpointError(f"no checkpoint of step {step} in {folder}: there are {sorted(steps)}")
        problems = []
        for candidate in steps if step is None else [step]:
            try:
                return _read(manager, candidate, like)
            except CheckpointError:
                raise
            except Exception as error:  # as in resume: walk down over damage
                problems.append(f"checkpoint {candidate} is damaged ({_first_line(error)})")
                logging.getLogger(__name__).warning("%s, trying an older one", problems[-1])
    raise CheckpointError(f"{'; '.join(problems)} in {folder}: restore another step or train again")


def restore_stack(workdirs: Sequence[str | pathlib.Path], step: int | Sequence[int | None] | None = None) -> Checkpoint:
    """Several runs of one architecture as one stack: their endpoints along the leading axis, in the order given.

    Args:
        workdirs: run directories; one may be named several times.
        step: the training step of all, or of each; default the latest of each.

    Returns:
        A Checkpoint whose batch_stats and config are those of the first run; refresh the statistics at each point.
    """
    if not workdirs:
        raise CheckpointError("no run directories given: name at least one")
    steps = [step] * len(workdirs) if step is None or isinstance(step, int) else step
    loaded = [restore(workdir, at) for workdir, at in zip(workdirs, steps, strict=True)]
    endpoints = [endpoint for checkpoint in loaded for endpoint in geometry.unstack(checkpoint.params)]
    try:
        return loaded[0]._replace(params=geometry.stack(endpoints))
    except ValueError as error:
        raise CheckpointError(f"{', '.join(map(str, workdirs))} cannot be stacked: {error}") from None


def _read(manager: ocp.CheckpointManager, step: int, like: PyTree) -> Checkpoint:
    if like is not None:
        _check_architecture(manager, step, like)
    arrays = [name for name in ("params", "batch_stats") if (_folder(manager, step) / name).exists()]
    items = {name: _as_numpy(_folder(manager, step) / name) for name in arrays}
    read = manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore(), **items))
    return Checkpoint(read["params"], read.get("batch_stats") or {}, step, read["config"])


def _as_numpy(folder: pathlib.Path) -> ocp.args.PyTreeRestore:
    """Arrays of the host, whatever devices they were saved from."""
    tree = ocp.StandardCheckpointHandler().metadata(folder).tree
    return ocp.args.PyTreeRestore(restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree))


def _folder(manager: ocp.CheckpointManager, step: int) -> pathlib.Path:
    return pathlib.Path(manager.directory) / str(step)


def _check_architecture(manager: ocp.CheckpointManager, step: int, expected: PyTree) -> None:
    handler = ocp.StandardCheckpointHandler()
    try:
        found = handler.metadata(_folder(manager, step) / "params").tree
    except Exception:  # damaged: the restore that follows says so
        return
    if found is not None and (difference := trees.describe_mismatch(found, expected)):
        raise CheckpointError(
            f"checkpoint {step} in {manager.directory} is of another architecture than the config: {difference}"
        )


@contextmanager
def _writing(folder: Any):
    """Turns what Orbax raises for a failed write, which may be of an earlier save, into the OSError that it was."""
    try:
        yield
    except Exception as error:
        if (code := re.search(r"os_error_code='(\d+)'", str(error))) is None:
            raise
        raise OSError(int(code.group(1)), os.strerror(int(code.group(1))), str(folder)) from error


def _set_aside(manager: ocp.CheckpointManager, steps: Sequence[int]) -> None:
    for step in steps:
        aside = pathlib.Path(manager.directory).parent / "damaged"
        aside.mkdir(exist_ok=True)
        _folder(manager, step).rename(aside / f"{step}-{time.time_ns()}")
    if steps:
        manager.reload()


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:80]
