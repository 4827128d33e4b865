"""The one reader of run directories: what kind of run a folder holds, and the networks in it.

Evaluation, every study and `initial` take networks from here, so that "midpoint" means one thing everywhere.
"""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from subspaces_jax import checkpoints, geometry, records
from subspaces_jax.errors import CheckpointError, ConfigError, RunDirectoryError
from subspaces_jax.experiments import build, schema
from subspaces_jax.experiments.build import Experiment, Plan

PyTree = Any
WHICH = ("midpoint", "endpoints", "random", "captures", "snapshots", "knots")
KINDS = {"sweep": "a sweep", "study": "an analysis"}


class Run(NamedTuple):
    """A run directory with checkpoints.

    Attributes:
        folder: absolute.
        kind: "train" or "connect".
        experiment: of its config, every field of it there.
        variant: what figures and tables call it.
        run_id: that its checkpoints carry, "" of runs from before there were any.
        plan: its steps.
        steps: of its finished checkpoints, in order.
        name: of the folder, or as much of its path as tells it from others'.
    """

    folder: pathlib.Path
    kind: str
    experiment: Experiment
    variant: str
    run_id: str
    plan: Plan
    steps: list[int]
    name: str

    @property
    def config(self) -> dict[str, Any]:
        """Every field."""
        return self.experiment.config

    @property
    def num_steps(self) -> int:
        """Of the whole training: as planned, or where a plateau has ended it."""
        if not self.experiment.stops_early:
            return self.plan.num_steps
        ended_at = self.experiment.plateau(rows_of(self.folder)).ended_at
        return self.plan.num_steps if ended_at is None else ended_at


class Networks(NamedTuple):
    """Attributes:
    stack: leaves [M, ...].
    names: what each row is.
    batch_stats: statistics of one network's form, of no particular row: refresh them at each.
    step: of the checkpoint, the last of several.
    """

    stack: PyTree
    names: list[str]
    batch_stats: PyTree
    step: int


def rows_of(folder: pathlib.Path) -> list[dict[str, float]]:
    """The rows of metrics of a run, none where there are none yet."""
    return records.read_metrics(folder) if (folder / records.METRICS).exists() else []


def complete(config: schema.Config) -> dict[str, Any]:
    """A stored config as of today: renamed fields read, those that were added since at their defaults, checked."""
    return build.check(schema.upgrade(config))


def open_run(workdir: str | pathlib.Path) -> Run:
    """The run of a directory; reads neither data nor weights.

    Raises:
        RunDirectoryError: it is none, damaged, or the folder of a sweep or of an analysis.
        ConfigError: its config has a field that is unknown here.
    """
    header = records.read_header(workdir)
    if header.kind in KINDS:
        raise RunDirectoryError(f"{workdir} is the folder of {KINDS[header.kind]}: name the directory of a run")
    config = complete(header.config)
    experiment = build.Experiment(config)
    if header.facts:
        steps = (tuple(value) if isinstance(value, list) else value for value in map(header.facts.get, Plan._fields))
        plan = Plan._make(steps)
    else:  # from before there were facts; what the catalogue says of its data set is what it was
        plan = build.Experiment(config, without_data=True).plan
    folder = records.resolve(workdir)
    return Run(
        folder, header.kind, experiment, header.variant, header.run_id, plan, checkpoints.steps(folder), folder.name
    )


def networks(
    run: Run,
    which: str,
    step: int | None = None,
    key: jax.Array | None = None,
    num_draws: int = 1,
    like: PyTree = None,
) -> Networks:
    """Networks of a run, as rows of one stack.

    Args:
        run: from `open_run`.
        which: "midpoint" of the subspace (one network; of captures, unless a step is named, their mean; of members each
            one); "endpoints" or "knots", all rows of the stack; "random", `num_draws` points as training draws them;
            "captures", the captured checkpoints; "snapshots", the midpoints of all checkpoints that were kept.
        step: of the checkpoint, None for the last.
        key: PRNG key of the draws.
        num_draws: at least 1.
        like: stack of the expected names and shapes; another architecture is refused.

    Raises:
        ConfigError: the run has no such networks.
        CheckpointError: a missing or damaged checkpoint, or another architecture.
    """
    if which not in WHICH:
        raise ConfigError(f"a run's networks are {', '.join(WHICH)}, got {which!r}")
    experiment, captured = run.experiment, list(run.plan.captured_steps)
    if which == "captures":
        if not captured:
            raise ConfigError(
                f"config.members is 'captures' but {run.folder} captured none: it was trained with capture=False"
            )
        return _of_steps(run, captured, like)
    if which == "snapshots":
        return _of_steps(run, kept_steps(run), like)
    if which == "midpoint" and captured and step is None:
        of_captures = _of_steps(run, captured, like)
        mean = geometry.contract(of_captures.stack, geometry.Simplex(len(captured)).midpoint)
        name = f"{run.name} mean of steps {', '.join(map(str, captured))}"
        return of_captures._replace(stack=_one_row(mean), names=[name])
    checkpoint = checkpoints.restore(run.folder, step, like=like)
    stats = _of_one_network(experiment, checkpoint.batch_stats)
    named = _coordinates(run, which, checkpoint.params, key, num_draws)
    names = [f"{run.name} step {checkpoint.step} {name}" for name, _ in named]
    if which in ("endpoints", "knots") or experiment.num_members > 1:
        return Networks(checkpoint.params, names, stats, checkpoint.step)
    rows = [geometry.contract(checkpoint.params, coordinates) for _, coordinates in named]
    return Networks(geometry.stack(rows), names, stats, checkpoint.step)


