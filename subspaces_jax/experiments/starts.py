"""Where a training starts: at random weights, at networks of runs or of other programs, or at a step of a run."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from subspaces_jax import checkpoints, geometry, parallel, state_dicts, trees
from subspaces_jax.errors import CheckpointError, ConfigError
from subspaces_jax.experiments import choices, runs
from subspaces_jax.experiments.build import Experiment
from subspaces_jax.experiments.build.steps import of_members
from subspaces_jax.networks import torch_names
from subspaces_jax.training.state import State

PyTree = Any


def start(made: Experiment, new: bool = True) -> State:
    """The state that an experiment begins with, on its devices; where it is not `new`, one of the same form.

    Raises:
        ConfigError: config.initial gives another number of networks than the subspace takes.
        CheckpointError, RunDirectoryError: what it starts from is missing, damaged or of another architecture.
    """
    given = _networks(made) if made.initial and new else None  # refused before a state of random weights is computed
    state = made.programs.initial_state()
    if given is not None:
        state = _of_networks(made, state, given)
    if made.fork is not None and new:
        state = _of_fork(made, state)
    return parallel.replicate(state, made.mesh, of_members(made.num_members))


def resumable(state: State) -> checkpoints.Resumable:
    """What a checkpoint holds; members are the endpoints of one stack: they are trained with one endpoint each."""
    params = jax.tree.map(lambda leaf: leaf[:, 0], state.params) if state.step.ndim else state.params
    return checkpoints.Resumable(params, state.batch_stats, state.opt_state, jax.random.key_data(state.key))


def _networks(made: Experiment) -> dict[int, runs.Networks]:
    """The networks that config.initial names, by their place in it, of the config's architecture; none where it names
    random weights."""
    named, num = made.initial, made.space.num_endpoints
    files = {i: source for i, source in enumerate(named) if state_dicts.is_weights(source.folder)}
    flax = {i: source for i, source in enumerate(named) if i not in files and checkpoints.is_flax(source.folder)}
    others = {
        i: source.folder
        for i, source in enumerate(named)
        if source.folder != choices.RANDOM and i not in files and i not in flax
    }
    if strange := [path for path in others.values() if os.path.isfile(os.path.expanduser(path))]:
        raise ConfigError(
            f"config.initial: {strange[0]} is a file, and weights are read from files that end in "
            f"{', '.join(state_dicts.SUFFIXES)} or .msgpack: rename it if it is one"
        )
    opened = {i: runs.open_run(folder) for i, folder in others.items()}
    _check_data({run.experiment.dataset: run.folder for run in opened.values()}, made)
    sizes = (num, 2) if made.is_curve else (num,)
    whole = lambda run: run.experiment.num_members > 1 or (len(named) == 1 and run.experiment.num_rows in sizes)
    parts = {
        i: runs.networks(run, "endpoints" if whole(run) else "midpoint", named[i].step) for i, run in opened.items()
    }
    parts |= {i: _of_file(made, source) for i, source in files.items()}
    parts |= {i: _of_flax(made, source) for i, source in flax.items()}
    given = _num_given(made, parts)
    if given != num and not (given == 2 and made.is_curve and num > 2):
        raise ConfigError(
            f"config.initial gives {given} networks, and subspace {made.subspace_text!r} has {num} endpoints: name one "
            "run for each, one with as many, or of a curve two for its ends; random stands for a network of random "
            "weights"
        )
    for part in parts.values():
        _check_numbers(part)
        for row in geometry.unstack(part.stack):
            if difference := trees.describe_mismatch(row, made.model.shapes):
                raise CheckpointError(
                    f"config.initial {made.initial_text} is of another architecture than the config: {difference}"
                )
    return parts


def _check_numbers(part: runs.Networks) -> None:
    """Refuses weights that are no finite numbers."""
    for name, leaf in trees.leaf_names({"params": part.stack, "batch_stats": part.batch_stats}).items():
        if not np.all(np.isfinite(np.asarray(leaf, np.float32))):
            raise CheckpointError(f"config.initial: {part.names[0]} has {name} with values that are not finite")


def _of_networks(made: Experiment, state: State, parts: dict[int, runs.Networks]) -> State:
    """With the networks that config.initial names as endpoints, two of a curve as its ends; the statistics are the
    first one's, or the state's where it has none."""
    num, fresh, rows = made.space.num_endpoints, geometry.unstack(state.params), []
    is_curve = _num_given(made, parts) < num
    for i in range(len(made.initial)):
        place = num - 1 if is_curve and rows else len(rows)
        rows += geometry.unstack(parts[i].stack) if i in parts else [fresh[place]]
    if is_curve:
        rows = [rows[0], *_inner(made, rows, fresh), rows[1]]
    stats = next((parts[i].batch_stats for i in parts), {}) or state.batch_stats
    params, stats = jax.tree.map(jnp.asarray, (geometry.stack(rows), stats))
    return state._replace(params=params, batch_stats=stats)


def _num_given(made: Experiment, parts: dict[int, runs.Networks]) -> int:
    """Networks that config.initial stands for, those of random weights too."""
    return sum(len(parts[i].names) if i in parts else 1 for i in range(len(made.initial)))


def _of_file(made: Experiment, source: choices.Source) -> runs.Networks:
    """The network of a file of PyTorch's weights."""
    if source.step is not None:
        raise ConfigError(
            f"config.initial: {source.folder} is a file of weights and has no steps: leave out @{source.step}"
        )
    try:
        variables = torch_names.from_torch(made.model.network, state_dicts.load(source.folder))
    except (CheckpointError, ConfigError):
        raise
    except ValueError as error:
        raise CheckpointError(f"config.initial: {source.folder} cannot be taken: {error}") from None
    stack = geometry.stack([jax.tree.map(jnp.asarray, variables["params"])])
    return runs.Networks(stack, [source.folder], variables.get("batch_stats", {}), 0)


