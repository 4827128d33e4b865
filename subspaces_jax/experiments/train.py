"""Training a network, a line, a curve or a simplex: config -> run directory."""

import contextlib
import logging
import pathlib
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from subspaces_jax import checkpoints, evaluation, geometry, parallel, records, rngs
from subspaces_jax.data import batches
from subspaces_jax.experiments import build
from subspaces_jax.training.loop import fit
from subspaces_jax.training.state import State, init_state
from subspaces_jax.training.step import make_advance

log = logging.getLogger(__name__)


def run(config: build.Config, workdir: str | pathlib.Path) -> dict[str, Any]:
    """Trains what the config says, from the latest checkpoint of `workdir` where there is one, to the end.

    Args:
        config: a mapping with the fields of `build.FIELDS`.
        workdir: the run directory, made if need be.

    Returns:
        The last row of metrics, with "step", "seconds" (of this call) and "resumed_from" (a step, 0 for a new run).

    Raises:
        ConfigError, DataError, CheckpointError, RunDirectoryError, NonFiniteLossError: see `errors`.
    """
    config, clock = build.check(config), time.perf_counter()
    mesh = build.mesh(config)
    train = build.data(config, "train")
    epoch = build.steps_per_epoch(config, len(train.labels))
    num_steps = epoch * config["num_epochs"]
    rate = build.schedule(config, epoch)
    model, optimizer = build.model(config), build.optimizer(config, rate)

    key = jax.random.key(config["seed"])
    space = build.subspace(config)
    state = parallel.replicate(_initial_state(model, optimizer, space.num_endpoints, key), mesh)
    if config["layerwise"]:
        space = geometry.layerwise(space, state.params)

    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(workdir).absolute()
        if parallel.is_main():
            stack.enter_context(records.locked(folder))
            records.write_config(folder, config)
        manager = stack.enter_context(checkpoints.open_manager(folder, config["keep_every"] * epoch or None))
        state, resumed_from = _resume(manager, state)
        if resumed_from == num_steps:
            log.warning("%s is finished (step %d); nothing to train", folder, num_steps)
            return {"step": num_steps, "resumed_from": resumed_from, "seconds": time.perf_counter() - clock}

        rows = stack.enter_context(records.Metrics(folder, resumed_from)) if parallel.is_main() else None
        progress = records.Progress(num_steps, resumed_from, label="train")
        last: dict[str, Any] = {}

        def record(step, row):
            row["learning_rate"] = float(rate(jnp.asarray(step - 1)))
            last.update(row, step=step)
            if rows is not None:
                rows.write(step, row)
                speed = f"{row['images_per_second']:,.0f} images/s"
                progress.update(step, f"loss {row['loss']:.4f}  lr {row['learning_rate']:.4g}  {speed}")

        fit(
            state,
            _advance(config, mesh, model, space, optimizer, train, key, epoch),
            num_steps=num_steps,
            steps_per_epoch=epoch,
            images_per_step=config["batch_size"],
            log_every=config["log_every"],
            save_every=config["checkpoint_every"] * epoch,
            record=record,
            save=lambda step, state: checkpoints.save(manager, step, _resumable(state), config),
            evaluate_every=config["test_every"] * epoch,
            evaluate=_midpoint_test(config, model, space, train, key) if config["test_every"] else None,
        )
        progress.close()
    return last | {"resumed_from": resumed_from, "seconds": time.perf_counter() - clock}


def _initial_state(model, optimizer, num_endpoints, key) -> State:
    def make(key):
        variables = model.init(rngs.stream(key, "init"), num_endpoints)
        return init_state(variables, optimizer, rngs.stream(key, "train"))

    # LLVM takes 12 s to optimise the random numbers of a ResNet-8 on CPU, and 1 s not to; the program runs once
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(make, compiler_options=options)(key)


def _advance(config, mesh, model, space, optimizer, train, key, epoch):
    """(state, step, n) -> (state, metrics), with the data on the devices and each epoch's order made when it begins."""
    statistics = geometry.endpoint_statistics if space.num_endpoints > 1 else None
    whole, split = PartitionSpec(), PartitionSpec(None, None, parallel.AXIS)
    compiled = parallel.pmapped(
        make_advance(build.step(config, model, space, optimizer), statistics),
        mesh,
        in_specs=(whole, whole, whole, split, whole),
        donate_argnums=(0,),
    )
    images, labels = parallel.replicate((train.images, train.labels), mesh)
    order_key = parallel.replicate(rngs.stream(key, "order"), mesh)
    samples = config["num_samples"]

    @partial(jax.jit, out_shardings=NamedSharding(mesh, split))
    def indices_of(order_key, number):
        rows = batches.epoch_indices(order_key, number, len(train.labels), config["batch_size"])
        return rows.reshape(epoch, samples, -1)

    current: dict[int, jax.Array] = {}

    def advance(state, step, num_steps):
        number = step // epoch
        if number not in current:
            current.clear()
            current[number] = indices_of(order_key, number)
        return compiled(state, images, labels, current[number], num_steps)

    return advance


def _midpoint_test(config, model, space, train, key):
    """state -> scores of the midpoint on the test split, its BatchNorm statistics refreshed."""
    test = build.data(config, "test")
    coordinates, refresh_key = space.midpoint, rngs.stream(key, "refresh")

    def evaluate(state):
        params = geometry.contract(state.params, coordinates)
        variables = {"params": params, "batch_stats": state.batch_stats}
        stats = evaluation.refresh_batch_stats(
            model.apply_train, variables, train.images, refresh_key, config["eval_batch_size"]
        )
        variables["batch_stats"] = stats
        scores = evaluation.score(model.apply, variables, test.images, test.labels, config["eval_batch_size"])
        return {f"test_{name}": value for name, value in scores.items()}

    return evaluate


def _resumable(state: State) -> checkpoints.Resumable:
    return checkpoints.Resumable(state.params, state.batch_stats, state.opt_state, jax.random.key_data(state.key))


def _resume(manager, state: State) -> tuple[State, int]:
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), _resumable(state)
    )
    found = checkpoints.resume(manager, like)
    if found is None:
        return state, 0
    loaded, step, notes = found
    for note in notes:
        log.warning("%s; moved to the folder damaged, going on from checkpoint %d", note, step)
    state_step = jax.device_put(jnp.int32(step), state.step.sharding)
    key = jax.random.wrap_key_data(loaded.key)
    return State(state_step, loaded.params, loaded.batch_stats, loaded.opt_state, key), step
