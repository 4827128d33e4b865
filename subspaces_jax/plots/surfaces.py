"""Figures of surfaces over a plane of weight space: contours in the manner of the mode-connectivity paper, and reliefs.

References: Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, 2018, arXiv:1802.10026,
figure 1; Li et al., Visualizing the Loss Landscape of Neural Nets, 2018, arXiv:1712.09913, figure 1.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from subspaces_jax.analysis import surfaces
from subspaces_jax.plots import style

PAPER = "jet_r"  # the colours of the mode-connectivity paper
NO_VALUE = "0.85"  # where a surface is not a number
AXES = ("$x$ ($L_2$ distance)", "$y$ ($L_2$ distance)")
PALE = 0.55  # of the fill between lines


class Surface(NamedTuple):
    """One panel.

    Attributes:
        values: [X, Y], values[i, j] at (x[i], y[j]); those that are not numbers are left grey, infinity is "above all".
        label: what they are, with unit: "training loss (nats)".
        vmax, log_alpha: as of `analysis.surfaces.levels`; in reliefs, values above vmax are drawn at vmax.
    """

    values: Any
    label: str
    vmax: float | None = None
    log_alpha: float = -5.0


def contours(
    x: Any,
    y: Any,
    panels: Sequence[Surface],
    *,
    ends: Any = (),
    bends: Any = (),
    curve: Any = None,
    networks: Any = (),
    curve_name: str = "curve",
    title: str = "",
    axes: tuple[str, str] = AXES,
    colours: str = "viridis_r",
    num_levels: int = 7,
) -> Figure:
    """Contours of surfaces over one plane, at levels that are dense where values are low.

    Args:
        x, y: [X], [Y], coordinates in the plane.
        panels: side by side, one to three of them fit the page.
        ends: [E, 2], marked as circles; two of them are joined by a dashed segment.
        bends: [P, 2], marked as diamonds.
        curve: [T, 2], a solid line, which the legend calls `curve_name`.
        networks: [N, 2], marked as circles that nothing joins.
        title: above the figure.
        axes: labels of x and y with unit.
        colours: name of a Matplotlib colour map, low values first; PAPER for the paper's.
        num_levels: bands between the lowest value and the highest.

    Raises:
        ValueError: values of another shape than the grid, or none that is finite.
    """
    x, y, panels = _checked(x, y, panels)
    height = (
        0.68 * style.WIDTH / len(panels) * np.ptp(y) / np.ptp(x)
    )  # about what equal units leave beside a colour bar
    with style.panels(len(panels), height=float(np.clip(height, 1.4, 4.0)) + 0.9) as (figure, places):
        for axis, panel in zip(places, panels):
            draw(axis, x, y, panel, ends=ends, bends=bends, curve=curve, networks=networks, curve_name=curve_name,
                 axes=axes, colours=colours, num_levels=num_levels)  # fmt: skip
        return style.finished(figure, places[0], title)


def draw(
    axis: Axes,
    x: Any,
    y: Any,
    panel: Surface,
    *,
    ends: Any = (),
    bends: Any = (),
    curve: Any = None,
    networks: Any = (),
    curve_name: str = "curve",
    axes: tuple[str, str] = AXES,
    colours: str = "viridis_r",
    num_levels: int = 7,
    aspect: str = "equal",
) -> None:
    """One panel of `contours`, with its colour bar; arguments as there, and "auto" for the aspect of the panel."""
    x, y, (panel,) = _checked(x, y, [panel])
    _contours(axis, x, y, panel, colours, num_levels)
    _marks(axis, ends, bends, curve, networks, curve_name)
    axis.set(xlabel=axes[0], ylabel=axes[1], xlim=x[[0, -1]], ylim=y[[0, -1]], aspect=aspect)
    axis.grid(False)


def reliefs(
    x: Any,
    y: Any,
    panels: Sequence[Surface],
    *,
    title: str = "",
    axes: tuple[str, str] = AXES,
    colours: str = "viridis_r",
    elevation: float = 30.0,
    azimuth: float = -60.0,
) -> Figure:
    """Surfaces over one plane as three-dimensional reliefs.

    Values above `Surface.vmax` are drawn at it, and the label says so. By default this is the highest value, or, where
    that stands out, 3 times the range of the lower nine tenths of values above these: one point that has diverged does
    not flatten the rest. What is not a number leaves a hole.

    Args:
        x, y, panels, title, axes, colours: as in `contours`.
        elevation, azimuth: of the eye, degrees.

    Raises:
        ValueError: values of another shape than the grid, or none that is finite.
    """
    x, y, panels = _checked(x, y, panels)
    with style.panels(len(panels), height=min(style.WIDTH / len(panels) * 0.85, 3.8), projection="3d") as (
        figure,
        places,
    ):
        for axis, panel in zip(places, panels):
            values, top = np.asarray(panel.values, np.float64), _top(panel)
            low = float(values[np.isfinite(values)].min())
            clipped = np.minimum(values, top)
            span = top - low or 1e-6 * max(abs(low), 1.0)
            norm = Normalize(low, low + span)
            axis.plot_surface(
                *np.meshgrid(x, y, indexing="ij"), clipped, cmap=colours, norm=norm, rcount=len(x), ccount=len(y),
                linewidth=0.1, edgecolor="0.3", antialiased=True,
            )  # fmt: skip
            is_clipped = bool(np.any(values > top))
            label = f"{panel.label},\ndrawn up to {top:.3g}" if is_clipped else panel.label
            axis.set(xlabel=axes[0], ylabel=axes[1], zlabel=label, zlim=(low, low + span))
            axis.set_box_aspect((1, 1, 0.7), zoom=0.9)
            axis.tick_params(labelsize=7, pad=0)
            axis.view_init(elevation, azimuth)
        return style.finished(figure, places[0], title)


def _contours(axis: Axes, x: Any, y: Any, panel: Surface, colours: str, num: int) -> None:
    values = np.asarray(panel.values, np.float64)
    found = surfaces.levels(values, panel.vmax, panel.log_alpha, num)
    finite = values[np.isfinite(values)]
    above = max(finite.max(), found[-1]) + (found[-1] - found[0])
    values = np.ma.masked_invalid(np.where(np.isposinf(values), above, values))
    overflows = bool(np.any(values > found[-1]))
    colour_map = mpl.colormaps[colours]
    lines, bands = colour_map(0.9 * np.arange(num + 1) / num), colour_map(0.9 * (np.arange(num) + 0.5) / num)
    if overflows:
        found, bands = np.append(found, above), np.concatenate([bands, colour_map([1.0])])
    axis.set_facecolor(NO_VALUE)
    filled = axis.contourf(x, y, values.T, levels=found, colors=PALE * bands[:, :3] + (1.0 - PALE), zorder=0)
    inside = np.flatnonzero((found[: num + 1] > values.min()) & (found[: num + 1] < values.max()))
    if inside.size:
        axis.contour(x, y, values.T, levels=found[inside], colors=lines[inside], linewidths=1.2, zorder=1)
    bar = axis.figure.colorbar(filled, ax=axis, ticks=found, shrink=0.9)
    texts = _texts(found[: num + 1])
    bar.set_ticklabels([*texts, f"> {texts[-1]}"] if overflows else texts)
    bar.set_label(panel.label)


def _marks(axis: Axes, ends: Any, bends: Any, curve: Any, networks: Any, curve_name: str) -> None:
    ends, bends, networks = (np.asarray(of, np.float64).reshape(-1, 2) for of in (ends, bends, networks))
    if len(ends) == 2:
        axis.plot(*ends.T, "--", color="0.25", zorder=2, label="segment")
    if curve is not None:
        axis.plot(*np.asarray(curve, np.float64).reshape(-1, 2).T, "-", color="black", zorder=2, label=curve_name)
    marked: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.6, "zorder": 3, "clip_on": False}
    for label, of in (("ends", ends), ("networks" if len(networks) > 1 else "network", networks)):
        if len(of):
            axis.plot(*of.T, "o", color="black", markersize=6, label=label, **marked)
    if len(bends):
        axis.plot(*bends.T, "D", color=style.COLOURS["pair"], markersize=5.5, label="bend", **marked)


def _texts(numbers: np.ndarray) -> list[str]:
    """With two significant digits, or as many more as tell them apart."""
    for digits in range(2, 8):
        texts = [f"{number:.{digits}g}" for number in numbers]
        if len(set(texts)) == len(texts):
            break
    return texts


def _top(panel: Surface) -> float:
    finite = np.asarray(panel.values, np.float64)
    finite = finite[np.isfinite(finite)]
    low, high = np.quantile(finite, [0.0, 0.9])
    usual = high + 3.0 * (high - low) if high > low else np.inf
    return float(min(finite.max(), usual if panel.vmax is None else panel.vmax))


def _checked(x: Any, y: Any, panels: Sequence[Surface]) -> tuple[np.ndarray, np.ndarray, list[Surface]]:
    x, y, panels = np.asarray(x, np.float64), np.asarray(y, np.float64), list(panels)
    if not panels:
        raise ValueError("expected at least one surface, got none")
    for panel in panels:
        if np.shape(panel.values) != (len(x), len(y)):
            raise ValueError(
                f"{panel.label!r} has values of shape {np.shape(panel.values)} on a grid of {len(x)} x {len(y)} points"
            )
        if not np.any(np.isfinite(panel.values)):
            raise ValueError(f"{panel.label!r} has no finite value to draw")
    return x, y, panels
