"""Figures of how two networks are connected: the scores along a trained curve and along the segment, side by side."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from subspaces_jax.plots import style

Path = Mapping[str, Mapping[str, Any]]
_LINES = ("-", "--", "-.", ":")
LOOKS = tuple(  # of paths, in their order; no two of the first sixteen are alike
    (colour, _LINES[(i + shift) % 4]) for shift in range(4) for i, colour in enumerate(style.COLOURS.values())
)


def connection(
    paths: Mapping[str, Path],
    columns: Sequence[tuple[str, str, str, float]],
    ts: Any = None,
    title: str = "",
) -> Figure:
    """Scores along several paths between the same ends: a row a score, a panel a split.

    Args:
        paths: {"curve": {"train": {"loss": values}, "test": ...}, "segment": ...}; values [T], or [seeds, T], of which
            the mean is drawn and the sample standard deviation as a band. The splits are those of the first path.
        columns: (name, title, unit, factor) of each score, as of `Task.columns`.
        ts: [T]; by default equally spaced from 0 to 1. Paths of another number of points are always so.
        title: above the figure.

    Returns:
        A figure in which the ends of each path are marked and the panels of a row have one scale.

    Raises:
        ValueError: no path or no column, or a path without one of the scores.
    """
    if not paths or not columns:
        raise ValueError(f"expected at least one path and one column, got {len(paths)} and {len(columns)}")
    splits = list(next(iter(paths.values())))
    with style.panels(len(splits), height=2.2 * len(columns) + 0.4, rows=len(columns)) as (figure, axes):
        for axis, (column, split) in zip(axes, itertools.product(columns, splits)):
            draw(axis, paths, column, split, ts)
        for first in range(0, len(axes), len(splits)):
            _same_scale(axes[first : first + len(splits)])
        return style.finished(figure, axes[0], title)


def draw(
    axis: Axes, paths: Mapping[str, Path], column: tuple[str, str, str, float], split: str, ts: Any = None
) -> None:
    """One panel of `connection`: a score of one split along all paths."""
    name, text, unit, factor = column
    for (label, path), (colour, line) in zip(paths.items(), itertools.cycle(LOOKS)):
        values = factor * _values(path, label, split, name)
        t = np.linspace(0.0, 1.0, values.shape[1]) if ts is None or len(ts) != values.shape[1] else ts
        style.band(axis, t, values, color=colour, linestyle=line, label=style.named(label))
        ends = values.mean(axis=0)[[0, -1]]
        axis.plot([t[0], t[-1]], ends, "o", color=colour, markersize=4.5, clip_on=False, zorder=3)
    axis.plot([], [], "o", color="black", label="ends")
    axis.set(xlabel="$t$", ylabel=style.label(f"{split} {text}", unit), xlim=(t[0], t[-1]))


def _same_scale(axes: Sequence[Axes]) -> None:
    """What the panels of a row show can be compared by eye."""
    bottoms, tops = zip(*(axis.get_ylim() for axis in axes))
    for axis in axes:
        axis.set_ylim(min(bottoms), max(tops))


def _values(path: Path, label: str, split: str, name: str) -> np.ndarray:
    """[seeds, T] float64."""
    if split not in path or name not in path[split]:
        raise ValueError(f"the path {label!r} has no {split} {name!r}; give it to all paths or to none")
    values = np.atleast_2d(np.asarray(path[split][name], np.float64))
    if values.ndim != 2 or values.shape[1] < 2:
        raise ValueError(f"expected {split} {name!r} of {label!r} as [T] or [seeds, T], T >= 2, got {values.shape}")
    return values
