"""Rows of the second system: Bezier curves between networks, their evaluation, planes, and LPIPS."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subspaces_jax import batch_stats, geometry
from subspaces_jax.analysis import lpips, surfaces
from subspaces_jax.data import batches
from subspaces_jax.experiments.benchmarks import STEPS, Peer, Problem, Row, Run, compare, experiment
from subspaces_jax.experiments.benchmarks.subspaces import profiler, stepper

CURVE = "bezier(3)"
POINTS = 21  # of a curve
SIDE = 21  # points of a side of a plane
FEW = 4  # images of each split at a point of a plane, so that its row takes a minute
IMAGES = (64, 64, 3)  # that LPIPS compares


def rows(problem: Problem, rounds: int, peer: Peer | None) -> list[Callable[[], Row]]:
    """The rows in order; what a row needs is made when its turn comes."""
    cpu = jax.default_backend() == "cpu"
    of_point, num_images = partial(compare, rounds=rounds, per=POINTS), 4 * problem.batch_size
    along = lambda: profiler(problem, POINTS, num_images, "along", CURVE, both=True)
    alone = lambda: profiler(problem, POINTS, num_images, "points", CURVE, both=True)
    made: list[Callable[[], Row]] = [
        lambda: compare(
            "curve step / plain step",
            curve_steps(problem),
            stepper(problem, "none"),
            "<= 1.05" if cpu else "<= 1.03",
            rounds,
            STEPS,
        ),
        lambda: of_point(f"along {POINTS} points of a curve / point by point", along(), alone(), "<= 1.05"),
        lambda: of_point(
            f"along {POINTS} points of a curve / batch by batch", along(), looper(problem, POINTS, num_images), "< 1"
        ),
        lambda: compare_planes(problem, min(rounds, 3)),
    ]
    if peer is not None:
        made += [
            lambda: compare_steps(problem, rounds, peer.curve_steps),
            lambda: compare_lpips(problem, rounds, peer),
        ]
    return made


def curve_steps(problem: Problem) -> Run:
    """STEPS training steps of a curve with one bend, whose ends stay and whose drawn point decays."""
    return stepper(problem, CURVE, beta=0.0, frozen_endpoints="ends", decay="point")


def compare_steps(problem: Problem, rounds: int, of_peer: Callable[[Problem, int], Run]) -> Row:
    """A step of a curve against the peer's."""
    target = "as near as can be" if jax.default_backend() == "cpu" else "< 1"
    runs = curve_steps(problem), of_peer(problem, STEPS)
    return compare("curve step / peer curve step", *runs, target, rounds, STEPS)


def compare_planes(problem: Problem, rounds: int) -> Row:
    """A plane of SIDE x SIDE points in one call against as many calls, on FEW images of both splits."""
    points = plane(SIDE)
    one, many = (profiler(problem, points, FEW, how, CURVE, both=True) for how in ("along", "calls"))
    name = f"plane of {len(points)} points, {FEW} images / {len(points)} calls"
    return compare(name, one, many, "<= 1", rounds, len(points))


def compare_lpips(problem: Problem, rounds: int, peer: Peer) -> Row:
    """Distances of a batch of images against the peer's, both with the same random weights."""
    weights, rng = random_weights(), np.random.default_rng(0)
    pair = rng.random((2, problem.batch_size, *IMAGES), np.float32)
    on_device = jnp.asarray(pair)
    ours = lambda: jax.block_until_ready(lpips.distance(weights, *on_device))
    name = "LPIPS of {} images of {}x{} / peer's".format(problem.batch_size, *IMAGES)
    target = "as near as can be" if jax.default_backend() == "cpu" else "< 1"
    return compare(name, ours, peer.lpips(weights, *pair), target, rounds)


def plane(num: int) -> jax.Array:
    """Coordinates [num^2, 3] of a plane through the control points of a curve whose bend is half a length away."""
    through = geometry.plane_through({"x": jnp.zeros(2)}, {"x": jnp.array([1.0, 0.0])}, {"x": jnp.array([0.5, 0.5])})
    points = surfaces.grid_points(through, *surfaces.grid(through.corners, num))
    return points[:, jnp.array([0, 2, 1])]  # the bend is between the ends


def looper(problem: Problem, num_points: int, num_images: int) -> Run:
    """Points of a curve scored on both splits by a loop over batches on the host, as over a data loader.

    At each point one pass refreshes the statistics and two passes score, a dispatch a batch; all functions are compiled
    once.
    """
    made = experiment(problem, num_images, subspace=CURVE)
    variables = made.model.init(jax.random.key(0), made.space.num_endpoints)
    stack, stats = variables["params"], variables.get("batch_stats", {})
    images, labels = made.data.test.images, made.data.test.labels
    contracted, of_batch = jax.jit(geometry.contract), partial(batch_stats.of_batch, made.model.apply_train)

    @jax.jit
    def refreshed(network, images, key, number):
        of_this = of_batch(network, network["batch_stats"], images, key)
        mean = lambda old, new: old + (new - old) / number
        return network | {"batch_stats": jax.tree.map(mean, network["batch_stats"], of_this)}

    @jax.jit
    def sums(network, images, labels):
        outputs = made.model.apply(network, images)
        return made.task.scores(outputs, made.model.targets(images, labels), jnp.ones(images.shape[0]))

    def run() -> None:
        order = batches.full_batches(num_images, problem.batch_size)
        for point in made.space.grid(num_points):
            network = {"params": contracted(stack, point), "batch_stats": stats}
            if stats:
                for number, rows in enumerate(order, start=1):
                    network = refreshed(network, images[rows], made.refresh_key, number)
            for _ in ("training", "test"):
                total: Any = None
                for rows in order:
                    found = jax.device_get(sums(network, images[rows], labels[rows]))
                    total = found if total is None else jax.tree.map(np.add, total, found)
                made.task.read(total)

    return run


def random_weights() -> lpips.Weights:
    """Of LPIPS with AlexNet, of the right shapes: their values do not count for time."""
    net, rng = lpips.NETS["alex"], np.random.default_rng(0)
    shapes = jax.eval_shape(net.module.init_with_output, jax.random.key(0), jax.ShapeDtypeStruct((1, *IMAGES), "f4"))
    normal = lambda leaf: jnp.asarray(rng.normal(0.0, 0.05, leaf.shape), jnp.float32)
    heads = tuple(jnp.asarray(rng.random(tap.shape[-1]), jnp.float32) for tap in shapes[0])
    return lpips.Weights("alex", jax.tree.map(normal, shapes[1]["params"]), heads)
