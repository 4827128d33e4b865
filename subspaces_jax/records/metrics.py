"""metrics.jsonl and TensorBoard events: rows of numbers by step."""

import json
import os
import pathlib
from typing import Any

from subspaces_jax.errors import RunDirectoryError
from subspaces_jax.records.files import DamagedError, resolve
from subspaces_jax.records.names import EVENTS, METRICS
from subspaces_jax.writing import naming, write_text

_ROW_BEGINS = b'{"step": '


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
        with naming(self._folder):
            self._events = Events(self._folder, resume_from)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            with naming(self._path):
                self._file.close()
        finally:
            with naming(self._folder):
                self._events.close()

    def write(self, step: int, row: dict[str, float]) -> None:
        """Appends one row; it is on its way to the disk when this returns. A full disk is an OSError."""
        with naming(self._path):
            self._file.write(json.dumps({"step": step} | row) + "\n")
            self._file.flush()
        with naming(self._folder):
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
