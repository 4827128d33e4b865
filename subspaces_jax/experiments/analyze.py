"""Analyses of trained runs together: ensembles, averages of weights, and the line between any two networks.

Members are rows of one stack, whatever they come from: midpoints or endpoints of runs, captured checkpoints, random
points of a subspace. All are evaluated alike, BatchNorm statistics refreshed on the training images that they share.
"""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subspaces_jax import checkpoints, evaluation, geometry, records, rngs
from subspaces_jax.analysis import ensembles
from subspaces_jax.data import catalogue
from subspaces_jax.errors import CheckpointError, ConfigError
from subspaces_jax.experiments import build
from subspaces_jax.experiments.fields import ANALYSIS_FIELDS, Config, checked
from subspaces_jax.training import averages

PyTree = Any
SWAG_RANK = 20


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
    """Runs the analysis of the config and writes results/<its name> into `workdir`.

    Args:
        config: a mapping with the fields of `fields.ANALYSIS_FIELDS`.
        workdir: the analysis' own folder.

    Returns:
        The facts of results/<name>.json: "members" (what each is), "scores" {name: [T]} of the points of the analysis;
        where these are members or several averages "ensembles" of them (by size), "disagreement" and
        "total_variation" [T, T]; and for members "feature_cosine" [M, M].

    Raises:
        ConfigError, RunDirectoryError, CheckpointError, DataError: see `errors`.
    """
    config, clock = checked(config, ANALYSIS_FIELDS), time.perf_counter()
    if not config["runs"]:
        raise ConfigError("config.runs names no run directory: set config.runs=a,b")
    runs = [pathlib.Path(name) for name in config["runs"].split(",")]
    configs = [build.config_of(folder) for folder in runs]
    _check_alike(runs, configs, config["test_dataset"])
    key = jax.random.key(config["seed"])
    model, base = build.model(configs[0]), configs[0]
    train, test = build.data(base, "train"), build.data(base | _other_test_set(config), "test")
    stack, names, batch_stats = _members(config, runs, configs, len(train.labels), rngs.stream(key, "members"))
    points, params_at = _points(config, stack, rngs.stream(key, "points"))
    with records.locked(workdir) as folder:
        records.write_config(folder, config)
        progress = records.Progress(jax.tree.leaves(points)[0].shape[0], unit="point", label=config["analysis"])
        held: dict[int, PyTree] = {}
        arrays = evaluation.along(
            stack,
            points,
            apply=model.apply,
            images=evaluation.on_device(test.images),
            labels=jax.device_put(test.labels),
            batch_stats=jax.device_put(batch_stats),
            apply_train=model.apply_train,
            train_images=evaluation.on_device(train.images),
            key=rngs.stream(jax.random.key(base["seed"]), "refresh"),
            batch_size=config["eval_batch_size"],
            params_at=params_at,
            with_pairs=config["analysis"] == "line",
            features=model.features,
            visit=held.__setitem__
            if config["analysis"] == "ensemble" and model.features
            else lambda t, variables: None,
            progress=progress.over,
        )
        facts = _facts(config, names, arrays, test.labels)
        if held:
            members = [held[m] for m in sorted(held)]
            facts["feature_cosine"] = _feature_cosines(model, members, test.images, config["eval_batch_size"])
        facts |= {"seconds": time.perf_counter() - clock}
        records.save_results(folder, config["analysis"], arrays | {"labels": np.asarray(test.labels)}, facts)
    return facts


def _feature_cosines(model, members, images, size) -> list[list[float]]:
    """[M, M], the features of one batch at a time."""
    features = jax.jit(model.features)
    starts = [] if callable(images) else range(0, len(images), size)
    parts = (images[i : i + size] for i in starts)
    if callable(images):
        parts = (batch[mask] for batch, _, mask in images())
    return ensembles.feature_cosines(
        jnp.stack([features(member, part) for member in members]) for part in parts
    ).tolist()


def _facts(config, names, arrays, labels) -> dict[str, Any]:
    scores = {name: values.tolist() for name, values in arrays.items() if values.ndim == 1}
    facts = {"config": config, "members": names, "scores": scores}
    if config["analysis"] != "line" and len(arrays["logits"]) > 1:
        by_size = ensembles.by_size(arrays["logits"], labels)
        facts["ensembles"] = {name: values.tolist() for name, values in by_size.items()}
        facts |= {
            name: np.asarray(values).tolist() for name, values in ensembles.pair_matrices(arrays["logits"]).items()
        }
    return facts


def table(facts: dict[str, Any]) -> str:
    """Scores of every point as text, percent but for nll, and of ensembles by size."""
    scores = facts["scores"]
    lines = ["point  accuracy %         nll       ECE %"]
    for t, (accuracy, nll, ece) in enumerate(zip(scores["accuracy"], scores["nll"], scores["ece_20"])):
        lines.append(f"{t:4d}   {100 * accuracy:10.3f}  {nll:10.3f}  {100 * ece:10.3f}")
    sizes = facts.get("ensembles", {"accuracy": [], "nll": [], "ece_20": []})
    for size, (accuracy, nll, ece) in enumerate(zip(sizes["accuracy"], sizes["nll"], sizes["ece_20"]), start=1):
        lines.append(f"ensembles of {size}: {100 * accuracy:.3f} %, nll {nll:.3f}, ECE {100 * ece:.3f} %")
    return "\n".join(lines)


