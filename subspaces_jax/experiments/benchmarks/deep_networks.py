"""Rows of deep residual networks: what it costs to measure their weights' variations in every step."""

from collections.abc import Callable
from functools import partial

from subspaces_jax.experiments.benchmarks import STEPS, Peer, Problem, Row, compare
from subspaces_jax.experiments.benchmarks.subspaces import stepper

DEPTH, WIDTH = 2000, 15
BATCHES = 4  # of the problem's that a step takes: such networks train on all examples at once


def rows(problem: Problem, rounds: int, peer: Peer | None) -> list[Callable[[], Row]]:
    """The rows in order; what a row needs is made when its turn comes."""
    network = f"deep_residual(depth={DEPTH}, width={WIDTH}, alpha=0.75, gamma=1.0, initialisation=ntrunc)"
    deep = problem._replace(network=network, batch_size=BATCHES * problem.batch_size)
    step = partial(stepper, deep, "none", dispatches=STEPS, momentum=0.0, weight_decay=0.0)
    name = f"deep residual step of {DEPTH} blocks, variations / without"
    return [lambda: compare(name, step(statistics="p_variation"), step(), "<= 1.10", rounds, STEPS)]
