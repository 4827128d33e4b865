"""The cosine penalty against NumPy on flattened weights."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subspaces_jax.geometry import cosine_penalty, endpoint_statistics, pairwise_products, random_pair, unstack

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def flat_kernels(stacked):
    """[K, D] of all kernels, float64, by NumPy alone."""
    parts = [stacked["Dense_0"]["kernel"], stacked["inner"]["Dense_1"]["kernel"]]
    return np.concatenate([np.asarray(part, np.float64).reshape(part.shape[0], -1) for part in parts], axis=1)


def test_equals_numpy_on_flattened_kernels(small_stack):
    stacked = small_stack(3)
    flat = flat_kernels(stacked)
    for i, j in itertools.combinations(range(3), 2):
        expected = (flat[i] @ flat[j]) ** 2 / ((flat[i] @ flat[i]) * (flat[j] @ flat[j]))
        np.testing.assert_allclose(cosine_penalty(stacked, i, j), expected, rtol=1e-5)
        np.testing.assert_allclose(jax.jit(cosine_penalty)(stacked, i, j), expected, rtol=1e-5)


def test_is_one_for_parallel_and_zero_for_orthogonal_endpoints():
    a, b = np.array([[1.0, 2.0], [0.0, 3.0]], np.float32), np.array([[-2.0, 1.0], [5.0, 0.0]], np.float32)
    for other, expected in ((a * -4, 1.0), (b, 0.0)):
        np.testing.assert_allclose(cosine_penalty({"kernel": jnp.stack([a, other])}, 0, 1), expected, atol=1e-6)


def test_is_invariant_to_scale_and_its_gradient_is_orthogonal(small_stack):
    stacked = small_stack(2)
    scaled = jax.tree.map(lambda leaf: leaf * jnp.array([3.0, 0.2]).reshape(2, *[1] * (leaf.ndim - 1)), stacked)
    np.testing.assert_allclose(cosine_penalty(scaled, 0, 1), cosine_penalty(stacked, 0, 1), rtol=1e-5)
    grads = jax.grad(cosine_penalty)(stacked, 0, 1)
    for k in range(2):
        np.testing.assert_allclose(flat_kernels(grads)[k] @ flat_kernels(stacked)[k], 0.0, atol=1e-6)


def test_gradient_reaches_the_pair_and_its_kernels_only(small_stack):
    grads = jax.grad(cosine_penalty)(small_stack(3), 0, 2)
    assert not np.any(grads["Dense_0"]["bias"]) and not np.any(grads["inner"]["scale"])
    first, untouched, last = unstack(grads)
    assert np.any(first["Dense_0"]["kernel"]) and np.any(last["Dense_0"]["kernel"])
    assert not np.any(untouched["Dense_0"]["kernel"])


def test_selection_is_the_callers(small_stack):
    stacked = small_stack(2)
    scale = np.asarray(stacked["inner"]["scale"], np.float64)
    expected = (scale[0] @ scale[1]) ** 2 / ((scale[0] @ scale[0]) * (scale[1] @ scale[1]))
    found = cosine_penalty(stacked, 0, 1, select=lambda name: name == "inner/scale")
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="no leaf is selected among Dense_0/bias"):
        cosine_penalty(stacked, 0, 1, select=lambda name: False)


def test_without_kernels_all_matrices_are_selected(getkey):
    first, second = (jax.random.normal(key, (2, 3, 4)) for key in jax.random.split(getkey()))
    flat = np.concatenate([np.asarray(leaf, np.float64).reshape(2, -1) for leaf in (first, second)], axis=1)
    expected = (flat[0] @ flat[1]) ** 2 / ((flat[0] @ flat[0]) * (flat[1] @ flat[1]))
    stacked = {"a": {"w": first, "bias": jnp.ones((2, 5))}, "b": {"w": second}}
    np.testing.assert_allclose(cosine_penalty(stacked, 0, 1), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="no leaf is selected among bias"):
        cosine_penalty({"bias": jnp.ones((2, 5))}, 0, 1)


def test_random_pair_is_uniform_over_pairs(getkey):
    assert random_pair(getkey(), 2) == (0, 1)
    i, j = jax.vmap(lambda key: jnp.stack(random_pair(key, 4)))(jax.random.split(getkey(), 3000)).T
    counts = {pair: int(np.sum((i == pair[0]) & (j == pair[1]))) for pair in itertools.combinations(range(4), 2)}
    assert sum(counts.values()) == 3000 and min(counts.values()) > 400
    with pytest.raises(ValueError, match="at least 2"):
        random_pair(getkey(), 1)


def test_statistics_equal_numpy(small_stack):
    stacked = small_stack(3)
    flat = flat_kernels(stacked)
    np.testing.assert_allclose(pairwise_products(stacked), flat @ flat.T, rtol=1e-4, atol=1e-4)
    pairs = list(itertools.combinations(range(3), 2))
    found = endpoint_statistics(stacked)
    distances = [np.linalg.norm(flat[i] - flat[j]) for i, j in pairs]
    np.testing.assert_allclose(found["distance"], np.mean(distances), rtol=1e-5)
    cosines = [(flat[i] @ flat[j] / np.linalg.norm(flat[i]) / np.linalg.norm(flat[j])) ** 2 for i, j in pairs]
    np.testing.assert_allclose(found["cosine_squared"], np.mean(cosines), rtol=1e-4)
