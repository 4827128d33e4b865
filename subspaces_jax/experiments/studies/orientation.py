"""Orientation of hyperplanes over the kept checkpoints of runs, and along their lines or curves.

results/orientation.npz has "steps" and "epochs" [S], "edges" [bins + 1], and under the name of each layer, of each
stage ("stage_0") and of all filters ("net"), of M networks,

    <name>/projections [M, S, N]   <name>/mass, mean, std, z, p_value [M, S]   <name>/histogram [M, S, bins]
    <layer>/l2, linf [M, S]        distances from the initial checkpoint, where it was kept

and along paths of R runs, of the last of these steps, "t" [T], "along/<score>" [R, T] and "along/<name>/projections"
[R, T, N], mass, mean [R, T].
Every network of every checkpoint has a file in the schema of Gamba et al. 2020 (arXiv:2003.07797) beside it.

Reference: Gamba et al., Hyperplane Arrangements of Trained ConvNets Are Biased, 2020, arXiv:2003.07797.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from subspaces_jax import records
from subspaces_jax.analysis import hyperplanes
from subspaces_jax.analysis.hyperplanes import NET, Oriented
from subspaces_jax.errors import CheckpointError, ConfigError
from subspaces_jax.experiments import choices, runs
from subspaces_jax.experiments.build import Experiment
from subspaces_jax.experiments.runs import Run
from subspaces_jax.experiments.schema import LARGEST, Field, anything, at_least
from subspaces_jax.experiments.studies import members, network_parts
from subspaces_jax.experiments.studies import orientation_passes as passes
from subspaces_jax.networks import axes
from subspaces_jax.plots import hyperplanes as plots
from subspaces_jax.plots import style

_shared = ("runs", "test_dataset", "test_archive", "seed", "eval_batch_size")
_whole = lambda value: all(part.isdigit() for part in choices.split(value))
FIELDS: dict[str, Field] = {name: members.FIELDS[name] for name in _shared} | {
    "steps": Field("", _whole, "of the checkpoints, separated by commas; empty for all that were kept and the last"),
    "members": Field(
        "midpoint", lambda value: value in ("midpoint", "endpoints"), "networks of a run: midpoint, or endpoints"
    ),
    "normalize": Field(True, anything, "whether projections are cosines"),
    "with_dense": Field(False, anything, "whether dense layers count too"),
    "with_pointwise": Field(False, anything, "whether convolutions of 1x1 count too"),
    "initial_step": Field(0, at_least(0), "of the checkpoint that distances are from"),
    "num_bins": Field(40, at_least(1), "of histograms, at least 1"),
    "num_points": Field(
        0, lambda value: value == 0 or 2 <= value <= LARGEST, "along each run's line or curve, at least 2; 0 for none"
    ),
}
Statistics = dict[str, np.ndarray]


def run(settings: Any) -> tuple[Statistics, dict[str, Any]]:
    """Statistics of every layer of every network at every checkpoint."""
    opened = members.open_all(settings)
    made = opened[0].experiment
    steps = _same([_steps(settings.steps, run) for run in opened], opened)
    measure = Oriented(
        settings.normalize, settings.with_dense, settings.with_pointwise, tuple(network_parts.layers_of(made))
    )
    counted = _counted(measure, made)
    stages = axes.stages(network_parts.layers_of(made), axes.stage_starts(made.model.network), counted)
    named, projections, distances = passes.over_training(settings, opened, steps, measure)
    arrays: Statistics = {"steps": np.array(steps)}
    arrays["epochs"] = arrays["steps"] / opened[0].plan.steps_per_epoch
    groups = _groups(counted, stages)
    pooled = {name: np.concatenate([projections[layer] for layer in of], axis=-1) for name, of in groups.items()}
    arrays["edges"] = _edges(pooled[NET], settings)
    for name, values in pooled.items():
        arrays |= {f"{name}/{of}": value for of, value in _statistics(values, arrays["edges"]).items()}
    arrays |= distances
    arrays |= passes.along(settings, opened, steps[-1], measure, groups) if settings.num_points else {}
    shown = ("mean", "std", "mass", "z", "p_value", "l2", "linf")
    facts = {
        "members": named,
        "seeds": [run.experiment.seed for run, name in _of_members(opened, named)],
        "columns": [list(column) for column in made.task.columns],
        "layers": [
            {"name": layer, "stage": stages[layer][0], "block": stages[layer][1], "filters": kernel.shape[-1],
             "weights": hyperplanes.fan_in(kernel)}
            for layer, kernel in counted.items()
        ],
        "stages": [name for name in groups if name not in counted and name != NET],
        "steps": steps,
        "epochs": arrays["epochs"].tolist(),
        "last": {name: {of: arrays[f"{name}/{of}"][:, -1].tolist() for of in shown if f"{name}/{of}" in arrays}
                 for name in groups},
        "training": {of: arrays[f"{NET}/{of}"].tolist() for of in ("mean", "mass")},
        "title": members.title("orientation", opened),
        "network": opened[0].experiment.network_text,
        "dataset": made.dataset,
    }  # fmt: skip
    return arrays, records.plain(facts)


def exports(arrays: Statistics, facts: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, JSON) of each network at each checkpoint, in the schema of Gamba et al.: stages and blocks by number."""
    for m, member in enumerate(facts["members"]):
        for s, step in enumerate(facts["steps"]):
            found: dict[str, Any] = {}
            of = lambda name: {key: arrays[f"{name}/{key}"][m, s] for key in ("projections", "mass", "mean")}
            for layer in facts["layers"]:
                row = of(layer["name"])
                for ours, theirs in (("l2", "l2_dist"), ("linf", "l_inf_dist")):
                    if f"{layer['name']}/{ours}" in arrays:
                        row[theirs] = arrays[f"{layer['name']}/{ours}"][m, s]
                found.setdefault(str(layer["stage"]), {})[str(layer["block"])] = row
            found |= {"net": of(NET), "arch": facts["network"], "dataset": facts["dataset"]}
            found |= {"seed": str(facts["seeds"][m]), "epoch": f"{facts['epochs'][s]:g}"}
            yield f"orientation_{runs.file_name(member)}_{step}", found


