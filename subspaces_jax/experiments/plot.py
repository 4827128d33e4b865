"""Figures of a run, from its files alone."""

import pathlib
from typing import Any

from subspaces_jax import records
from subspaces_jax.experiments import evaluate
from subspaces_jax.plots import paths, style, training


def run(config: Any, workdir: str | pathlib.Path) -> dict[str, Any]:
    """Draws what the run's files hold: training dynamics, and the profile of a path where it was evaluated.

    Args:
        config: not needed and not read; every experiment takes (config, workdir).
        workdir: a run directory.

    Returns:
        {"figures": paths of the files written}.

    Raises:
        RunDirectoryError: no run directory, or nothing in it to draw.
    """
    folder = pathlib.Path(workdir)
    facts = records.read_config(folder)
    title = f"{facts['subspace']} of {facts['network']} on {facts['dataset']}, seed {facts['seed']}"
    written = []
    if rows := records.read_metrics(folder):
        written += style.save(training.dynamics(rows, title), folder / records.FIGURES, "training")
    scores = records.load_results(folder, evaluate.RESULTS)[1]
    if "pair_accuracy" in scores["scores"]:
        written += style.save(paths.profile(scores, title), folder / records.FIGURES, "profile")
    return {"figures": [str(path) for path in written]}
