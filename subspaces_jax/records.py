"""The run directory: one lock, the config, rows of metrics, TensorBoard events, results, progress.

config.json  metrics.jsonl  events/  checkpoints/  results/<name>.npz + .json  figures/
"""

import fcntl
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from subspaces_jax.errors import RunDirectoryError

CONFIG, METRICS, RESULTS, FIGURES, EVENTS, LOCK = (
    "config.json",
    "metrics.jsonl",
    "results",
    "figures",
    "events",
    ".lock",
)
SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def locked(workdir: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """The run directory, made if need be and held for this process; the lock goes with the process, however it ends.

    Raises:
        RunDirectoryError: a live process holds it.
    """
    folder = pathlib.Path(workdir).absolute()
    if folder.exists() and not folder.is_dir():
        raise RunDirectoryError(f"workdir {folder} is a file: name a directory")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunDirectoryError(f"workdir {folder} is in use by a live run: wait for it or name another") from None
        yield folder


def write_config(folder: pathlib.Path, config: dict[str, Any]) -> None:
    """Writes config.json, or checks that the one that is there is the same.

    Raises:
        RunDirectoryError: it holds another config; names the fields that differ.
    """
    path = folder / CONFIG
    if not path.exists():
        if (folder / METRICS).exists() or (folder / "checkpoints").exists():
            raise RunDirectoryError(f"workdir {folder} holds a run without its {CONFIG}: name another workdir")
        write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
        return
    found, wanted = read_config(folder), json.loads(json.dumps(config))
    names = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if names:
        differences = ", ".join(f"{name} = {found.get(name)!r} there, {wanted.get(name)!r} here" for name in names[:4])
        raise RunDirectoryError(f"workdir {folder} holds a run of another config ({differences}): name another workdir")


def read_config(workdir: str | pathlib.Path) -> dict[str, Any]:
    """The config of a run.

    Raises:
        RunDirectoryError: there is none, or it is damaged.
    """
    path = pathlib.Path(workdir) / CONFIG
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise RunDirectoryError(
            f"{path.parent} is no run directory ({CONFIG} is missing): name a trained one"
        ) from None
    except json.JSONDecodeError as error:
        raise RunDirectoryError(f"{path} is damaged ({error}): restore it from the checkpoint's config") from None


class Metrics:
    """Rows of numbers by step, to metrics.jsonl (one JSON object a line) and TensorBoard. A context manager.

    Rows of steps after `resume_from` that an earlier, killed process wrote are dropped, so that the file of a resumed
    run is that of one that was never killed.
    """

    def __init__(self, folder: pathlib.Path, resume_from: int = 0):
        from subspaces_jax.events import Events

        path = folder / METRICS
        kept = [row for row in read_metrics(folder) if row["step"] <= resume_from] if path.exists() else []
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = open(path, "a")
        self._events = Events(folder / EVENTS, resume_from)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()
        self._events.close()

    def write(self, step: int, row: dict[str, float]) -> None:
        """Appends one row; it is on its way to the disk when this returns."""
        self._file.write(json.dumps({"step": step} | row) + "\n")
        self._file.flush()
        self._events.write(step, row)


def read_metrics(workdir: str | pathlib.Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl; a last line that a kill cut short is left out."""
    rows = []
    path = pathlib.Path(workdir) / METRICS
    if not path.exists():
        raise RunDirectoryError(f"{path.parent} has no {METRICS} yet: train first")
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def save_results(workdir: str | pathlib.Path, name: str, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Writes results/<name>.npz (arrays) and results/<name>.json (facts), each whole or not at all."""
    folder = pathlib.Path(workdir) / RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.{os.getpid()}.npz"
    try:
        np.savez(temporary, **arrays)
        os.replace(temporary, folder / f"{name}.npz")
    finally:
        temporary.unlink(missing_ok=True)
    write_text(folder / f"{name}.json", json.dumps(facts, indent=2, sort_keys=True) + "\n")


def load_results(workdir: str | pathlib.Path, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and facts that `save_results` wrote.

    Raises:
        RunDirectoryError: they are not there; names the command that makes them.
    """
    with _missing_results(workdir, name) as path, np.load(path.with_suffix(".npz")) as arrays:
        return dict(arrays), load_facts(workdir, name)


def load_facts(workdir: str | pathlib.Path, name: str) -> dict[str, Any]:
    """The facts alone, as `load_results`."""
    with _missing_results(workdir, name) as path:
        return json.loads(path.with_suffix(".json").read_text())


@contextmanager
def _missing_results(workdir: str | pathlib.Path, name: str) -> Iterator[pathlib.Path]:
    """Gives the results' path without its ending, and says what to do where a file of it is not there."""
    path = pathlib.Path(workdir) / RESULTS / name
    try:
        yield path
    except FileNotFoundError:
        raise RunDirectoryError(
            f"no results '{name}' in {path.parent}: run python -m launch.evaluate --workdir={workdir} first"
        ) from None


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