def kept_steps(run: Run) -> list[int]:
    """The steps of the checkpoints that a run kept for good, in order.

    Raises:
        ConfigError: there are none.
    """
    kept = [at for at in run.steps if at in run.plan.kept_steps]
    if not kept:
        raise ConfigError(f"{run.folder} kept no checkpoints: it was trained with keep_every=0 and no keep_steps")
    return kept


def stacked(parts: Sequence[Networks], runs: Sequence[Run]) -> Networks:
    """Networks of several runs as one stack, with the statistics of the first.

    Raises:
        CheckpointError: they differ in architecture.
    """
    rows = [row for part in parts for row in geometry.unstack(part.stack)]
    names = [name for part in parts for name in part.names]
    try:
        return Networks(geometry.stack(rows), names, parts[0].batch_stats, parts[0].step)
    except ValueError as error:
        raise CheckpointError(f"{', '.join(str(run.folder) for run in runs)} cannot be stacked: {error}") from None


def _of_steps(run: Run, steps: Sequence[int], like: PyTree) -> Networks:
    """The midpoints, or all members, of several checkpoints."""
    parts = [checkpoints.restore(run.folder, step, like=like) for step in steps]
    if run.experiment.num_members > 1:
        rows = [row for part in parts for row in geometry.unstack(part.params)]
        which = [f"endpoint {k}" for k in range(run.experiment.num_members)]
    else:
        rows = [geometry.contract(part.params, run.experiment.space.midpoint) for part in parts]
        which = ["midpoint"]
    names = [f"{run.name} step {step} {name}" for step in steps for name in which]
    stats = _of_one_network(run.experiment, parts[-1].batch_stats)
    return Networks(geometry.stack(rows), names, stats, steps[-1])


def _coordinates(run: Run, which: str, stack: PyTree, key: Any, num_draws: int) -> list[tuple[str, PyTree]]:
    """(name, coordinates) of the networks that one checkpoint gives."""
    experiment = run.experiment
    space, num_rows = experiment.space, geometry.num_endpoints(stack)
    if which == "random" and space.num_endpoints < 2:
        raise ConfigError(
            f"config.members is 'random' but {run.folder} trained no subspace to draw from: choose midpoint"
        )
    if which in ("endpoints", "knots") or experiment.num_members > 1:
        return [(f"endpoint {k}", row) for k, row in enumerate(jnp.eye(num_rows))]
    if which == "random":
        drawn = experiment.drawn_space(stack)
        return [(f"random {i}", drawn.sample(jax.random.fold_in(key, i))) for i in range(num_draws)]
    return [("midpoint", space.midpoint)]


def _of_one_network(experiment: Experiment, batch_stats: PyTree) -> PyTree:
    """Statistics of the form that one network has: of members, the first one's."""
    return jax.tree.map(lambda leaf: leaf[0], batch_stats) if experiment.num_members > 1 else batch_stats


def _one_row(params: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[None], params)


def told_apart(paths: Sequence[str | pathlib.Path]) -> list[str]:
    """The last parts of paths, as many as tell different ones apart.

    >>> told_apart(["runs/one/0", "runs/two/0"])
    ['one/0', 'two/0']
    """
    parts = [pathlib.PurePath(path).parts for path in paths]
    enough = lambda num: len({of[-num:] for of in parts}) == len(set(parts))
    num = next(num for num in range(1, max(map(len, parts), default=1) + 1) if enough(num))
    return [str(pathlib.PurePath(*of[-num:])) for of in parts]


def file_name(name: str) -> str:
    """The name of a network in that of a file."""
    return name.strip("/").replace("/", "_").replace(" ", "_")
