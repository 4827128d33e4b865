"""Tables of a family of runs, to CSV and LaTeX."""

import csv
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from subspaces_jax.plots import style
from subspaces_jax.plots.families import Family, at_midpoint

COLUMNS = (  # title, score, point of the path (or the weights, or all members or captures), factor, decimals
    ("midpoint accuracy (%)", "accuracy", "midpoint", 100, 2),
    ("ends accuracy (%)", "accuracy", "ends", 100, 2),
    ("pair of ends (%)", "pair_accuracy", "ends", 100, 2),
    ("pair .2/.8 (%)", "pair_accuracy", "fifth", 100, 2),
    ("ensemble of all (%)", "accuracy", "ensemble", 100, 2),
    ("midpoint loss (nats)", "nll", "midpoint", 1, 3),
    ("midpoint ECE (%)", "ece_20", "midpoint", 100, 2),
    ("ECE of pair .2/.8 (%)", "pair_ece_20", "fifth", 100, 2),
    ("ends differ (%)", "pair_disagreement", "ends", 100, 2),
    ("cos^2 of ends", "cosine_squared", "weights", 1, 3),
)


class Row(NamedTuple):
    """One variant: its name, seeds, and for each of COLUMNS mean and sample standard deviation (n - 1), or None."""

    name: str
    num_seeds: int
    cells: list[tuple[float, float] | None]


def summary(family: Family) -> list[Row]:
    """The COLUMNS of every variant; a cell is None where the variant has no such number."""
    rows = []
    for name, runs in family.items():
        cells: list[tuple[float, float] | None] = []
        for _, score, place, factor, _ in COLUMNS:
            values = [_at(run, score, place) for run in runs]
            cells.append(
                None if None in values else (factor * float(np.mean(values)), factor * float(style.spread(values)))
            )
        rows.append(Row(name, len(runs), cells))
    return rows


def write(rows: Sequence[Row], folder: str | pathlib.Path, name: str) -> list[pathlib.Path]:
    """Writes <folder>/<name>.csv (a mean and a standard deviation a column) and .tex (a tabular); returns the paths."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    titles = [title for title, *_ in COLUMNS]
    with open(folder / f"{name}.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "seeds", *(f"{title}{part}" for title in titles for part in ("", " std"))])
        for row in rows:
            writer.writerow([row.name, row.num_seeds, *(number for cell in row.cells for number in cell or ("", ""))])
    escape = lambda text: text.replace("_", r"\_").replace("%", r"\%").replace("^2", "$^2$")
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(titles) + 1)}}}", r"\hline"]
    lines += [" & ".join(["variant", "seeds", *map(escape, titles)]) + r" \\", r"\hline"]
    lines += [" & ".join([escape(row.name), str(row.num_seeds), *_cells(row, r"$\pm$")]) + r" \\" for row in rows]
    (folder / f"{name}.tex").write_text("\n".join([*lines, r"\hline", r"\end{tabular}"]) + "\n")
    return [folder / f"{name}.csv", folder / f"{name}.tex"]


def text(rows: Sequence[Row]) -> str:
    """The table for a terminal or a README (Markdown)."""
    titles = ["variant", "seeds", *(title for title, *_ in COLUMNS)]
    lines = [titles, ["---"] * len(titles), *([row.name, str(row.num_seeds), *_cells(row, "±")] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Row, sign: str) -> list[str]:
    decimals = [column[-1] for column in COLUMNS]
    return ["" if cell is None else f"{cell[0]:.{d}f} {sign} {cell[1]:.{d}f}" for cell, d in zip(row.cells, decimals)]


def _at(facts: dict[str, Any], score: str, place: str) -> float | None:
    if place == "weights":
        return facts.get(score)
    if place == "ensemble":
        return facts["ensembles"][score][-1] if "ensembles" in facts else None
    scores, is_curve = facts["scores"].get(score), "pair_accuracy" in facts["scores"]
    if scores is None or (place != "midpoint" and not is_curve):
        return None
    if place == "midpoint":
        return at_midpoint(facts, score)
    if place == "ends":
        return 0.5 * (scores[0] + scores[-1])
    return None if (len(scores) - 1) % 5 else scores[(len(scores) - 1) // 5]
