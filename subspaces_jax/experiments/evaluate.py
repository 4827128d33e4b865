"""Evaluation of a trained subspace: its points and two-point ensembles on the test split -> results/points."""

import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subspaces_jax import checkpoints, evaluation, geometry, parallel, records, rngs
from subspaces_jax.analysis import ensembles
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import build

RESULTS = "points"
FREE = (
    "num_points",
    "num_refresh_batches",
    "eval_batch_size",
    "num_workers",
    "num_devices",
    "data_dir",
    "idx_dir",
    "archive",
)


def run(config: build.Config | None, workdir: str | pathlib.Path, step: int | None = None) -> dict[str, Any]:
    """Scores the points of what a run trained, the BatchNorm statistics refreshed at each, and writes results/points.

    A curve gets config.num_points points, equally spaced in t, each also as an ensemble with its mirror image. A
    simplex gets its lattice with config.num_points to a side, and its barycentre. One network gets one point. Members
    trained together get one each, and a run that captured checkpoints one for each and one for their mean (SWA); both
    get the scores of their ensembles by size.

    Args:
        config: None takes the run's own, from which it may differ in the fields of FREE.
        workdir: the run directory.
        step: of the checkpoint, whose results go to results/points_<step>; None for the latest, and results/points.

    Returns:
        The facts written to results/points.json: "step", "num_steps" (of the whole training), "scores" by name and
        point, "midpoint" (a row, or None), with "ensembles" for members and captures, with "cosine_squared" and
        "distance" for subspaces, "seconds".

    Raises:
        RunDirectoryError, CheckpointError, ConfigError, DataError: see `errors`.
    """
    own = build.config_of(workdir)
    config = own if config is None or config == own else build.check(config)
    clock = time.perf_counter()
    space, model = build.subspace(config), build.model(config)
    train, test = build.data(config, "train"), build.data(config, "test")
    checkpoint = _restore(config, workdir, step, model, len(train.labels))
    _check_own(config, own, workdir, step)
    points, midpoint = _points(config, space, jax.tree.leaves(checkpoint.params)[0].shape[0])
    is_curve = space.num_endpoints > 1 and config["subspace"] != "simplex"
    progress = records.Progress(len(points), unit="point", label="evaluate")
    arrays = evaluation.along(
        jax.device_put(checkpoint.params),
        points,
        apply=model.apply,
        images=evaluation.on_device(test.images),
        labels=jax.device_put(test.labels),
        batch_stats=jax.device_put(checkpoint.batch_stats),
        apply_train=model.apply_train,
        train_images=evaluation.on_device(train.images),
        key=rngs.stream(jax.random.key(config["seed"]), "refresh"),
        batch_size=config["eval_batch_size"],
        with_pairs=is_curve,
        features=model.features,
        progress=progress.over,
    )
    facts = {
        "step": checkpoint.step,
        "num_steps": config["num_epochs"] * build.steps_per_epoch(config, len(train.labels)),
        "config": config,
        "midpoint": midpoint,
        "scores": {name: values.tolist() for name, values in arrays.items() if values.ndim == 1},
    }
    if config["num_members"] > 1 or config["capture"]:
        members = arrays["logits"][1 if config["capture"] else 0 :]
        facts["ensembles"] = {name: values.tolist() for name, values in ensembles.by_size(members, test.labels).items()}
    if space.num_endpoints > 1:
        statistics = jax.jit(geometry.endpoint_statistics)(checkpoint.params)
        facts |= {name: float(value) for name, value in statistics.items()}
    facts["seconds"] = time.perf_counter() - clock
    if parallel.is_main():
        arrays |= {"points": np.asarray(points), "labels": np.asarray(test.labels)}
        records.save_results(workdir, RESULTS if step is None else f"{RESULTS}_{step}", arrays, facts)
    return facts


def _restore(config, workdir, step, model, num_examples) -> checkpoints.Checkpoint:
    """The stack to evaluate: endpoints, members, or captured checkpoints; with the statistics' form for one network."""
    checkpoint = build.restored(config, model, workdir, step)
    if steps := build.capture_steps(config, build.steps_per_epoch(config, num_examples)):
        captured = checkpoints.restore_stack([workdir] * len(steps), steps)
        checkpoint = checkpoint._replace(params=captured.params)
    return checkpoint


def _check_own(config, own, workdir, step) -> None:
    for name, value in config.items():
        if name not in FREE and value != own[name]:
            raise ConfigError(
                f"config.{name} is {value!r} but {workdir} was trained with {own[name]!r}: an evaluation may change "
                f"only {', '.join(FREE)}"
            )
    if step is not None and config["capture"]:
        raise ConfigError(f"{workdir} captured checkpoints, which are evaluated together: leave step out")


def _points(config, space, num_rows: int) -> tuple[jax.Array, int | None]:
    """Coordinates [T, K] to evaluate, and the row of the midpoint."""
    if config["capture"]:
        return jnp.concatenate([jnp.full((1, num_rows), 1.0 / num_rows), jnp.eye(num_rows)]), 0
    if config["num_members"] > 1:
        return jnp.eye(num_rows), None
    points = space.grid(config["num_points"])
    row = nearest(points, space.midpoint)
    if np.allclose(points[row], space.midpoint, atol=1e-6):
        return points, row
    return jnp.concatenate([points, space.midpoint[None]]), len(points)


def nearest(points: jax.Array, point: jax.Array) -> int:
    """The row of points [T, K] that is nearest to point [K]."""
    return int(np.argmin(np.sum((np.asarray(points) - np.asarray(point)[None]) ** 2, axis=-1)))


def table(facts: dict[str, Any]) -> str:
    """The scores of every point as text, percent but for nll (nats), the midpoint marked."""
    scores = facts["scores"]
    columns = [("accuracy %", "accuracy", 100), ("nll", "nll", 1), ("ECE %", "ece_20", 100), ("Brier", "brier", 1)]
    if "pair_accuracy" in scores:
        columns += [
            ("pair acc %", "pair_accuracy", 100),
            ("pair nll", "pair_nll", 1),
            ("pair ECE %", "pair_ece_20", 100),
        ]
        columns += [("differ %", "pair_disagreement", 100)]
    lines = ["point  " + "  ".join(f"{title:>10}" for title, _, _ in columns)]
    for t in range(len(scores["accuracy"])):
        mark = "*" if t == facts["midpoint"] else " "
        cells = "  ".join(f"{scale * scores[name][t]:10.3f}" for _, name, scale in columns)
        lines.append(f"{t:4d}{mark}  {cells}")
    lines.append(
        "* midpoint (of captures, their mean); pair: ensemble of point t with its mirror image; ECE with 20 bins"
    )
    for size, accuracy in enumerate(facts.get("ensembles", {}).get("accuracy", []), start=1):
        lines.append(f"ensembles of {size}: accuracy {100 * accuracy:.3f} %")
    return "\n".join(lines)
