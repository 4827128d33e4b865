"""A run directory belongs to one live run."""

import fcntl
import os
import pathlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from subspaces_jax.errors import RunDirectoryError
from subspaces_jax.records.files import resolve
from subspaces_jax.records.names import LOCK, RESULTS

_TEMPORARY = re.compile(r"\..+\.(?:jsonl?\.(\d+)|(\d+)\.npz)")
_held: set[tuple[int, int]] = set()  # device and inode of locks that this process has: on NFS flock is of a process
_holding = threading.Lock()


@contextmanager
def locked(workdir: str | os.PathLike) -> Iterator[pathlib.Path]:
    """The run directory, made if need be and held for this caller; the lock goes with the process, however it ends.

    What killed processes had half written is removed.

    Raises:
        RunDirectoryError: a live run holds it, in another process or in another thread of this one.
    """
    folder = resolve(workdir)
    if folder.exists() and not folder.is_dir():
        raise RunDirectoryError(f"workdir {folder} is a file: name a directory")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a") as lock, _alone(lock, folder):
        _remove_temporaries(folder)
        yield folder


@contextmanager
def _alone(lock: IO[str], folder: pathlib.Path) -> Iterator[None]:
    status = os.fstat(lock.fileno())
    name = status.st_dev, status.st_ino
    in_use = RunDirectoryError(f"workdir {folder} is in use by a live run: wait for it or name another")
    with _holding:
        if name in _held:
            raise in_use
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise in_use from None
        _held.add(name)
    try:
        yield
    finally:
        with _holding:
            _held.discard(name)


def _remove_temporaries(folder: pathlib.Path) -> None:
    """Of processes that are gone: an evaluation writes results without the lock, and may be at it now."""
    for path in [*folder.glob(".*"), *(folder / RESULTS).glob(".*")]:
        if (match := _TEMPORARY.fullmatch(path.name)) and not _is_alive(int(match[1] or match[2])):
            path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
