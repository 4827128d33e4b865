"""What layers are reset to: a run's checkpoints, or another's, and fresh draws, as one stack."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from subspaces_jax import geometry
from subspaces_jax.errors import CheckpointError, ConfigError
from subspaces_jax.experiments import choices, runs
from subspaces_jax.experiments.runs import Run
from subspaces_jax.experiments.studies import members

PyTree = Any


class Rows(NamedTuple):
    """A stack [K, ...] of the trained network and what its layers are reset to, and what it is.

    Attributes: network: of results; epochs: of rows 1 to K - 1, None of fresh ones; batch_stats: of one network.
    """

    network: str
    stack: PyTree
    epochs: list[float | None]
    batch_stats: PyTree


def rows_of(settings: Any, run: Run, step: int | None, at: float | None, number: int) -> Rows:
    """The trained network of a run and what its layers are reset to, as one stack."""
    made = run.experiment
    trained, stats = _network(run, step, at)
    sources = [choices.source(text if "@" in text else f"{run.folder}@{text}")
               for text in choices.split(settings.checkpoints)]  # fmt: skip
    if not sources:
        sources = [choices.Source(str(run.folder), at) for at in run.steps[:-1] if at in run.plan.kept_steps]
        sources += [choices.Source(str(run.folder), run.steps[-1])]
    opened = _opened(run, sources)
    others = [_network(other, source.step, at)[0] for other, source in zip(opened, sources)]
    key = jax.random.fold_in(members.key_of(settings, "fresh"), number)
    fresh = geometry.unstack(made.programs.random_stack(key, settings.num_fresh)) if settings.num_fresh else []
    try:
        stack = geometry.stack([trained, *others, *fresh])
    except ValueError as error:
        names = ", ".join(dict.fromkeys(source.folder for source in sources))
        raise CheckpointError(f"layers of {run.folder} cannot be reset to those of {names}: {error}") from None
    reached = [source.step for source in sources if source.step is not None]
    epochs = [step_of / other.plan.steps_per_epoch for other, step_of in zip(opened, reached)]
    name = run.name if at is None else f"{run.name} t={at:g}"
    return Rows(name, stack, [*epochs, *[None] * len(fresh)], stats)


def _network(run: Run, step: int | None, at: float | None) -> tuple[PyTree, PyTree]:
    """Parameters of the midpoint, or of the point `at` of a line or curve, and statistics."""
    if at is None:
        networks = runs.networks(run, "midpoint", step)
        if len(networks.names) != 1:
            raise ConfigError(f"{run.folder} has {len(networks.names)} members: reset layers of runs of one network")
        return geometry.unstack(networks.stack)[0], networks.batch_stats
    if not run.experiment.is_curve:
        raise ConfigError(f"config.at is for lines and curves, {run.folder} has another subspace: leave it empty")
    networks = runs.networks(run, "endpoints", step)
    point = run.experiment.space.coordinates(jnp.float32(at))
    return geometry.contract(networks.stack, point), networks.batch_stats


def _opened(run: Run, sources: Sequence[choices.Source]) -> list[Run]:
    """The run of each checkpoint; all checkpoints that are missing are named in one message."""
    if unclear := [source.folder for source in sources if source.step is None]:
        raise ConfigError(f"config.checkpoints: {unclear[0]!r} is no step, and no run and its step, as in runs/a@200")
    opened = [run if source.folder == str(run.folder) else runs.open_run(source.folder) for source in sources]
    missing = [f"{of.folder}@{of.step}" for of, other in zip(sources, opened) if of.step not in other.steps]
    if missing:
        there = "; ".join(dict.fromkeys(f"{other.folder} has {other.steps}" for other in opened))
        raise CheckpointError(f"config.checkpoints: there are no checkpoints {', '.join(missing)}: {there}")
    return opened


def check_epochs(found: Sequence[Rows]) -> None:
    for rows in found[1:]:
        if rows.epochs != found[0].epochs:
            raise ConfigError(
                f"{rows.network} has checkpoints of epochs {rows.epochs} but {found[0].network} of {found[0].epochs}: "
                "name steps that all have, as in config.checkpoints=0,100"
            )


def epoch(run: Run, step: int | None) -> float:
    return (run.steps[-1] if step is None else step) / run.plan.steps_per_epoch
