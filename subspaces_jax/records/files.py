"""Files of a run directory, as they are read; and where the directory is."""

import json
import os
import pathlib
import re
import zipfile
import zlib
from typing import Any

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
