"""Shapes and types of arrays in annotations are checked while tests run, see --jaxtyping-packages in pyproject.toml."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from subspaces_jax import batch_stats, geometry, losses, metrics
from subspaces_jax.analysis import ensembles, variation
from subspaces_jax.connecting import adjustment, matching, products
from subspaces_jax.geometry import penalties
from subspaces_jax.pvariation import distances

WRONG = {
    "geometry": lambda: geometry.init_stack(None, np.zeros(2, np.uint32), 2),  # a key is one of jax.random.key
    "penalties": lambda: penalties.squared_cosine([np.zeros((2, 3), np.int32)], 0, 1),
    "losses": lambda: losses.cross_entropy(jnp.zeros((4, 3)), jnp.zeros(4)),
    "metrics": lambda: metrics.confusion_sums(jnp.zeros((4, 3)), jnp.zeros(5, int), jnp.ones(4)),
    "pvariation": lambda: distances.between(jnp.zeros((4, 3)), jnp.zeros((5, 2)), "l2"),
    "matching": lambda: matching.assign(np.zeros((3, 2))),
    "products": lambda: products._split_products(jnp.zeros((3, 2)), jnp.zeros((4, 2))),
    "adjustment": lambda: adjustment._num_rows(np.zeros((2, 2), np.int32)),
    "analysis": lambda: ensembles.pair_matrices(jnp.zeros((4, 3))),
    "batch_stats": lambda: batch_stats.refresh_batch_stats(None, {}, None, 0),
    "within jit": lambda: jax.jit(variation.norms)(jnp.zeros((), jnp.float32)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_shape_or_type_is_seen_in_tests(name):
    with pytest.raises(jaxtyping.TypeCheckError, match="Type-check error whilst checking the parameters"):
        WRONG[name]()


def test_annotations_hold_for_tracers():
    ts = jnp.linspace(0.0, 1.0, 5)
    line = geometry.Line()
    np.testing.assert_array_equal(jax.vmap(line.coordinates)(ts), np.stack([1 - ts, ts], axis=-1))
    of_keys = jax.jit(jax.vmap(line.sample))(jax.random.split(jax.random.key(0), 4))
    np.testing.assert_allclose(of_keys.sum(-1), np.ones(4), rtol=1e-6)
