"""One look for all figures: sizes of a paper's text, colours that survive greyscale and colour blindness."""

import io
import os
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
    with _house():
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, list(figure.subplots(1, num, squeeze=False)[0])


def save(figure: Figure, folder: str | pathlib.Path, name: str) -> list[pathlib.Path]:
    """Writes <folder>/<name>.pdf and .png (200 dots per inch), each whole or not at all, and returns their paths."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{ending}" for ending in ("pdf", "png")]
    with _house():
        for path in paths:
            drawn = io.BytesIO()  # Matplotlib's writer of PDFs hides an OSError behind an AttributeError of its own
            figure.savefig(drawn, format=path.suffix[1:], dpi=200)
            _write(path, drawn.getbuffer())
    return paths


@contextmanager
def _house() -> Iterator[None]:
    """The house style on Matplotlib's defaults, whatever the user's matplotlibrc or notebook has set."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_PARAMETERS)
        yield


def _write(path: pathlib.Path, content: bytes | memoryview) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def label(text: str, unit: str = "") -> str:
    """What an axis shows, with its unit."""
    return f"{text} ({unit})" if unit else text
