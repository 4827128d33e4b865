"""Rows of hyperplanes: statistics of a checkpoint's filters, and resets of every layer to every checkpoint."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subspaces_jax import analysis, evaluation, geometry
from subspaces_jax.analysis import reinitialisation
from subspaces_jax.experiments.benchmarks import Peer, Problem, Row, Run, compare, experiment

LARGE = "vgg(depth=16)"  # whose filters are looked at
THIN = "vgg(depth=16, width=4, hidden=16)"  # whose 13 convolutions are reset
CHECKPOINTS = 10
IMAGES = 4  # batches a reset is scored on
MANY = 16  # resets a pass on accelerators, as in the study
MOST = 3  # rounds, so that the rows take a minute together


def rows(problem: Problem, rounds: int, peer: Peer | None) -> list[Callable[[], Row]]:
    """The rows in order; what a row needs is made when its turn comes."""
    return [lambda: compare_statistics(problem, rounds), lambda: compare_resets(problem, min(rounds, MOST))]


def compare_statistics(problem: Problem, rounds: int) -> Row:
    """Cosines of all filters of one checkpoint, weights on the device, against NumPy on the host."""
    params = network(LARGE, problem)
    ours, base = statistics(params), by_numpy(jax.device_get(params))
    return compare("orientation of a checkpoint of VGG16 / NumPy", ours, base, "<= 1", rounds)


def compare_resets(problem: Problem, rounds: int) -> Row:
    """All resets in one call, against as many networks that are put together on the host and scored one by one."""
    runs = resets(THIN, problem, CHECKPOINTS), one_by_one(THIN, problem, CHECKPOINTS)
    num = len(parts(THIN, problem)) * CHECKPOINTS
    name = f"{num} resets to {CHECKPOINTS} checkpoints / one by one"
    return compare(name, *runs, "<= 1.05" if jax.default_backend() == "cpu" else "< 1", rounds, num)


def network(text: str, problem: Problem) -> Any:
    """Random weights of a network on the problem's images."""
    made = experiment(problem, problem.batch_size, network=text, subspace="none", beta=0.0)
    return geometry.unstack(made.model.init(jax.random.key(0), 1)["params"])[0]


def statistics(params: Any) -> Run:
    """Cosines, means and masses by layer, dense ones too."""
    return lambda: jax.block_until_ready(analysis.orientation(params, normalize=True, with_dense=True))


def by_numpy(params: Any) -> Run:
    """Cosines by layer, in float32."""

    def run() -> dict[str, np.ndarray]:
        found = {}
        for layer, of in params.items():
            weights = of["kernel"].reshape(-1, of["kernel"].shape[-1])
            found[layer] = weights.sum(0) / (np.linalg.norm(weights, axis=0) * np.sqrt(len(weights)))
        return found

    return run


def parts(text: str, problem: Problem) -> dict[str, tuple[str, ...]]:
    """The convolutions of a network, or its dense layers where it has none, each a part."""
    params = network(text, problem)
    kind = "convolutions" if any(leaf.ndim == 4 for leaf in jax.tree.leaves(params)) else "dense"
    return reinitialisation.parts(kind, params)


def resets(text: str, problem: Problem, num_checkpoints: int) -> Run:
    """Accuracies [1 + checkpoints x parts] of the trained network and of all resets, which are points of one stack."""
    made = _experiment(text, problem)
    stack = made.model.init(jax.random.key(0), 1 + num_checkpoints)["params"]
    points = reinitialisation.resets(geometry.unstack(stack)[0], parts(text, problem), 1 + num_checkpoints)
    options: dict[str, Any] = {"apply": made.model.apply, "task": made.task}
    params_at: Callable[..., Any] = geometry.contract
    chunk = None
    if jax.default_backend() != "cpu":
        chunk = reinitialisation.together(points, MANY, made.model.apply, None, made.task)
        points, params_at, options = chunk.points, chunk.params_at, {"apply": chunk.apply, "task": chunk.task}

    def run() -> np.ndarray:
        found = evaluation.along(
            stack, points, params_at, images=made.data.test.images, labels=made.data.test.labels, with_pairs=False,
            keep_outputs=False, batch_size=problem.batch_size, mesh=made.mesh, **options,
        )["accuracy"]  # fmt: skip
        return chunk.of(found) if chunk else found

    return run


def one_by_one(text: str, problem: Problem, num_checkpoints: int) -> Run:
    """The same accuracies of networks put together on the host, each scored in a call of its own."""
    made = _experiment(text, problem)
    stack = made.model.init(jax.random.key(0), 1 + num_checkpoints)["params"]
    trained, *others = jax.device_get(geometry.unstack(stack))
    layers, test = [layer for (layer,) in parts(text, problem).values()], made.data.test

    def score(params: Any) -> float:
        variables = {"params": jax.tree.map(jnp.asarray, params), "batch_stats": {}}
        found = evaluation.score(
            made.model.apply, variables, test.images, test.labels, problem.batch_size, task=made.task, mesh=made.mesh,
        )  # fmt: skip
        return found["accuracy"]

    return lambda: np.array(
        [score(trained), *(score(trained | {layer: other[layer]}) for other in others for layer in layers)]
    )


def _experiment(text: str, problem: Problem) -> Any:
    return experiment(problem, IMAGES * problem.batch_size, network=text, subspace="none", beta=0.0)
