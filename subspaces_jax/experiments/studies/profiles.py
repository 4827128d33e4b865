"""What studies of paths and planes share: scores of points on both splits, under the names of the field.

Arrays are named as in Garipov et al. 2018 (arXiv:1802.10026): "tr_" and "te_" with loss, nll, acc, err of a
classification, accuracies and errors in percent, the loss with the L2 term weight_decay |w|^2 / 2; of other tasks the
names of their scores. Training images are scored as they are, without augmentation.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from subspaces_jax import evaluation, geometry
from subspaces_jax.analysis import paths
from subspaces_jax.analysis import points as of_points
from subspaces_jax.data.sources import Arrays
from subspaces_jax.errors import ConfigError
from subspaces_jax.evaluation import Measure
from subspaces_jax.experiments.build import Experiment
from subspaces_jax.experiments.build.images import flat
from subspaces_jax.experiments.evaluate import passes
from subspaces_jax.experiments.runs import Networks, Run
from subspaces_jax.experiments.schema import Field, at_least
from subspaces_jax.experiments.studies import members

FIELDS: dict[str, Field] = members.FIELDS | {
    "num_points": Field(61, at_least(2), "of a path, at least 2"),
    "splits": Field(
        "both", lambda value: value in ("both", "test"), "both, or test to leave the training split's scores out"
    ),
    "num_examples": Field(0, at_least(0), "of each split, the first ones, that are scored; 0 for all"),
}
PREFIXES = {"te": "test", "tr": "training"}
Scores = dict[str, np.ndarray]


def scored(
    settings: Any,
    opened: Sequence[Run],
    networks: Networks,
    points: Any,
    params_at: Callable = geometry.contract,
    label: str = "points",
    measures: Sequence[Measure] = (),
    also: Callable[[int, Any], None] = lambda t, variables: None,
    of_params: Mapping[str, Callable] = {},
    **options: Any,
) -> Scores:
    """Scores of points of a stack on the test and the training split, BatchNorm refreshed once at each.

    Args:
        settings, opened, networks, points, params_at: as `members.scored` takes them.
        label: of the progress line.
        measures: of outputs on the test split, beside the task's scores.
        also: called with (t, variables) of each point.
        of_params: measures of parameters, as `evaluation.along` takes them.
        options: of `evaluation.along`.

    Returns:
        {"te_<name>", "tr_<name>": [T]}, "l2" [T], the L2 term, and what the measures read, [T, ...].
    """
    made, of_train = opened[0].experiment, {}
    task, mesh, size = made.task, made.mesh, settings.eval_batch_size
    splits = made.data.scored_split("train"), members.test_split(settings, made)
    train, test = (_first(split, settings.num_examples) for split in splits)
    images, labels = (evaluation.on_device(part, mesh) for part in (flat(train.images), train.labels))
    of_task, shared = Measure(task.scores, task.read), passes(made)
    shared |= {"images": flat(test.images), "labels": test.labels}

    def visit(t: int, variables: Any) -> None:
        also(t, variables)
        if settings.splits == "test":
            return
        (found,), _ = evaluation.measure(
            made.model.apply, variables, images, labels, (of_task,), targets=made.model.targets, batch_size=size,
            mesh=mesh, where=f"point {t}", finite=options.get("finite", True),
        )  # fmt: skip
        of_train[t] = found

    shared |= {"batch_size": size, "keep_outputs": False, "with_pairs": False, "measures": measures} | options
    num = jax.tree.leaves(points)[0].shape[0]
    along = evaluation.along(
        networks.stack,
        points,
        params_at,
        batch_stats=networks.batch_stats,
        of_params={"l2": _squared_norm} | dict(of_params),
        visit=visit,
        progress=members.progress(num, label).over,
        **shared,
    )
    l2 = 0.5 * made.weight_decay * along.pop("l2")
    names = _names(made)
    arrays = _named("te", {name: along.pop(name) for name in names}, l2, made)
    if of_train:
        rows = {name: np.array([float(of_train[t][name]) for t in range(num)]) for name in names}
        arrays |= _named("tr", rows, l2, made)
    return arrays | {"l2": l2} | along


def scored_at_once(settings: Any, opened: Sequence[Run], networks: Networks, points: Any) -> Scores:
    """The same scores of points [T, K] by one program for all of them, of networks that offer it.

    What is not finite gives scores that are not.

    Args:
        settings, opened, networks: as `members.scored` takes them, where `offers_all_at_once`.
        points: [T, K] coordinates.

    Returns:
        {"te_<name>", "tr_<name>", "l2": [T]}.
    """
    made = opened[0].experiment
    at_points = made.model.at_points
    assert at_points is not None, "see `offers_all_at_once`"
    splits = {"te": members.test_split(settings, made)} | (
        {} if settings.splits == "test" else {"tr": made.data.scored_split("train")}
    )
    grams = [rows @ rows.T for rows in map(_rows, jax.tree.leaves(networks.stack))]
    coordinates = np.asarray(points, np.float64)
    l2 = 0.5 * made.weight_decay * np.einsum("tk,kj,tj->t", coordinates, sum(grams), coordinates)
    arrays: Scores = {}
    for prefix, split in splits.items():
        split = _first(split, settings.num_examples)
        (found,) = of_points.measure(
            at_points, networks.stack, points, flat(split.images), split.labels,
            (Measure(made.task.scores, made.task.read),), targets=made.model.targets,
            batch_size=settings.eval_batch_size,
        )  # fmt: skip
        arrays |= _named(prefix, {name: found[name] for name in _names(made)}, l2, made)
    return arrays | {"l2": l2}


def offers_all_at_once(settings: Any, made: Experiment) -> bool:
    """Whether a network offers `scored_at_once`, and its data are in memory."""
    splits = (made.data.scored_split("train"), members.test_split(settings, made))
    return made.model.at_points is not None and not any(callable(split.images) for split in splits)


def statistics(lengths: np.ndarray, arrays: Scores) -> Scores:
    """{"<name>_min", "_max", "_avg", "_int"} of every "tr_" and "te_" of `arrays`, see `analysis.paths`."""
    found = {}
    for name, values in arrays.items():
        if name[:3] in ("tr_", "te_") and values.ndim == 1:
            found |= {f"{name}_{of}": np.float64(value)
                      for of, value in paths.path_statistics(lengths, values).items()}  # fmt: skip
    return found


def summary(arrays: Scores, columns: Sequence[Sequence[Any]]) -> dict[str, dict[str, float]]:
    """{"tr_loss": {"start", "end", "min", "max", "avg", "int", "barrier"}}: what is said of a path's scores."""
    found = {}
    for (name, *_), prefix in itertools.product(columns, reversed(PREFIXES)):
        values = arrays.get(f"{prefix}_{name}")
        if values is not None:
            of_path = paths.path_statistics(arrays["dl"], values) | {"barrier": float(paths.barrier(values))}
            found[f"{prefix}_{name}"] = {"start": float(values[0]), "end": float(values[-1])} | of_path
    return found


