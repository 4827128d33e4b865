"""Numbers that a run logged, one after another, from metrics.jsonl or TensorBoard events."""

import os

import numpy as np

from subspaces_jax.errors import RunDirectoryError
from subspaces_jax.records.files import resolve
from subspaces_jax.records.metrics import read_metrics
from subspaces_jax.records.names import METRICS


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
                found.setdefault(key, []).append((int(row["step"]), value))
    return found
