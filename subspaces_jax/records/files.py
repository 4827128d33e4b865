"""Files of a run directory, each written whole or not at all; and where the directory is."""

import errno
import json
import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np

from subspaces_jax.errors import RunDirectoryError, first_line

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


class DamagedError(RunDirectoryError):
    """A file of the run directory is there and is not what was written: a sweep does the run again."""


def resolve(workdir: str | os.PathLike) -> pathlib.Path:
    """The absolute path of a run directory, "~" expanded; the same everywhere.

    Raises:
        RunDirectoryError: it is a URL or no path.
    """
    text = os.fspath(workdir)
    if is_url(text):
        raise RunDirectoryError(
            f"workdir {text} is a URL: run directories are local folders, mount it and name its path"
        )
    if not text or "\0" in text:
        raise RunDirectoryError(f"workdir {text!r} is no path: name a directory")
    try:
        return pathlib.Path(text).expanduser().absolute()
    except RuntimeError:
        raise RunDirectoryError(f"workdir {text} is in the home of an unknown user: name a directory") from None


def is_url(workdir: str | os.PathLike) -> bool:
    """Whether a run directory is named by a URL, "gs://bucket/run"."""
    return bool(_URL.match(os.fspath(workdir)))


class NotWhatWasWritten(Exception):
    """A file holds something else than this module writes; the message names it and says what."""


def read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except IsADirectoryError:
        raise NotWhatWasWritten(f"{path.name} is a folder") from None
    except RecursionError:
        raise NotWhatWasWritten(f"{path.name} is nested too deeply") from None
    except ValueError as error:  # of JSON and of UTF-8
        raise NotWhatWasWritten(f"{path.name}: {first_line(error)}") from None
    if not isinstance(found, dict):
        raise NotWhatWasWritten(f"{path.name} holds a {type(found).__name__}, not an object")
    return found


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file):  # NumPy takes what is no archive for a pickle
            file.seek(0)
            with np.load(file) as members:
                arrays = dict(members)
    except IsADirectoryError:
        raise NotWhatWasWritten(f"{path.name} is a folder") from None
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError, SyntaxError, RuntimeError) as error:
        raise NotWhatWasWritten(f"{path.name}: {first_line(error)}") from None
    if bad := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise NotWhatWasWritten(f"{path.name}: {bad[0]!r} is no array")
    return arrays


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all; it is on the disk when this returns."""
    write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Likewise, of bytes."""
    with replacing(path, path.with_name(f".{path.name}.{os.getpid()}")) as file:
        file.write(content)


@contextmanager
def replacing(path: pathlib.Path, temporary: pathlib.Path) -> Iterator[IO[bytes]]:
    """Gives the temporary, opened, and has it take the place of `path`: power may fail at any point."""
    try:
        with naming(path), open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: pathlib.Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that do not know it need no more
            raise
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Gives an OSError of writing, of a full disk for one, the name of the file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
