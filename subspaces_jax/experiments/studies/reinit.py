"""Resets of a trained network's layers to their values at checkpoints, or fresh from the initialiser, not retrained.

results/reinit.npz has, of M networks, K rows (checkpoints, then fresh draws) and G parts that are reset,

    trained_<score> [M]   <score> [M, K, G]   drop [M, K, G], relative: (trained - reset) / trained accuracy, and where
                                              a loss is the score its rise: (reset - trained) / trained

for every score of the task, "accuracy" as a fraction, and of classifications "top_5". Networks are those of runs, or
the points `at` of their lines or curves, whose checkpoints are contracted alike. Each has a file in the schema of the
reference's program (Gamba et al. 2020, arXiv:2003.07797) beside it, in percent.

Reference: Zhang et al., Are All Layers Created Equal?, 2019, arXiv:1902.01996.
"""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from subspaces_jax import evaluation, geometry, metrics, records
from subspaces_jax.analysis import reinitialisation
from subspaces_jax.errors import ConfigError
from subspaces_jax.evaluation import Measure
from subspaces_jax.experiments import choices, runs
from subspaces_jax.experiments.build.images import flat
from subspaces_jax.experiments.evaluate import passes
from subspaces_jax.experiments.runs import Run
from subspaces_jax.experiments.schema import Field, anything, at_least
from subspaces_jax.experiments.studies import members, network_parts, reinit_rows
from subspaces_jax.networks import axes
from subspaces_jax.plots import barriers as plots
from subspaces_jax.plots import style

TOP = 5
TOP_K = f"top_{TOP}"
MANY = 16  # points a pass on accelerators
_shared = ("runs", "steps", "test_dataset", "test_archive", "seed", "eval_batch_size")


def _numbers(value: str) -> bool:
    try:
        return all(0.0 <= float(part) <= 1.0 for part in choices.split(value))
    except ValueError:
        return False


FIELDS: dict[str, Field] = {name: members.FIELDS[name] for name in _shared} | {
    "at": Field("", _numbers, "points t of each run's line or curve, separated by commas; empty for its midpoint"),
    "checkpoints": Field(
        "",
        anything,
        "that layers are reset to: steps, or runs/a@200, separated by commas; empty for all kept ones and the last",
    ),
    "num_fresh": Field(3, at_least(0), "draws of the initialiser, beside the checkpoints"),
    "parts": Field(
        "kernels",
        bool,
        f"what is reset, separated by commas: {', '.join(reinitialisation.KINDS)}, or layers joined by +",
    ),
    "statistics": Field(
        "refreshed",
        lambda value: value in ("refreshed", "trained"),
        "BatchNorm statistics: refreshed for every reset, or those of the trained network",
    ),
    "together": Field(0, at_least(0), f"resets in one pass; 0 for 1 on CPU and {MANY} elsewhere"),
}


