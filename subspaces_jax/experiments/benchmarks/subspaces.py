"""Rows of the first system: trained subspaces of classifiers, their evaluation, and streams."""

import io
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subspaces_jax import batch_stats, evaluation, geometry, parallel, rngs
from subspaces_jax.experiments import evaluate
from subspaces_jax.experiments.benchmarks import (
    STEPS,
    Peer,
    Problem,
    Row,
    Run,
    compare,
    experiment,
    repeated,
    row_of,
    seconds_of,
)
from subspaces_jax.experiments.build.steps import of_members


def rows(problem: Problem, rounds: int, peer: Peer | None) -> list[Callable[[], Row]]:
    """The rows in order; what a row needs is made when its turn comes."""
    steps = partial(stepper, problem)
    cpu = jax.default_backend() == "cpu"
    of_plain, of_line = steps("none"), steps("line")
    compared = partial(compare, rounds=rounds, per=STEPS)
    points, num_images = 21, 4 * problem.batch_size
    along, alone, pairs = (profiler(problem, points, num_images, how) for how in ("along", "points", "pairs"))
    of_point = partial(compare, rounds=rounds, per=points)
    made: list[Callable[[], Row]] = [
        lambda: compared("line step / plain step", of_line, of_plain, "<= 1.05" if cpu else "<= 1.03"),
        *(
            lambda n=n: compared(f"simplex of {n} step / plain step", steps(f"simplex({n})"), of_plain, "<= 1.10")
            for n in range(3, 7)
        ),
        lambda: compared("2 samples a batch / 1", steps("line", 2), of_line, "<= 1.15"),
        lambda: compared("4 samples a batch / 1", steps("line", 4), of_line, "<= 1.15"),
        lambda: compared(
            f"{STEPS} steps a dispatch / one a dispatch", of_line, steps("line", dispatches=STEPS), "<= 1.05"
        ),
        lambda: compared(
            "3 seeds in one program / one after another", steps("none", num_members=3), repeated(of_plain, 3)
        ),
        lambda: compare_stream(problem, of_plain, rounds),
        lambda: of_point("along 21 points / 21 scores", along, alone, "<= 1.05"),
        lambda: of_point("along 21 points / point by point, pair by pair", along, pairs, "< 1"),
    ]
    if peer is not None:
        of_peer = peer.steps(problem, STEPS)
        target = "as near as can be" if cpu else "< 1"
        made += [
            lambda: compared("plain step / peer step", of_plain, of_peer, target),
            lambda: compared("line step / peer step", of_line, of_peer, target),
        ]
    return made


def stepper(
    problem: Problem, subspace: str, num_samples: int = 1, dispatches: int = 1, num_members: int = 1, **fields: Any
) -> Run:
    """STEPS training steps in `dispatches` dispatches, as a training run does them; `fields` are a config's."""
    usual = {
        "subspace": subspace,
        "beta": 0.0 if subspace == "none" else 1.0,
        "num_samples": num_samples,
        "num_members": num_members,
    }
    made = experiment(problem, STEPS * problem.batch_size, **usual | fields)
    state = parallel.replicate(made.programs.initial_state(), made.mesh, of_members(num_members))
    advance, data = (
        made.programs.advance(state.params),
        {"images": made.data.train.images, "labels": made.data.train.labels},
    )
    data = parallel.replicate(data, made.mesh)
    indices = made.programs.epoch_order()(jnp.stack([rngs.stream(key, "order") for key in made.keys]), 0)
    held = [state]

    def run() -> None:
        for _ in range(dispatches):
            held[0], report = advance(held[0], data, indices, STEPS // dispatches)
        jax.block_until_ready(report)

    return run


def profiler(
    problem: Problem, points: Any, num_images: int, how: str, subspace: str = "line", both: bool = False
) -> Run:
    """Points of a subspace scored with refreshed statistics, in one of four ways.

    "along": with all two-point ensembles, by `along`. "calls": each by an `along` of its own. "points": each point by
    passes of its own, no ensembles. "pairs": each point, and then each ensemble from its two networks anew, as where
    every ensemble is an evaluation of its own.

    Args:
        problem: its batch size counts for all passes.
        points: coordinates [T, K], or the number of the subspace's grid.
        num_images: of each split.
        how: see above.
        subspace: of the config field.
        both: whether both splits are scored, without ensembles, as `studies.profiles` does.
    """
    made = experiment(problem, num_images, subspace=subspace, eval_batch_size=problem.batch_size)
    variables = made.model.init(jax.random.key(0), made.space.num_endpoints)
    stack, stats = variables["params"], variables.get("batch_stats", {})
    points = made.space.grid(points) if isinstance(points, int) else points
    images, labels = evaluation.on_device((made.data.test.images, made.data.test.labels), made.mesh)
    of_passes = evaluate.passes(made) | {"images": images, "labels": labels, "train_images": images}
    size, mesh, apply = problem.batch_size, made.mesh, made.model.apply
    contracted = jax.jit(lambda stack, point: geometry.contract(stack, point))

    def scored(network: dict) -> None:
        evaluation.score(apply, network, images, labels, size, task=made.task, targets=made.model.targets, mesh=mesh)

    if both:
        of_passes |= {"with_pairs": False, "keep_outputs": False, "visit": lambda t, network: scored(network)}

    def network_at(point: jax.Array) -> dict:
        at = {"params": contracted(stack, point), "batch_stats": stats}
        refreshed = batch_stats.refresh_batch_stats(made.model.apply_train, at, images, made.refresh_key, size, mesh)
        return at | {"batch_stats": refreshed}

    def along(points: jax.Array = points) -> None:
        evaluation.along(stack, points, batch_stats=stats, **of_passes)

    def call_by_call() -> None:
        for t in range(len(points)):
            along(points[t : t + 1])

    def one_by_one() -> None:
        for point in points:
            network = network_at(point)
            for _ in range(2 if both else 1):
                scored(network)

    def pair_by_pair() -> None:
        one_by_one()
        for point, mirrored in zip(points, points[::-1]):
            first, second = (evaluation.predict(apply, network_at(p), images, size, mesh) for p in (point, mirrored))
            evaluation.pair_scores(made.task, first, second, labels)

    return {"along": along, "calls": call_by_call, "points": one_by_one, "pairs": pair_by_pair}[how]


def compare_stream(problem: Problem, step: Run, rounds: int = 5) -> Row:
    """A training batch of 224 x 224 crops of JPEG files of 500 x 375, decoded by one thread a core, against a step of
    it.

    Timed from the first batch of a cold stream on, so that what is made ahead does not count; nothing else runs
    meanwhile.

    Args:
        problem: its batch size counts.
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
        batches = stream.train_stream(encoded * problem.batch_size, problem.batch_size)
        next(batches)
        seconds = seconds_of(lambda: [next(batches) for _ in range(STEPS)])
        batches.close()
        pairs.append((seconds, seconds_of(step)))
    row = row_of("", pairs, "< 1", STEPS)
    a_core = problem.batch_size / row.seconds / (os.cpu_count() or 1)
    return row._replace(name=f"JPEG stream ({a_core:,.0f} images/s a core) / plain step")
