"""The run directory: one lock, the config and its header, rows of metrics, TensorBoard events, results, progress.

config.json  metrics.jsonl  events/  checkpoints/  results/<name>.npz + .json  figures/

Run directories are local folders. What is read back was written by another process, perhaps on a disk that filled up
or by hand: whatever it holds, it is read or refused with one line.
"""

import errno
import fcntl
import json
import os
import pathlib
import re
import secrets
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

import numpy as np

from subspaces_jax.errors import RunDirectoryError, first_line

CONFIG, METRICS, RESULTS, FIGURES, EVENTS, LOCK = (
    "config.json",
    "metrics.jsonl",
    "results",
    "figures",
    "events",
    ".lock",
)
FORMAT = 2
KINDS = ("train", "connect", "study", "sweep")
SECONDS_BETWEEN_LINES = 5.0
_ROW_BEGINS = b'{"step": '
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_TEMPORARY = re.compile(r"\..+\.(?:jsonl?\.(\d+)|(\d+)\.npz)")
_held: set[tuple[int, int]] = set()  # device and inode of locks that this process has: on NFS flock is of a process
_holding = threading.Lock()


class DamagedError(RunDirectoryError):
    """A file of the run directory is there and is not what was written: a sweep does the run again."""


class Header(NamedTuple):
    """What config.json says of the folder it lies in.

    Attributes:
        kind: one of KINDS.
        format: of the file; 1, the config alone, is what the package wrote before headers.
        run_id: 16 hex digits made when the folder was first written, "" in format 1.
        variant: the label of the run within its sweep, or "".
        facts: what the config comes to: steps_per_epoch, num_steps, kept_steps, ...
        config: the flat config.
    """

    kind: str
    format: int
    run_id: str
    variant: str
    facts: dict[str, Any]
    config: dict[str, Any]


def resolve(workdir: str | os.PathLike) -> pathlib.Path:
    """The absolute path of a run directory, "~" expanded; the same everywhere.

    Raises:
        RunDirectoryError: it is a URL or no path.
    """
    text = os.fspath(workdir)
    if _URL.match(text):
        raise RunDirectoryError(
            f"workdir {text} is a URL: run directories are local folders, mount it and name its path"
        )
    if not text or "\0" in text:
        raise RunDirectoryError(f"workdir {text!r} is no path: name a directory")
    try:
        return pathlib.Path(text).expanduser().absolute()
    except RuntimeError:
        raise RunDirectoryError(f"workdir {text} is in the home of an unknown user: name a directory") from None


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


