"""Rows of the connectors: matching of units, weight adjustment, and a path of matched networks.

The paper's sizes, each in a run of its own (hidden layers of 2,000 and 6,144, features of 60,000 images):

    python -m launch.benchmark --systems=connections --num_units=6144 --path_units=2000 --num_examples=60000 --rounds=1
"""

import importlib.util
import logging
from collections.abc import Callable

import jax
import numpy as np
from scipy.optimize import linear_sum_assignment

from subspaces_jax import connecting
from subspaces_jax.experiments.benchmarks import Peer, Problem, Row, Run, compare
from subspaces_jax.networks import MLP

log = logging.getLogger(__name__)
INPUTS = 784  # of the layer whose units are matched; each has as many weights, a bias and CLASSES to what it writes
CLASSES = 10
FEATURES = 256  # that weights are adjusted on
BATCH = 500  # examples at a time
POINTS = 21  # of a path
ITERATIONS = 10**8  # at most, of POT's network simplex
MOST = 3  # rounds, so that the rows take half a minute together


def rows(problem: Problem, rounds: int, peer: Peer | None) -> list[Callable[[], Row]]:
    """The rows in order; what a row needs is made when its turn comes."""
    rounds = min(rounds, MOST)
    found = [lambda: compare_matching(problem.num_units, rounds)]
    if importlib.util.find_spec("ot") is None:
        log.warning("POT is not installed: matching is not compared with its solver")
    else:
        found.append(lambda: compare_matching_with_pot(problem.num_units, rounds))
    return [
        *found,
        lambda: compare_adjustment(problem.num_examples, FEATURES, rounds),
        lambda: compare_paths(problem.path_units, rounds),
    ]


def compare_matching(num_units: int, rounds: int) -> Row:
    """Units of one hidden layer matched, against SciPy's assignment on squared distances by NumPy in float64."""
    a, b = units(num_units)
    name = f"matching {num_units} units / SciPy on squared distances"
    return compare(name, lambda: connecting.match(a, b), lambda: by_distances(a, b), "<= 1.05", rounds)


def compare_matching_with_pot(num_units: int, rounds: int) -> Row:
    """Likewise, against POT's exact optimal transport of the same costs."""
    a, b = units(num_units)
    name = f"matching {num_units} units / POT's exact transport"
    return compare(name, lambda: connecting.match(a, b), lambda: by_transport(a, b), "< 1", rounds)


def compare_adjustment(num_examples: int, num_features: int, rounds: int) -> Row:
    """A kernel adjusted by Gram matrices gathered batch by batch, against the pseudoinverse of all features."""
    kernel, before, taken = features(num_examples, num_features)
    name = f"WA on {num_examples} x {num_features} features / NumPy's pinv"
    ours, base = lambda: by_grams(kernel, before, taken), lambda: by_pseudoinverse(kernel, before, taken)
    return compare(name, ours, base, "< 1", rounds)


def compare_paths(num_units: int, rounds: int) -> Row:
    """A path of matched networks whose assignment is solved once, against one solved at every t."""
    name = f"OT path of {POINTS} points, {num_units} units / a solve a point"
    return compare(name, path(num_units, once=True), path(num_units, once=False), "< 1", rounds, POINTS)


def units(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Of two networks, [num, INPUTS + 1 + CLASSES] float32 each, normal."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, num, INPUTS + 1 + CLASSES)).astype(np.float32)
    return a, b


def by_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The assignment [n] of the smallest sum of squared distances."""
    return linear_sum_assignment(squared_distances(a, b))[1]


def by_transport(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Likewise, as the largest entries of a transport plan between two uniform distributions."""
    import ot

    return np.argmax(ot.emd([], [], squared_distances(a, b), numItermax=ITERATIONS), axis=1)


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[n, d] and [n, d] -> [n, n], in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.sum(a**2, axis=1)[:, None] - 2.0 * a @ b.T + np.sum(b**2, axis=1)


def features(num_examples: int, num_features: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A kernel [d, CLASSES], and what it takes and is to take [N, d], as of ReLUs; float32."""
    rng = np.random.default_rng(0)
    before, taken = np.maximum(rng.normal(size=(2, num_examples, num_features)), 0.0).astype(np.float32)
    return rng.normal(size=(num_features, CLASSES)).astype(np.float32), before, taken


def by_grams(kernel: np.ndarray, before: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """The kernel [d, CLASSES] that does to what is taken as `kernel` did before."""
    starts = range(0, len(before), BATCH)
    batches = ((before[start : start + BATCH], taken[start : start + BATCH]) for start in starts)
    return np.asarray(connecting.solve(connecting.grams(batches, kernel=kernel), kernel).kernel)


def by_pseudoinverse(kernel: np.ndarray, before: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Likewise."""
    return np.linalg.pinv(taken) @ (before @ kernel)


def path(num_units: int, once: bool) -> Run:
    """The networks at POINTS t between two random networks of one hidden layer."""
    network = MLP(CLASSES, (num_units,))
    image = np.zeros((1, INPUTS), np.float32)
    a, b = (network.init(jax.random.key(seed), image)["params"] for seed in range(2))
    connected = lambda: connecting.connect("ot", a, b, network.unit_axes())

    def run() -> list:
        shared = connected() if once else None
        points = [(shared or connected()).params(t) for t in np.linspace(0.0, 1.0, POINTS)]
        return jax.block_until_ready(points)

    return run
