"""Rows of surfaces around deep residual networks: all points in one program, or one after the other."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from subspaces_jax import evaluation, geometry
from subspaces_jax.analysis import points, surfaces
from subspaces_jax.evaluation import Measure
from subspaces_jax.experiments.benchmarks import Peer, Problem, Row, experiment, row_of, seconds_of

DEPTH, WIDTH = 128, 15
SIDE = 100  # points of a side
EXAMPLES = 17  # as in the published surface
SOME = 400  # points that stand for all of them where one goes after the other


def rows(problem: Problem, rounds: int, peer: Peer | None) -> list[Callable[[], Row]]:
    """The row; what it needs is made when its turn comes."""
    return [lambda: compare_surfaces(problem, min(rounds, 3))]


def compare_surfaces(problem: Problem, rounds: int) -> Row:
    """Seconds a point of a surface in one program, against contractions that are scored one by one."""
    network = f"deep_residual(depth={DEPTH}, width={WIDTH}, alpha=0.75, gamma=1.0, initialisation=ntrunc)"
    made = experiment(problem._replace(network=network, batch_size=EXAMPLES), EXAMPLES, subspace="none", beta=0.0)
    key, of_task = jax.random.key(0), Measure(made.task.scores, made.task.read)
    params = jax.tree.map(lambda leaf: leaf[0], made.model.init(key, 1)["params"])
    directions = geometry.random_directions(
        params, key, orthogonal=True, fixed=made.model.network.frozen, layer_stacks=("blocks/kernel",)
    )
    plane = geometry.plane_along(params, directions)
    axes = surfaces.grid([(-plane.length, -plane.height), (plane.length, plane.height)], SIDE, 0.0)
    every = surfaces.grid_points(plane, *axes)
    some = every[jnp.linspace(0, len(every) - 1, min(SOME, len(every))).astype(int)]
    images, labels, at_points = made.data.test.images, made.data.test.labels, made.model.at_points
    assert at_points is not None, "deep residual networks offer it"

    def at_once() -> None:
        points.measure(at_points, plane.endpoints, every, images, labels, (of_task,), targets=made.model.targets)

    def one_by_one() -> None:
        evaluation.along(
            plane.endpoints, some, apply=made.model.apply, images=images, labels=labels, task=made.task,
            targets=made.model.targets, with_pairs=False, keep_outputs=False, finite=False, mesh=made.mesh,
        )  # fmt: skip

    at_once()
    one_by_one()
    pairs = [(seconds_of(at_once) / len(every), seconds_of(one_by_one) / len(some)) for _ in range(rounds)]
    name = f"surface of {SIDE} x {SIDE}, {DEPTH} blocks / point by point"
    return row_of(name, pairs, "< 1/5" if jax.default_backend() == "cpu" else "< 1/20", 1)
