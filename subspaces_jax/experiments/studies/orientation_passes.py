"""Projections of all hyperplanes of runs' networks: over the checkpoints of training, and along lines and curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from subspaces_jax.analysis import hyperplanes
from subspaces_jax.analysis.hyperplanes import Oriented
from subspaces_jax.errors import CheckpointError, ConfigError
from subspaces_jax.experiments import runs
from subspaces_jax.experiments.runs import Run
from subspaces_jax.experiments.studies import members

Statistics = dict[str, np.ndarray]


def over_training(
    settings: Any, opened: Sequence[Run], steps: Sequence[int], measure: Oriented
) -> tuple[list[str], Statistics, Statistics]:
    """Names [M], projections {layer: [M, S, N]} and distances {"<layer>/l2": [M, S]}; one checkpoint at a time."""
    statistics = jax.jit(jax.vmap(measure))  # type: ignore[arg-type, type-var]  # a NamedTuple can be called, too
    distance = jax.jit(jax.vmap(lambda now, before: hyperplanes.distance_from_init(
        now, before, measure.with_dense, with_pointwise=measure.with_pointwise, layers=measure.layers)))  # fmt: skip
    from_start = all(settings.initial_step in run.steps for run in opened)
    if settings.initial_step and not from_start:
        raise CheckpointError(f"config.initial_step: not all runs have a checkpoint of step {settings.initial_step}")
    progress = members.progress(len(opened) * len(steps), "orientation")
    names, rows, moved = [], [], []
    for number, run in enumerate(opened):
        initial = runs.networks(run, settings.members, settings.initial_step).stack if from_start else None
        of_run, moved_of_run = [], []
        for s, step in enumerate(steps):
            networks = runs.networks(run, settings.members, step)
            of_run.append(jax.device_get(statistics(networks.stack)))
            if from_start:
                moved_of_run.append(jax.device_get(distance(networks.stack, initial)))
            progress.update(number * len(steps) + s + 1, f"{run.name} step {step}")
        rows.append(_stacked(of_run))
        moved.append(_stacked([_flat(of_step) for of_step in moved_of_run]))
        names += [name.replace(f" step {steps[-1]}", "").removesuffix(" midpoint") for name in networks.names]
    progress.close()
    joined = _joined(rows)
    projections = {name.removesuffix("/projections"): of for name, of in joined.items() if name.endswith("projections")}
    return names, projections, _joined(moved)


def along(
    settings: Any, opened: Sequence[Run], step: int, measure: Oriented, groups: Mapping[str, list[str]]
) -> Statistics:
    """Along the lines or curves of all runs at a step: the task's scores and the orientation of each point."""
    space, rows = opened[0].experiment.space, []
    for run in opened:
        if not run.experiment.is_curve or run.experiment.space != space:
            raise ConfigError(
                f"config.num_points is for lines and curves of one kind, {run.folder} has another subspace"
            )
        networks, points = runs.networks(run, "endpoints", step), space.grid(settings.num_points)
        found, _ = members.scored(
            settings, [run], networks, points, of_params={"orientation": measure}, with_pairs=False,
            progress=members.progress(len(points), run.name).over,
        )  # fmt: skip
        rows.append({name: of[None] for name, of in found.items()})
    found = _joined(rows)
    arrays = {"t": np.linspace(0.0, 1.0, settings.num_points)}
    arrays |= {f"along/{name}": of for name, of in found.items() if "/" not in name}
    for name, layers in groups.items():
        values = np.concatenate([found[f"orientation/{layer}/projections"] for layer in layers], axis=-1)
        of_values = {"projections": values, "mass": hyperplanes.mass(values), "mean": values.mean(-1, np.float64)}
        arrays |= {f"along/{name}/{key}": of for key, of in of_values.items()}
    return arrays


def _flat(tree: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{layer}/{key}": value for layer, of in tree.items() for key, value in of.items()}


def _stacked(rows: Sequence[Mapping[str, Any]]) -> Statistics:
    """S times [M, ...] -> [M, S, ...]."""
    return {name: np.stack([row[name] for row in rows], axis=1) for name in rows[0]} if rows else {}


def _joined(rows: Sequence[Mapping[str, Any]]) -> Statistics:
    """[M, ...] of each run -> of all."""
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
