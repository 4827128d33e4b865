"""Figures of several networks: ensembles on a shared trunk and apart, means of networks before and after matching."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from subspaces_jax.plots import style

LETTERS = 80  # of names that stand beside one another
Curves = Mapping[str, Sequence[Sequence[float] | np.ndarray]]


def ensembling(curves: Curves, title: str = "") -> Figure:
    """Accuracy by the number of members: lines are ensembles, dots the members alone.

    Args:
        curves: {name: (accuracies of the ensembles of 1, 2, ... M members, of each member)}, percent, [M] each; the
            first is of independent networks and dashed.
        title: above the figure.
    """
    with style.panels(1, height=3.2) as (figure, (axis,)):
        for number, (name, (ensembles, alone)) in enumerate(curves.items()):
            sizes, colour = np.arange(1, len(ensembles) + 1), _colour(number, len(curves))
            axis.plot(sizes, ensembles, color=colour, linestyle="-" if number else "--", label=style.named(name))
            axis.plot(sizes, alone, "o", color=colour, clip_on=False)
        axis.plot([], [], "o", color="black", label="one network")
        axis.set(xlabel="models", ylabel="test accuracy (%)")
        style.whole_numbers(axis)
        return style.finished(figure, axis, title)


def costs(curves: Curves, ratios: Mapping[str, float], title: str = "") -> Figure:
    """Accuracy of the ensemble of all members against what it costs.

    Args:
        curves: as in `ensembling`; dashed is the mean of the first one's members alone.
        ratios: {name: operations over those of as many independent networks}, in (0, 1].
        title: above the figure.
    """
    with style.panels(1, height=3.2) as (figure, (axis,)):
        for number, (name, (ensembles, alone)) in enumerate(curves.items()):
            axis.plot(ratios[name], ensembles[-1], "o", color=_colour(number, len(curves)), label=style.named(name))
            if not number:
                axis.axhline(np.mean(alone), linestyle="--", color=style.COLOURS["reference"], label="mean member")
        axis.set(xlabel="operations over those of independent networks", ylabel="test accuracy (%)")
        return style.finished(figure, axis, title)


def scores_of(rows: Mapping[str, Sequence[float]], text: str, unit: str = "", title: str = "") -> Figure:
    """One score of several kinds of networks, a column a kind and a dot a network.

    Args:
        rows: {kind: scores}.
        text, unit: of the score.
        title: above the figure.
    """
    with style.panels(1, height=2.7) as (figure, (axis,)):
        for number, values in enumerate(rows.values()):
            axis.plot(np.full(len(values), number), values, "o", color=style.COLOURS["single"], clip_on=False)
        axis.set(ylabel=style.label(text, unit), xlim=(-0.5, len(rows) - 0.5))
        names = [style.named(name) for name in rows]
        fits = sum(map(len, names)) <= LETTERS
        look: dict[str, Any] = {} if fits else {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
        axis.set_xticks(range(len(rows)), names, **look)
        return style.finished(figure, axis, title)


def _colour(number: int, num: int) -> tuple[float, ...] | str:
    """Black, and then along a scale that greyscale keeps."""
    return "black" if not number else mpl.colormaps["viridis"](0.1 + 0.8 * (number - 1) / max(num - 2, 1))
