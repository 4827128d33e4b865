"""Evaluation of a trained subspace: its points and two-point ensembles on the test split -> results/points."""

import pathlib
import re
import time
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from subspaces_jax import evaluation, geometry, metrics, parallel, records, tasks
from subspaces_jax.analysis import ensembles
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import build, runs
from subspaces_jax.experiments.build import Experiment
from subspaces_jax.experiments.build.images import flat
from subspaces_jax.experiments.calls import SPLITS
from subspaces_jax.experiments.fields import FREE, LABELS
from subspaces_jax.experiments.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESULTS = "points"
COLUMNS = [list(column) for column in tasks.classification().columns]  # of results from before they were stored
_class_accuracy = jax.jit(metrics.class_accuracy)  # one program for all points


def run(config: build.Config | None, workdir: str | pathlib.Path, step: int | None = None) -> dict[str, Any]:
    """Scores the points of what a run trained, the BatchNorm statistics refreshed at each, and writes results/points.

    Of another split than the run's own eval_split to results/points_train, points_validation or points_test.

    A curve gets config.num_points points, equally spaced in t, and its midpoint where that is not among them, each also
    as an ensemble with its mirror image. A simplex gets its lattice with config.num_points to a side, and its
    barycentre. One network gets one point. Members trained together get one each, and a run that captured checkpoints
    one for each and one for their mean (SWA); both get the scores of their ensembles by size.

    Args:
        config: fields that differ from the run's own, which only those of fields.FREE may; None for none.
        workdir: the run directory.
        step: of the checkpoint, whose results go to results/points_<step>; None for the latest, and results/points.

    Returns:
        The facts written to results/points.json: "step", "num_steps" (of the whole training), "variant", "columns"
        (name, title, unit, factor of the scores that tables show), "scores" by name and point, "midpoint" (a row, or
        None), "t" of the points of a curve (or None), with "class_accuracy" of classifications (of the midpoint, or of
        the first point where there is none; results/points.npz has those of all, [T, C]), with "ensembles" for members
        and captures, with "cosine_squared" and "distance" for subspaces, "seconds".

    Raises:
        RunDirectoryError, CheckpointError, ConfigError, DataError, NonFiniteOutputError: see `errors`.
    """
    clock, own = time.perf_counter(), runs.open_run(workdir)
    made = build.experiment(own.config | dict(config)) if config else own.experiment
    _check_own(made, own, step)
    which = "captures" if made.captures and step is None else "endpoints"
    networks = runs.networks(own, which, step, like=made.stack_shapes)
    points, midpoint, t = _points(made, len(networks.names))
    progress = records.Progress(len(points), unit="point", label="evaluate")
    arrays = evaluation.along(
        networks.stack,
        points,
        with_pairs=made.is_curve and made.task.keeps_outputs,
        features=made.model.features,
        progress=progress.over,
        **passes(made),
        batch_stats=networks.batch_stats,
    )
    facts = {
        "step": networks.step,
        "num_steps": own.num_steps,
        "config": made.config,
        "variant": own.variant,
        "columns": [list(column) for column in made.task.columns],
        "midpoint": midpoint,
        "t": t,
        "split": made.data.eval_split,
        "regularisation": _regularisation(made, networks),
        "scores": {name: values.tolist() for name, values in arrays.items() if values.ndim == 1},
    }
    if "logits" in arrays:
        labels = made.data.scored.labels
        arrays["class_accuracy"] = np.stack([_class_accuracy(logits, labels) for logits in arrays["logits"]])
        facts["class_accuracy"] = records.plain(arrays["class_accuracy"][midpoint or 0])
    if (made.num_members > 1 or made.captures) and "logits" in arrays:
        members = arrays["logits"][1 if made.captures else 0 :]
        by_size = ensembles.by_size(members, made.data.scored.labels)
        facts["ensembles"] = {name: values.tolist() for name, values in by_size.items()}
    if made.space.num_endpoints > 1:
        statistics = jax.jit(geometry.endpoint_statistics)(networks.stack)
        facts |= {name: float(value) for name, value in statistics.items()}
    facts["seconds"] = time.perf_counter() - clock
    if parallel.is_main():
        arrays |= {"points": np.asarray(points), "labels": np.asarray(made.data.scored.labels)}
        is_own = made.data.eval_split == own.experiment.data.eval_split
        parts = [RESULTS, *[made.data.eval_split] * (not is_own), *[str(step)] * (step is not None)]
        records.save_results(own.folder, "_".join(parts), arrays, facts)
    return facts


def _regularisation(made: Experiment, networks: runs.Networks) -> dict[str, float]:
    """Of the midpoint, or of members the first: what weight decay adds to the loss, |w|^2 / 2 over all parameters times
    its coefficient, and the norms of weights times the same, see `geometry.weight_norms`."""
    params = (
        jax.jit(geometry.contract)(networks.stack, made.space.midpoint)
        if made.space.num_endpoints > 1
        else (geometry.unstack(networks.stack)[0])
    )
    squares = sum(float(np.sum(np.square(leaf, dtype=np.float64))) for leaf in jax.tree.leaves(params))
    return {"decay": made.weight_decay * squares / 2, "norms": made.weight_decay * geometry.weight_norms(params)}


