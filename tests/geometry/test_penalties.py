"""The cosine penalty against NumPy on flattened weights."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from subspaces_jax import metrics
from subspaces_jax.geometry import cosine_penalty, endpoint_statistics, pairwise_products, random_pair, unstack

pytestmark = pytest.mark.usefixtures("strict_dtypes")
# Compiled whole, once a shape: operation by operation takes ten times as long
penalty, statistics = jax.jit(cosine_penalty), jax.jit(endpoint_statistics)
value_and_grads = jax.jit(jax.value_and_grad(cosine_penalty))
gradients_of_statistics = jax.jit(jax.jacrev(endpoint_statistics))


def gradients(stacked, i, j):
    return value_and_grads(stacked, i, j)[1]


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
        np.testing.assert_allclose(penalty(stacked, i, j), expected, rtol=1e-5)


def test_is_one_for_parallel_and_zero_for_orthogonal_endpoints():
    a, b = np.array([[1.0, 2.0], [0.0, 3.0]], np.float32), np.array([[-2.0, 1.0], [5.0, 0.0]], np.float32)
    for other, expected in ((a * -4, 1.0), (b, 0.0)):
        np.testing.assert_allclose(penalty({"kernel": np.stack([a, other])}, 0, 1), expected, atol=1e-6)


def test_is_invariant_to_scale_and_its_gradient_is_orthogonal(small_stack):
    stacked = small_stack(2)
    scaled = jax.tree.map(lambda leaf: leaf * jnp.array([3.0, 0.2]).reshape(2, *[1] * (leaf.ndim - 1)), stacked)
    np.testing.assert_allclose(penalty(scaled, 0, 1), penalty(stacked, 0, 1), rtol=1e-5)
    grads = gradients(stacked, 0, 1)
    for k in range(2):
        np.testing.assert_allclose(flat_kernels(grads)[k] @ flat_kernels(stacked)[k], 0.0, atol=1e-6)


def test_gradient_reaches_the_pair_and_its_kernels_only(small_stack):
    grads = gradients(small_stack(3), 0, 2)
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
    np.testing.assert_allclose(penalty(stacked, 0, 1), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="no leaf is selected among bias"):
        cosine_penalty({"bias": jnp.ones((2, 5))}, 0, 1)


def test_random_pair_is_uniform_over_pairs(getkey):
    assert random_pair(getkey(), 2) == (0, 1)
    i, j = np.asarray(jax.jit(jax.vmap(lambda key: random_pair(key, 4)))(jax.random.split(getkey(), 3000)))
    counts = {pair: int(np.sum((i == pair[0]) & (j == pair[1]))) for pair in itertools.combinations(range(4), 2)}
    assert sum(counts.values()) == 3000 and min(counts.values()) > 400
    with pytest.raises(ValueError, match="at least 2"):
        random_pair(getkey(), 1)


def test_statistics_equal_numpy(small_stack):
    stacked = small_stack(3)
    flat = flat_kernels(stacked)
    np.testing.assert_allclose(jax.jit(pairwise_products)(stacked), flat @ flat.T, rtol=1e-4, atol=1e-4)
    pairs = list(itertools.combinations(range(3), 2))
    found = statistics(stacked)
    distances = [np.linalg.norm(flat[i] - flat[j]) for i, j in pairs]
    np.testing.assert_allclose(found["distance"], np.mean(distances), rtol=1e-5)
    cosines = [(flat[i] @ flat[j] / np.linalg.norm(flat[i]) / np.linalg.norm(flat[j])) ** 2 for i, j in pairs]
    np.testing.assert_allclose(found["cosine_squared"], np.mean(cosines), rtol=1e-4)


TINY, HUGE = 1.2e-38, 2.0e38  # about the smallest normal float32, and less than the largest by a factor for the norm
A, B = np.array([[0.6, -0.3], [0.1, 1.0]]), np.array([[0.2, 0.5], [-0.7, 0.9]])
SINGULAR = {
    "first": (0 * A, B),
    "second": (A, 0 * B),
    "both": (0 * A, 0 * B),
    "zero, tiny": (0 * A, TINY * B),
    "zero, huge": (HUGE * A, 0 * B),
    "denormal": (1e-42 * A, B),
    "orthogonal": (np.diag([1.0, 0.0]), np.diag([0.0, 1.0])),
    "equal": (A, A),
    "opposite": (A, -A),
}


def pair_of(a, b):
    return {"kernel": np.stack([a, b]).astype(np.float32)}


def all_finite(tree):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", SINGULAR)
def test_values_and_gradients_are_finite_at_singular_points(name):
    stacked = pair_of(*SINGULAR[name])
    value, grads = value_and_grads(stacked, 0, 1)
    expected = 1.0 if name in ("equal", "opposite") else 0.0
    np.testing.assert_allclose(value, expected, atol=1e-6)
    assert all_finite(grads)
    found = statistics(stacked)
    np.testing.assert_allclose(found["cosine_squared"], expected, atol=1e-6)
    flat = np.asarray(stacked["kernel"], np.float64)
    np.testing.assert_allclose(found["distance"], np.linalg.norm(flat[0] - flat[1]), rtol=1e-5, atol=1e-37)
    assert all_finite(gradients_of_statistics(stacked))


def test_an_endpoint_of_zeros_has_cosine_zero_and_pulls_at_none():
    grads = gradients(pair_of(0 * A, B), 0, 1)
    np.testing.assert_array_equal(grads["kernel"], np.zeros((2, 2, 2)))


@pytest.mark.parametrize("scale_a", [200 * TINY, 1e-25, 1e-12, 1.0, 1e15, HUGE])
@pytest.mark.parametrize("scale_b", [200 * TINY, 1.0, HUGE])
def test_neither_overflows_nor_underflows(scale_a, scale_b):
    """Against float64, whose range the squares of float32 do not leave."""
    stacked = pair_of(scale_a * A, scale_b * B)
    a, b = (np.asarray(leaf, np.float64).ravel() for leaf in stacked["kernel"])
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    value, grads = value_and_grads(stacked, 0, 1)
    np.testing.assert_allclose(value, cosine**2, rtol=1e-5)
    for grad, x, y in ((grads["kernel"][0], a, b), (grads["kernel"][1], b, a)):
        across = y / np.linalg.norm(y) - cosine * x / np.linalg.norm(x)
        expected = 2 * cosine * across / np.linalg.norm(x)
        np.testing.assert_allclose(grad.ravel(), expected, rtol=1e-4, atol=2 * TINY)
    found = statistics(stacked)
    np.testing.assert_allclose(found["cosine_squared"], cosine**2, rtol=1e-5)
    apart = np.linalg.norm(a - b)
    if apart < np.finfo(np.float32).max:
        np.testing.assert_allclose(found["distance"], apart, rtol=1e-5)


def test_one_zero_endpoint_leaves_the_others_statistics():
    stacked = {"kernel": np.stack([1e-20 * A, 0 * A, 1e-20 * B]).astype(np.float32)}
    a, b = 1e-20 * A.ravel(), 1e-20 * B.ravel()
    found = statistics(stacked)
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(found["cosine_squared"], cosine**2 / 3, rtol=1e-5)
    distances = [np.linalg.norm(a), np.linalg.norm(b), np.linalg.norm(a - b)]
    np.testing.assert_allclose(found["distance"], np.mean(distances), rtol=1e-5)


def test_what_is_not_finite_stays_so():
    """Training stops at the first loss that is not finite, so no infinite weight may pass for a direction."""
    for bad in (np.inf, np.nan):
        broken = A.copy()
        broken[0, 1] = bad
        assert np.isnan(penalty(pair_of(broken, B), 0, 1))
        assert np.isnan(penalty(pair_of(0 * A, broken), 0, 1))


def test_gradients_are_those_of_finite_differences(small_stack):
    of_pair, of_stack = jax.jit(lambda tree: penalty(tree, 0, 1)), jax.jit(statistics)
    for scale in (1.0, 37.0):
        stacked = jax.tree.map(lambda leaf: np.float32(scale) * leaf, small_stack(2))
        check_grads(of_pair, (stacked,), 1, ["rev"], atol=1e-2, rtol=1e-2, eps=1e-2)
        check_grads(of_stack, (stacked,), 1, ["rev"], atol=1e-2, rtol=1e-2, eps=1e-2)
    # rows that are no arguments; and derivatives of derivatives
    known = jax.jit(lambda tree: cosine_penalty(tree, 0, 1))
    for of_known in (known, of_pair):
        check_grads(of_known, (small_stack(2),), 2, ["fwd", "rev"], atol=1e-2, rtol=1e-2, eps=1e-2)


def test_half_precision_is_summed_in_float32(getkey):
    kernels = jax.random.normal(getkey(), (2, 300, 300)).astype(jnp.float16)
    flat = np.asarray(kernels, np.float64).reshape(2, -1)
    expected = (flat[0] @ flat[1]) ** 2 / ((flat[0] @ flat[0]) * (flat[1] @ flat[1]))
    np.testing.assert_allclose(penalty({"kernel": kernels}, 0, 1), expected, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("scale", [200 * TINY, 1.0, HUGE])
def test_cosines_of_features_are_finite_at_zeros_and_at_any_scale(squared, scale):
    features = scale * np.stack([A[0], A[1], 0 * A[0]])
    others = np.stack([B[0], 0 * B[1], 0 * B[0]])
    args = features.astype(np.float32), others.astype(np.float32)
    cosine_of = jax.jit(metrics.feature_cosine, static_argnums=2)
    value, grads = jax.jit(jax.value_and_grad(cosine_of, (0, 1)), static_argnums=2)(*args, squared)
    cosine = A[0] @ B[0] / np.linalg.norm(A[0]) / np.linalg.norm(B[0])
    np.testing.assert_allclose(value, (cosine**2 if squared else cosine) / 3, rtol=1e-5)
    assert all_finite(grads) and np.any(grads[1][0])
    for grad, vectors in zip(grads, (features, others)):
        assert not np.any(grad[~vectors.any(-1)])
    check_grads(
        lambda rows: cosine_of(rows, args[1][:1], squared),
        (jnp.asarray(A[:1], jnp.float32),),
        1,
        ["rev"],
        atol=1e-2,
        rtol=1e-2,
        eps=1e-2,
    )


@pytest.mark.parametrize("largest", [TINY, 1e-30, 0.75, 1.0, 2.0, 5e5, HUGE])
def test_scales_are_powers_of_two(largest):
    scale = float(metrics.power_of_two(jnp.float32(largest)))
    assert np.frexp(scale)[0] == 0.5 and 1 <= np.float32(largest) / scale < 4
    assert np.isfinite(metrics.power_of_two(jnp.float32(0)))


def test_products_of_half_precision_are_in_float32():
    products = pairwise_products({"kernel": jnp.full((2, 100, 100), 3.0, jnp.float16)})
    np.testing.assert_array_equal(products, np.full((2, 2), 90_000.0))


def test_the_distance_of_endpoints_that_lie_close_together_keeps_its_digits():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(300, 300)).astype(np.float32)
    for gap in (1e-3, 1e-4, 1e-5):
        second = (first + gap * rng.normal(size=first.shape)).astype(np.float32)
        found = endpoint_statistics({"Dense_0": {"kernel": np.stack([first, second])}})
        expected = np.linalg.norm(first.astype(np.float64) - second)
        assert found["distance"] == pytest.approx(expected, rel=1e-4) and 0.999 < found["cosine_squared"] <= 1.0
