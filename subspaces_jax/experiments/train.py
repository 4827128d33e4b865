"""Training a network, a line, a curve or a simplex: config -> run directory."""

import contextlib
import logging
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from subspaces_jax import batch_stats, checkpoints, evaluation, geometry, parallel, records, rngs
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import build, runs, starts
from subspaces_jax.experiments.build import Experiment
from subspaces_jax.experiments.build.images import flat
from subspaces_jax.experiments.build.steps import of_members
from subspaces_jax.training.dispatch import joined, row_of
from subspaces_jax.training.loop import fit, step_of
from subspaces_jax.training.state import State

PROFILE = "profile"
log = logging.getLogger(__name__)
Advance = Callable[[State, int, int], tuple[State, Any]]


def run(config: build.Config, workdir: str | pathlib.Path) -> dict[str, Any]:
    """Trains what the config says, from the latest checkpoint of `workdir` where there is one, to the end.

    With num_epochs=0 the start alone is saved, random weights or what `initial` names, and no data are read.

    Args:
        config: a mapping with fields of `fields.FIELDS`; those that are left out have their defaults.
        workdir: the run directory, made if need be.

    Returns:
        The last row of metrics, with "step", "seconds" (of this call) and "resumed_from" (a step; of a new run 0, or
        the step of its fork).

    Raises:
        ConfigError, DataError, CheckpointError, RunDirectoryError, NonFiniteLossError: see `errors`.
    """
    clock, made = time.perf_counter(), build.experiment(config)
    folder = records.resolve(workdir)
    plan = made.plan
    if thin := made.thin_parts:
        log.warning(thin)
    done = checkpoints.steps(folder)
    if done and done[-1] > plan.num_steps:
        raise ConfigError(
            f"config.num_epochs is {made.num_epochs}, which is {plan.num_steps} steps, and {folder} has done {done[-1]}"
        )
    if past := [step for step in plan.captured_steps if done and step <= done[-1] and step not in done]:
        raise ConfigError(
            f"{folder} has done {done[-1]} steps and has no checkpoint of {', '.join(map(str, past))}, which this "
            "config captures: leave num_epochs, swa_start and num_cycles as they were, or begin in another workdir"
        )
    if made.profile_steps and made.profile_steps[0] >= plan.num_steps:
        raise ConfigError(f"config.profile_steps is {made.profile_text!r}, and the run has steps 0 to {plan.num_steps}")
    state = starts.start(made, new=not done)

    with contextlib.ExitStack() as stack:
        run_id = stack.enter_context(_held(made, folder))
        manager = stack.enter_context(checkpoints.open_manager(folder, keep_steps=plan.kept_steps))
        state, resumed_from = _resume(manager, state, run_id)
        if not plan.num_steps:
            checkpoints.save(manager, 0, starts.resumable(state), made.config, run_id)
            return {"step": 0, "resumed_from": 0, "seconds": time.perf_counter() - clock}
        plateau = None
        if made.stops_early:
            plateau = made.plateau([row for row in runs.rows_of(folder) if row["step"] <= resumed_from])
        if resumed_from == plan.num_steps or plateau and plateau.ended_at == resumed_from:
            log.warning("%s is finished (step %d); nothing to train", folder, resumed_from)
            return {"step": resumed_from, "resumed_from": resumed_from, "seconds": time.perf_counter() - clock}

        rows = stack.enter_context(records.Metrics(folder, resumed_from)) if parallel.is_main() else None
        progress = records.Progress(plan.num_steps, resumed_from, label="train")
        last: dict[str, Any] = {}

        def record(step, row):
            last.update(row, step=step)
            if rows is not None:
                rows.write(step, row)
                speed = f"{row['images_per_second']:,.0f} images/s"
                progress.update(step, f"loss {row['loss']:.4f}  lr {row['learning_rate']:.4g}  {speed}")

        begin = _on_stream if made.data.streams else _in_memory
        advance = stack.enter_context(begin(made, state))
        if made.profile_steps and resumed_from > made.profile_steps[0]:
            log.warning("step %d, from which profile_steps traces, is done: nothing is traced", made.profile_steps[0])
        elif made.profile_steps:
            advance = stack.enter_context(_profiled(advance, folder, *made.profile_steps))
        fit(
            state,
            advance,
            num_steps=plan.num_steps,
            steps_per_epoch=plan.steps_per_epoch,
            examples_per_step=made.batch_size * made.num_members,
            log_every=made.log_every,
            save_every=made.save_every,
            read=lambda report: row_of(report, made.task.read),
            record=record,
            save=lambda step, state: checkpoints.save(manager, step, starts.resumable(state), made.config, run_id),
            save_at=plan.kept_steps,
            stop_at=made.profile_steps,
            evaluate_every=made.test_every,
            evaluate=_midpoint_test(made) if made.test_every else None,
            enough=plateau,
        )
        progress.close()
    return last | {"resumed_from": resumed_from, "seconds": time.perf_counter() - clock}


@contextlib.contextmanager
def _held(made: Experiment, folder: pathlib.Path) -> Iterator[str]:
    """The run directory held by the main process, its config written; gives every process the run's id."""
    run_id = ""
    with contextlib.ExitStack() as stack:
        if parallel.is_main():
            stack.enter_context(records.locked(folder))
            facts = {name: list(value) if isinstance(value, tuple) else value
                     for name, value in made.plan._asdict().items()}  # fmt: skip
            goes_on = made.overridden and (folder / records.CONFIG).exists()
            before = runs.complete(records.read_config(folder)) if goes_on else {}
            header = records.write_header(
                folder, "train", made.config, facts, made.variant, runs.complete, made.overridden
            )
            for name in (name for name in made.overridden if before.get(name, made.config[name]) != made.config[name]):
                log.warning("%s goes on with %s = %r, until now %r", folder, name, made.config[name], before[name])
            run_id = header.run_id
        yield parallel.from_main(run_id)


