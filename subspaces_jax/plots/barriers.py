"""Figures of barriers: between every two of several networks, and between runs that were forked from one."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from subspaces_jax.plots import style

LETTER = 0.07  # inches that a letter of a tick's label takes
MIDDLE_GREY = 0.5  # text is white on what is darker


def matrix(
    values: Any,
    names: Sequence[str],
    columns: Sequence[str] | None = None,
    label: str = "barrier (nats)",
    decimals: int | None = None,
    title: str = "",
    colours: str = "viridis_r",
    axes: tuple[str, str] = ("", ""),
) -> Figure:
    """A heat map with its numbers written into it.

    Args:
        values: [R, C]; what is not a number is left blank, the diagonal for example, and infinity has no colour.
        names: of the R rows.
        columns: names of the C columns; by default those of the rows.
        label: of the colour bar, with unit.
        decimals: of the numbers; None for two digits at least of the largest, as powers of ten where it is far from 1.
        title: above the figure.
        colours: name of a Matplotlib colour map, low values first.
        axes: labels of the columns' axis and of the rows'.

    Raises:
        ValueError: names that do not fit the values.
    """
    values, columns = np.asarray(values, np.float64), names if columns is None else columns
    if values.shape != (len(names), len(columns)):
        raise ValueError(f"expected values [{len(names)}, {len(columns)}] for the names, got shape {values.shape}")
    wide = len(columns) > 3 * len(names)  # cells then are as high as a number needs, whatever their width
    written = LETTER * 0.71 * max(map(len, columns))  # inches that names at 45 degrees take below the cells
    cells = 0.35 * len(names) + 0.4 if wide else 0.75 * style.WIDTH * len(names) / len(columns)
    height = min(1.5 * style.WIDTH, max(1.6, cells + written) + 0.6)
    room = 0.7 * style.WIDTH / len(columns)  # of a cell
    size = 8.0 if room > 0.4 else 5.5 if room > 0.25 else 0.0
    label = textwrap.fill(label, max(12, int(cells / LETTER))) if wide else label
    with style.panels(1, height=height) as (figure, (axis,)):
        draw_matrix(axis, values, names, columns, label, decimals, colours, axes, size)
        if wide:
            axis.set_aspect("auto")
        return style.finished(figure, axis, title)


def draw_matrix(
    axis: Axes,
    values: Any,
    names: Sequence[str],
    columns: Sequence[str],
    label: str,
    decimals: int | None = None,
    colours: str = "viridis_r",
    axes: tuple[str, str] = ("", ""),
    size: float = 8.0,
) -> None:
    """The panel of `matrix`; arguments as there, and `size` of the numbers, 0 for none."""
    values = np.asarray(values, np.float64)
    shown = axis.imshow(np.ma.masked_invalid(values), cmap=mpl.colormaps[colours], interpolation="nearest")
    written = _written(values, decimals)
    for (i, j), value in np.ndenumerate(values) if size else ():
        if np.isfinite(value):
            red, green, blue, _ = shown.cmap(shown.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < MIDDLE_GREY
            color = "white" if dark else "black"
            axis.text(j, i, written(value), ha="center", va="center", color=color, fontsize=size)
        elif not np.isnan(value):
            axis.text(j, i, r"$\infty$" if value > 0 else r"$-\infty$", ha="center", va="center", fontsize=size)
    axis.set_xticks(range(len(columns)), map(style.named, columns), rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(names)), map(style.named, names))
    axis.set(xlabel=axes[0], ylabel=axes[1])
    axis.grid(False)
    axis.figure.colorbar(shown, ax=axis, shrink=0.9).set_label(label)


def _written(values: np.ndarray, decimals: int | None) -> Callable[[float], str]:
    """How the numbers are written, see `matrix`."""
    largest = float(np.max(np.abs(values), initial=0.0, where=np.isfinite(values)))
    if decimals is None:
        decimals = style.decimals(largest)
        if decimals > 5 or largest >= 1e6:
            return lambda value: f"{value:.1e}"
    return lambda value: f"{round(value, decimals) + 0.0:.{decimals}f}"  # no -0.00


def instability(
    steps: Sequence[float] | np.ndarray,
    barriers: Mapping[str, Any],
    label: str = "error barrier (%)",
    stable: float | None = None,
    xlabel: str = "step of the fork",
    title: str = "",
) -> Figure:
    """The barrier between two runs that were forked from one and saw different orders of data, by when they parted.

    Args:
        steps: [F], increasing, at least 0; more than a decade of them is shown on a logarithmic axis with its zero.
        barriers: {"train": values, "test": values}; each [F], or F lists of the values of as many seeds as there are of
            a step, of which the mean is drawn and the sample standard deviation as a band.
        label: of the barrier, with unit.
        stable: a dotted line; runs whose barrier is below it count as linearly connected (2 % of error in the paper).
        xlabel: what steps count.
        title: above the figure.

    Raises:
        ValueError: steps that do not increase from 0 or above, or barriers of another number of steps.

    Reference: Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2020, arXiv:1912.05671,
    figure 3.
    """
    steps = np.asarray(steps, np.float64)
    if steps.ndim != 1 or not steps.size or np.any(np.diff(steps) <= 0) or steps[0] < 0:
        raise ValueError(f"expected increasing steps of at least 0, got {steps.tolist()}")
    with style.panels(1, height=2.8) as (figure, (axis,)):
        looks = zip(style.COLOURS.values(), ("-", "--", "-.", ":"), "os^d")
        for (split, values), (colour, line, marker) in zip(barriers.items(), looks):
            seeds = [np.atleast_1d(np.asarray(of_step, np.float64)) for of_step in values]
            if len(seeds) != len(steps):
                raise ValueError(f"{split!r} has barriers of {len(seeds)} steps, and there are {len(steps)}")
            mean, width = (np.array([float(of(of_step)) for of_step in seeds]) for of in (np.mean, style.spread))
            style.band_about(axis, steps, mean, width, color=colour, linestyle=line, marker=marker, label=split)
        if stable is not None:
            axis.axhline(stable, linestyle=":", color=style.COLOURS["reference"], label="stable below")
        _scale(axis, steps)
        axis.set(xlabel=xlabel, ylabel=label)
        return style.finished(figure, axis, title)


def _scale(axis: Axes, steps: np.ndarray) -> None:
    positive = steps[steps > 0]
    if positive.size and positive[-1] > 10 * positive[0]:
        axis.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
        axis.set_xlim(left=steps[0])