def run(settings: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Scores of every reset of every network; one compiled program serves all of them."""
    opened = members.open_all(settings)
    made = opened[0].experiment
    layers = network_parts.layers_of(made)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), made.stack_shapes)
    stages = axes.stages(layers, axes.stage_starts(made.model.network), layers)
    try:
        stage_of = {layer: stage for layer, (stage, _) in stages.items()}
        parts = reinitialisation.parts(settings.parts, shapes, layers, stage_of)
    except ValueError as error:
        raise ConfigError(f"config.parts: {error}") from None
    ats: list[float | None] = [float(part) for part in choices.split(settings.at)] or [None]
    steps = members.steps_of(settings, len(opened))
    found = []
    for number, (run, step) in enumerate(zip(opened, steps)):
        for at in ats:
            rows = reinit_rows.rows_of(settings, run, step, at, number)
            found.append((run, rows, _scores(settings, run, rows, parts)))
    reinit_rows.check_epochs([rows for _, rows, _ in found])
    names = list(found[0][2])
    arrays = {f"trained_{name}": np.stack([of[name][0] for *_, of in found]) for name in names}
    epochs = found[-1][1].epochs
    num_rows = len(epochs)
    arrays |= {name: np.stack([of[name][1:].reshape(num_rows, len(parts)) for *_, of in found]) for name in names}
    score = made.task.columns[0]
    sign = 1.0 if score.name == "accuracy" else -1.0
    arrays["drop"] = sign * reinitialisation.relative_drop(
        arrays[f"trained_{score.name}"][:, None, None], arrays[score.name]
    )
    facts = {
        "members": [rows.network for _, rows, _ in found],
        "seeds": [run.experiment.seed for run, *_ in found],
        "trained_epoch": [reinit_rows.epoch(run, step) for run, step in zip(opened, steps) for _ in ats],
        "rows": _row_names(epochs),
        "epochs": epochs,
        "parts": {name: list(of) for name, of in parts.items()},
        "columns": [list(column) for column in made.task.columns],
        "trained": {name: arrays[f"trained_{name}"].tolist() for name in names},
        "scores": {name: arrays[name].tolist() for name in names},
        "drop": arrays["drop"].tolist(),
        "title": members.title("resets", opened),
        "network": opened[0].experiment.network_text,
        "dataset": made.dataset,
    }
    return arrays, records.plain(facts)


def exports(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, JSON) of each network of a classification, in the schema of the reference's program."""
    if "accuracy" not in arrays:
        return
    for m, member in enumerate(facts["members"]):
        rows = 100.0 * arrays["accuracy"][m]
        found: dict[str, Any] = {"init_from_epoch": dict(zip(facts["rows"], rows)), "layers": list(facts["parts"])}
        found |= {"arch": facts["network"], "dataset": facts["dataset"], "seed": str(facts["seeds"][m])}
        found["top1_test"] = 100.0 * arrays["trained_accuracy"][m]
        found["top5_test"] = 100.0 * arrays[f"trained_{TOP_K}"][m] if f"trained_{TOP_K}" in arrays else None
        found["epoch"] = f"{facts['trained_epoch'][m]:g}"
        yield f"reinit_{runs.file_name(member)}", found


def table(facts: dict[str, Any]) -> str:
    """The first score of every reset, mean and sample standard deviation over networks of one point; rows as drawn."""
    name, title, unit, scale = facts["columns"][0]
    lines = []
    for where, chosen in _by_point(facts["members"]).items():
        trained = scale * np.array(facts["trained"][name], float)[chosen]
        lines.append(f"{where}: trained {title} {style.mean_and_spread(trained)} {unit}".rstrip())
        width = max(20, 2 + max(map(len, facts["parts"])))
        lines.append(f"{'reset to':14}" + "".join(f"{part:>{width}}" for part in facts["parts"]))
        values = scale * np.array(facts["scores"][name], float)[chosen]
        for k, row in enumerate(facts["rows"]):
            cells = "".join(f"{style.mean_and_spread(values[:, k, g]):>{width}}" for g in range(len(facts["parts"])))
            lines.append(f"{_long(row):14}{cells}")
    return "\n".join(lines)


def figures(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> dict[str, Figure]:
    """A heat map of the relative drop for each point, the mean over its networks."""
    drawn = {}
    for where, chosen in _by_point(facts["members"]).items():
        drop = np.mean(arrays["drop"][chosen], axis=0)
        name = "reinit" if where == "all" else f"reinit_{where.replace(' ', '_').replace('=', '')}"
        drawn[name] = plots.matrix(
            drop, [_long(row) for row in facts["rows"]], list(facts["parts"]),
            label=_label(facts),
            axes=("layers that are reset", "to their values at"),
            title=facts["title"] if where == "all" else f"{facts['title']}, {where}",
        )  # fmt: skip
    return drawn


def panel(axis: Axes, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """The heat map of the first point, for an overview."""
    chosen = next(iter(_by_point(facts["members"]).values()))
    plots.draw_matrix(
        axis, np.mean(arrays["drop"][chosen], axis=0), [_long(row) for row in facts["rows"]], list(facts["parts"]),
        textwrap.fill(_label(facts), 18), size=0.0,
    )  # fmt: skip
    axis.tick_params(labelsize=6.5)
    axis.set_aspect("auto")


def _scores(
    settings: Any, run: Run, rows: reinit_rows.Rows, parts: dict[str, tuple[str, ...]]
) -> dict[str, np.ndarray]:
    """{score: [1 + (K - 1) G]} of the trained network and all resets."""
    made, test = run.experiment, members.test_split(settings, run.experiment)
    shared = passes(made) | {"images": flat(test.images), "labels": test.labels, "batch_size": settings.eval_batch_size}
    shared["keep_outputs"] = False
    size = settings.together or (1 if jax.default_backend() == "cpu" else MANY)
    stats = rows.batch_stats
    if settings.statistics == "trained" and made.refreshes:
        network = {"params": geometry.unstack(rows.stack)[0], "batch_stats": stats}
        apply_train, images = shared.pop("apply_train"), shared.pop("train_images")
        stats = evaluation.refresh_batch_stats(
            apply_train, network, images, shared["key"], settings.eval_batch_size, made.mesh
        )
    points = reinitialisation.resets(geometry.unstack(rows.stack)[0], parts, len(rows.epochs) + 1)
    more = [_TOP] if made.task.name == "classification" and made.data.info.num_classes >= TOP else []
    more = [] if any(column.name == TOP_K for column in made.task.columns) else more
    together = None
    if size > 1:
        together = reinitialisation.together(points, size, shared["apply"], shared.get("apply_train"), made.task)
        points = together.points
        width = jax.tree.leaves(points)[0].shape[1]
        stats = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (width, *leaf.shape)), stats)
        shared |= {"apply": together.apply, "task": together.task}
        shared |= {"apply_train": together.apply_train} if together.apply_train else {}
    num = jax.tree.leaves(points)[0].shape[0]
    found = evaluation.along(
        rows.stack, points, together.params_at if together else geometry.contract,
        more, batch_stats=stats, with_pairs=False,
        progress=members.progress(num, rows.network).over, **shared,
    )  # fmt: skip
    return {name: np.asarray(together.of(values) if together else values, np.float64) for name, values in found.items()}


def _top_sums(logits, labels, mask):
    """Of logits [B, C] and of several networks' [B, V, C]."""
    among = metrics.among_top(logits, labels.reshape(-1, *[1] * (logits.ndim - 2)), TOP)
    weights = mask.astype(jnp.float32).reshape(-1, *[1] * (among.ndim - 1))
    return {"hits": jnp.sum(among * weights, axis=0), "count": jnp.sum(mask.astype(jnp.float32))}


def _top_read(sums):
    return {TOP_K: sums["hits"] / sums["count"]}


_TOP = Measure(_top_sums, _top_read)  # the fraction of examples whose class is among those of the TOP largest logits


def _row_names(epochs: Sequence[float | None]) -> list[str]:
    """As the reference has them: epochs, "rand" of a fresh draw; further ones have a number."""
    names, fresh = [], 0
    for epoch in epochs:
        name = f"{epoch:g}" if epoch is not None else "rand" if not fresh else f"rand_{fresh}"
        fresh += epoch is None
        names.append(name if name not in names else f"{name} ({names.count(name)})")
    return names


def _long(row: str) -> str:
    return row.replace("rand", "fresh") if row.startswith("rand") else f"epoch {row}"


def _label(facts: dict[str, Any]) -> str:
    name, title, *_ = facts["columns"][0]
    return f"relative {'drop' if name == 'accuracy' else 'rise'} of the test {title}"


def _by_point(names: Sequence[str]) -> dict[str, list[int]]:
    """{"all", or "t=0.5" of points of lines: the networks there}."""
    found: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        _, has, at = name.rpartition(" t=")
        found.setdefault(f"t={at}" if has else "all", []).append(number)
    return found
