"""Scores of many points of a stack at once, of networks that offer it: 100 x 100 points of a plane in one program.

Such a network has a method at_points(stack, points [T, K], inputs [B, ...]) -> outputs [T, B, ...].
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from subspaces_jax.arrays import Array
from subspaces_jax.data import batches
from subspaces_jax.evaluation import Measure, Targets, labels_only
from subspaces_jax.geometry import num_endpoints

PyTree = Any
AtPoints = Callable[[PyTree, jax.Array, jax.Array], jax.Array]
ROWS, ROWS_OF_CPU = 2**18, 2**11  # points times examples of one step: what keeps a device busy, and fits a CPU's cache


def measure(
    at_points: AtPoints,
    stack: PyTree,
    points: jax.Array,
    images: Array,
    labels: PyTree = (),
    measures: Sequence[Measure] = (),
    *,
    targets: Targets = labels_only,
    batch_size: int = 500,
    chunk_size: int = 0,
) -> list[dict[str, np.ndarray]]:
    """Measures of outputs at every point, each example counted once; compiled once for all points.

    What is not finite gives scores that are not.

    Args:
        at_points: (stack, points [T, K], images [B, ...]) -> outputs [T, B, ...]; hashable, compiled once for each.
        stack: leaves [K, ...].
        points: [T, K] coordinates.
        images, labels: [N, ...], and [N, ...] or (); in memory.
        measures: additive over examples, as `evaluation.measure` takes them.
        targets: (images, labels) -> what outputs are scored against.
        batch_size: B, examples of one step; the last batch is padded with examples that do not count.
        chunk_size: points of one step, 0 for as many as suit the device.

    Returns:
        What each measure reads, {name: [T, ...]}.

    Raises:
        ValueError: points that are not [T, K], or no examples.
    """
    num, size = len(points), min(batch_size, len(images))
    if np.ndim(points) != 2 or points.shape[1] != num_endpoints(stack) or not num or not size:
        raise ValueError(
            f"expected points [T, {num_endpoints(stack)}] and at least 1 example, got points of shape "
            f"{np.shape(points)} and {len(images)} examples"
        )
    chunk = chunk_size or max(1, (ROWS_OF_CPU if jax.default_backend() == "cpu" else ROWS) // size)
    chunk = -(-num // -(-num // chunk))  # chunks of nearly equal size
    places = np.minimum(np.arange(-(-num // chunk) * chunk), num - 1).reshape(-1, chunk)
    functions = tuple(of.sums for of in measures)
    chunks = jnp.asarray(points, jnp.float32)[places]
    found = _chunks(at_points, functions, targets, stack, chunks, jnp.asarray(images), labels, size)
    read = [jax.vmap(of.read)(sums) for of, sums in zip(measures, found)]
    return [{name: np.asarray(value)[:num] for name, value in of.items()} for of in read]


@partial(jax.jit, static_argnames=("at_points", "functions", "targets", "batch_size"))
def _chunks(at_points, functions, targets, stack, chunks, images, labels, batch_size):
    indices, masks = map(jnp.asarray, batches.every_example(len(images), batch_size))

    def of_batch(points, batch):
        rows, mask = batch
        inputs, own = jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0), (images, labels))
        outputs, wanted = at_points(stack, points, inputs), targets(inputs, own)
        return [jax.vmap(lambda of_point: of(of_point, wanted, mask))(outputs) for of in functions]

    def of_chunk(points):
        add = lambda total, batch: (jax.tree.map(jnp.add, total, of_batch(points, batch)), None)
        first = jax.tree.map(lambda leaf: leaf[0], (indices, masks))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(of_batch, points, first))
        return lax.scan(add, zeros, (indices, masks))[0]

    sums = lax.map(of_chunk, chunks)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), sums)