@contextlib.contextmanager
def _in_memory(made: Experiment, state: State) -> Iterator[Advance]:
    """(state, step, n) -> (state, report), with the data on the devices and each epoch's order made when it begins."""
    compiled, order, epoch = made.programs.advance(state.params), made.programs.epoch_order(), made.plan.steps_per_epoch
    data = parallel.replicate({"images": flat(made.data.train.images), "labels": made.data.train.labels}, made.mesh)
    order_keys = parallel.replicate(jnp.stack([rngs.stream(key, "order") for key in made.keys]), made.mesh)
    current: dict[int, jax.Array] = {}

    def advance(state, step, num_steps):
        number = step // epoch
        if number not in current:
            current.clear()
            current[number] = order(order_keys, number)
        return parallel.waited_for(compiled(state, data, current[number], num_steps))

    yield advance


@contextlib.contextmanager
def _on_stream(made: Experiment, state: State) -> Iterator[Advance]:
    """As `_in_memory`, every batch from a stream, whose place is the number of the step, and in a dispatch of its own.

    Every member has a stream of its own, which is that of a run with its seed.
    """
    if made.num_members > 1 and jax.process_count() > 1:
        raise ConfigError(
            f"config.num_members is {made.num_members} and {made.dataset} streams: train members in one process, or "
            "each as a run of its own"
        )
    compiled, streams = made.programs.advance_on_batch(state.params), []
    split = PartitionSpec(*of_members(made.num_members), parallel.AXIS)

    def advance(state, step, num_steps):
        if not streams:
            streams.extend(made.data.train_streams(made.batch_size, made.num_members, step))
        total = None
        for _ in range(num_steps):
            parts = [dict(zip(("images", "labels"), next(stream)[:2])) for stream in streams]
            batch = parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: np.stack(leaves), *parts)
            state, report = parallel.waited_for(compiled(state, parallel.shard(batch, made.mesh, split)))
            total = report if total is None else joined(total, report)
        return state, total

    try:
        yield advance
    finally:
        for stream in streams:
            stream.close()


@contextlib.contextmanager
def _profiled(advance: Advance, folder: pathlib.Path, first: int, last: int) -> Iterator[Advance]:
    """`advance` with the steps after `first` up to `last` traced by JAX's profiler, for TensorBoard."""
    with contextlib.ExitStack() as trace:

        def of_some(state, step, num_steps):
            if step == first:
                jax.block_until_ready(state)
                trace.enter_context(jax.profiler.trace(folder / PROFILE))
            state, report = advance(state, step, num_steps)
            if step + num_steps == last:
                jax.block_until_ready(state)
                trace.close()
            return state, report

        yield of_some


def _midpoint_test(made: Experiment) -> Callable[[State], dict[str, float]]:
    """state -> scores of the midpoint on the test split, its BatchNorm statistics refreshed; means over members.

    On what is held out where something is; and on the training split where the config says so.
    """
    model, mesh, size = made.model, made.mesh, made.eval_batch_size
    train = evaluation.on_device(flat(made.data.train.images), mesh)
    scored = {name: made.data.scored_split(name) for name in (made.data.tested, *["train"] * made.scores_train)}
    splits = {name: (evaluation.on_device(flat(split.images), mesh), split.labels) for name, split in scored.items()}
    coordinates = made.space.midpoint

    def score(params, stats, key):
        variables = {"params": geometry.contract(params, coordinates), "batch_stats": stats}
        refresh_key = rngs.stream(key, "refresh")
        if made.refreshes:
            stats = batch_stats.refresh_batch_stats(model.apply_train, variables, train, refresh_key, size, mesh)
        rows = {
            name: evaluation.score(
                model.apply, variables | {"batch_stats": stats}, images, labels, size,
                task=made.task, targets=model.targets, mesh=mesh,
            )
            for name, (images, labels) in splits.items()
        }  # fmt: skip
        return {f"{split}_{name}": value for split, row in rows.items() for name, value in row.items()}

    def evaluate(state):
        params, stats = parallel.gathered((state.params, state.batch_stats), mesh)
        if made.num_members == 1:
            return score(params, stats, made.keys[0])
        member = lambda m: jax.tree.map(lambda leaf: leaf[m], (params, stats))
        scores = [score(*member(m), key) for m, key in enumerate(made.keys)]
        first = f"{made.data.tested}_{made.task.columns[0].name}"
        of_each = {f"{first}_{m}": of_member[first] for m, of_member in enumerate(scores)}
        return {name: sum(row[name] for row in scores) / len(scores) for name in scores[0]} | of_each

    return evaluate


def _resume(manager: Any, state: State, run_id: str) -> tuple[State, int]:
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), starts.resumable(state)
    )
    found = checkpoints.resume(manager, like, run_id)
    if found is None:
        return state, step_of(state)
    loaded, step, notes = found
    for note in notes:
        log.warning("%s; moved to the folder damaged, going on from checkpoint %d", note, step)
    params = jax.tree.map(lambda leaf: leaf[:, None], loaded.params) if state.step.ndim else loaded.params
    found_state = State(
        jnp.full_like(state.step, step),
        params,
        loaded.batch_stats,
        loaded.opt_state,
        jax.random.wrap_key_data(loaded.key),
    )
    placed = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), found_state, state)
    assert step_of(placed) == step
    return placed, step
