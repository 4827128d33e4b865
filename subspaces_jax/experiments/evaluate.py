"""Evaluation of a trained subspace: its points and two-point ensembles on the test split -> results/points."""

import pathlib
import time
from typing import Any

import jax
import numpy as np

from subspaces_jax import checkpoints, evaluation, geometry, parallel, records, rngs
from subspaces_jax.experiments import build

RESULTS = "points"


def run(config: build.Config | None, workdir: str | pathlib.Path, step: int | None = None) -> dict[str, Any]:
    """Scores the points of a run's subspace, the BatchNorm statistics refreshed at each, and writes results/points.

    A curve gets config.num_points points, equally spaced in t, each also as an ensemble with its mirror image. A simplex
    gets its lattice with config.num_points to a side; one network gets one point.

    Args:
        config: None takes the run's own.
        workdir: the run directory.
        step: of the checkpoint; None for the latest.

    Returns:
        The facts written to results/points.json: "step", "table" (see `table`), "cosine_squared", "distance", "seconds".

    Raises:
        RunDirectoryError, CheckpointError, ConfigError, DataError: see `errors`.
    """
    config = build.check(records.read_config(workdir) if config is None else config)
    clock = time.perf_counter()
    space, model = build.subspace(config), build.model(config)
    expected = jax.eval_shape(lambda: model.init(jax.random.key(0), space.num_endpoints))
    checkpoint = checkpoints.restore(workdir, step, like=expected["params"])
    train, test = build.data(config, "train"), build.data(config, "test")
    points = space.grid(config["num_points"])
    progress = records.Progress(len(points), unit="point", label="evaluate")
    arrays = evaluation.along(
        jax.device_put(checkpoint.params),
        points,
        apply=model.apply,
        images=jax.device_put(test.images),
        labels=jax.device_put(test.labels),
        batch_stats=jax.device_put(checkpoint.batch_stats),
        apply_train=model.apply_train,
        train_images=jax.device_put(train.images),
        key=rngs.stream(jax.random.key(config["seed"]), "refresh"),
        batch_size=config["eval_batch_size"],
        with_pairs=space.num_endpoints > 1 and config["subspace"] != "simplex",
        progress=progress.over,
    )
    facts = {
        "step": checkpoint.step,
        "dataset": config["dataset"],
        "network": config["network"],
        "subspace": config["subspace"],
        "num_endpoints": space.num_endpoints,
        "seed": config["seed"],
        "midpoint": nearest(points, space.midpoint),
        "scores": {name: values.tolist() for name, values in arrays.items() if values.ndim == 1},
        "seconds": time.perf_counter() - clock,
    }
    if space.num_endpoints > 1:
        statistics = jax.jit(geometry.endpoint_statistics)(checkpoint.params)
        facts |= {name: float(value) for name, value in statistics.items()}
    if parallel.is_main():
        arrays |= {"points": np.asarray(points), "labels": np.asarray(test.labels)}
        records.save_results(workdir, RESULTS, arrays, facts)
    return facts


def nearest(points: jax.Array, point: jax.Array) -> int:
    """The row of points [T, K] that is nearest to point [K]."""
    return int(np.argmin(np.sum((np.asarray(points) - np.asarray(point)[None]) ** 2, axis=-1)))


def table(facts: dict[str, Any]) -> str:
    """The scores of every point as text, percent but for nll (nats), the midpoint marked."""
    scores = facts["scores"]
    columns = [("accuracy %", "accuracy", 100), ("nll", "nll", 1), ("ECE %", "ece_20", 100), ("Brier", "brier", 1)]
    if "pair_accuracy" in scores:
        columns += [("pair acc %", "pair_accuracy", 100), ("pair nll", "pair_nll", 1), ("pair ECE %", "pair_ece_20", 100)]
        columns += [("differ %", "pair_disagreement", 100)]
    lines = ["point  " + "  ".join(f"{title:>10}" for title, _, _ in columns)]
    for t in range(len(scores["accuracy"])):
        mark = "*" if t == facts["midpoint"] else " "
        cells = "  ".join(f"{scale * scores[name][t]:10.3f}" for _, name, scale in columns)
        lines.append(f"{t:4d}{mark}  {cells}")
    lines.append("* midpoint; pair: ensemble of point t with its mirror image; ECE with 20 bins")
    return "\n".join(lines)
