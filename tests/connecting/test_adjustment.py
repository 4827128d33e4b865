"""Adjusted weights against NumPy's least squares and pseudo-inverse of whole feature matrices in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from small_networks import made

from subspaces_jax.connecting.adjustment import adjust_weights, grams, solve
from subspaces_jax.connecting.features import Features, layer_inputs, rows
from subspaces_jax.networks import MLP, ConvFC

RNG = np.random.default_rng(0)


def features(num, size, rank=None):
    found = np.maximum(RNG.normal(size=(num, size)), 0.0)
    if rank is not None:
        found = found[:, :rank] @ RNG.normal(size=(rank, size))
    return found.astype(np.float32)


@pytest.mark.parametrize("where", ["host", "device"])
def test_on_full_rank_features_it_is_least_squares(where):
    before, taken, kernel = features(300, 6), features(300, 6) + 0.5, RNG.normal(size=(6, 4)).astype(np.float32)
    expected = np.linalg.lstsq(taken.astype(float), before.astype(float) @ kernel)[0]
    found = adjust_weights(jnp.asarray(kernel), before, taken, where=where)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("where", ["host", "device"])
def test_on_rank_deficient_features_it_is_the_pseudo_inverse_and_the_rank_is_told(where):
    before, taken, kernel = features(300, 7), features(300, 7, rank=3), RNG.normal(size=(7, 4)).astype(np.float32)
    taken[:, 5] = 0.0  # a dead unit
    expected = np.linalg.pinv(taken.astype(float), rcond=1e-5) @ before.astype(float) @ kernel
    found = solve(grams([(before, taken)], where), jnp.asarray(kernel))
    np.testing.assert_allclose(found.kernel, expected, rtol=1e-4, atol=1e-5)
    assert (found.rank, found.size) == (3, 7)
    assert np.all(found.kernel[5] == 0.0)


def test_few_examples_are_fitted_with_least_norm():
    before, taken, kernel = features(4, 9), features(4, 9), RNG.normal(size=(9, 2)).astype(np.float32)
    found = adjust_weights(jnp.asarray(kernel), before, taken)
    np.testing.assert_allclose(taken @ found, before @ kernel, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found, np.linalg.pinv(taken.astype(float)) @ before @ kernel, rtol=1e-4, atol=1e-5)


def test_a_bias_is_the_weight_of_a_column_of_ones():
    before, taken, kernel = features(200, 5), features(200, 5), RNG.normal(size=(5, 3)).astype(np.float32)
    bias = RNG.normal(size=3).astype(np.float32)
    ones = np.concatenate([taken, np.ones((200, 1))], axis=1)
    expected = np.linalg.lstsq(ones, before.astype(float) @ kernel + bias)[0]
    found = adjust_weights(jnp.asarray(kernel), before, taken, jnp.asarray(bias))
    np.testing.assert_allclose(np.concatenate([found[0], found[1][None]]), expected, rtol=1e-5, atol=1e-5)


def test_a_ridge_is_that_of_the_normal_equations():
    before, taken, kernel = features(100, 5), features(100, 5), RNG.normal(size=(5, 3)).astype(np.float32)
    own = taken.T.astype(float) @ taken
    shrunk = own + 0.1 * np.trace(own) / 5 * np.eye(5)
    expected = np.linalg.solve(shrunk, taken.T.astype(float) @ before @ kernel)
    np.testing.assert_allclose(
        adjust_weights(jnp.asarray(kernel), before, taken, ridge=0.1), expected, rtol=1e-5, atol=1e-6
    )


def test_the_same_features_leave_the_kernel_and_batches_add_up():
    taken, kernel = features(120, 6), RNG.normal(size=(6, 4)).astype(np.float32)
    np.testing.assert_allclose(adjust_weights(jnp.asarray(kernel), taken, taken), kernel, rtol=1e-5, atol=1e-6)
    parts = grams((taken[i : i + 50], taken[i : i + 50]) for i in range(0, 120, 50))
    for found, expected in zip(parts, grams([(taken, taken)])):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(8, 3), (2, 2, 2, 3), (8, 4)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_narrow_kernel_takes_the_features_at_once_with_the_same_result(shape, with_bias):
    """Of a kernel less than half as wide as its features [in, out] sums are kept, and not [in, in]."""
    before, taken = features(90, 8), features(90, 8)
    kernel = jnp.asarray(RNG.normal(size=shape).astype(np.float32))
    bias = jnp.asarray(RNG.normal(size=shape[-1]).astype(np.float32)) if with_bias else None
    batches = [(before[:40], taken[:40]), (before[40:], taken[40:])]
    narrow, whole = grams(batches, "host", kernel), grams(batches, "host")
    assert narrow.cross.shape == (8, 3 if shape[-1] == 3 else 8) and whole.cross.shape == (8, 8)
    if shape[-1] == 3:
        flat = np.asarray(kernel, np.float64).reshape(8, 3)
        np.testing.assert_allclose(narrow.cross, taken.T.astype(float) @ before @ flat, rtol=1e-12, atol=1e-12)
    found, expected = (solve(sums, kernel, bias) for sums in (narrow, whole))
    assert found.kernel.shape == shape and (found.rank, found.size) == (expected.rank, expected.size)
    np.testing.assert_allclose(found.kernel, expected.kernel, rtol=1e-6, atol=1e-6)
    if with_bias:
        np.testing.assert_allclose(found.bias, expected.bias, rtol=1e-6, atol=1e-6)
    assert grams(batches, "device", kernel).cross.shape == (8, 8)


def test_patches_times_a_kernel_are_a_convolution():
    size = 5
    images = RNG.normal(size=(2, 6, 7, 3)).astype(np.float32)
    kernel = RNG.normal(size=(size, size, 3, 4)).astype(np.float32)
    maps = lax.conv_general_dilated(
        images, kernel, (1, 1), [(size // 2,) * 2] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    flat = kernel.reshape(-1, 4)
    np.testing.assert_allclose(rows(jnp.asarray(images), (size, size)) @ flat, maps.reshape(-1, 4), atol=1e-4)
    coarse = maps[:, ::3][:, :2, ::3][:, :, :2]  # rows 0 and 3 of 6, columns 0 and 3 of 7
    found = rows(jnp.asarray(images), (size, size), "coarse") @ flat
    np.testing.assert_allclose(found, coarse.reshape(-1, 4), atol=1e-4)
    assert rows(jnp.zeros((5, 1, 1, 2)), (3, 3), "coarse").shape == (5, 18)  # a map of one pixel has one place


@pytest.mark.parametrize(
    "network, shape, layer, kernel",
    [(MLP(2, (5,)), (4,), "Dense_1", ()), (ConvFC(2, (3, 2), ()), (9, 9, 1), "Conv_1", (5, 5))],
)
def test_features_of_two_networks_are_gathered_over_every_image(network, shape, layer, kernel):
    a, b = made(network, shape, 1), made(network, shape, 2)
    images = RNG.normal(size=(7, *shape)).astype(np.float32)
    inputs = layer_inputs(network)
    found = [rows(jax.jit(inputs)(params, images)[layer], kernel) for params in (a, b)]
    before, taken = (np.asarray(values, np.float64) for values in found)
    size = found[0].shape[-1] if not kernel else 3
    weights = RNG.normal(size=(*kernel, size, 2)).astype(np.float32)
    for source in (images, lambda: iter([(images[:5], 0), (images[5:], 0)])):
        gathered = Features(inputs, source, batch_size=3, patches="all").grams(layer, weights, a, b)
        np.testing.assert_allclose(gathered.own, taken.T @ taken, rtol=1e-5, atol=1e-5)
        expected = taken.T @ before @ weights.reshape(-1, 2)
        np.testing.assert_allclose(gathered.cross, expected, rtol=1e-4, atol=1e-4)
    assert gathered.count == len(before)


def test_bad_input_is_named():
    kernel = jnp.zeros((3, 2))
    with pytest.raises(ValueError, match=r"before and after are \[B, in\], got \(4, 3\) and \(5, 3\)"):
        adjust_weights(kernel, np.zeros((4, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"a kernel of shape \(3, 2\) does not take 4 features"):
        adjust_weights(kernel, np.zeros((4, 4)), np.zeros((4, 4)))
    with pytest.raises(ValueError, match="floor and ridge are at least 0"):
        adjust_weights(kernel, np.ones((4, 3)), np.ones((4, 3)), ridge=-1.0)
    with pytest.raises(ValueError, match="not finite"):
        adjust_weights(kernel, np.full((4, 3), np.inf), np.ones((4, 3)))
    with pytest.raises(ValueError, match="no batch of features"):
        grams([])
    with pytest.raises(ValueError, match="patches is one of coarse, all"):
        Features(None, np.zeros((1, 2)), patches="some").grams("Dense_0", np.zeros((2, 2)), {}, {})
    network = MLP(2, (3,))
    with pytest.raises(ValueError, match="inputs of Dense_7 are not known, those of Dense_1 are"):
        Features(layer_inputs(network), np.zeros((1, 2))).grams("Dense_7", np.zeros((3, 2)), *[made(network, (2,))] * 2)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_rows_of_patches_are_those_that_a_convolution_of_flax_multiplies(size):
    images = jax.random.normal(jax.random.key(0), (2, 6, 7, 3))
    layer = nn.Conv(4, (size, size), use_bias=False)
    variables = layer.init(jax.random.key(1), images)
    kernel = variables["params"]["kernel"].reshape(-1, 4)
    found = rows(images, (size, size)) @ kernel
    np.testing.assert_allclose(found.reshape(2, 6, 7, 4), layer.apply(variables, images), atol=1e-5)
