"""Checkpoints: Orbax behind one small package. What others use is here.

items.py      what one checkpoint is made of, and whose it is
failures.py   what Orbax raises, told apart
foreign.py    Flax checkpoints that other programs wrote

A checkpoint has separate items, so that an evaluation reads the weights and nothing else:

    params         stack of the endpoints, leaves [K, ...]
    batch_stats    BatchNorm statistics, absent where the network has none
    optimizer      state of the optimizer and the PRNG key data, read only to resume
    config         the resolved config of the run, JSON

Each item says which run and step it is of (its origin, beside the arrays in Orbax's metadata), so that one that was put
into another checkpoint is noticed. Checkpoints of the first version of the package have no origins.
"""

import logging
import os
import pathlib
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from subspaces_jax import geometry, parallel, records, remote
from subspaces_jax.checkpoints.failures import Damage, Misplaced, reading, without_tracebacks, writing
from subspaces_jax.checkpoints.foreign import is_flax as is_flax
from subspaces_jax.checkpoints.foreign import restore_flax as restore_flax
from subspaces_jax.checkpoints.items import (
    OPTIMIZER,
    ORIGIN,
    Checkpoint,
    check_architecture,
    check_origins,
    manager_of,
    metadata_of,
    read,
    run_id_of,
)
from subspaces_jax.errors import CheckpointError, RunDirectoryError

PyTree = Any
FOLDER, ASIDE = "checkpoints", "damaged"
# Directories made in the background are announced under a number that all managers of a process share: two runs in
# threads take each other's, write before their folder is there, and its making fails.
AT_ONCE = ocp.options.AsyncOptions(create_directories_asynchronously=False)


class Resumable(NamedTuple):
    """All that a run needs to go on bit for bit. `key` holds the PRNG key's data."""

    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    key: jax.Array


@contextmanager
def open_manager(
    workdir: str | os.PathLike, keep_last: int = 2, keep_steps: Sequence[int] = ()
) -> Iterator[ocp.CheckpointManager]:
    """A checkpoint manager on `workdir`, closed (and its last save waited for) on leaving.

    Args:
        workdir: the run directory.
        keep_last: how many of the latest stay.
        keep_steps: checkpoints of these steps stay for good; 0, the beginning, may be one.

    Raises:
        OSError: a save, this or one that was begun before, met a full or read-only disk.
    """
    kept = [policies.LatestN(keep_last), policies.CustomSteps(list(keep_steps))]
    options = {"preservation_policy": policies.AnyPreservationPolicy(kept), "async_options": AT_ONCE}
    folder = records.resolve(workdir) / FOLDER
    if wrong := [letter for letter in "[]\\" if letter in str(folder)]:  # which TensorStore's paths cannot have
        raise RunDirectoryError(f"workdir {folder.parent} has {wrong[0]!r} in it, and checkpoints there could not be "
                                "read: name another")  # fmt: skip
    with without_tracebacks():
        manager = manager_of(folder, **options)
        try:
            yield manager
        finally:
            with writing(folder):
                manager.close()


def save(manager: ocp.CheckpointManager, step: int, state: Resumable, config: dict[str, Any], run_id: str = "") -> None:
    """Begins to write a checkpoint and returns; the arrays may be donated at once. A step saved before stays.

    Args:
        manager: from `open_manager`.
        step: the training step, from 0.
        state: what to write.
        config: the resolved config of the run.
        run_id: of the header of the run's config.json.
    """
    if step in manager.all_steps():
        return
    arrays = {"params": state.params, "optimizer": {"opt_state": state.opt_state, "key": state.key}}
    if jax.tree.leaves(state.batch_stats):
        arrays["batch_stats"] = state.batch_stats
    origin = {"run_id": run_id, "step": int(step), "items": sorted(arrays)}
    items = {name: ocp.args.StandardSave(tree, custom_metadata={ORIGIN: origin}) for name, tree in arrays.items()}
    with writing(manager.directory):
        manager.save(step, args=ocp.args.Composite(**items, config=ocp.args.JsonSave(config | {ORIGIN: origin})))


def resume(
    manager: ocp.CheckpointManager, like: Resumable, run_id: str = ""
) -> tuple[Resumable, int, list[str]] | None:
    """The latest good checkpoint as (state, step, notes on damaged ones passed over), or None where there is none.

    Damaged ones, and those that hold something of another run or step, are moved to the folder "damaged" of the run
    directory, so that the run can write those steps again.

    Args:
        manager: from `open_manager`.
        like: a state of the expected structure, shapes and shardings (arrays or jax.ShapeDtypeStruct).
        run_id: of the header of the run's config.json; "" for a run of format 1.

    Raises:
        CheckpointError: of another architecture, or all are damaged.
        OSError, MemoryError, ...: a reason outside the run; nothing is moved.
    """
    notes: list[str] = []
    damaged: list[int] = []
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            found = _resume_step(manager, step, like, run_id)
        except Damage as error:
            notes.append(f"checkpoint {step} is damaged ({error})")
            damaged.append(step)
            continue
        _set_aside(manager, damaged)
        return found, step, notes
    if notes:
        raise CheckpointError(
            f"no checkpoint in {manager.directory} can be read: {'; '.join(notes)}; delete it to start over"
        )
    return None


