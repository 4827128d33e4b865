"""Figures of a path: what each of its points scores, alone and as a two-point ensemble."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from subspaces_jax.plots import style

NUM_PANELS = 3
Column = tuple[str, str, str, float]  # name, title, unit, factor


def profile(facts: dict[str, Any], title: str = "") -> Figure:
    """The scores along a path that its columns name first.

    Args:
        facts: of `experiments.evaluate`: "scores" with lists of T numbers, two-point ensembles under "pair_...",
            "columns", (name, title, unit, factor) of each score to show, "t" of the points where they are not equally
            spaced, and "split" where they were not scored on the test split.
        title: above the figure.

    Returns:
        At most three panels: solid, each point; dashed, the ensemble of t with 1 - t; dotted, the mean of the two ends.
    """
    shown = facts["columns"][:NUM_PANELS]
    if not shown or not len(facts["scores"][shown[0][0]]):
        raise ValueError("expected at least one column and one point")
    with style.panels(len(shown)) as (figure, axes):
        for axis, column in zip(axes, shown):
            draw(axis, facts, column)
        return style.finished(figure, axes[0], title)


def t_of(facts: Mapping[str, Any]) -> np.ndarray:
    """t of the points of a path, [T]: as its facts say, or equally spaced."""
    num = len(next(iter(facts["scores"].values())))
    return np.linspace(0.0, 1.0, num) if facts.get("t") is None else np.asarray(facts["t"])


def draw(axis: Axes, facts: Mapping[str, Any], column: Column) -> None:
    """One panel of `profile`: a score of each point, and of its ensemble with its mirror image where there is one."""
    (name, text, unit, scale), scores = column, facts["scores"]
    values, t = scale * np.asarray(scores[name]), t_of(facts)
    axis.plot(t, values, "-", color=style.COLOURS["single"], label="point $t$")
    axis.plot(t[[0, -1]], values[[0, -1]], "o", color=style.COLOURS["single"], label="ends")
    ends = 0.5 * (values[0] + values[-1])
    axis.axhline(ends, linestyle=":", color=style.COLOURS["reference"], label="mean of the ends")
    if f"pair_{name}" in scores:
        pairs = scale * np.asarray(scores[f"pair_{name}"])
        axis.plot(t, pairs, "--", color=style.COLOURS["pair"], label="ensemble of $t$ and $1-t$")
    axis.set(xlabel="$t$", ylabel=style.label(f"{facts.get('split', 'test')} {text}", unit), xlim=(0.0, 1.0))
