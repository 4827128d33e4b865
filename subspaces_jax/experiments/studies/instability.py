"""Instability to the noise of SGD: barriers between the members of forks, against the step of the fork.

Each run is a fork (config.fork=runs/base@STEP) of two members or more, which differ in data order and noise alone.

Reference: Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2020, arXiv:1912.05671.
"""

import itertools
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from subspaces_jax.analysis import paths
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import runs
from subspaces_jax.experiments.schema import Field
from subspaces_jax.experiments.studies import barriers, members, profiles
from subspaces_jax.plots import barriers as plots
from subspaces_jax.plots import style

STABLE = 2.0  # percent of error below which the paper counts a network as stable

FIELDS: dict[str, Field] = {name: field for name, field in barriers.FIELDS.items() if name != "members"} | {
    "ends": Field("mean", lambda value: value in paths.ENDS, "what a barrier rises above: mean of the ends, or line"),
}


def run(settings: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Barriers of every fork, the mean over its pairs, with its step and the run it is of."""
    opened = members.open_all(settings)
    for of in opened:
        if of.experiment.fork is None or of.experiment.num_members < 2:
            raise ConfigError(f"{of.folder} is no fork of two members: set config.fork=runs/base@STEP, num_members=2")
    steps, found, first = members.steps_of(settings, len(opened)), [], opened[0].experiment
    for fork, step in zip(opened, steps):
        networks = runs.networks(fork, "endpoints", step)
        pairs = list(itertools.combinations(range(len(networks.names)), 2))
        found.append(barriers.between(settings, [fork], networks, pairs))
    barrier = lambda of, name: float(np.mean(paths.barrier(of[name], ends=settings.ends)))
    forked = [(run.experiment, run.experiment.fork) for run in opened if run.experiment.fork is not None]
    facts: dict[str, Any] = {
        "steps": [fork.step for _, fork in forked],
        "steps_per_epoch": opened[0].plan.steps_per_epoch,
        "forks": [f"{fork.folder} seed {made.seed}" for made, fork in forked],
        "barriers": {name: [barrier(of, name) for of in found] for name in profiles.shown(found[0], first)},
        "distances": [float(np.mean(of["distance"])) for of in found],
        "columns": profiles.columns(first),
        "title": "instability of {network} on {dataset}".format(**opened[0].config),
    }
    arrays = {"steps": np.array(facts["steps"])} | {name: np.array(of) for name, of in facts["barriers"].items()}
    return arrays, facts


def table(facts: dict[str, Any]) -> str:
    """Barriers by the step of the fork, a line a fork."""
    lines = [f"{'step':>8}{'distance':>10}" + "".join(f"{name:>12}" for name in facts["barriers"]) + "  fork"]
    order = np.argsort(facts["steps"], kind="stable")
    for i in order:
        cells = "".join(f"{values[i]:12.4f}" for values in facts["barriers"].values())
        lines.append(f"{facts['steps'][i]:8d}{facts['distances'][i]:10.3f}{cells}  {facts['forks'][i]}")
    return "\n".join(lines)


def figures(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> dict[str, Figure]:
    """Barriers against the step of the fork, mean and spread over the seeds of each step."""
    drawn, steps = {}, np.unique(facts["steps"])
    of_step = [np.flatnonzero(np.asarray(facts["steps"]) == step) for step in steps]
    for name, title, unit, scale in facts["columns"]:
        found = {split: [scale * np.asarray(facts["barriers"][f"{prefix}_{name}"])[rows] for rows in of_step]
                 for prefix, split in reversed(profiles.PREFIXES.items())
                 if f"{prefix}_{name}" in facts["barriers"]}  # fmt: skip
        drawn[f"instability_{name}"] = plots.instability(
            steps, found, style.label(f"{title} barrier", unit), stable=STABLE if name == "err" else None,
            title=facts["title"],
        )  # fmt: skip
    return drawn
