"""What Orbax raises and prints where it fails: told apart, and said once.

Damage of a checkpoint is `Damage`; a reason outside the run, such as a full disk, is the OSError that it was.
"""

import atexit
import errno
import gc
import inspect
import logging
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import CoroutineType
from typing import Any

import jax

from subspaces_jax.errors import first_line

SECONDS_FOR_THREADS = 5.0
LEFT_BEHIND = r"coroutine '\S*(serialize|write_|save|commit|finalize|ocdbt)\S*' was never awaited"  # by Orbax
OUTSIDE: tuple[int, ...] = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC)
OUTSIDE += (errno.EDQUOT, errno.EROFS)
OUTSIDE += (errno.EIO, errno.EINTR, errno.EBUSY, errno.ETIMEDOUT, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN)


class Damage(Exception):
    """A checkpoint cannot be read, and it is the checkpoint's fault; the message says what, in a line."""


class Misplaced(Damage):
    """An item of a checkpoint is of another run or step."""


@contextmanager
def reading() -> Iterator[None]:
    """Turns what Orbax raises for damage, of many kinds, into Damage, and nothing else."""
    handled = sys.exception()  # by the caller, and no reason for what follows
    try:
        yield
    except Damage:
        raise
    except Exception as error:
        if (reason := _outside(error, handled)) is error:
            raise
        if reason is not None:
            raise reason from error
        raise Damage(first_line(error)) from error


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
def writing(folder: Any) -> Iterator[None]:
    """Turns what Orbax raises for a failed write, which may be of an earlier save, into the OSError that it was."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or (code := _os_error(str(error))) is None:
            raise
        raise OSError(code, os.strerror(code), str(folder)) from error


@contextmanager
def without_tracebacks() -> Iterator[None]:
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
                warnings.filterwarnings("ignore", LEFT_BEHIND, RuntimeWarning)
                atexit.unregister(_close_coroutines)
                atexit.register(_close_coroutines)
                _await_threads(before)
                raise
    finally:
        logger.removeFilter(of_others)


def _close_coroutines() -> None:
    """Closes what Orbax never awaited: Python would say so when no filter of warnings holds any more.

    Of no object but a coroutine is anything asked: some are stand-ins that import what they stand for.
    """
    for found in gc.get_objects():
        if type(found) is CoroutineType and f"{os.sep}orbax{os.sep}" in found.cr_code.co_filename:
            if inspect.getcoroutinestate(found) == inspect.CORO_CREATED:
                found.close()


def _not_a_task_of_orbax(record: logging.LogRecord) -> bool:
    """A filter of what asyncio says of failed writes and reads that nobody asked for: Orbax raises the first of
    several."""
    text, error = record.getMessage(), record.exc_info[1] if record.exc_info else None
    of_files = isinstance(error, OSError) or "tensorstore_spec" in str(error) or _os_error(str(error)) is not None
    return "was never retrieved" not in text or not (of_files or f"{os.sep}orbax{os.sep}" in text)


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
