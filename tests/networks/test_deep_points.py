"""Many points of a stack of deep residual networks at once, against the networks one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subspaces_jax.networks import deep_residual
from subspaces_jax.networks.deep_residual import DeepResidual


@pytest.mark.parametrize("recursion", ["linear_skip", "inc_skip"])
def test_many_points_at_once_are_the_networks_of_the_points(recursion, monkeypatch):
    """Both forms, against networks whose weights NumPy contracts in float64."""
    rng = np.random.default_rng(0)
    network = DeepResidual(num_classes=2, depth=5, width=3, recursion=recursion, activation="elu")
    draw = lambda *shape: rng.normal(size=(3, *shape)).astype(np.float32)
    stack = {"readin": {"kernel": draw(4, 3)}, "blocks": {"kernel": draw(5, 3, 3)}, "readout": {"kernel": draw(3, 2)}}
    stack |= {"delta": np.array([0.4, 0.1, -0.2], np.float32)}
    points, images = rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=(6, 2, 2)).astype(np.float32)
    at = lambda leaf: np.tensordot(points.astype(np.float64), leaf.astype(np.float64), 1).astype(np.float32)
    networks = jax.tree.map(at, stack)
    expected = jax.jit(jax.vmap(lambda params: network.apply({"params": params}, images)))(networks)
    for times in (deep_residual.times_weights, deep_residual.times_products):
        monkeypatch.setattr(deep_residual, "times_weights", times)
        found = jax.jit(lambda *of: network.at_points(*of))(jax.tree.map(jnp.asarray, stack), points, images)
        assert found.shape == (4, 6, 2)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