def _check_alike(runs, configs, test_dataset) -> None:
    own, other = (catalogue.info(name) for name in (configs[0]["dataset"], test_dataset or configs[0]["dataset"]))
    if (own.image_shape, own.num_classes) != (other.image_shape, other.num_classes):
        raise ConfigError(
            f"config.test_dataset {test_dataset!r} has {other.num_classes} classes and images of shape "
            f"{other.image_shape}, the runs' {configs[0]['dataset']} {own.num_classes} and {own.image_shape}"
        )
    alike = ["network", "dataset", "pixel_shuffle", "augmentation", "num_train_examples", "dropout", "dtype"]
    for field in alike + ["corruption_seed"] * configs[0]["pixel_shuffle"]:
        for folder, config in zip(runs[1:], configs[1:]):
            if config[field] != configs[0][field]:
                raise CheckpointError(
                    f"{folder} has {field} {config[field]!r} but {runs[0]} has {configs[0][field]!r}: "
                    "networks are analysed together where these are the same"
                )


def _other_test_set(config) -> dict[str, Any]:
    """Fields of another data set's test split: statistics still come from the training images of the runs' own."""
    if not config["test_dataset"]:
        return {}
    return {"dataset": config["test_dataset"], "archive": config["test_archive"], "idx_dir": ""}


def _members(config, runs, configs, num_examples, key) -> tuple[PyTree, list[str], PyTree]:
    """The stack [M, ...], what each row is, and batch statistics of one network's form."""
    rows: list[PyTree] = []
    names: list[str] = []
    chosen = _steps(config, len(runs))
    for i, (folder, of_run) in enumerate(zip(runs, configs)):
        captured = build.capture_steps(of_run, build.steps_per_epoch(of_run, num_examples))
        if config["members"] == "captures" and not captured:
            raise ConfigError(
                f"config.members is 'captures' but {folder} captured none: it was trained with capture=False"
            )
        if config["members"] == "midpoint" and captured and chosen[i] is None:  # as evaluation has it
            checkpoint = checkpoints.restore_stack([folder] * len(captured), captured)
            rows.append(geometry.contract(checkpoint.params, geometry.Simplex(len(captured)).midpoint))
            names.append(f"{folder.name} mean of steps {', '.join(map(str, captured))}")
            continue
        steps = captured if config["members"] == "captures" else (chosen[i],)
        for step in steps:
            checkpoint = checkpoints.restore(folder, step)
            for name, coordinates in _coordinates(config, of_run, checkpoint, jax.random.fold_in(key, i)):
                rows.append(geometry.contract(checkpoint.params, coordinates))
                names.append(f"{folder.name} step {checkpoint.step} {name}")
    stats = build.of_one_network(of_run, checkpoint).batch_stats
    try:
        return jax.device_put(geometry.stack(rows)), names, stats
    except ValueError as error:
        raise CheckpointError(f"{', '.join(map(str, runs))} cannot be stacked: {error}") from None


def _steps(config, num_runs: int) -> list[int | None]:
    """The checkpoint of each run, None for the last."""
    if not config["steps"]:
        return [None] * num_runs
    steps = config["steps"].split(",")
    if len(steps) != num_runs or not all(step.strip().isdigit() for step in steps):
        raise ConfigError(f"config.steps is {config['steps']!r}: it takes {num_runs} whole numbers, one a run")
    if config["members"] == "captures":
        raise ConfigError("config.steps chooses single checkpoints: leave it empty for members='captures'")
    return [int(step) for step in steps]


def _coordinates(config, of_run, checkpoint, key) -> list[tuple[str, PyTree]]:
    """(name, coordinates) of the members that one checkpoint gives."""
    space, num_rows = build.subspace(of_run), jax.tree.leaves(checkpoint.params)[0].shape[0]
    if config["members"] == "random" and space.num_endpoints < 2:
        raise ConfigError("config.members is 'random' but a run has no subspace to draw from: choose midpoint")
    if config["members"] == "endpoints" or of_run["num_members"] > 1:
        return [(f"endpoint {k}", row) for k, row in enumerate(jnp.eye(num_rows))]
    if config["members"] == "random":
        space = geometry.layerwise(space, checkpoint.params) if of_run["layerwise"] else space
        return [(f"random {i}", space.sample(jax.random.fold_in(key, i))) for i in range(config["num_draws"])]
    return [("midpoint", space.midpoint)]


def _points(config, stack, key) -> tuple[PyTree, Callable[[PyTree, PyTree], PyTree]]:
    """The points to score, leaves [T, ...], and (stack, point) -> params."""
    num, draws = jax.tree.leaves(stack)[0].shape[0], config["num_draws"]
    if config["analysis"] == "ensemble":
        return jnp.eye(num), geometry.contract
    if num < 2 or (config["analysis"] == "line" and num > 2):
        wanted = "exactly two" if config["analysis"] == "line" else "at least two"
        raise ConfigError(
            f"config.runs and config.members give {num} networks, an analysis {config['analysis']!r} takes {wanted}"
        )
    if config["analysis"] == "line":
        return geometry.Line().grid(config["num_points"]), geometry.contract
    simplex, keys = geometry.Simplex(num), jax.random.split(key, draws)
    swag = averages.swag(min(num, SWAG_RANK))
    kinds: dict[str, Callable[[], tuple[PyTree, Callable]]] = {
        "mean": lambda: (simplex.midpoint[None], geometry.contract),
        "random": lambda: (simplex.sample(key, (draws,)), geometry.contract),
        "random_layerwise": lambda: (geometry.layerwise(simplex, stack).sample(key, (draws,)), geometry.contract),
        "random_per_weight": lambda: (keys, averages.per_weight),
        "towards_each": lambda: (averages.endpoint_coordinates(num, config["t"]), geometry.contract),
        "swag": lambda: (keys, lambda stack, key: averages.swag_sample(averages.of_stack(swag, stack), key)),
        "swag_diagonal": lambda: (
            keys,
            lambda stack, key: averages.swag_sample(averages.of_stack(averages.SWA, stack), key),
        ),
    }
    return kinds[config["average"]]()