def passes(made: Experiment) -> dict[str, Any]:
    """What `evaluation.along` takes of an experiment: network, task, data, and how passes over them are made."""
    refreshed = {} if not made.refreshes else {
        "apply_train": made.model.apply_train,
        "train_images": flat(made.data.train.images),
        "key": made.refresh_key,
    }  # fmt: skip
    return refreshed | {
        "apply": made.model.apply,
        "task": made.task,
        "targets": made.model.targets,
        "images": flat(made.data.scored.images),
        "labels": made.data.scored.labels,
        "batch_size": made.eval_batch_size,
        "mesh": made.mesh,
        "keep_outputs": made.task.keeps_outputs,
    }


def is_result(name: str) -> bool:
    """Whether `run` writes results of this name."""
    return re.fullmatch(rf"{RESULTS}(_({'|'.join(SPLITS)}))?(_\d+)?", name) is not None


def _check_own(made: Experiment, own: Run, step: int | None) -> None:
    """Refuses what an evaluation may not change."""
    for name, value in made.config.items():
        if name not in FREE and value != own.config[name]:
            raise ConfigError(
                f"config.{name} is {value!r} but {own.folder} was trained with {own.config[name]!r}: an evaluation may "
                f"change only {', '.join(name for name in FREE if name not in LABELS)}"
            )
    if step is not None and made.captures:
        raise ConfigError(f"{own.folder} captured checkpoints, which are evaluated together: leave step out")


def _points(made: Experiment, num_rows: int) -> tuple[jax.Array, int | None, list[float] | None]:
    """Coordinates [T, K] to evaluate, the row of the midpoint, and of a curve t [T], from 0 to 1."""
    if made.captures:
        return jnp.concatenate([jnp.full((1, num_rows), 1.0 / num_rows), jnp.eye(num_rows)]), 0, None
    if made.num_members > 1:
        return jnp.eye(num_rows), None, None
    points, midpoint = made.space.grid(made.num_points), made.space.midpoint
    t = np.linspace(0.0, 1.0, len(points)).tolist() if made.is_curve else None
    row = nearest(points, midpoint)
    if np.allclose(points[row], midpoint, atol=1e-6):
        return points, row, t
    if t is None:
        return jnp.concatenate([points, midpoint[None]]), len(points), None
    half = len(points) // 2  # its place, where mirror images stay as far from the one end as from the other
    return jnp.insert(points, half, midpoint, axis=0), half, [*t[:half], 0.5, *t[half:]]


def nearest(points: jax.Array, point: jax.Array) -> int:
    """The row of points [T, K] that is nearest to point [K]."""
    return int(np.argmin(np.sum((np.asarray(points) - np.asarray(point)[None]) ** 2, axis=-1)))


def table(facts: dict[str, Any]) -> str:
    """The scores of every point as text, in the units of their columns, the midpoint marked."""
    scores = facts["scores"]
    columns = [(f"{title} {'' if unit == 'nats' else unit}".strip(), name, scale)
               for name, title, unit, scale in facts.get("columns", COLUMNS)]  # fmt: skip
    columns += [
        (f"pair {title}".replace("accuracy", "acc"), f"pair_{name}", scale)
        for title, name, scale in columns
        if f"pair_{name}" in scores and name != "brier"
    ]
    if "pair_disagreement" in scores:
        columns += [("differ %", "pair_disagreement", 100)]
    lines = ["point  " + "  ".join(f"{title:>10}" for title, _, _ in columns)]
    for t in range(len(scores[columns[0][1]])):
        mark = "*" if t == facts["midpoint"] else " "
        cells = "  ".join(f"{scale * scores[name][t]:10.3f}" for _, name, scale in columns)
        lines.append(f"{t:4d}{mark}  {cells}")
    lines.append(
        "* midpoint (of captures, their mean); pair: ensemble of point t with its mirror image; ECE with 20 bins"
    )
    if of_class := facts.get("class_accuracy"):
        lines.append(f"accuracy of classes at point {facts['midpoint'] or 0}: {_of_classes(of_class)}")
    for size, accuracy in enumerate(facts.get("ensembles", {}).get("accuracy", []), start=1):
        lines.append(f"ensembles of {size}: accuracy {100 * accuracy:.3f} %")
    if facts.get("split", "test") != "test":
        lines.append(f"scored on the {facts['split']} split")
    return "\n".join(lines)


def _of_classes(accuracies: list[float | None]) -> str:
    """Those of up to 10 classes in order, of more the least and the greatest; None of a class that is not there."""
    there = {c: 100 * value for c, value in enumerate(accuracies) if value is not None}
    if len(accuracies) <= 10:
        return ", ".join(f"{value:.1f}" for value in there.values()) + " %"
    order = sorted(there, key=there.__getitem__)
    return " to ".join(f"{there[c]:.1f} % (class {c})" for c in (order[0], order[-1]))


def figures(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> dict[str, "Figure"]:
    """The profile of a path, where the points are those of one."""
    from subspaces_jax.plots import paths  # half a second, with Matplotlib, that scores need not wait for

    if not any(name.startswith("pair_") for name in facts["scores"]):
        return {}
    return {"profile": paths.profile(facts | {"columns": facts.get("columns", COLUMNS)}, title(facts["config"]))}


def panel(axis: "Axes", arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """The first score along the path, for an overview."""
    from subspaces_jax.plots import paths

    paths.draw(axis, facts, facts.get("columns", COLUMNS)[0])


def title(config: dict[str, Any]) -> str:
    """What a figure of a run is of."""
    return "{subspace} of {network} on {dataset}, seed {seed}".format(**config)
