"""Several kinds of results in one figure: what a group shows first, drawn from results that are there.

Takes folders of evaluated lines, and of the studies that have a `panel`; results/overview.npz has their arrays, those
of the i-th folder as "<i>/<name>", and results/overview.json their facts, so that the figure can be drawn without them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from subspaces_jax import records
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import choices, evaluate
from subspaces_jax.experiments.schema import Field, anything
from subspaces_jax.plots import overview as plots

FIELDS: dict[str, Field] = {
    "runs": Field("", anything, "folders of evaluated lines and of studies, a panel each, between commas"),
    "titles": Field("", anything, "of the panels, between bars: 'a line|a curve'; else the studies' names"),
}
Panel = Callable[[Axes, dict[str, np.ndarray], dict[str, Any]], None]


def run(settings: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Gathers the results of all folders.

    Raises:
        ConfigError: no folder, one of another kind, or titles for another number of them.
        RunDirectoryError: a folder without its results.
    """
    folders = choices.split(settings.runs)
    if not folders:
        raise ConfigError("config.runs names no results: set config.runs=runs/line,runs/plane")
    kinds = [_kind(folder) for folder in folders]
    titles = [title.strip() for title in settings.titles.split("|")] if settings.titles else _numbered(kinds)
    if len(titles) != len(folders) or len(set(titles)) < len(titles):
        raise ConfigError(
            f"config.titles has {len(titles)} for {len(folders)} folders: give each one of its own, or none"
        )
    arrays, parts = {}, []
    for i, (folder, kind, title) in enumerate(zip(folders, kinds, titles)):
        found, facts = records.load_results(folder, kind)
        arrays |= {f"{i}/{name}": values for name, values in found.items()}
        parts.append({"kind": kind, "title": title, "folder": folder, "facts": facts})
    return arrays, {"parts": parts}


def table(facts: dict[str, Any]) -> str:
    """The panels and where they come from."""
    return "\n".join(f"{part['title']}: {part['kind']} of {part['folder']}" for part in facts["parts"])


def figures(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> dict[str, Figure]:
    """All panels in one figure."""
    panels = {}
    for i, part in enumerate(facts["parts"]):
        panels[part["title"]] = partial(_drawn, part, records.below(arrays, str(i)))
    return {"overview": plots.overview(panels)}


def _drawn(part: dict[str, Any], arrays: dict[str, np.ndarray], axis: Axes) -> None:
    _panels()[part["kind"]](axis, arrays, part["facts"])


def _panels() -> dict[str, Panel]:
    from subspaces_jax.experiments.studies import STUDIES  # of which this is one

    of_studies = {name: study.panel for name, study in STUDIES.items() if hasattr(study, "panel")}
    return {evaluate.RESULTS: evaluate.panel} | of_studies


def _kind(folder: str) -> str:
    """Of a folder the name of its results."""
    header = records.read_header(folder)
    kind = evaluate.RESULTS if header.kind == "train" else str(header.config.get("analysis", header.kind))
    if kind not in (panels := _panels()):
        raise ConfigError(f"{folder} holds results of {kind!r}, an overview draws {', '.join(panels)}")
    return kind


def _numbered(kinds: list[str]) -> list[str]:
    """Each kind, with a number where it comes again."""
    return [f"{kind} {kinds[:i].count(kind) + 1}" if kind in kinds[:i] else kind for i, kind in enumerate(kinds)]
