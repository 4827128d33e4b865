"""Figures of hyperplane orientation: by layer, over training, along a path; always against filters without bias."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from subspaces_jax.plots import style

BAND = "0.85"  # of what filters without bias give, 95 % of the time
Z_95 = 1.96


def distribution(
    projections: Mapping[str, Any],
    bands: Mapping[str, tuple[float, float]],
    masses: Mapping[str, Any],
    label: str,
    title: str = "",
) -> Figure:
    """Projections of each layer as boxes, and below them each layer's mass.

    Args:
        projections: {layer: [filters]}, what is not finite being left out; boxes are quartiles, whiskers the 5th and
            95th percentiles, dots means.
        bands: {layer: (low, high)}, between which 95 % of filters without bias lie; {} for none.
        masses: {layer: [networks]}, each a dot.
        label: of the projections.
        title: above the figure.
    """
    names, places = list(projections), np.arange(len(projections))
    values = [np.asarray(of)[np.isfinite(of)] for of in projections.values()]
    with style.panels(1, height=4.6, rows=2) as (figure, (above, below)):
        for place, name in zip(places, names):
            if name in bands:
                low, high = bands[name]
                above.fill_between([place - 0.4, place + 0.4], low, high, color=BAND, linewidth=0, zorder=0,
                                   label="95 % of filters without bias" if place == 0 else None)  # fmt: skip
        line = {"color": style.COLOURS["single"]}
        above.boxplot(values, positions=places, whis=(5, 95), showfliers=False, widths=0.45, boxprops=line,
                      whiskerprops=line, capprops=line, medianprops=line, manage_ticks=False)  # fmt: skip
        above.plot(places, [of.mean() if of.size else np.nan for of in values], "o", color=style.COLOURS["pair"],
                   label="mean")  # fmt: skip
        above.axhline(0.0, color=style.COLOURS["reference"], linewidth=0.8, linestyle=":")
        above.set(ylabel=label)
        for place, (name, of) in zip(places, masses.items()):
            half = _half_width(np.size(projections[name]) // max(np.size(of), 1))
            below.fill_between([place - 0.4, place + 0.4], 0.5 - half, 0.5 + half, color=BAND, linewidth=0, zorder=0)
            below.plot(np.full(np.size(of), place), np.ravel(of), "o", color=style.COLOURS["pair"], alpha=0.8)
        below.axhline(0.5, color=style.COLOURS["reference"], linewidth=0.8, linestyle=":")
        below.set(ylabel="mass (fraction at most 0)", ylim=(-0.03, 1.03))
        for axis in (above, below):
            axis.set_xlim(-0.7, len(names) - 0.3)
            axis.set_xticks(places, names if axis is below else [], rotation=45, ha="right", rotation_mode="anchor")
        return style.finished(figure, above, title)


def by_epoch(
    x: Any,
    masses: Mapping[str, Any],
    means: Mapping[str, Any],
    num_filters: int,
    xlabel: str = "epoch",
    mean_label: str = "mean projection",
    scores: tuple[str, Any] | None = None,
    title: str = "",
) -> Figure:
    """Mass and mean of stages against epochs, or points of a path.

    Args:
        x: [T], epochs or t; epochs over more than a decade are on a logarithmic axis with its zero.
        masses, means: {stage: [networks, T]}; "net" is drawn black. Means of several networks have a band of one sample
            standard deviation.
        num_filters: N of the net, for the band of masses without bias.
        xlabel, mean_label: of the axes.
        scores: (label, [networks, T]), in a third panel.
        title: above the figure.
    """
    x = np.asarray(x, np.float64)
    with style.panels(2 if scores is None else 3, height=2.9) as (figure, axes):
        draw_masses(axes[0], x, masses, num_filters, xlabel)
        axes[1].axhline(0.0, color=style.COLOURS["reference"], linewidth=0.8, linestyle=":")
        _stages(axes[1], x, means)
        axes[1].set(ylabel=mean_label)
        if scores is not None:
            style.band(axes[2], x, scores[1], color=style.COLOURS["pair"], label=None)
            axes[2].set(ylabel=scores[0])
        for axis in axes[1:]:
            _scale(axis, x)
            axis.set(xlabel=xlabel)
        return style.finished(figure, axes[0], title, columns=6)


def draw_masses(axis: Axes, x: Any, masses: Mapping[str, Any], num_filters: int, xlabel: str = "epoch") -> None:
    """The panel of `by_epoch` with the masses; arguments as there."""
    x, half = np.asarray(x, np.float64), _half_width(num_filters)
    axis.fill_between(x, 0.5 - half, 0.5 + half, color=BAND, linewidth=0, label="net without bias, 95 %")
    _stages(axis, x, masses)
    axis.set(ylabel="mass (fraction at most 0)", ylim=(-0.03, 1.03), xlabel=xlabel)
    _scale(axis, x)


def _stages(axis: Axes, x: np.ndarray, values: Mapping[str, Any]) -> None:
    colours = mpl.colormaps["viridis"](np.linspace(0.0, 0.9, max(len(values) - 1, 1)))
    for number, (name, of) in enumerate(values.items()):
        look = {"color": "black", "linewidth": 2.0} if name == "net" else {"color": colours[number]}
        style.band(axis, x, of, label=style.named(name), **look)


def _half_width(num_filters: int) -> float:
    """Of the band of masses of N fair coins, 95 %."""
    return 0.5 * Z_95 / np.sqrt(max(num_filters, 1))


def _scale(axis: Axes, x: np.ndarray) -> None:
    positive = x[x > 0]
    if positive.size and positive[-1] > 20 * positive[0] and positive[-1] > 1:
        axis.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
        axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.set_xlim(x.min(), x.max())
