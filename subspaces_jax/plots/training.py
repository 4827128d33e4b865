"""Figures of a training run: loss, learning rate and, for several endpoints, how far apart they are."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from subspaces_jax.plots import style

FEW = 20  # rows that are marked one by one: of one row there is no line to see


def dynamics(rows: list[dict[str, Any]], title: str = "") -> Figure:
    """Loss, learning rate, squared cosine and distance of the endpoints by epoch.

    Args:
        rows: of metrics.jsonl: "epoch", "loss", "learning_rate" and, for several endpoints, "cosine_squared",
            "distance".
        title: above the figure.
    """
    panels = [("loss", "training loss", "log"), ("learning_rate", "learning rate", "linear")]
    if "distance" in rows[0]:
        panels += [("cosine_squared", r"$\cos^2$ of endpoints", "log"), ("distance", "distance", "linear")]
    epochs, marker = [row["epoch"] for row in rows], "." if len(rows) < FEW else ""
    with style.panels(len(panels), height=2.0) as (figure, axes):
        for axis, (name, label, scale) in zip(axes, panels):
            axis.plot(epochs, [row[name] for row in rows], color=style.COLOURS["single"], marker=marker)
            finite = [value for row in rows if np.isfinite(value := row[name])]
            if min(finite, default=0.0) <= 0.0:  # a logarithmic axis leaves these out
                scale = "linear"
            axis.set(xlabel="epoch", ylabel=label, yscale=scale)
            style.few_ticks(axis)
            if not finite:
                axis.text(0.5, 0.5, "not finite", ha="center", va="center", transform=axis.transAxes)
        return style.titled(figure, title)
