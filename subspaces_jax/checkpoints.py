"""Checkpoints: Orbax behind one small file.

A checkpoint has separate items, so that an evaluation reads the weights and nothing else:

    params         stack of the endpoints, leaves [K, ...]
    batch_stats    BatchNorm statistics, absent where the network has none
    optimizer      state of the optimizer and the PRNG key data, read only to resume
    config         the resolved config of the run, JSON

Each item says which run and step it is of (its origin, beside the arrays in Orbax's metadata), so that one that was put
into another checkpoint is noticed. Checkpoints of the first version of the package have no origins.
"""

import errno
import logging
import os
import pathlib
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from subspaces_jax import geometry, parallel, records, remote, trees
from subspaces_jax.errors import CheckpointError, first_line

PyTree = Any
FOLDER, ASIDE = "checkpoints", "damaged"
WEIGHTS, OPTIMIZER = ("params", "batch_stats"), "optimizer"
ORIGIN = "__origin__"
SECONDS_FOR_THREADS = 5.0
# Directories made in the background are announced under a number that all managers of a process share: two runs in
# threads take each other's, write before their folder is there, and its making fails.
AT_ONCE = ocp.options.AsyncOptions(create_directories_asynchronously=False)
OUTSIDE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EROFS)
OUTSIDE += (errno.EIO, errno.EINTR, errno.EBUSY, errno.ETIMEDOUT, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN)


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
    with _without_tracebacks():
        manager = _manager(folder, **options)
        try:
            yield manager
        finally:
            with _writing(folder):
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
    with _writing(manager.directory):
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
        except _Damage as error:
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
    with _reading():
        found = _metadata(manager, step)
        _check_origins(found, wanted, step, run_id)
    _check_architecture(manager, step, found, like.params)
    with _reading():
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
    there, run_id = steps(workdir), _run_id(folder.parent)
    if not there:
        raise CheckpointError(f"no finished checkpoint in {folder}: let the run reach its first one")
    if step is not None and step not in there:
        raise CheckpointError(f"no checkpoint of step {step} in {folder}: there are {there}")
    problems = []
    with _without_tracebacks(), _manager(folder, read_only=True) as manager:
        for candidate in reversed(there) if step is None else [step]:
            try:
                return _read(manager, candidate, like, run_id)
            except _Misplaced as error:
                raise CheckpointError(
                    f"checkpoint {candidate} in {folder} is not what it was: {error}; put its own back or restore "
                    "another step"
                ) from None
            except _Damage as error:
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
    with _without_tracebacks(), _manager(folder, read_only=True) as manager:
        try:
            return _resume_step(manager, step, like, _run_id(folder.parent))
        except _Damage as error:
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


class _Damage(Exception):
    """A checkpoint cannot be read, and it is the checkpoint's fault; the message says what, in a line."""


class _Misplaced(_Damage):
    """An item of a checkpoint is of another run or step."""


def _read(manager: ocp.CheckpointManager, step: int, like: PyTree, run_id: str | None) -> Checkpoint:
    with _reading():
        found = _metadata(manager, step)
        _check_origins(found, WEIGHTS, step, run_id)
    if like is not None:
        _check_architecture(manager, step, found, like)
    with _reading():
        arrays = {name: _as_numpy(found[name].tree) for name in WEIGHTS if name in found}
        read = manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore(), **arrays))
        config = dict(read["config"])
        if config.pop(ORIGIN, None) != _origin(found["params"]):
            raise _Misplaced("config and params are of different runs or steps")
    return Checkpoint(read["params"], read.get("batch_stats") or {}, step, config)


def _manager(folder: pathlib.Path, **options: Any) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(**options))


def _as_numpy(tree: PyTree) -> ocp.args.PyTreeRestore:
    """Arrays of the host, whatever devices they were saved from."""
    return ocp.args.PyTreeRestore(restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree))


