"""Paths of `launch.connect` together: worst points and lengths by connector, mean and spread over pairs of networks.

Reference: Anokhin and Yarotsky, Low-loss connection of weight vectors: distribution-based approaches, 2020,
arXiv:2008.00741.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from subspaces_jax import records
from subspaces_jax.errors import ConfigError, RunDirectoryError
from subspaces_jax.experiments import choices
from subspaces_jax.experiments.schema import Field, anything
from subspaces_jax.experiments.studies import members, profiles
from subspaces_jax.plots import curves, style

PATH = "path"  # of experiments.connect, which comes after the studies
FIELDS: dict[str, Field] = {
    "runs": Field("", anything, "run directories of launch.connect, separated by commas"),
}


def run(settings: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Gathers the results of paths.

    Returns:
        Arrays "<connector>/<score>" [pairs, T] and "<connector>/ts". Facts: "connectors" {connector: {"pairs", "worst":
        {split: [accuracy of each pair]}, "length": [...], "num_pieces"}}.
    """
    folders = choices.split(settings.runs)
    if not folders:
        raise ConfigError("config.runs names no path: set config.runs=a,b")
    for folder in folders:
        if records.read_header(folder).kind != "connect":
            raise RunDirectoryError(f"{folder} is no path: name run directories of python -m launch.connect")
    members.check_alike(opened := members.open_any(settings))
    if len({run.folder for run in opened}) < len(opened):
        raise ConfigError(f"config.runs names a path twice: {settings.runs}")
    arrays: dict[str, Any] = {}
    facts: dict[str, Any] = {"connectors": {}, "columns": []}
    for folder in folders:
        of_path, found = records.load_results(folder, PATH)
        facts["columns"] = found["columns"]
        own = facts["connectors"].setdefault(
            found["connector"], {"pairs": [], "worst": {}, "length": [], "num_pieces": found["num_pieces"]}
        )
        own["pairs"].append(" to ".join(found["members"]))
        own["length"].append(found["length"])
        for split, worst in found["worst"].items():
            own["worst"].setdefault(split, []).append(worst["acc"])
        for name, values in of_path.items():
            if name == "ts":
                arrays[f"{found['connector']}/ts"] = values
            elif name[:3] in ("tr_", "te_") and values.ndim == 1:
                arrays.setdefault(f"{found['connector']}/{name}", []).append(values)
    try:
        arrays = {name: np.stack(rows) if isinstance(rows, list) else rows for name, rows in arrays.items()}
    except ValueError:
        raise ConfigError("the paths of a connector have different numbers of points: connect them alike") from None
    return arrays, facts | {"title": f"{len(folders)} paths"}


def table(facts: dict[str, Any]) -> str:
    """Worst accuracies, %: mean and sample standard deviation over pairs; lengths."""
    lines = [f"{'connector':40}{'pairs':>6}{'pieces':>7}{'worst training':>18}{'worst test':>18}{'length':>10}"]
    for name, of in facts["connectors"].items():
        cells = [style.mean_and_spread(of["worst"].get(split, [])) for split in ("training", "test")]
        length = float(np.mean(of["length"]))
        lines.append(f"{name:40}{len(of['pairs']):6d}{of['num_pieces']:7d}{cells[0]:>18}{cells[1]:>18}{length:10.2f}")
    return "\n".join(lines)


def figures(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> dict[str, Figure]:
    """Scores of all connectors in one figure, over the share of the path."""
    return {"connections": curves.connection(_shown(arrays, facts), facts["columns"][-1:], title=facts["title"])}


def panel(axis: Axes, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Test scores of all connectors, for an overview."""
    curves.draw(axis, _shown(arrays, facts), facts["columns"][-1], "test")


def _shown(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> dict[str, Any]:
    """{connector: scores by split}."""
    return {name: profiles.by_split(records.below(arrays, name), facts["columns"]) for name in facts["connectors"]}
