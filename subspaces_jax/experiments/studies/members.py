"""What studies of networks share: whose networks they are, and the scores of points of their stack.

Members are rows of one stack, whatever they come from: midpoints or endpoints of runs, captured checkpoints, random
points of a subspace. All are evaluated alike, BatchNorm statistics refreshed on the training images that they share.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subspaces_jax import evaluation, geometry, records, rngs
from subspaces_jax.analysis import ensembles
from subspaces_jax.data import sources
from subspaces_jax.errors import CheckpointError, ConfigError
from subspaces_jax.experiments import choices, fields, runs
from subspaces_jax.experiments.build import Experiment
from subspaces_jax.experiments.build.images import flat
from subspaces_jax.experiments.evaluate import COLUMNS, passes
from subspaces_jax.experiments.runs import Networks, Run
from subspaces_jax.experiments.schema import SEEDS, Field, anything, at_least

WHICH = ("midpoint", "endpoints", "random", "captures", "snapshots")
FIELDS: dict[str, Field] = {
    "runs": Field("", anything, "run directories, separated by commas"),
    "steps": Field("", anything, "of the checkpoints, one a run, separated by commas; empty for the last ones"),
    "members": Field(
        "midpoint",
        lambda value: value in WHICH,
        "what each run gives: midpoint (or network), endpoints, random points of its subspace, captures, or snapshots "
        "(every checkpoint that it kept)",
    ),
    "only": Field(
        "",
        lambda value: all(part.isdigit() for part in choices.split(value)),
        "of all members, those that are taken, whole numbers from 0 separated by commas; empty for all",
    ),
    "num_draws": Field(6, at_least(1), "random members a run, or random averages, at least 1"),
    "test_dataset": Field("", anything, "another data set's test split, empty for the runs' own"),
    "test_archive": Field("", anything, "what that data set is prepared from, or empty"),
    "seed": Field(0, at_least(0, SEEDS), "of random members and averages"),
    "eval_batch_size": Field(500, at_least(1), "at least 1"),
}
OF_TRAINING = ("label_noise", "label_noise_kind", "corruption_seed", "shuffle", "batch_norm", "matmul_precision")
ALIKE = (*(name for name in fields.NETWORK | fields.DATA if name not in OF_TRAINING), "eval_split", "refresh")


def open_any(settings: Any) -> list[Run]:
    """The runs that are named, however they differ.

    Raises:
        ConfigError, RunDirectoryError: none are named, or one is no run.
    """
    folders = choices.split(settings.runs)
    if not folders:
        raise ConfigError("config.runs names no run directory: set config.runs=a,b")
    opened = [runs.open_run(folder) for folder in folders]
    names = runs.told_apart([run.folder for run in opened])
    return [run._replace(name=name) for run, name in zip(opened, names)]


def open_all(settings: Any) -> list[Run]:
    """The runs that are named, which differ in nothing that evaluation shares.

    Raises:
        ConfigError, RunDirectoryError, CheckpointError: none are named, one is no run, or two are unlike.
    """
    opened = open_any(settings)
    check_alike(opened, settings.test_dataset)
    return opened


def gathered(settings: Any, opened: Sequence[Run], key: Any) -> Networks:
    """The members of all runs as one stack."""
    steps = steps_of(settings, len(opened))
    parts = [
        runs.networks(run, settings.members, step, jax.random.fold_in(key, i), settings.num_draws)
        for i, (run, step) in enumerate(zip(opened, steps))
    ]
    several = len(opened) > 1 or settings.members in ("captures", "snapshots")
    if several and not opened[0].experiment.refreshes and jax.tree.leaves(parts[0].batch_stats):
        raise ConfigError(
            f"{opened[0].folder} has refresh=False, and networks of several checkpoints have statistics of their own: "
            "name one checkpoint, or runs that refresh theirs"
        )
    found = runs.stacked(parts, opened)._replace(batch_stats=parts[-1].batch_stats)
    if not (rows := [int(part) for part in choices.split(getattr(settings, "only", ""))]):
        return found
    if max(rows) >= len(found.names):
        raise ConfigError(f"config.only is {settings.only!r}, and there are {len(found.names)} members, from 0")
    stack = jax.tree.map(lambda leaf: leaf[np.array(rows)], found.stack)
    return found._replace(stack=stack, names=[found.names[row] for row in rows])


def scored(
    settings: Any,
    opened: Sequence[Run],
    networks: Networks,
    points: Any,
    params_at: Callable = geometry.contract,
    **options: Any,
) -> tuple[dict[str, np.ndarray], sources.Arrays]:
    """`evaluation.along` over points of the members' stack, and the test split it was scored on."""
    made = opened[0].experiment
    test = test_split(settings, made)
    shared = passes(made) | {"images": flat(test.images), "labels": test.labels, "batch_size": settings.eval_batch_size}
    arrays = evaluation.along(
        networks.stack,
        points,
        params_at,
        batch_stats=networks.batch_stats,
        features=made.model.features,
        **shared,
        **options,
    )
    return arrays, test


