"""What things cost relative to each other on this machine: alternating runs, ratios with their spread.

One file a system with its rows, made through `build`; ROWS lists them.
"""

import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from subspaces_jax.data import sources
from subspaces_jax.data.catalogue import DatasetInfo
from subspaces_jax.experiments import build
from subspaces_jax.records import Progress

STEPS = 8  # of one epoch of the benchmark's data, and of one timed run
SYSTEMS = (
    "subspaces",
    "curves",
    "connections",
    "deep_networks",
    "deep_surfaces",
    "hyperplanes",
    "regularity",
)  # modules of this package, each with rows(problem, rounds, peer)
Run = Callable[[], Any]


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
    pairs = [(seconds_of(ours), seconds_of(base)) if i % 2 else _seconds_reversed(ours, base) for i in range(rounds)]
    return row_of(name, pairs, target, per)


def row_of(name: str, pairs: Sequence[tuple[float, float]], target: str, per: int) -> Row:
    """The row of the seconds that runs of `per` units, and their bases, took."""
    ratios = [a / b for a, b in pairs]
    medians = [statistics.median(column) / per for column in zip(*pairs)]
    return Row._make([name, statistics.median(ratios), min(ratios), max(ratios), *medians, target])


class Problem(NamedTuple):
    """A network on random images.

    Attributes:
        network: a call, or a name, of the config field.
        size, channels: of the images; batch_size: B; dtype: of the computation.
        num_units: of the hidden layers that are matched.
        num_examples: that weights are adjusted on.
        path_units: of the network whose path is compared.
        num_layers: of the deep network whose weights' regularity is measured.
    """

    network: str = "cifar_resnet_20"
    size: int = 32
    channels: int = 3
    batch_size: int = 128
    dtype: str = "float32"
    num_units: int = 2000
    num_examples: int = 6000
    path_units: int = 300
    num_layers: int = 2000


class Peer(NamedTuple):
    """The same work in another framework.

    Attributes:
        steps: (problem, num_steps) -> that many training steps.
        curve_steps: likewise, of a Bezier curve with one bend, whose ends stay.
        lpips: (weights, images, images) -> their distances, see `analysis.lpips.distance`; NumPy.
    """

    steps: Callable[[Problem, int], Run]
    curve_steps: Callable[[Problem, int], Run]
    lpips: Callable[[Any, np.ndarray, np.ndarray], Run]


def experiment(problem: Problem, num_images: int, **fields) -> build.Experiment:
    """The problem as an experiment on one device, with random images for both splits."""
    images, labels = random_images(problem, num_images)
    data = sources.Arrays(images, labels)
    num, zeros = num_images, (0.0,) * problem.channels
    shape = (problem.size, problem.size, problem.channels)
    info = DatasetInfo(shape, 10, num, num, zeros, (1.0,) * problem.channels)
    usual = {"learning_rate": 1e-3, "schedule": "constant", "warmup_epochs": 0, "num_epochs": 1, "num_devices": 1}
    of_problem = {"network": problem.network, "batch_size": problem.batch_size, "dtype": problem.dtype}
    return build.experiment(usual | of_problem | fields, build.Given(info, data, data))


def run(problem: Problem, rounds: int = 5, peer: Peer | None = None, systems: Sequence[str] = SYSTEMS) -> list[Row]:
    """The whole table, or that of some systems.

    Args:
        problem: network, images, batch and precision.
        rounds: alternations a row.
        peer: another framework; None leaves its rows out.
        systems: of SYSTEMS.
    """
    modules = [importlib.import_module(f"{__name__}.{name}") for name in systems]
    rows = [row for module in modules for row in module.rows(problem, rounds, peer)]
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


def repeated(run: Run, times: int) -> Run:
    """A run `times` over."""

    def again() -> None:
        for _ in range(times):
            run()

    return again


def random_images(problem: Problem, num: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images [N, H, W, channels] and int32 labels [N]."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num, problem.size, problem.size, problem.channels)).astype(np.uint8)
    return images, rng.integers(0, 10, num).astype(np.int32)


def seconds_of(run: Run) -> float:
    """How long a run takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _seconds_reversed(ours: Run, base: Run) -> tuple[float, float]:
    base_seconds = seconds_of(base)
    return seconds_of(ours), base_seconds
