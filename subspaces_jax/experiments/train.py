"""Training a network, a line, a curve or a simplex: config -> run directory."""

import contextlib
import logging
import pathlib
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from subspaces_jax import checkpoints, evaluation, geometry, parallel, records, rngs
from subspaces_jax.data import batches
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import build
from subspaces_jax.training.loop import fit
from subspaces_jax.training.state import State, init_state
from subspaces_jax.training.step import make_advance

log = logging.getLogger(__name__)


def run(config: build.Config, workdir: str | pathlib.Path) -> dict[str, Any]:
    """Trains what the config says, from the latest checkpoint of `workdir` where there is one, to the end.

    Args:
        config: a mapping with the fields of `fields.FIELDS`.
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

    space, kept = build.subspace(config), build.kept_steps(config, epoch)
    keys = [jax.random.key(config["seed"] + m) for m in range(config["num_members"])]
    state = _initial_state(model, optimizer, space.num_endpoints, keys)
    folder = pathlib.Path(workdir).absolute()
    if config["initial"] and not checkpoints.has_any(folder):
        state = _started(config, model, state)
    state = parallel.replicate(state, mesh, _of_members(config))
    if config["layerwise"]:
        space = geometry.layerwise(space, state.params)

    with contextlib.ExitStack() as stack:
        if parallel.is_main():
            stack.enter_context(records.locked(folder))
            records.write_config(folder, config)
        manager = stack.enter_context(checkpoints.open_manager(folder, keep_steps=kept))
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

        make = _advance_on_stream if build.streams(config) else _advance
        advance = stack.enter_context(make(config, mesh, model, space, optimizer, train, keys, epoch))
        fit(
            state,
            advance,
            num_steps=num_steps,
            steps_per_epoch=epoch,
            images_per_step=config["batch_size"] * len(keys),
            log_every=config["log_every"],
            save_every=config["checkpoint_every"] * epoch,
            record=record,
            save=lambda step, state: checkpoints.save(manager, step, _resumable(state), config),
            save_at=kept,
            evaluate_every=config["test_every"] * epoch,
            evaluate=_midpoint_test(config, model, space, train, keys) if config["test_every"] else None,
        )
        progress.close()
    return last | {"resumed_from": resumed_from, "seconds": time.perf_counter() - clock}


def _of_members(config) -> PartitionSpec:
    """How the state lies on the devices: whole on each, or each group of devices with members of its own."""
    return PartitionSpec(parallel.MEMBERS) if config["num_members"] > 1 else PartitionSpec()


def _initial_state(model, optimizer, num_endpoints, keys) -> State:
    """The state of one training, or [M, ...] of several; member m starts as a run of its own with its key does."""

    def make(key):
        variables = model.init(rngs.stream(key, "init"), num_endpoints)
        return init_state(variables, optimizer, rngs.stream(key, "train"))

    # LLVM takes 12 s to optimise the random numbers of a ResNet-8 on CPU, and 1 s not to; the program runs once
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    if len(keys) == 1:
        return jax.jit(make, compiler_options=options)(keys[0])
    return jax.jit(jax.vmap(make), compiler_options=options)(jnp.stack(keys))


def _started(config, model, state: State) -> State:
    """The state with the networks of the runs that config.initial names; the statistics are the first one's."""
    runs = [pathlib.Path(name) for name in config["initial"].split(",")]
    num_endpoints, rows, stats = jax.tree.leaves(state.params)[0].shape[0], [], []
    for folder in runs:
        of_run = build.config_of(folder)
        found = build.restored(of_run, model, folder)
        if of_run["num_members"] > 1 or (len(runs) == 1 and build.num_rows(of_run) == num_endpoints):
            rows.append(found.params)
        else:
            midpoint = geometry.contract(found.params, build.subspace(of_run).midpoint)
            rows.append(jax.tree.map(lambda leaf: leaf[None], midpoint))
        stats.append(found.batch_stats)
    params = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)
    if (given := jax.tree.leaves(params)[0].shape[0]) != num_endpoints:
        raise ConfigError(
            f"config.initial gives {given} networks, and subspace {config['subspace']!r} has {num_endpoints} "
            "endpoints: name one run for each, or one with as many"
        )
    return state._replace(params=params, batch_stats=stats[0])


@contextlib.contextmanager
def _advance(config, mesh, model, space, optimizer, train, keys, epoch):
    """(state, step, n) -> (state, metrics), with the data on the devices and each epoch's order made when it begins."""
    samples, many = config["num_samples"], len(keys) > 1
    statistics = geometry.endpoint_statistics if space.num_endpoints > 1 else None
    whole, members = PartitionSpec(), _of_members(config)
    split = PartitionSpec(None, *members, None, parallel.AXIS)  # [steps, (members,) samples, batch]
    compiled = parallel.pmapped(
        make_advance(build.step(config, model, space, optimizer), statistics),
        mesh,
        in_specs=(members, whole, whole, split, whole),
        out_specs=(members, whole),
        donate_argnums=(0,),
    )
    images, labels = parallel.replicate((train.images, train.labels), mesh)
    order_keys = parallel.replicate(jnp.stack([rngs.stream(key, "order") for key in keys]), mesh)

    @partial(jax.jit, out_shardings=NamedSharding(mesh, split))
    def indices_of(order_keys, number):
        rows = lambda key: batches.epoch_indices(key, number, len(train.labels), config["batch_size"])
        orders = jax.vmap(rows)(order_keys).reshape(len(keys), epoch, samples, -1)
        return orders.swapaxes(0, 1) if many else orders[0]

    current: dict[int, jax.Array] = {}

    def advance(state, step, num_steps):
        number = step // epoch
        if number not in current:
            current.clear()
            current[number] = indices_of(order_keys, number)
        return compiled(state, images, labels, current[number], num_steps)

    yield advance