def test_split(settings: Any, made: Experiment) -> sources.Arrays:
    """What points are scored on: the runs' own test split, or the one that the study names."""
    return (
        made.data.test_of(settings.test_dataset, settings.test_archive) if settings.test_dataset else made.data.scored
    )


def facts_of(
    opened: Sequence[Run], names: Sequence[str], arrays: dict[str, np.ndarray], labels: Any, together: bool
) -> dict[str, Any]:
    """Scores of points, and where points are networks to be taken `together`, of their ensembles and distances."""
    facts = {
        "members": list(names),
        "columns": [list(column) for column in opened[0].experiment.task.columns],
        "scores": {name: values.tolist() for name, values in arrays.items() if values.ndim == 1},
    }
    if together and "logits" in arrays and len(arrays["logits"]) > 1:
        by_size = ensembles.by_size(arrays["logits"], labels)
        facts["ensembles"] = {name: values.tolist() for name, values in by_size.items()}
        prefixes = [range(size) for size in range(1, len(arrays["logits"]) + 1)]
        running = ensembles.subset_scores(arrays["logits"], labels, prefixes)
        facts["running"] = {name: values.tolist() for name, values in running.items()}
        pairs = ensembles.pair_matrices(arrays["logits"])
        facts |= {name: np.asarray(values).tolist() for name, values in pairs.items()}
    return facts


def running(settings: Any, made: Experiment, networks: Sequence[Any], test: sources.Arrays) -> dict[str, list[float]]:
    """Scores of the ensembles of the first 1, 2, ... M networks, of any task, all from one pass over the test split.

    Args:
        settings: "eval_batch_size".
        made: the experiment that the networks are of.
        networks: variables of each.
        test: the split.

    Returns:
        {name of a score of the task: [M]}.
    """
    stack, task = jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks), made.task
    sizes = [f"{size}" for size in range(1, len(networks) + 1)]
    ensemble = lambda outputs, size: task.mean(jnp.moveaxis(outputs[:, : int(size)], 1, 0).astype(jnp.float32))
    measures = evaluation.Measure(
        lambda outputs, targets, mask: {size: task.scores(ensemble(outputs, size), targets, mask) for size in sizes},
        lambda sums: {size: task.read(sums[size]) for size in sizes},
    )
    (found,), _ = evaluation.measure(
        _Together(made.model.apply),  # type: ignore[arg-type]  # a NamedTuple can be called, too
        stack, flat(test.images), test.labels, (measures,), targets=made.model.targets,
        batch_size=settings.eval_batch_size, mesh=made.mesh, where="the ensemble",
    )  # fmt: skip
    return {name: [float(found[size][name]) for size in sizes] for name in found["1"]}


class _Together(NamedTuple):
    """(variables [M, ...], images [B, ...]) -> outputs [B, M, ...]."""

    apply: Callable

    def __call__(self, variables: Any, images: Any) -> Any:
        return jnp.moveaxis(jax.lax.map(lambda one: self.apply(one, images), variables), 0, 1)