def summary_table(of_paths: dict[str, dict[str, dict[str, float]]], columns: Sequence[Sequence[Any]]) -> str:
    """Summaries of several paths as text, in the units of the columns."""
    named = {name: (title, unit, scale) for name, title, unit, scale in columns}
    heads = list(next(iter(next(iter(of_paths.values())).values())))
    lines = [f"{'':36}" + "".join(f"{head:>10}" for head in heads)]
    for path, scores in of_paths.items():
        for key, numbers in scores.items():
            title, unit, scale = named[key[3:]]
            head = f"{path}: {PREFIXES[key[:2]]} {title} {unit}".strip()
            lines.append(f"{head:36}" + "".join(f"{scale * number:10.4f}" for number in numbers.values()))
    return "\n".join(lines)


def barriers(arrays: Scores, made: Experiment) -> dict[str, float]:
    """The barrier of the first and the last score that are shown, on each split, in the units of the arrays."""
    first_and_last = {name for name, *_ in (columns(made)[0], columns(made)[-1])}
    found = shown(arrays, made).items()
    return {name: float(paths.barrier(values)) for name, values in found if name[3:] in first_and_last}


def shown(arrays: Scores, made: Experiment) -> Scores:
    """Of the scores of points those that tables and figures show, on each split, with prefixes."""
    names = [f"{prefix}_{name}" for name, *_ in columns(made) for prefix in PREFIXES]
    return {name: arrays[name] for name in names if name in arrays}


def by_split(arrays: Scores, columns: Sequence[Sequence[Any]]) -> dict[str, dict[str, np.ndarray]]:
    """{"training": {name: values}, "test": ...}: the scores that figures show, without prefixes."""
    named = {split: {name: arrays[f"{prefix}_{name}"] for name, *_ in columns if f"{prefix}_{name}" in arrays}
             for prefix, split in reversed(PREFIXES.items())}  # fmt: skip
    return {split: of for split, of in named.items() if of}


def columns(made: Experiment) -> list[list[Any]]:
    """The scores that tables and figures show, as (name, title, unit, factor) without the split's prefix."""
    if made.task.name == "classification":
        return [["loss", "loss", "nats", 1.0], ["nll", "nll", "nats", 1.0], ["err", "error", "%", 1.0]]
    return [list(column) for column in made.task.columns]


def _first(split: Arrays, num: int) -> Arrays:
    """The first examples of a split, 0 for all."""
    if not num:
        return split
    if callable(split.images):
        raise ConfigError("config.num_examples takes data in memory, and these stream: set it to 0")
    return Arrays(split.images[:num], split.labels[:num])


def _rows(leaf: Any) -> np.ndarray:
    """A leaf [K, ...] as [K, D] in float64."""
    return np.asarray(leaf, np.float64).reshape(len(leaf), -1)


def _squared_norm(params: Any) -> Any:
    return optax.tree.norm(params, squared=True)


def _names(made: Experiment) -> list[str]:
    """What the task reads."""
    info, task = made.data.info, made.task

    def of_zeros():
        labels = jnp.zeros(1, jnp.int32) if info.label == "class" else jnp.zeros((1, *info.label_shape))
        outputs = jnp.zeros((1, *task.output_shape(info.image_shape, info.num_classes, info.label_shape)))
        wanted = made.model.targets(jnp.zeros((1, *info.image_shape)), labels)
        return task.read(task.scores(outputs, wanted, jnp.ones(1)))

    return list(jax.eval_shape(of_zeros))


def _named(prefix: str, scores: Scores, l2: np.ndarray, made: Experiment) -> Scores:
    """Scores under the names of the field."""
    if made.task.name != "classification":
        return {f"{prefix}_{name}": np.asarray(values, np.float64) for name, values in scores.items()}
    scores = {name: np.asarray(values, np.float64) for name, values in scores.items()}
    accuracy = 100.0 * scores.pop("accuracy")
    named = {"loss": scores["nll"] + l2, "acc": accuracy, "err": 100.0 - accuracy} | scores
    return {f"{prefix}_{name}": values for name, values in named.items()}