def write_header(
    folder: pathlib.Path,
    kind: str,
    config: dict[str, Any],
    facts: dict[str, Any] | None = None,
    variant: str = "",
    complete: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: config,
) -> Header:
    """Writes config.json, or checks that the one that is there is of the same kind and config.

    Args:
        folder: the run directory.
        kind: one of KINDS.
        config: the flat config, of JSON's types. A field "variant" in it is a label, and never a difference.
        facts: see Header.
        variant: likewise.
        complete: fills what a stored config lacks with defaults and reads its renamed fields, before it is compared.

    Returns:
        The header that is on the disk, which may be of an earlier call and of format 1.

    Raises:
        RunDirectoryError: the folder holds another kind or config; names the fields that differ.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}: one of {', '.join(KINDS)}")
    path = folder / CONFIG
    if not path.exists():
        if (folder / METRICS).exists() or (folder / "checkpoints").exists():
            raise RunDirectoryError(f"workdir {folder} holds a run without its {CONFIG}: name another workdir")
        run_id = secrets.token_hex(8)
        header = {"format": FORMAT, "kind": kind, "run_id": run_id, "variant": variant, "facts": facts or {}}
        write_text(path, json.dumps(header | {"config": config}, indent=2, sort_keys=True) + "\n")
        return read_header(folder)
    found = read_header(folder)
    if found.kind != kind:
        raise RunDirectoryError(
            f"workdir {folder} holds a run of kind {found.kind!r}, not {kind!r}: name another workdir"
        )
    there, here = complete(found.config), json.loads(json.dumps(config))
    names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    if names := [name for name in names if name != "variant"]:
        differences = ", ".join(f"{name} = {there.get(name)!r} there, {here.get(name)!r} here" for name in names[:4])
        raise RunDirectoryError(f"workdir {folder} holds a run of another config ({differences}): name another workdir")
    return found


def read_header(workdir: str | os.PathLike) -> Header:
    """What the run directory is, with its config. Both formats are read.

    Raises:
        RunDirectoryError: config.json is missing or of a newer version of the package.
        DamagedError: it is there and cannot be read.
    """
    path = resolve(workdir) / CONFIG
    try:
        found = _read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise RunDirectoryError(
            f"{path.parent} is no run directory ({CONFIG} is missing): name a trained one"
        ) from None
    except _NotWhatWasWritten as error:
        raise DamagedError(f"{path} is damaged ({error}): restore it from the checkpoint's config") from None
    if "format" not in found:
        kind = "sweep" if {"fields", "config"} <= found.keys() else "study" if "analysis" in found else "train"
        return Header(kind, 1, "", str(found.get("variant", "")), {}, found)
    if isinstance(found["format"], int) and found["format"] > FORMAT:
        raise RunDirectoryError(
            f"{path} was written by a newer version of the package (format {found['format']}, this one knows "
            f"{FORMAT}): install that"
        )
    types = {"format": int, "kind": str, "run_id": str, "variant": str, "facts": dict, "config": dict}
    bad = [name for name, kind in types.items() if not isinstance(found.get(name), kind)]
    if bad or found["kind"] not in KINDS or not re.fullmatch("[0-9a-f]{16}", found["run_id"]):
        what = f"{bad[0]!r} is missing or ill-typed" if bad else f"kind {found['kind']!r}, run_id {found['run_id']!r}"
        raise DamagedError(f"{path} is damaged ({what}): restore it from the checkpoint's config")
    return Header(**{name: found[name] for name in types})


def read_config(workdir: str | os.PathLike) -> dict[str, Any]:
    """The config of a run, see `read_header`."""
    return read_header(workdir).config


class Metrics:
    """Rows of numbers by step, to metrics.jsonl (one JSON object a line) and TensorBoard. A context manager.

    Rows of steps after `resume_from` that an earlier, killed process wrote are dropped, so that the file of a resumed
    run is that of one that was never killed.
    """

    def __init__(self, folder: pathlib.Path, resume_from: int = 0):
        from subspaces_jax.events import Events

        self._path, self._folder = folder / METRICS, folder / EVENTS
        kept = [row for row in read_metrics(folder) if row["step"] <= resume_from] if self._path.exists() else []
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = open(self._path, "a")
        with _naming(self._folder):
            self._events = Events(self._folder, resume_from)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            with _naming(self._path):
                self._file.close()
        finally:
            with _naming(self._folder):
                self._events.close()

    def write(self, step: int, row: dict[str, float]) -> None:
        """Appends one row; it is on its way to the disk when this returns. A full disk is an OSError."""
        with _naming(self._path):
            self._file.write(json.dumps({"step": step} | row) + "\n")
            self._file.flush()
        with _naming(self._folder):
            self._events.write(step, row)


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, float]]:
    """The rows of metrics.jsonl; a last line that a kill cut short is left out.

    Raises:
        RunDirectoryError: there is no such file.
        DamagedError: it has something else than rows; names the line.
    """
    path = resolve(workdir) / METRICS
    try:
        *lines, last = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise RunDirectoryError(f"{path.parent} has no {METRICS} yet: train first") from None
    except IsADirectoryError:
        raise DamagedError(f"{path} is damaged (a folder): delete it, its rows are lost") from None
    rows = [_row(path, number, line) for number, line in enumerate(lines, start=1)]
    try:
        return rows + [_row(path, len(lines) + 1, last)] if last else rows
    except DamagedError:
        if last.startswith(_ROW_BEGINS) or _ROW_BEGINS.startswith(last):
            return rows
        raise


def _row(path: pathlib.Path, number: int, line: bytes) -> dict[str, float]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        raise DamagedError(f"{path} is damaged (line {number} is no row of metrics): delete that line")
    return row


def read_series(source: str | os.PathLike, name: str) -> tuple[np.ndarray, np.ndarray]:
    """One of the numbers that a run logged: steps [n] and values [n], float64, those that are not finite included.

    Args:
        source: a run directory; a folder with TensorBoard event files, of another program perhaps; or one such file.
        name: of the number, such as "loss".

    Raises:
        RunDirectoryError: there is no such series; names those that there are.
    """
    path = resolve(source)
    if (path / METRICS).exists():
        found = _series_of_rows(read_metrics(path))
    else:
        from subspaces_jax.events import read_scalars

        files = sorted(path.rglob("*tfevents*")) if path.is_dir() else [path]
        read = [read_scalars(file) for file in files]
        found = {key: [point for of in read for point in of.get(key, [])] for key in set().union(*read)}
    if name not in found:
        there = ", ".join(sorted(found)) or "none"
        raise RunDirectoryError(f"{path} has no series {name!r}: name one of those that it has ({there})")
    steps, values = zip(*sorted(dict(found[name]).items()))  # of a step that was done again, the last
    return np.asarray(steps, np.float64), np.asarray(values, np.float64)


def _series_of_rows(rows: list[dict[str, float]]) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for key, value in row.items():
            if key != "step" and isinstance(value, int | float):
                found.setdefault(key, []).append((row["step"], value))
    return found


def save_results(workdir: str | os.PathLike, name: str, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Writes results/<name>.npz (arrays) and results/<name>.json (facts), each whole or not at all."""
    folder = resolve(workdir) / RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    with _replacing(folder / f"{name}.npz", folder / f".{name}.{os.getpid()}.npz") as file:
        np.savez(file, **arrays)
    write_text(folder / f"{name}.json", json.dumps(facts, indent=2, sort_keys=True) + "\n")


