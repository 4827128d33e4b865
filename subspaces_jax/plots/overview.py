"""One figure of several kinds of results, a panel each."""

from collections.abc import Callable, Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from subspaces_jax.plots import style

IN_A_ROW = 3
MOST_LABELS = 8  # of a legend within a panel


def overview(panels: Mapping[str, Callable[[Axes], None]]) -> Figure:
    """Panels side by side, at most three in a row, each with its title and a small legend of its own.

    Args:
        panels: {title: what draws into the panel's axes}, at least one.

    Raises:
        ValueError: no panel.
    """
    if not panels:
        raise ValueError("expected at least one panel, got none")
    rows = -(-len(panels) // IN_A_ROW)
    columns = -(-len(panels) // rows)
    with style.panels(columns, height=2.7 * rows, rows=rows) as (figure, axes):
        figure.set_figwidth(1.4 * style.WIDTH if columns > 2 else style.WIDTH)
        for axis, (name, draw) in zip(axes, panels.items()):
            draw(axis)
            axis.set_title(style.named(name), fontsize=9)
            labels = axis.get_legend_handles_labels()[1]
            if 0 < len(labels) <= MOST_LABELS:
                axis.legend(fontsize=6.5, handlelength=1.4, labelspacing=0.25)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        return figure
