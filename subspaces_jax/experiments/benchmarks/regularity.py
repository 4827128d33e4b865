"""Rows of the regularity of deep networks' weights: p-variation of paths of layers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from subspaces_jax.experiments.benchmarks import Peer, Problem, Row, Run, compare, pruned
from subspaces_jax.pvariation import p_variation

EXPONENTS = (1.0, 1.5, 2.0, 3.0)
DIM = 225  # weights of a layer, 15 x 15
NUM_PATHS = 64  # of a batch
LONG = (6, 50)  # times as many layers, by blocks
MOST = 3  # rounds


def rows(problem: Problem, rounds: int, peer: Peer | None) -> list[Callable[[], Row]]:
    """The rows in order; what a row needs is made when its turn comes."""
    rounds = min(rounds, MOST)
    return [
        *(_row(compare_pruned, kind, p, problem, rounds) for kind in PATHS for p in EXPONENTS),
        *(_row(compare_scan, kind, 2.0, problem, rounds) for kind in PATHS),
        _row(compare_batch, "noisy", 2.0, problem, rounds),
        *(_row(compare_long, "noisy", 2.0, problem, times) for times in LONG),
    ]


def compare_pruned(kind: str, p: float, problem: Problem, rounds: int) -> Row:
    """One path, against the algorithm that skips blocks of points by the triangle inequality, on one core."""
    path = paths(kind, problem.num_layers)
    how = "C++" if pruned.is_compiled() else "NumPy"
    name = f"{p:g}-variation, {kind} path / pruned search, {how}"
    return compare(name, ours(path, p), lambda: pruned.variation(path, p), "< 1", rounds)


def compare_scan(kind: str, p: float, problem: Problem, rounds: int) -> Row:
    """One path, against a scan over its points with the distances of all pairs, both by JAX."""
    path = paths(kind, problem.num_layers)
    return compare(f"{p:g}-variation, {kind} path / O(L^2) scan", ours(path, p), scanned(path, p), "< 1", rounds)


def compare_batch(kind: str, p: float, problem: Problem, rounds: int) -> Row:
    """Many paths in one call, against the pruned search of one after the other; seconds are those of one path."""
    batch = np.stack([paths(kind, problem.num_layers, seed) for seed in range(NUM_PATHS)])
    base = lambda: [pruned.variation(path, p) for path in batch]
    name = f"{p:g}-variation, {NUM_PATHS} {kind} paths / pruned search"
    return compare(name, ours(batch, p), base, "< 1", 1, NUM_PATHS)


def compare_long(kind: str, p: float, problem: Problem, times: int) -> Row:
    """A path so long that its distances are found block by block, against the pruned search."""
    path = paths(kind, times * problem.num_layers)
    base = lambda: pruned.variation(path, p)
    name = f"{p:g}-variation, {kind} path, {times} x layers, blocked / pruned search"
    return compare(name, ours(path, p, method="blocked"), base, "< 1", 1)


def ours(path: np.ndarray, p: float, **options) -> Run:
    """What users call, on points that are on the device."""
    points = jnp.asarray(path)
    return lambda: jax.block_until_ready(p_variation(points, p, **options))


def scanned(path: np.ndarray, p: float) -> Run:
    """V[j] = max over m < j of V[m] + |x_m - x_j|^p, point after point, distances from a matrix of inner products."""
    points, index = jnp.asarray(path - path.mean(axis=0)), jnp.arange(len(path))

    @jax.jit
    def variation(points):
        products = jnp.matmul(points, points.T, precision="highest")
        squares = jnp.diagonal(products)
        costs = jnp.maximum(squares[:, None] + squares[None] - 2 * products, 0) ** (p / 2)

        def offer(values, j):
            return jnp.where(index > j, jnp.maximum(values, values[j] + costs[j]), values), None

        return lax.scan(offer, jnp.zeros(len(points)), index)[0][-1]

    return lambda: jax.block_until_ready(variation(points))


def smooth(num: int, rng: np.random.Generator) -> np.ndarray:
    """A curve of a few slow waves, [num, DIM]."""
    t = np.linspace(0.0, 1.0, num)[:, None]
    waves = rng.normal(size=(6, DIM))
    return sum(np.sin((k + 1) * 2 * t + k) * wave / (k + 1) for k, wave in enumerate(waves))


def noisy(num: int, rng: np.random.Generator) -> np.ndarray:
    """The same with independent noise, as of weights that were drawn independently."""
    return smooth(num, rng) + 0.1 * rng.normal(size=(num, DIM))


def brownian(num: int, rng: np.random.Generator) -> np.ndarray:
    """Brownian motion on [0, 1]."""
    return np.cumsum(rng.normal(size=(num, DIM)), axis=0) / np.sqrt(num)


PATHS = {"smooth": smooth, "noisy": noisy, "Brownian": brownian}


def paths(kind: str, num: int, seed: int = 0) -> np.ndarray:
    """[num, DIM] float32."""
    return PATHS[kind](num, np.random.default_rng(seed)).astype(np.float32)


def _row(compare: Callable[..., Row], *args) -> Callable[[], Row]:
    return lambda: compare(*args)
