"""Figures and tables of a run, a study or a sweep, from its results alone: nothing is computed here."""

import pathlib
from typing import Any

from subspaces_jax import records
from subspaces_jax.errors import RunDirectoryError
from subspaces_jax.experiments import analyze, connect, evaluate, runs
from subspaces_jax.experiments.studies import STUDIES
from subspaces_jax.plots import style, tables, training

FAMILY = "family"


def run(config: Any, workdir: str | pathlib.Path) -> dict[str, Any]:
    """Draws what the results of a run, an analysis or a sweep hold, into its folder figures.

    Of a run: training dynamics, and the profile of a path where it was evaluated. Of a connected path: its scores. Of
    an analysis and of a sweep (the study "family"): what `studies` draws of it; where it has a summary, this table as
    CSV and LaTeX, too.

    Args:
        config: not needed and not read; every experiment takes (config, workdir).
        workdir: a run directory, or the folder of an analysis or a sweep.

    Returns:
        {"figures": paths of the files written, "table": a summary as Markdown, "" where there is none}.

    Raises:
        RunDirectoryError: no run directory, or nothing in it to draw.
    """
    header, folder = records.read_header(workdir), records.resolve(workdir)
    try:
        return _drawn(header, folder)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        if not (damaged := _incomplete(folder)):
            raise
        raise records.DamagedError(f"{damaged} ({type(error).__name__}: {error}): make the results again") from None


def _incomplete(folder: pathlib.Path) -> str:
    """The first results in a folder that lack what all have, in words, "" where there are none."""
    for path in sorted((folder / records.RESULTS).glob("*.json")):
        facts = records.load_facts(folder, path.stem) if path.with_suffix(".npz").exists() else {"config": {}}
        if not isinstance(facts.get("config"), dict):
            return f"results {path.stem!r} in {path.parent} are damaged, they have no config"
    return ""


def _drawn(header: records.Header, folder: pathlib.Path) -> dict[str, Any]:
    if header.kind == "study":
        return _of_study(folder, analyze.complete(header.config)["analysis"])
    if header.kind == "connect":
        return {"figures": _saved(folder, connect.figures(*records.load_results(folder, connect.RESULTS))), "table": ""}
    return _of_study(folder, FAMILY) if header.kind == "sweep" else _of_run(folder)


def _of_run(folder: pathlib.Path) -> dict[str, Any]:
    rows = runs.rows_of(folder)
    arrays, facts = records.load_results(folder, evaluate.RESULTS)
    drawn = {"training": training.dynamics(rows, evaluate.title(facts["config"]))} if rows else {}
    return {"figures": _saved(folder, drawn | evaluate.figures(arrays, facts)), "table": ""}


def _of_study(folder: pathlib.Path, name: str) -> dict[str, Any]:
    study = STUDIES[name]
    if name == FAMILY and not (folder / records.RESULTS / f"{name}.json").exists():
        raise RunDirectoryError(
            f"no results {name!r} in {folder}: run python -m launch.plot --workdir={folder}, which gathers its runs"
        )
    arrays, facts = records.load_results(folder, name)
    written, text = [], ""
    if hasattr(study, "summary"):
        table = study.summary(facts)
        written, text = tables.write(table, folder / records.FIGURES, name), tables.text(table)
    animations = getattr(study, "animations", lambda arrays, facts: {})(arrays, facts)
    moving = [write(folder / records.FIGURES / f"{name}.gif") for name, write in animations.items()]
    saved = _saved(folder, study.figures(arrays, facts))
    return {"figures": [*map(str, [*written, *moving]), *saved], "table": text}


def _saved(folder: pathlib.Path, figures: dict[str, Any]) -> list[str]:
    return [
        str(path) for name, figure in figures.items() for path in style.save(figure, folder / records.FIGURES, name)
    ]
