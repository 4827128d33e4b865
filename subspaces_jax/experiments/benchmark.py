"""What things cost relative to each other on this machine: alternating runs, ratios with their spread."""

import io
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from subspaces_jax import evaluation, geometry, losses, parallel
from subspaces_jax.experiments.fields import DTYPES
from subspaces_jax.networks import families
from subspaces_jax.records import Progress
from subspaces_jax.training import optimizers
from subspaces_jax.training.state import init_state
from subspaces_jax.training.step import make_advance, make_step, over_members

STEPS = 8  # of one epoch of the benchmark's data, and of one timed run
Run = Callable[[], None]


class Row(NamedTuple):
    """One line of the table: `ours` takes `ratio` times as long as `base`, from `low` to `high` over the rounds."""

    name: str
    ratio: float
    low: float
    high: float
    seconds: float
    base_seconds: float
    target: str


def compare(name: str, ours: Run, base: Run, target: str = "", rounds: int = 5, per: int = 1) -> Row:
    """Runs both in turn, `rounds` times after one warm-up each, and takes the ratio of each round.

    Args:
        name: of the row.
        ours, base: do the work and wait for it.
        target: what the ratio is to be, for the table.
        rounds: how often.
        per: units of work in one run; seconds are given for one.
    """
    ours(), base()
    pairs = [(_seconds(ours), _seconds(base)) if i % 2 else _seconds_reversed(ours, base) for i in range(rounds)]
    return _row(name, pairs, target, per)


def _row(name: str, pairs: Sequence[tuple[float, float]], target: str, per: int) -> Row:
    """The row of the seconds that runs of `per` units, and their bases, took."""
    ratios = [a / b for a, b in pairs]
    medians = [statistics.median(column) / per for column in zip(*pairs)]
    return Row(name, statistics.median(ratios), min(ratios), max(ratios), *medians, target)


class Task(NamedTuple):
    """A network of `networks.families`, on random images.

    Attributes:
        network: its name; size, channels: of the images; batch_size: B; dtype: of the computation.
    """

    network: str = "cifar_resnet_20"
    size: int = 32
    channels: int = 3
    batch_size: int = 128
    dtype: str = "float32"