def table(facts: dict[str, Any]) -> str:
    """The last checkpoint's layers, means over networks; z of the mass with the standard deviation over networks."""
    weights = {layer["name"]: layer for layer in facts["layers"]}
    lines = [f"{'step ' + str(facts['steps'][-1]):28}{'stage':>6}{'filters':>8}{'mean':>9}{'std':>8}{'1/sqrt d':>9}"
             f"{'mass':>7}{'z':>8}{'p':>9}{'l2':>7}{'linf':>7}"]  # fmt: skip
    for name, of in facts["last"].items():
        layer = weights.get(name)
        place = f"{layer['stage']}.{layer['block']}" if layer else ""
        filters = layer["filters"] if layer else ""
        null = f"{layer['weights'] ** -0.5:9.3f}" if layer else f"{'':9}"
        cell = lambda key, form: f"{np.nanmean(np.array(of[key], float)):{form}}" if key in of else f"{'':7}"
        lines.append(
            f"{name:28}{place:>6}{filters:>8}{cell('mean', '9.4f')}{cell('std', '8.4f')}{null}{cell('mass', '7.3f')}"
            f"{cell('z', '8.2f')}{cell('p_value', '9.1e')}{cell('l2', '7.3f')}{cell('linf', '7.3f')}".rstrip()
        )
    mass, mean = (np.array(facts["training"][of], float) for of in ("mass", "mean"))
    said = partial(style.mean_and_spread, decimals=4)
    for s, epoch in enumerate(facts["epochs"]):
        lines.append(f"epoch {epoch:7.2f}: net mass {said(mass[:, s])}, net mean {said(mean[:, s])}")
    return "\n".join(lines)