def _metadata(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """Names, shapes and origins of the arrays of each item that is there."""
    folder, handler = _folder(manager, step), ocp.StandardCheckpointHandler()
    there = [name for name in (*WEIGHTS, OPTIMIZER) if (folder / name).exists()]
    return {name: handler.metadata(folder / name) for name in there}


def _origin(metadata: Any) -> dict[str, Any] | None:
    return (metadata.custom_metadata or {}).get(ORIGIN)


def _check_origins(found: dict[str, Any], needed: Iterable[str], step: int, run_id: str | None) -> None:
    """Whether what is there is of this step and run, and complete; `run_id` None: nobody knows it, they must agree."""
    origins = {name: _origin(metadata) for name, metadata in found.items()}
    if "params" not in origins:
        raise _Damage("params is missing")
    if run_id is None:
        run_id = (origins["params"] or {}).get("run_id", "")
    if not run_id and not any(origins.values()):  # of the first version of the package, all of it
        return
    for name, origin in origins.items():
        if origin is None:
            raise _Misplaced(f"{name} does not say which run it is of")
        if (origin["run_id"], origin["step"]) != (run_id, step):
            other = f"another run ({origin['run_id'] or 'without an id'})"
            raise _Misplaced(
                f"{name} is of step {origin['step']} of {'this run' if origin['run_id'] == run_id else other}"
            )
    whole = origins["params"]["items"]
    for name in origins.keys() - set(whole):
        raise _Misplaced(f"{name} was not in it")
    for name in set(whole).intersection(needed) - origins.keys():
        raise _Damage(f"{name} is missing")


def _run_id(workdir: pathlib.Path) -> str | None:
    """The id of the run, "" for one of format 1, None where config.json is gone or damaged: weights need none."""
    if not (workdir / records.CONFIG).exists():
        return None
    try:
        return records.read_header(workdir).run_id
    except records.DamagedError:
        return None


def _folder(manager: ocp.CheckpointManager, step: int) -> pathlib.Path:
    return pathlib.Path(manager.directory) / str(step)


def _check_architecture(manager: ocp.CheckpointManager, step: int, found: dict[str, Any], expected: PyTree) -> None:
    if difference := trees.describe_mismatch(found["params"].tree, expected):
        raise CheckpointError(
            f"checkpoint {step} in {manager.directory} is of another architecture than the config: {difference}"
        )


@contextmanager
def _reading() -> Iterator[None]:
    """Turns what Orbax raises for damage, of many kinds, into _Damage, and nothing else."""
    handled = sys.exception()  # by the caller, and no reason for what follows
    try:
        yield
    except _Damage:
        raise
    except Exception as error:
        if (reason := _outside(error, handled)) is error:
            raise
        if reason is not None:
            raise reason from error
        raise _Damage(first_line(error)) from error


def _outside(error: BaseException | None, handled: BaseException | None) -> BaseException | None:
    """The reason outside the run (memory, permission, a disk or device that fails) that `error` has, or None."""
    while error is not None and error is not handled:
        text = str(error)
        if (code := _os_error(text)) in OUTSIDE:
            return OSError(code, os.strerror(code), _file_named(text))
        if isinstance(error, OSError) and error.errno in OUTSIDE:
            return error
        if isinstance(error, MemoryError | ImportError | jax.errors.JaxRuntimeError):
            return error
        if text.startswith("Unable to initialize backend") or "RESOURCE_EXHAUSTED" in text:
            return error
        error = error.__cause__ or error.__context__
    return None


def _os_error(text: str) -> int | None:
    """The errno in a message of TensorStore, which raises ValueError for everything."""
    match = re.search(r"os_error_code='(\d+)'", text)
    return int(match[1]) if match else None


def _file_named(text: str) -> str | None:
    match = re.search(r'local file "([^"]+)"', text)
    return match[1] if match else None


@contextmanager
def _writing(folder: Any) -> Iterator[None]:
    """Turns what Orbax raises for a failed write, which may be of an earlier save, into the OSError that it was."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or (code := _os_error(str(error))) is None:
            raise
        raise OSError(code, os.strerror(code), str(folder)) from error


def _set_aside(manager: ocp.CheckpointManager, damaged: Sequence[int]) -> None:
    if damaged and parallel.is_main():
        aside = pathlib.Path(manager.directory).parent / ASIDE
        aside.mkdir(exist_ok=True)
        for step in damaged:
            _folder(manager, step).rename(aside / f"{step}-{time.time_ns()}")
    if damaged:
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        manager.reload()


@contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Holds back what Orbax prints of errors that it raises as well.

    It logs their tracebacks, from threads that may outlive the error, and leaves writes behind whose end nobody waits
    for in a closed event loop.
    """
    logger = logging.getLogger("absl")
    of_others = lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname
    before = set(threading.enumerate())
    logger.addFilter(of_others)
    try:
        with _CLOSED_LOOPS:
            try:
                yield
            except BaseException:
                _CLOSED_LOOPS.stay()  # a write that nobody waits for may end long after, and so may a task of one
                logging.getLogger("asyncio").addFilter(_not_a_task_of_orbax)
                _await_threads(before)
                raise
    finally:
        logger.removeFilter(of_others)


def _not_a_task_of_orbax(record: logging.LogRecord) -> bool:
    """A filter of what asyncio says of failed writes that nobody asked for: Orbax raises the first of several."""
    text, error = record.getMessage(), record.exc_info[1] if record.exc_info else None
    is_a_write = isinstance(error, OSError) or f"{os.sep}orbax{os.sep}" in text or _os_error(str(error)) is not None
    return "was never retrieved" not in text or not is_a_write


def _await_threads(before: set[threading.Thread]) -> None:
    """Waits a while for the threads of Orbax that were begun meanwhile."""
    end = time.monotonic() + SECONDS_FOR_THREADS
    for thread in set(threading.enumerate()) - before - {threading.current_thread()}:
        if type(thread).__module__.startswith("orbax") or thread.name == "async_save":
            threading.Thread.join(thread, max(0.0, end - time.monotonic()))


class _ClosedLoops:
    """Drops "Event loop is closed" from what Python prints of errors that nobody can handle, as long as any thread is
    in this context; for good once it is to `stay`."""

    def __init__(self):
        self._lock, self._inside, self._stays = threading.Lock(), 0, False

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._hook, sys.unraisablehook = sys.unraisablehook, self._drop
            self._inside += 1

    def __exit__(self, *_: Any) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and sys.unraisablehook == self._drop:
                sys.unraisablehook = self._hook

    def stay(self) -> None:
        """Keeps dropping them after the context, too."""
        with self._lock:
            self._inside += not self._stays
            self._stays = True

    def _drop(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self._hook(unraisable)


_CLOSED_LOOPS = _ClosedLoops()
