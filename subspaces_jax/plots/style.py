"""One look for all figures: sizes of a paper's text, colours that survive greyscale and colour blindness."""

import pathlib
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
from matplotlib.figure import Figure

WIDTH = 6.75  # inches, the text width of ICML's and NeurIPS' styles
COLOURS = {"single": "#0072B2", "pair": "#D55E00", "third": "#009E73", "reference": "#555555"}

_PARAMETERS = {
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
    "savefig.bbox": "tight",
    "pdf.fonttype": 42,  # fonts that a publisher can embed
}


@contextmanager
def panels(num: int, height: float = 2.5) -> Iterator[tuple[Figure, list]]:
    """A figure of the text's width with `num` panels side by side, in the house style."""
    with mpl.rc_context(_PARAMETERS):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, list(figure.subplots(1, num, squeeze=False)[0])


def save(figure: Figure, folder: str | pathlib.Path, name: str) -> list[pathlib.Path]:
    """Writes <folder>/<name>.pdf and .png (200 dots per inch) and returns their paths."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{ending}" for ending in ("pdf", "png")]
    with mpl.rc_context(_PARAMETERS):
        for path in paths:
            figure.savefig(path, dpi=200)
    return paths
