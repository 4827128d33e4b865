"""Figures of the regularity of weights: norms and entries over depth, variations over depth and training."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from subspaces_jax.plots import curves, style

NORM = r"$\|L^\beta W_k\|_F$"
BANDS = ("sd", "sem")
MARKERS, LINES = "osD^v", ("-", "-", "--", ":")  # of exponents, whose variations may be the same


class Group(NamedTuple):
    """Repetitions of one network.

    Attributes:
        num_layers: L.
        family: the title of the panel that it belongs to.
        arrays: "depth" [L], "norm" [n, L], "entries" [n, positions, L], "variation" [n, P].
    """

    num_layers: int
    family: str
    arrays: Mapping[str, Any]


def norms(groups: Sequence[Group], band: str = "sd", title: str = "") -> Figure:
    """Norms of the scaled layers against depth: a panel a family, a line a depth, bands over repetitions."""
    return _over_depth(groups, {NORM: lambda group: group.arrays["norm"]}, band, title)


def draw_norms(axis: Axes, groups: Sequence[Group], band: str = "sd") -> None:
    """Norms of the scaled layers of one family against depth, in one panel."""
    for group, colour in zip(groups, _colours(len(groups))):
        _band(axis, group.arrays["depth"], group.arrays["norm"], band, colour)
        axis.plot([], [], color=colour, label=f"$L = {group.num_layers}$")
    axis.set(xlabel="depth $k/L$", ylabel=NORM, xlim=(0, 1))


def entries(groups: Sequence[Group], positions: Sequence[tuple[int, int]], band: str = "sd", title: str = "") -> Figure:
    """Single entries of the scaled layers against depth: a row of panels a position, a column a family."""
    of_entry = lambda i: lambda group: np.asarray(group.arrays["entries"])[:, i]
    rows = {rf"$L^\beta W_k[{row},{column}]$": of_entry(i) for i, (row, column) in enumerate(positions)}
    return _over_depth(groups, rows, band, title)


def variations(groups: Sequence[Group], exponents: Sequence[float], band: str = "sd", title: str = "") -> Figure:
    """Rooted p-variations over depth against the number of layers: a panel a family, a line an exponent."""
    families = _by_family(groups)
    with style.panels(len(families), height=2.8) as (figure, axes):
        for axis, (name, of_family) in zip(axes, families.items()):
            xs = [group.num_layers for group in of_family]
            for i, (p, colour) in enumerate(zip(exponents, _colours(len(exponents)))):
                values = [np.asarray(group.arrays["variation"], np.float64)[:, i] for group in of_family]
                means, widths = [of.mean() for of in values], [_width(of, band) for of in values]
                axis.errorbar(
                    xs,
                    means,
                    widths,
                    color=colour,
                    marker=MARKERS[i % 5],
                    linestyle=LINES[i % 4],
                    capsize=2,
                    label=f"$p = {p:g}$",
                )
            axis.set(xlabel="layers $L$", xscale="log", title=_title(name))
            axis.set_xticks(xs, [str(x) for x in xs], minor=False)
            axis.minorticks_off()
            _from_zero(axis)
        axes[0].set_ylabel("$p$-variation over depth")
        return style.finished(figure, axes[0], title)


def over_steps(lines: Mapping[str, tuple[Any, Any]], exponents: Sequence[float], label: str, title: str = "") -> Figure:
    """Variations against the step of a training: a panel an exponent, a line a network.

    Args:
        lines: {name: (steps [S], values [S, P])}.
        exponents: p, [P].
        label: of the vertical axes.
        title: above the figure.
    """
    with style.panels(len(exponents), height=2.7) as (figure, axes):
        for i, (axis, p) in enumerate(zip(axes, exponents)):
            for (name, (steps, values)), colour in zip(lines.items(), _colours(len(lines))):
                axis.plot(steps, np.asarray(values)[:, i], color=colour, marker=".", label=style.named(name))
            axis.set(xlabel="step", title=f"$p = {p:g}$")
            _from_zero(axis)
        axes[0].set_ylabel(label)
        return style.finished(figure, axes[0], title, columns=3)


def over_layers(lines: Mapping[str, Any], exponents: Sequence[float], title: str = "") -> Figure:
    """Variations over training of every layer, against its place: a panel an exponent, a line a network.

    Args:
        lines: {name: values [layers, P]}, layers in the order of the network.
        exponents: p, [P].
        title: above the figure.
    """
    with style.panels(len(exponents), height=2.7) as (figure, axes):
        for i, (axis, p) in enumerate(zip(axes, exponents)):
            for (name, values), colour in zip(lines.items(), _colours(len(lines))):
                values = np.asarray(values)[:, i]
                places = np.arange(1, len(values) + 1)
                axis.plot(places, values, color=colour, marker="." if len(places) < 40 else "", label=style.named(name))
            axis.set(xlabel="layer", title=f"$p = {p:g}$")
            _from_zero(axis)
        axes[0].set_ylabel("$p$-variation over training")
        return style.finished(figure, axes[0], title, columns=3)


def along_path(
    ts: Any, variations: Mapping[str, Any], exponents: Sequence[float], scores: Mapping[str, Any], title: str = ""
) -> Figure:
    """Variations over depth of the networks along a path, beside their scores.

    Args:
        ts: [T].
        variations: {name of the layers: [T, P]}.
        exponents: p, [P].
        scores: {label with unit: {split: [T]}}, one panel.
        title: above the figure.
    """
    with style.panels(2, height=2.7) as (figure, axes):
        lines = itertools.product(variations.items(), enumerate(exponents))
        colours = _colours(len(variations) * len(exponents))
        for k, (((name, values), (i, p)), colour) in enumerate(zip(lines, colours)):
            label = f"$p = {p:g}$" if len(variations) == 1 else f"{style.named(name)}, $p = {p:g}$"
            look = {"marker": MARKERS[k % 5], "linestyle": LINES[k % 4]}  # lines of several p may lie on one another
            axes[0].plot(ts, np.asarray(values)[:, i], color=colour, label=label, markevery=(k % 5, 5), **look)
        axes[0].set(ylabel="$p$-variation over depth")
        _from_zero(axes[0])
        for label, of_splits in scores.items():
            for (split, values), (colour, line) in zip(of_splits.items(), curves.LOOKS):
                axes[1].plot(ts, values, color=colour, linestyle=line, label=split)
            axes[1].set(ylabel=label)
        for axis in axes:
            axis.set(xlabel="$t$", xlim=(ts[0], ts[-1]))
            axis.legend(fontsize=8)
        return style.titled(figure, title)


def _over_depth(groups: Sequence[Group], rows: Mapping[str, Callable[[Group], Any]], band: str, title: str) -> Figure:
    families = _by_family(groups)
    depths = sorted({group.num_layers for group in groups})
    colours = dict(zip(depths, _colours(len(depths))))
    with style.panels(len(families), height=2.2 * len(rows) + 0.6, rows=len(rows)) as (figure, axes):
        places = zip(axes, itertools.product(rows.items(), families.items()))
        for place, (axis, ((label, values_of), (name, of_family))) in enumerate(places):
            for group in of_family:
                _band(axis, group.arrays["depth"], values_of(group), band, colours[group.num_layers])
            axis.set(title=_title(name) if place < len(families) else "", xlim=(0, 1))
            axis.set(ylabel="" if place % len(families) else label)
            axis.set(xlabel="depth $k/L$" if place >= len(families) * (len(rows) - 1) else "")
        for depth in depths:
            axes[0].plot([], [], color=colours[depth], label=f"$L = {depth}$")
        return style.finished(figure, axes[0], title, columns=6)


def _band(axis: Axes, x: Any, values: Any, band: str, colour: Any) -> None:
    """The mean of values [n, T] as a line, and what `band` names around it."""
    values = np.asarray(values, np.float64)
    mean, width = values.mean(axis=0), _width(values, band)
    axis.plot(x, mean, color=colour, linewidth=1.1)
    axis.fill_between(x, mean - width, mean + width, color=colour, alpha=0.15, linewidth=0)


def _width(values: np.ndarray, band: str) -> Any:
    """The sample standard deviation over the first axis, or that of the mean."""
    return style.spread(values) / (np.sqrt(len(values)) if band == "sem" else 1.0)


def _by_family(groups: Sequence[Group]) -> dict[str, list[Group]]:
    if not groups:
        raise ValueError("expected at least one group of networks, got none")
    families: dict[str, list[Group]] = {}
    for group in groups:
        families.setdefault(group.family, []).append(group)
    return {name: sorted(of, key=lambda group: group.num_layers) for name, of in families.items()}


def _from_zero(axis: Axes) -> None:
    """Shows the values of an axis with zero, and room above them."""
    axis.set_ylim(0, 1.08 * (axis.dataLim.y1 if axis.dataLim.y1 > 0 else 1.0))


def _title(family: str) -> str:
    return style.named(family).replace("alpha =", r"$\alpha$ =").replace("gamma =", r"$\gamma$ =").replace("_", " ")


def _colours(num: int) -> list[Any]:
    """From dark to light, told apart in greyscale too."""
    return list(mpl.colormaps["viridis"](np.linspace(0.0, 0.88, max(num, 2))))[:num]
