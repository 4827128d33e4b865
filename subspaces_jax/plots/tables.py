"""Tables of a family of runs, to CSV and LaTeX."""

import csv
import io
import itertools
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from subspaces_jax import writing
from subspaces_jax.plots import style
from subspaces_jax.plots.families import Family, at_midpoint
from subspaces_jax.plots.paths import t_of

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


# what LaTeX does not print as it is
LATEX = {"^2": "$^2$", "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {letter: f"\\{letter}" for letter in "&%$#_{}"} | {letter: f"${letter}$" for letter in "<>|"}
SPECIAL = re.compile("|".join(map(re.escape, LATEX)))
HEADS = ("variant", "seeds")
TITLES = tuple((title, decimals) for title, *_, decimals in COLUMNS)


class Row(NamedTuple):
    """One variant: its name, seeds, and for each column mean and sample standard deviation (n - 1), a number without
    one (None), or None."""

    name: str
    num_seeds: int
    cells: Sequence[tuple[float, float | None] | None]


class Table(NamedTuple):
    """Attributes:
    rows: in order.
    titles: (title, decimals) of each column.
    heads: of the columns of names and numbers of seeds.
    """

    rows: list[Row]
    titles: tuple[tuple[str, int], ...] = TITLES
    heads: tuple[str, str] = HEADS


def of_family(family: Family) -> Table:
    """The table of a family: of classifications the COLUMNS, of other tasks their scores at midpoints and ends."""
    every = [facts for runs in family.values() for facts in runs]
    facts = every[0]
    columns: tuple[tuple[str, str, str, float, int], ...] = COLUMNS
    if "accuracy" not in facts["scores"]:
        largest = lambda name, scale: scale * max((at_midpoint(run, name) for run in every), key=abs)
        of_task = [
            (style.label(f"{place} {title}", unit), name, place, scale, style.decimals(largest(name, scale), 3))
            for place in ("midpoint", "ends")
            for name, title, unit, scale in facts["columns"]
        ]
        columns = (*of_task, COLUMNS[-1])
    return Table(summary(family, columns), tuple((title, decimals) for title, *_, decimals in columns))


def summary(family: Family, columns: Sequence[tuple] = COLUMNS) -> list[Row]:
    """The columns of every variant; a cell is None where the variant has no such number."""
    rows = []
    for name, runs in family.items():
        cells: list[tuple[float, float | None] | None] = []
        for _, score, place, factor, _ in columns:
            values = [value for run in runs if (value := _at(run, score, place)) is not None]
            whole = len(values) == len(runs)
            spread = factor * float(style.spread(values)) if len(values) > 1 else None
            cells.append((factor * float(np.mean(values)), spread) if whole else None)
        rows.append(Row(name, len(runs), cells))
    return rows


def write(table: Table | Sequence[Row], folder: str | pathlib.Path, name: str) -> list[pathlib.Path]:
    """Writes <folder>/<name>.csv (a mean and a standard deviation a column) and .tex (a tabular); returns the paths.

    Args:
        table: or the rows of one with the columns of a family.
        folder, name: where to.
    """
    folder, table = pathlib.Path(folder), _table(table)
    folder.mkdir(parents=True, exist_ok=True)
    titles = [title for title, _ in table.titles]
    parts = [("",) if _without_spread(table, i) else ("", " std") for i in range(len(titles))]
    content = io.StringIO(newline="")
    writer = csv.writer(content)
    writer.writerow([*table.heads, *(f"{title}{part}" for title, of in zip(titles, parts) for part in of)])
    for row in table.rows:
        cells = [(cell or ("", ""))[: len(of)] for cell, of in zip(row.cells, parts)]
        writer.writerow([row.name, row.num_seeds, *itertools.chain(*cells)])
    writing.write_text(folder / f"{name}.csv", content.getvalue())
    escape = lambda text: SPECIAL.sub(lambda found: LATEX[found[0]], text)
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(titles) + 1)}}}", r"\hline"]
    lines += [" & ".join([*map(escape, (*table.heads, *titles))]) + r" \\", r"\hline"]
    numbers = lambda row: _cells(row, r"$\pm$", table)
    lines += [" & ".join([escape(row.name), str(row.num_seeds), *numbers(row)]) + r" \\" for row in table.rows]
    writing.write_text(folder / f"{name}.tex", "\n".join([*lines, r"\hline", r"\end{tabular}"]) + "\n")
    return [folder / f"{name}.csv", folder / f"{name}.tex"]


def text(table: Table | Sequence[Row]) -> str:
    """The table for a terminal or a README (Markdown)."""
    table = _table(table)
    titles = [*table.heads, *(title for title, _ in table.titles)]
    rows = [[row.name.replace("|", r"\|"), str(row.num_seeds), *_cells(row, "±", table)] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [titles, ["---"] * len(titles), *rows])


def _table(table: Table | Sequence[Row]) -> Table:
    return table if isinstance(table, Table) else Table(list(table))


def _without_spread(table: Table, column: int) -> bool:
    """Whether a column has numbers, all of them without a spread."""
    cells = [cell for row in table.rows if (cell := row.cells[column]) is not None]
    return bool(cells) and all(spread is None for _, spread in cells)


def _cells(row: Row, sign: str, table: Table) -> list[str]:
    def cell(numbers: tuple[float, float | None] | None, decimals: int) -> str:
        shown = [f"{number:.{decimals}f}" for number in numbers or () if number is not None]
        return f" {sign} ".join(shown)

    return [cell(numbers, decimals) for numbers, (_, decimals) in zip(row.cells, table.titles)]


def _at(facts: dict[str, Any], score: str, place: str) -> float | None:
    if place == "weights":
        return facts.get(score)
    if place == "ensemble":
        return facts["ensembles"][score][-1] if "ensembles" in facts else None
    scores = facts["scores"].get(score)
    is_curve = facts.get("t") is not None or any(name.startswith("pair_") for name in facts["scores"])
    if scores is None or (place != "midpoint" and not is_curve):
        return None
    if place == "midpoint":
        return at_midpoint(facts, score)
    if place == "ends":
        return 0.5 * (scores[0] + scores[-1])
    at_fifth = np.flatnonzero(np.isclose(t_of(facts), 0.2))
    return scores[at_fifth[0]] if len(at_fifth) else None