def _resume_step(manager: ocp.CheckpointManager, step: int, like: Resumable, run_id: str | None) -> Resumable:
    wanted = {"params": like.params, "optimizer": {"opt_state": like.opt_state, "key": like.key}}
    if with_stats := bool(jax.tree.leaves(like.batch_stats)):
        wanted["batch_stats"] = like.batch_stats
    folder = pathlib.Path(manager.directory)
    with reading():
        found = metadata_of(folder, step)
        check_origins(found, wanted, step, run_id)
    check_architecture(folder, step, found, like.params)
    with reading():
        items = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
        items = manager.restore(step, args=ocp.args.Composite(**items))
    stats = items["batch_stats"] if with_stats else like.batch_stats
    return Resumable(items["params"], stats, items["optimizer"]["opt_state"], items["optimizer"]["key"])


def steps(workdir: str | os.PathLike) -> list[int]:
    """The steps of the finished checkpoints of a run, in order; nothing is read, and no folder is made."""
    try:
        names = [entry.name for entry in os.scandir(records.resolve(workdir) / FOLDER) if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


def has_any(workdir: str | os.PathLike) -> bool:
    """Whether a run has reached its first checkpoint."""
    return bool(steps(workdir))


def restore(workdir: str | os.PathLike, step: int | None = None, like: PyTree = None) -> Checkpoint:
    """The weights of a run, for evaluation and notebooks.

    Args:
        workdir: a run directory, or the URL of one, "gs://bucket/run", of any file system that fsspec knows.
        step: the training step; default the latest that can be read (behind a URL, the latest).
        like: stack of the expected names and shapes; another architecture is refused.

    Raises:
        CheckpointError: no checkpoint, a damaged one, one with something of another run or step, or another
            architecture.
        RunDirectoryError: a URL that cannot be read.
        OSError, MemoryError, ...: a reason outside the run.
    """
    if records.is_url(workdir):
        with remote.copied(os.fspath(workdir), FOLDER, step, leave_out=(OPTIMIZER,)) as (local, at):
            return restore(local, at, like)
    folder = records.resolve(workdir) / FOLDER
    if not folder.is_dir():  # Orbax would create it
        raise CheckpointError(
            f"no checkpoints in {folder.parent}: train with --workdir={workdir}, or name another workdir"
        )
    there, run_id = steps(workdir), run_id_of(folder.parent)
    if not there:
        raise CheckpointError(f"no finished checkpoint in {folder}: let the run reach its first one")
    if step is not None and step not in there:
        raise CheckpointError(f"no checkpoint of step {step} in {folder}: there are {there}")
    problems = []
    jax.process_count()  # which fails where there is no device: that is no damage
    with without_tracebacks():
        for candidate in reversed(there) if step is None else [step]:
            try:
                return read(folder, candidate, like, run_id)
            except Misplaced as error:
                raise CheckpointError(
                    f"checkpoint {candidate} in {folder} is not what it was: {error}; put its own back or restore "
                    "another step"
                ) from None
            except Damage as error:
                if not (folder / str(candidate)).exists():
                    continue  # a training that goes on has removed it since
                problems.append(f"checkpoint {candidate} is damaged ({error})")
                logging.getLogger(__name__).warning("%s, trying an older one", problems[-1])
    raise CheckpointError(f"{'; '.join(problems)} in {folder}: restore another step or train again")


def restore_state(workdir: str | os.PathLike, step: int, like: Resumable) -> Resumable:
    """All of one checkpoint of a run, for another one that goes on from it.

    Args:
        workdir: a run directory.
        step: the training step.
        like: as `resume` takes it.

    Raises:
        CheckpointError: no such checkpoint, a damaged one, another architecture or optimizer.
        OSError, MemoryError, ...: a reason outside the run.
    """
    folder = records.resolve(workdir) / FOLDER
    if step not in (there := steps(workdir)):
        raise CheckpointError(f"no checkpoint of step {step} in {folder}: there are {there}")
    with without_tracebacks(), manager_of(folder, read_only=True) as manager:
        try:
            return _resume_step(manager, step, like, run_id_of(folder.parent))
        except Damage as error:
            raise CheckpointError(
                f"checkpoint {step} in {folder} cannot be gone on from ({error}): it is damaged, or of another "
                "optimizer than the config"
            ) from None


def restore_stack(workdirs: Sequence[str | pathlib.Path], step: int | Sequence[int | None] | None = None) -> Checkpoint:
    """Several runs of one architecture as one stack: their endpoints along the leading axis, in the order given.

    Args:
        workdirs: run directories, or URLs of them; one may be named several times.
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


def _set_aside(manager: ocp.CheckpointManager, damaged: Sequence[int]) -> None:
    if damaged and parallel.is_main():
        folder = pathlib.Path(manager.directory)
        (folder.parent / ASIDE).mkdir(exist_ok=True)
        for step in damaged:
            (folder / str(step)).rename(folder.parent / ASIDE / f"{step}-{time.time_ns()}")
    if damaged:
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        manager.reload()