def stepper(task: Task, space: Any, num_samples: int = 1, dispatches: int = 1, num_members: int = 1) -> Run:
    """STEPS training steps of `space` in `dispatches` dispatches, as a training run does them."""
    network = families.by_name(task.network, 10, dtype=DTYPES[task.dtype])
    optimizer = optimizers.sgd(lambda step: 1e-3, 0.9, 1e-4)

    def apply(variables, images, key):
        images = images.astype(jnp.float32) / 255
        outputs, updated = network.apply(variables, images, train=True, mutable=["batch_stats"])
        return outputs.astype(jnp.float32), updated.get("batch_stats", {})

    many, how = space.num_endpoints > 1, "scan" if jax.default_backend() == "cpu" else "vmap"
    step = make_step(
        apply,
        space,
        optimizer,
        loss=losses.cross_entropy,
        num_samples=num_samples,
        over_samples=how,
        beta=1.0 if many else 0.0,
    )
    step = over_members(step, how) if num_members > 1 else step
    whole = PartitionSpec()
    mesh = parallel.device_mesh(1, num_members)
    split = PartitionSpec(None, *[None] * (num_members > 1), None, parallel.AXIS)
    advance = parallel.pmapped(make_advance(step), mesh, (whole, whole, whole, split, whole), donate_argnums=(0,))
    image = jnp.zeros((1, task.size, task.size, task.channels))
    make = lambda key: init_state(geometry.init_stack(network, key, space.num_endpoints, image), optimizer, key)
    keys = jax.random.split(jax.random.key(0), num_members)
    state = parallel.replicate(jax.vmap(make)(keys) if num_members > 1 else make(keys[0]), mesh)
    images, labels = parallel.replicate(_data(task, STEPS * task.batch_size), mesh)
    indices = jnp.arange(STEPS * task.batch_size, dtype=jnp.int32).reshape(STEPS, num_samples, -1)
    if num_members > 1:
        indices = jnp.stack([indices] * num_members, axis=1)
    held = [state]

    def run() -> None:
        for _ in range(dispatches):
            held[0], metrics = advance(held[0], images, labels, indices, STEPS // dispatches)
        jax.block_until_ready(metrics)

    return run


def profiler(task: Task, num_points: int, num_images: int, how: str) -> Run:
    """`num_points` points of a line scored with refreshed statistics, in one of three ways.

    "along": with all two-point ensembles, by `along`. "points": each point by a call of its own, no ensembles. "pairs":
    each point, and then each ensemble from its two networks anew, as where every ensemble is an evaluation of its own.
    """
    network = families.by_name(task.network, 10, dtype=DTYPES[task.dtype])
    image = jnp.zeros((1, task.size, task.size, task.channels))
    variables = geometry.init_stack(network, jax.random.key(0), 2, image)
    images, labels = map(jnp.asarray, _data(task, num_images))
    key, points = jax.random.key(2), geometry.Line().grid(num_points)

    def apply(variables, images):
        return network.apply(variables, images.astype(jnp.float32) / 255).astype(jnp.float32)

    def apply_train(variables, images, key):
        images = images.astype(jnp.float32) / 255
        outputs, updated = network.apply(variables, images, train=True, mutable=["batch_stats"])
        return outputs, updated.get("batch_stats", {})

    shared = dict(apply=apply, images=images, labels=labels, apply_train=apply_train, train_images=images, key=key)
    variables_at = evaluation.point_variables(geometry.contract, apply_train, task.batch_size)
    options = shared | {"batch_stats": variables.get("batch_stats", {}), "variables_at": variables_at}

    def network_at(point: jax.Array) -> Any:
        return variables_at(variables["params"], point, options["batch_stats"], images, key)

    def along() -> None:
        evaluation.along(variables["params"], points, batch_size=task.batch_size, **options)

    def one_by_one() -> None:
        for point in points:
            evaluation.score(apply, network_at(point), images, labels, task.batch_size)

    def pair_by_pair() -> None:
        one_by_one()
        for point, mirrored in zip(points, points[::-1]):
            logits = [evaluation.predict(apply, network_at(p), images, task.batch_size) for p in (point, mirrored)]
            jax.block_until_ready(evaluation.pair_scores(jnp.stack(logits), labels))

    return {"along": along, "points": one_by_one, "pairs": pair_by_pair}[how]


def compare_stream(task: Task, step: Run, rounds: int = 5) -> Row:
    """A training batch of 224 x 224 crops of JPEG files of 500 x 375, decoded by one thread a core, against a step of
    it.

    Timed from the first batch of a cold stream on, so that what is made ahead does not count; nothing else runs
    meanwhile.

    Args:
        task: its batch size counts.
        step: STEPS training steps.
        rounds: how often.
    """
    from PIL import Image

    from subspaces_jax.data import stream

    rng, encoded = np.random.default_rng(0), []
    for _ in range(64):
        coarse = Image.fromarray(rng.integers(0, 256, (47, 63, 3)).astype(np.uint8))
        file = io.BytesIO()
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        encoded.append((file.getvalue(), 0))
    pairs = []
    for _ in range(rounds):
        batches = stream.train_stream(encoded * task.batch_size, task.batch_size)
        next(batches)
        seconds = _seconds(lambda: [next(batches) for _ in range(STEPS)])
        batches.close()
        pairs.append((seconds, _seconds(step)))
    row = _row("", pairs, "< 1", STEPS)
    a_core = task.batch_size / row.seconds / (os.cpu_count() or 1)
    return row._replace(name=f"JPEG stream ({a_core:,.0f} images/s a core) / plain step")


def run(task: Task, rounds: int = 5, peer: Callable[[Task, int], Run] | None = None) -> list[Row]:
    """The whole table.

    Args:
        task: network, images, batch and precision.
        rounds: alternations a row.
        peer: makes STEPS training steps of the same task in another framework; None leaves its rows out.
    """
    line, plain = geometry.Line(), geometry.Simplex(1)
    steps = partial(stepper, task)
    cpu = jax.default_backend() == "cpu"
    of_plain, of_line = steps(plain), steps(line)
    compared = partial(compare, rounds=rounds, per=STEPS)
    points, num_images = 21, 4 * task.batch_size
    along, alone, pairs = (profiler(task, points, num_images, how) for how in ("along", "points", "pairs"))
    of_point = partial(compare, rounds=rounds, per=points)
    rows: list[Callable[[], Row]] = [  # what a row needs is made when its turn comes
        lambda: compared("line step / plain step", of_line, of_plain, "<= 1.05" if cpu else "<= 1.03"),
        *(
            lambda n=n: compared(f"simplex of {n} step / plain step", steps(geometry.Simplex(n)), of_plain, "<= 1.10")
            for n in range(3, 7)
        ),
        lambda: compared("2 samples a batch / 1", steps(line, 2), of_line, "<= 1.15"),
        lambda: compared("4 samples a batch / 1", steps(line, 4), of_line, "<= 1.15"),
        lambda: compared(
            f"{STEPS} steps a dispatch / one a dispatch", of_line, steps(line, dispatches=STEPS), "<= 1.05"
        ),
        lambda: compared(
            "3 seeds in one program / one after another", steps(plain, num_members=3), _repeated(of_plain, 3)
        ),
        lambda: compare_stream(task, of_plain, rounds),
        lambda: of_point("along 21 points / 21 scores", along, alone, "<= 1.05"),
        lambda: of_point("along 21 points / point by point, pair by pair", along, pairs, "< 1"),
    ]
    if peer is not None:
        of_peer = peer(task, STEPS)
        target = "as near as can be" if cpu else "< 1"
        rows += [
            lambda: compared("plain step / peer step", of_plain, of_peer, target),
            lambda: compared("line step / peer step", of_line, of_peer, target),
        ]
    measured, progress = [], Progress(len(rows), unit="row", label="benchmark")
    for row in rows:
        measured.append(row())
        progress.update(len(measured), f"{measured[-1].name}: {measured[-1].ratio:.3f}")
    progress.close()
    return measured


def table(rows: Sequence[Row]) -> str:
    """Rows as text, with a column for the spread of the ratio over rounds."""
    lines = [f"{'':48}  {'ratio':>6}  {'low':>6} {'high':>6}  {'ms':>9}  {'base ms':>9}  target"]
    for row in rows:
        numbers = (
            f"{row.ratio:6.3f}  {row.low:6.3f} {row.high:6.3f}  {1e3 * row.seconds:9.2f}  {1e3 * row.base_seconds:9.2f}"
        )
        lines.append(f"{row.name:48}  {numbers}  {row.target}")
    return "\n".join(lines)


def _repeated(run: Run, times: int) -> Run:
    def repeated() -> None:
        for _ in range(times):
            run()

    return repeated


def _data(task: Task, num: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num, task.size, task.size, task.channels)).astype(np.uint8)
    return images, rng.integers(0, 10, num).astype(np.int32)


def _seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _seconds_reversed(ours: Run, base: Run) -> tuple[float, float]:
    base_seconds = _seconds(base)
    return _seconds(ours), base_seconds