@contextlib.contextmanager
def _advance_on_stream(config, mesh, model, space, optimizer, train, keys, epoch):
    """As `_advance`, every batch from a stream, whose place is the number of the step, and in a dispatch of its own.

    Every member has a stream of its own, which is that of a run with its seed.
    """
    statistics = geometry.endpoint_statistics if space.num_endpoints > 1 else None
    whole, members = PartitionSpec(), _of_members(config)
    split = PartitionSpec(*members, parallel.AXIS)  # [(members,) batch]
    samples, processes = config["num_samples"], jax.process_count()
    step = build.step(config, model, space, optimizer)
    if len(keys) > 1 and processes > 1:
        raise ConfigError(
            f"config.num_members is {len(keys)} and {config['dataset']} streams: train members in one process, or each "
            "as a run of its own"
        )

    def one(state, images, labels):
        """One step on this device's share: its examples in order, split into samples, and before that into members."""
        shape = (1, *labels.shape[:-1], samples, labels.shape[-1] // samples)
        indices = jnp.arange(labels.size, dtype=jnp.int32).reshape(shape)
        images = images.reshape(labels.size, *images.shape[labels.ndim :])
        return make_advance(step, statistics)(state, images, labels.ravel(), indices, 1)

    compiled = parallel.pmapped(one, mesh, (members, split, split), (members, whole), donate_argnums=(0,))
    streams: list[Any] = []

    def begin(step):
        size, part = config["batch_size"] // processes, (jax.process_index(), processes)
        of_seeds = [config | {"seed": config["seed"] + m} for m in range(len(keys))]
        return [build.train_stream(of_seed, size, step, part) for of_seed in of_seeds]

    def advance(state, step, num_steps):
        if not streams:
            streams.extend(begin(step))
        total = None
        for _ in range(num_steps):
            parts = [next(stream)[:2] for stream in streams]
            batch = parts[0] if len(parts) == 1 else tuple(map(np.stack, zip(*parts)))
            state, metrics = compiled(state, *parallel.shard(batch, mesh, split))
            total = metrics if total is None else _added(total, metrics)
        means = {name: value if name in LAST else value / num_steps for name, value in total.items()}
        return state, means

    try:
        yield advance
    finally:
        for stream in streams:
            stream.close()


LAST = ("bad_step", "cosine_squared", "distance")  # of a row not means over its steps, but the first or the last value


def _added(total, metrics):
    first_bad = jnp.where(total["bad_step"] < 0, metrics["bad_step"], total["bad_step"])
    sums = {name: metrics[name] if name in LAST else total[name] + metrics[name] for name in total}
    return sums | {"bad_step": first_bad}


def _midpoint_test(config, model, space, train, keys):
    """state -> scores of the midpoint on the test split, its BatchNorm statistics refreshed; means over members."""
    test = build.data(config, "test")
    coordinates, size = space.midpoint, config["eval_batch_size"]

    def score(params, batch_stats, key):
        variables = {"params": geometry.contract(params, coordinates), "batch_stats": batch_stats}
        refresh_key = rngs.stream(key, "refresh")
        stats = evaluation.refresh_batch_stats(model.apply_train, variables, train.images, refresh_key, size)
        return evaluation.score(model.apply, variables | {"batch_stats": stats}, test.images, test.labels, size)

    def evaluate(state):
        if len(keys) == 1:
            return {f"test_{name}": value for name, value in score(state.params, state.batch_stats, keys[0]).items()}
        member = lambda m: jax.tree.map(lambda leaf: leaf[m], (state.params, state.batch_stats))
        scores = [score(*member(m), key) for m, key in enumerate(keys)]
        of_each = {f"test_accuracy_{m}": of_member["accuracy"] for m, of_member in enumerate(scores)}
        return {f"test_{name}": sum(row[name] for row in scores) / len(scores) for name in scores[0]} | of_each

    return evaluate


def _resumable(state: State) -> checkpoints.Resumable:
    """Members are stored as the endpoints of one stack: they are trained with one endpoint each."""
    params = jax.tree.map(lambda leaf: leaf[:, 0], state.params) if state.step.ndim else state.params
    return checkpoints.Resumable(params, state.batch_stats, state.opt_state, jax.random.key_data(state.key))


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
    params = jax.tree.map(lambda leaf: leaf[:, None], loaded.params) if state.step.ndim else loaded.params
    found_state = State(
        jnp.full_like(state.step, step),
        params,
        loaded.batch_stats,
        loaded.opt_state,
        jax.random.wrap_key_data(loaded.key),
    )
    return jax.device_put(found_state, jax.tree.map(lambda leaf: leaf.sharding, state)), step
