"""Scores of many points at once against NumPy on each point, whatever the chunks and batches."""

import jax.numpy as jnp
import numpy as np
import pytest

from subspaces_jax import tasks
from subspaces_jax.analysis import points
from subspaces_jax.evaluation import Measure


def linear(stack, coordinates, images):
    """Outputs of linear maps."""
    return jnp.einsum("tk,bi,kic->tbc", coordinates, images, stack["w"])


@pytest.mark.parametrize("batch_size, chunk_size", [(4, 3), (100, 0)])
def test_every_example_counts_once_at_every_point(batch_size, chunk_size):
    rng = np.random.default_rng(0)
    stack = {"w": rng.normal(size=(3, 2, 2))}
    coordinates, images, wanted = rng.normal(size=(7, 3)), rng.normal(size=(11, 2)), rng.normal(size=(11, 2))
    task = tasks.regression()
    (found,) = points.measure(
        linear, {"w": jnp.asarray(stack["w"], jnp.float32)}, coordinates, np.float32(images), np.float32(wanted),
        [Measure(task.scores, task.read)], batch_size=batch_size, chunk_size=chunk_size,
    )  # fmt: skip
    for t, point in enumerate(coordinates):
        outputs = images @ np.tensordot(point, stack["w"], 1)
        expected = np.mean(np.sum((outputs - wanted) ** 2, axis=1))
        assert found["loss"][t] == pytest.approx(expected, rel=1e-5)
    assert found["loss"].shape == (7,)


def test_points_of_another_stack_are_refused():
    stack, images = {"w": jnp.ones((3, 2, 2))}, np.ones((4, 2), np.float32)
    with pytest.raises(ValueError, match="expected points \\[T, 3\\] and at least 1 example, got .* \\(5, 2\\) and 4"):
        points.measure(linear, stack, np.ones((5, 2)), images)
    with pytest.raises(ValueError, match="and 0 examples"):
        points.measure(linear, stack, np.ones((5, 3)), images[:0])
