"""Figures of power laws: points and their fits on logarithmic axes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from subspaces_jax.plots import style


def laws(
    arrays: dict[str, np.ndarray], fits: Sequence[dict[str, Any]], names: Sequence[str], series: str, title: str = ""
) -> Figure:
    """The points that were fitted as crosses, the others pale, the laws as lines with their formulas in the legend.

    Args:
        arrays: "t", "values", "kept" and "law", each [R, n].
        fits: of each run "scale", "exponent" and "shift".
        names: of the runs.
        series: what the values are.
        title: above the figure.
    """
    with style.panels(1, height=2.9 + 0.2 * len(names)) as (figure, (axis,)):
        for k, name in enumerate(names):
            t, values, kept = (arrays[of][k] for of in ("t", "values", "kept"))
            drawn, colour = (t > 0) & (values > 0), f"C{k}"
            pale = drawn & ~kept
            axis.plot(t[pale], values[pale], "x", color=colour, alpha=0.15)
            axis.plot(t[drawn & kept], values[drawn & kept], "x", color=colour, alpha=0.6, label=style.named(name))
        for k, fit in enumerate(fits):  # after all points, so that the legend has a column of each
            t = arrays["t"][k]
            axis.plot(t[t > 0], arrays["law"][k][t > 0], color=f"C{k}", label=formula(fit))
        axis.set(xscale="log", yscale="log", xlabel="$t$", ylabel=style.named(series.replace("_", " ")))
        return style.finished(figure, axis, title, columns=2)


def formula(fit: dict[str, Any]) -> str:
    """The law as mathematical text, scale in scientific notation.

    >>> formula({"scale": 7.1e-5, "exponent": 0.61, "shift": 1.0})
    '$7.10 \\\\times 10^{-5}\\\\,(t + 1)^{-0.61}$'
    """
    numbers = [fit[name] for name in ("scale", "exponent", "shift")]
    if not all(number is not None and np.isfinite(number) for number in numbers):
        return "no law: not finite"
    digits, power = f"{fit['scale']:.2e}".split("e")
    return rf"${digits} \times 10^{{{int(power)}}}\,(t + {fit['shift']:.3g})^{{{-fit['exponent']:.2f}}}$"
