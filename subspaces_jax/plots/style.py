"""One look for all figures: sizes of a paper's text, colours that survive greyscale and colour blindness."""

import io
import math
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

from subspaces_jax import writing

WIDTH = 6.75  # inches, the text width of ICML's and NeurIPS' styles
COLOURS = {"single": "#0072B2", "pair": "#D55E00", "third": "#009E73", "reference": "#555555"}

_PARAMETERS: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "serif",
    "mathtext.fontset": "cm",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # fonts that a publisher can embed
}


@contextmanager
def panels(num: int, height: float = 2.5, rows: int = 1, **options: Any) -> Iterator[tuple[Figure, list]]:
    """A figure of the text's width with `num` panels side by side in each row, in the house style.

    Args:
        num: panels a row.
        height: of the figure, inches.
        rows: of panels; they come row by row.
        **options: of `Figure.add_subplot`, such as projection="3d".
    """
    with house():
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, list(figure.subplots(rows, num, squeeze=False, subplot_kw=options).ravel())


def save(figure: Figure, folder: str | pathlib.Path, name: str) -> list[pathlib.Path]:
    """Writes <folder>/<name>.pdf and .png (200 dots per inch), each whole or not at all, and returns their paths.

    A figure of `panels` is of the text's width exactly, unless it needs more room.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{ending}" for ending in ("pdf", "png")]
    with house():
        box = "tight" if _needs_more_room(figure) else None
        for path in paths:
            drawn = io.BytesIO()  # Matplotlib's writer of PDFs hides an OSError behind an AttributeError of its own
            figure.savefig(drawn, format=path.suffix[1:], dpi=200, bbox_inches=box)
            writing.write_bytes(path, drawn.getvalue())
            figure.set_layout_engine("none")  # that of the first serves the second, too
    return paths


def _needs_more_room(figure: Figure) -> bool:
    """Whether something does not end at the figure's edges: what the layout does not know are labels in space, and a
    title or a legend that is too wide."""
    wide = (artist.get_window_extent().width > figure.bbox.width for artist in (*figure.texts, *figure.legends))
    return any(axes.name == "3d" for axes in figure.axes) or any(wide)


@contextmanager
def house() -> Iterator[None]:
    """The house style on Matplotlib's defaults, whatever the user's matplotlibrc or notebook has set."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_PARAMETERS)
        yield


def spread(values: Any) -> Any:
    """The sample standard deviation (n - 1) over the first axis, 0 of one value."""
    values = np.asarray(values, np.float64)
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(values[0])


def mean_and_spread(values: Any, decimals: int = 2) -> str:
    """ "mean ± deviation" of numbers as text, the mean of one, "" of none."""
    if not len(values):
        return ""
    return f"{np.mean(values):.{decimals}f}" + (f" ± {spread(values):.{decimals}f}" if len(values) > 1 else "")


def few_ticks(axis: Axes) -> None:
    """A logarithmic axis of less than a decade with a few plain numbers; Matplotlib's labels of minor ticks overlap."""
    low, high = sorted(axis.get_ylim())
    if axis.get_yscale() == "log" and low > 0 and high / low < 10:
        axis.yaxis.set_major_locator(MaxNLocator(4))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(ScalarFormatter())


def decimals(largest: float, fewest: int = 2) -> int:
    """Decimals that show two digits at least of a number that large, `fewest` at least."""
    return max(fewest, 1 - math.floor(math.log10(abs(largest)))) if largest and math.isfinite(largest) else fewest


def band(axis: Axes, x: Any, values: Any, **options: Any) -> None:
    """The mean of values [seeds, T] over x [T] as a line, and `spread` around it; `options` are those of the line."""
    values = np.asarray(values, np.float64)
    band_about(axis, x, values.mean(axis=0), spread(values), **options)


def band_about(axis: Axes, x: Any, mean: Any, width: Any, **options: Any) -> None:
    """A line through `mean` [T] and a band of `width` [T] on each side of it; on an axis that is logarithmic already it
    ends at a tenth of the mean, where it would reach below 0."""
    (line,), low = axis.plot(x, mean, **options), mean - width
    if axis.get_yscale() == "log":
        low = np.where(low > 0, low, 0.1 * mean)
    axis.fill_between(x, low, mean + width, color=line.get_color(), alpha=0.1, linewidth=0)


def finished(figure: Figure, axis: Axes, title: str = "", columns: int = 4) -> Figure:
    """The figure with the legend of one of its panels below, in at most `columns` columns, and a title above."""
    handles, labels = axis.get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), columns))
    return titled(figure, title)


def titled(figure: Figure, title: str) -> Figure:
    """The figure with a title above, of names as they are."""
    if title:
        figure.suptitle(named(title), fontsize=9, wrap=True)
    return figure


def named(text: str) -> str:
    """A name that a user gave as Matplotlib draws it: dollars begin no formula, and a legend does not leave it out for
    its first letter."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def whole_numbers(axis: Axes) -> None:
    """Ticks of x at whole numbers, as many as can be read."""
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def label(text: str, unit: str = "") -> str:
    """What an axis shows, with its unit."""
    return f"{text} ({unit})" if unit else text