def title(what: str, opened: Sequence[Run]) -> str:
    """Of a figure: "barriers of a, b: mlp_8 on digits", and of which split, where it is not the test split that "test"
    stands for."""
    names, split = ", ".join(run.name for run in opened), opened[0].experiment.data.eval_split
    text = "{what} of {names}: {network} on {dataset}".format(what=what, names=names, **opened[0].config)
    return text if split == "test" else f"{text}, test: the {split} split"


def key_of(settings: Any, name: str) -> Any:
    """The random stream `name` of a study."""
    return rngs.stream(jax.random.key(settings.seed), name)


def table(facts: dict[str, Any]) -> str:
    """Scores of every point as text, in the units of their columns, and of ensembles by size."""
    scores, columns = facts["scores"], facts.get("columns", COLUMNS)[:3]
    lines = ["point  " + "  ".join(f"{f'{title} {unit}'.replace(' nats', ''):>10}" for _, title, unit, _ in columns)]
    for t in range(len(scores[columns[0][0]])):
        cells = "  ".join(f"{scale * scores[name][t]:10.3f}" for name, _, _, scale in columns)
        lines.append(f"{t:4d}   {cells}")
    sizes = facts.get("ensembles", {"accuracy": [], "nll": [], "ece_20": []})
    for size, (accuracy, nll, ece) in enumerate(zip(sizes["accuracy"], sizes["nll"], sizes["ece_20"]), start=1):
        lines.append(f"ensembles of {size}: {100 * accuracy:.3f} %, nll {nll:.3f}, ECE {100 * ece:.3f} %")
    name, title, unit, scale = columns[0]
    for size, value in enumerate(facts.get("running", {}).get(name, []), start=1):
        lines.append(f"ensemble of the first {size}: {title} {scale * value:.4f} {unit}".rstrip())
    return "\n".join(lines)


def progress(num: int, label: str) -> records.Progress:
    """A progress line over points."""
    return records.Progress(num, unit="point", label=label)


def check_alike(opened: Sequence[Run], test_dataset: str = "") -> None:
    """That runs differ in nothing that evaluation shares.

    Raises:
        ConfigError, CheckpointError: they do; names the field.
    """
    first = opened[0]
    own = first.experiment.data.info
    other = first.experiment.data.info_of(test_dataset) if test_dataset else own
    if (own.image_shape, own.num_classes) != (other.image_shape, other.num_classes):
        raise ConfigError(
            f"config.test_dataset {test_dataset!r} has {other.num_classes} classes and images of shape "
            f"{other.image_shape}, the runs' {first.experiment.dataset} {own.num_classes} and {own.image_shape}"
        )
    for field in [*ALIKE, *["corruption_seed"] * first.experiment.data.settings.pixel_shuffle]:
        for run in opened[1:]:
            if run.config.get(field) != first.config.get(field) and not (field == "network" and _is_same(run, first)):
                raise CheckpointError(
                    f"{run.folder} has {field} {run.config.get(field)!r} but {first.folder} has "
                    f"{first.config.get(field)!r}: networks are analysed together where these are the same"
                )


def _is_same(run: Run, other: Run) -> bool:
    """Whether two runs are of one network, however it is called: mlp_4_4 and mlp((4, 4))."""
    return run.experiment.model.network == other.experiment.model.network


def steps_of(settings: Any, num_runs: int) -> list[int | None]:
    """The checkpoint of each run, None for the last."""
    steps = choices.split(settings.steps)
    if not steps:
        return [None] * num_runs
    if len(steps) != num_runs or not all(step.isdigit() for step in steps):
        raise ConfigError(f"config.steps is {settings.steps!r}: it takes {num_runs} whole numbers, one a run")
    if getattr(settings, "members", "") in ("captures", "snapshots"):
        raise ConfigError(f"config.steps chooses single checkpoints: leave it empty for members={settings.members!r}")
    return [int(step) for step in steps]