def figures(arrays: Statistics, facts: dict[str, Any]) -> dict[str, Figure]:
    """Layers at the last checkpoint; stages over training, where there are several checkpoints, and along paths."""
    layers, cosines = facts["layers"], facts["config"]["normalize"]
    label = "cosine with 1" if cosines else "projection on 1"
    last = {layer["name"]: arrays[f"{layer['name']}/projections"][:, -1].ravel() for layer in layers}
    bands = {layer["name"]: tuple(hyperplanes.null_quantile([0.025, 0.975], layer["weights"]))
             for layer in layers if cosines and layer["weights"] > 1}  # fmt: skip
    masses = {name: arrays[f"{name}/mass"][:, -1] for name in last}
    drawn = {"orientation_layers": plots.distribution(last, bands, masses, label, facts["title"])}
    names = [*facts["stages"], NET]
    num = sum(layer["filters"] for layer in layers)
    of = lambda prefix, key: {name.replace("_", " "): arrays[f"{prefix}{name}/{key}"] for name in names}
    shared = {"num_filters": num, "mean_label": f"mean {label}", "title": facts["title"]}
    if len(facts["steps"]) > 1:
        drawn["orientation_training"] = plots.by_epoch(arrays["epochs"], of("", "mass"), of("", "mean"), **shared)
    if "t" in arrays:
        score, text, unit, scale = facts["columns"][0]
        scores = (f"test {text} ({unit})" if unit else f"test {text}", scale * arrays[f"along/{score}"])
        drawn["orientation_along"] = plots.by_epoch(
            arrays["t"], of("along/", "mass"), of("along/", "mean"), xlabel="$t$", scores=scores, **shared
        )
    return drawn


def panel(axis: Axes, arrays: Statistics, facts: dict[str, Any]) -> None:
    """Masses of stages over the training, for an overview."""
    masses = {name.replace("_", " "): arrays[f"{name}/mass"] for name in (*facts["stages"], NET)}
    plots.draw_masses(axis, arrays["epochs"], masses, sum(layer["filters"] for layer in facts["layers"]))


def _steps(text: str, run: Run) -> list[int]:
    """The checkpoints of a run that are looked at."""
    named = [int(step) for step in choices.split(text)]
    if missing := [str(step) for step in named if step not in run.steps]:
        raise CheckpointError(
            f"config.steps: {run.folder} has no checkpoint of step {', '.join(missing)}: there are {run.steps}"
        )
    if not run.steps:
        raise CheckpointError(f"{run.folder} has no finished checkpoint")
    return named or sorted({*(step for step in run.steps if step in run.plan.kept_steps), run.steps[-1]})


def _same(steps: Sequence[list[int]], opened: Sequence[Run]) -> list[int]:
    for run, of_run in zip(opened, steps):
        if of_run != steps[0]:
            raise ConfigError(
                f"{run.folder} kept checkpoints {of_run} but {opened[0].folder} {steps[0]}: name the steps that all "
                "have, as in config.steps=0,100"
            )
    return steps[0]


def _counted(measure: Oriented, made: Experiment) -> dict[str, Any]:
    """{layer: shape of its kernel} of one network."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), made.stack_shapes)
    try:
        return hyperplanes.counted(shapes, measure.with_dense, measure.with_pointwise, measure.layers)
    except ValueError as error:
        raise ConfigError(f"config.with_dense and config.with_pointwise: {error}") from None


def _groups(counted: Mapping[str, Any], stages: Mapping[str, tuple[int, int]]) -> dict[str, list[str]]:
    """{name: layers} of each layer, of each stage and of all."""
    found = {layer: [layer] for layer in counted}
    for layer in counted:
        found.setdefault(f"stage_{stages[layer][0]}", []).append(layer)
    return found | {NET: list(counted)}


def _statistics(projections: np.ndarray, edges: np.ndarray) -> Statistics:
    """Of projections [M, S, N]."""
    mass = hyperplanes.mass(projections)
    return {
        "projections": projections,
        "mean": projections.mean(axis=-1, dtype=np.float64),
        "std": projections.std(axis=-1, dtype=np.float64),
        "mass": mass,
        "histogram": hyperplanes.histogram(projections, edges),
        **hyperplanes.bias_score(mass, projections.shape[-1]),
    }


def _edges(projections: np.ndarray, settings: Any) -> np.ndarray:
    finite = np.abs(projections[np.isfinite(projections)])
    far = 1.0 if settings.normalize else float(max(finite.max(initial=0.0), 1e-12))
    return np.linspace(-far, far, settings.num_bins + 1)


def _of_members(opened: Sequence[Run], names: Sequence[str]) -> Iterator[tuple[Run, str]]:
    """Each network with its run, in order."""
    each = len(names) // len(opened)
    return ((opened[i // each], name) for i, name in enumerate(names))