def _of_flax(made: Experiment, source: choices.Source) -> runs.Networks:
    """The network of a Flax checkpoint of another program, of the form and the dtypes of ours."""
    try:
        found = checkpoints.restore_flax(source.folder, source.step, like=made.model.shapes)
    except CheckpointError as error:
        raise CheckpointError(f"config.initial: {error}") from None
    own = {
        "params": made.model.shapes,
        "batch_stats": made.programs.state_shapes.batch_stats if found["batch_stats"] else {},
    }
    if difference := trees.describe_mismatch(found["batch_stats"], own["batch_stats"]):
        raise CheckpointError(
            f"config.initial: {source.folder} has statistics of another architecture than the config: {difference}"
        )
    if wrong := {name: leaf.dtype for name, leaf in trees.leaf_names({"params": found["params"]}).items()
                 if not jnp.issubdtype(leaf.dtype, jnp.floating)}:  # fmt: skip
        name, dtype = next(iter(wrong.items()))
        raise CheckpointError(
            f"config.initial: {source.folder} has {name} of {dtype}: weights are real floating-point numbers"
        )
    found = jax.tree.map(lambda leaf, own: jnp.asarray(leaf, own.dtype), found, own)
    return runs.Networks(geometry.stack([found["params"]]), [source.folder], found["batch_stats"], 0)


def _inner(made: Experiment, ends: list[PyTree], fresh: list[PyTree]) -> list[PyTree]:
    """Those between two ends: equally spaced on the line between them, or of random weights."""
    if made.inner_endpoints == "fresh":
        return fresh[1:-1]
    line, num = geometry.stack(ends), made.space.num_endpoints
    return [geometry.contract(line, point) for point in geometry.Line().grid(num)[1:-1]]


def _check_data(folders: dict[str, Any], made: Experiment) -> None:
    """Refuses networks of several data sets, which have nothing to connect, and of another one than the config's."""
    if others := {name: folder for name, folder in folders.items() if name != made.dataset}:
        name, folder = next(iter(others.items()))
        raise ConfigError(
            f"config.initial: {folder} was trained on {name}, and config.dataset is {made.dataset}: name runs of one "
            "data set, the config's"
        )


def _of_fork(made: Experiment, state: State) -> State:
    """As the run that config.fork names was at its step, but with this run's seed: of members each one so."""
    source = made.fork
    assert source is not None and source.step is not None  # `build.check` has refused others
    run = runs.open_run(source.folder)
    if run.experiment.num_members > 1:
        raise ConfigError(
            f"config.fork {made.fork_text} is of {run.experiment.num_members} members: fork a run of num_members=1, "
            "into as many members as you like"
        )
    if run.experiment.space.num_endpoints != made.space.num_endpoints:
        raise ConfigError(
            f"config.fork {made.fork_text} has {run.experiment.space.num_endpoints} endpoints and this run "
            f"{made.space.num_endpoints}: keep its subspace"
        )
    epoch, own = made.plan.steps_per_epoch, run.plan.steps_per_epoch
    if epoch != own:
        raise ConfigError(
            f"config.fork {made.fork_text} has {own} steps an epoch and this run {epoch}: keep its data and batch_size"
        )
    if source.step >= made.plan.num_steps:
        raise ConfigError(
            f"config.fork {made.fork_text} leaves nothing to train: this run ends after {made.plan.num_steps} steps"
        )
    if past := [step for step in made.plan.captured_steps if step <= source.step]:
        raise ConfigError(
            f"config.fork {made.fork_text} is past step {past[0]}, which this run would capture: raise swa_start"
        )
    whole = NamedSharding(made.mesh, PartitionSpec())
    placed = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)
    like = jax.tree.map(placed, jax.eval_shape(resumable, made.alone.programs.state_shapes))
    found = checkpoints.restore_state(run.folder, source.step, like)
    forked = (jnp.int32(source.step), found.params, found.batch_stats, found.opt_state)
    if made.num_members > 1:
        forked = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (made.num_members, *leaf.shape)), forked)
    return State(*forked, state.key)