def load_results(workdir: str | os.PathLike, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and facts that `save_results` wrote.

    Raises:
        RunDirectoryError: they are not there; names the command that makes them.
        DamagedError: they are there and cannot be read.
    """
    with _of_results(workdir, name) as path:
        return _read_arrays(path.with_name(f"{name}.npz")), _read_json(path.with_name(f"{name}.json"))


def load_facts(workdir: str | os.PathLike, name: str) -> dict[str, Any]:
    """The facts alone, as `load_results`."""
    with _of_results(workdir, name) as path:
        return _read_json(path.with_name(f"{name}.json"))


@contextmanager
def _of_results(workdir: str | os.PathLike, name: str) -> Iterator[pathlib.Path]:
    """Gives the results' path without its ending, and says what to do where a file of it is not there or damaged."""
    path = resolve(workdir) / RESULTS / name
    try:
        yield path
    except FileNotFoundError:
        raise RunDirectoryError(
            f"no results '{name}' in {path.parent}: run python -m launch.evaluate --workdir={workdir} first"
        ) from None
    except _NotWhatWasWritten as error:
        raise DamagedError(
            f"results '{name}' in {path.parent} are damaged ({error}): run the evaluation again, "
            f"python -m launch.evaluate --workdir={workdir}"
        ) from None


class _NotWhatWasWritten(Exception):
    """A file holds something else than this module writes; the message names it and says what."""


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except IsADirectoryError:
        raise _NotWhatWasWritten(f"{path.name} is a folder") from None
    except RecursionError:
        raise _NotWhatWasWritten(f"{path.name} is nested too deeply") from None
    except ValueError as error:  # of JSON and of UTF-8
        raise _NotWhatWasWritten(f"{path.name}: {first_line(error)}") from None
    if not isinstance(found, dict):
        raise _NotWhatWasWritten(f"{path.name} holds a {type(found).__name__}, not an object")
    return found


def _read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file):  # NumPy takes what is no archive for a pickle
            file.seek(0)
            with np.load(file) as members:
                arrays = dict(members)
    except IsADirectoryError:
        raise _NotWhatWasWritten(f"{path.name} is a folder") from None
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError, SyntaxError, RuntimeError) as error:
        raise _NotWhatWasWritten(f"{path.name}: {first_line(error)}") from None
    if bad := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise _NotWhatWasWritten(f"{path.name}: {bad[0]!r} is no array")
    return arrays


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all; it is on the disk when this returns."""
    with _replacing(path, path.with_name(f".{path.name}.{os.getpid()}")) as file:
        file.write(text.encode())


@contextmanager
def _replacing(path: pathlib.Path, temporary: pathlib.Path) -> Iterator[IO[bytes]]:
    """Gives the temporary, opened, and has it take the place of `path`: power may fail at any point."""
    try:
        with _naming(path), open(temporary, "wb") as file:
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
def _naming(path: pathlib.Path) -> Iterator[None]:
    """Gives an OSError of writing, of a full disk for one, the name of the file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


class Progress:
    """A progress line with rate and time left: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, total: int, done: int = 0, unit: str = "step", label: str = ""):
        self._start, self._done, self._total, self._unit, self._label = done, done, total, unit, label
        self._clock = self._last = time.perf_counter()
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, unit=unit, desc=label, dynamic_ncols=True)

    def update(self, done: int, text: str = "") -> None:
        """`done` of the total are done; `text` says what else is worth knowing."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(done - self._done)
        self._done, now = done, time.perf_counter()
        if self._bar is None and (now - self._last >= SECONDS_BETWEEN_LINES or done == self._total):
            self._last = now
            rate = (done - self._start) / max(now - self._clock, 1e-9)
            left = (self._total - done) / max(rate, 1e-9)
            text = f"  {text}" if text else ""
            print(
                f"{self._label} {self._unit} {done}/{self._total}{text}  {_duration(left)} left",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Ends the line."""
        if self._bar is not None:
            self._bar.close()

    def over(self, items: Sequence[Any]) -> Iterator[Any]:
        """Yields `items`, counting each as done once the next is asked for."""
        for i, item in enumerate(items, start=1):
            yield item
            self.update(i)
        self.close()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
