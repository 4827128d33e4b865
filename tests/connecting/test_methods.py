"""Connect methods against closed forms and NumPy in float64."""

import numpy as np
import pytest
from scipy import stats

from subspaces_jax.connecting import methods
from subspaces_jax.connecting.methods import METHODS, by_name

RNG = np.random.default_rng(0)
SHAPE = (30, 4)


def samples(seed=0, shape=SHAPE):
    generator = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(shape[1], shape[1]))
    return [(generator.normal(size=shape) @ mix + 3.0).astype(np.float32) for _ in range(2)]


@pytest.mark.parametrize("name", METHODS)
def test_ends_are_exact_and_approached(name):
    a, b = samples()
    method = METHODS[name]
    np.testing.assert_array_equal(method(a, b, 0.0), a)
    np.testing.assert_array_equal(method(a, b, 1.0), b)
    state = method.state(a, b)
    np.testing.assert_allclose(method.point(state, 1e-6), a, atol=2e-3)
    np.testing.assert_allclose(method.point(state, 1.0 - 1e-6), b, atol=2e-3)


@pytest.mark.parametrize("t", [0.25, 0.5, 0.9])
def test_lines_and_arcs_are_their_formulas(t):
    a, b = samples()
    mean, c, s = np.mean(np.concatenate([a, b]), axis=0), np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)
    np.testing.assert_allclose(methods.linear(a, b, t), (1 - t) * a + t * b, rtol=1e-5)
    np.testing.assert_allclose(methods.arc(a, b, t), mean + c * (a - mean) + s * (b - mean), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(methods.arc_without_mean(a, b, t), c * a + s * b, rtol=1e-5)


def test_the_arc_of_one_row_each_turns_about_their_mean():
    """Biases are one sample each: m + (c - s) (b1 - b2) / 2 with the elementwise mean m."""
    a, b = samples(shape=(1, 5))
    t = 0.3
    turn = np.cos(np.pi * t / 2) - np.sin(np.pi * t / 2)
    np.testing.assert_allclose(methods.arc(a, b, t), (a + b) / 2 + turn * (a - b) / 2, rtol=1e-5, atol=1e-5)


def test_in_all_principal_components_the_arc_is_the_arc():
    a, b = samples()
    np.testing.assert_allclose(methods.arc_pca(a, b, 0.4), methods.arc(a, b, 0.4), rtol=1e-4, atol=1e-4)


def test_in_few_principal_components_it_is_the_arc_there_and_a_line_elsewhere():
    a, b = samples()
    pooled = np.concatenate([a, b]).astype(float)
    mean = pooled.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov(pooled, rowvar=False))
    inside = vectors[:, -2:] @ vectors[:, -2:].T
    t, found = 0.4, by_name("arc_connect_PCA", 2)(a, b, 0.4)
    c, s = np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)
    expected = mean + (c * (a - mean) + s * (b - mean)) @ inside
    expected += ((1 - t) * (a - mean) + t * (b - mean)) @ (np.eye(4) - inside)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_arcs_keep_the_variance_that_a_line_halves():
    a, b = (RNG.normal(size=(6000, 2)).astype(np.float32) + 5.0 for _ in range(2))
    spread = lambda of: np.std(np.asarray(of), axis=0)
    np.testing.assert_allclose(spread(methods.linear(a, b, 0.5)), np.sqrt(0.5), rtol=0.04)
    for name in ("arc", "inverse_cdf", "inverse_cdf_pca", "simultaneous_diagonalisation"):
        np.testing.assert_allclose(spread(METHODS[name](a, b, 0.5)), 1.0, rtol=0.04, err_msg=name)


def by_hand_inverse(a, b, t):
    out = np.empty(a.shape)
    for k in range(a.shape[1]):
        pooled = np.sort(np.concatenate([a[:, k], b[:, k]]).astype(float))
        grid = (np.arange(len(pooled)) + 0.5) / len(pooled)
        z = [stats.norm.ppf(np.interp(x[:, k], pooled, grid)) for x in (a, b)]
        p = stats.norm.cdf(np.cos(np.pi * t / 2) * z[0] + np.sin(np.pi * t / 2) * z[1])
        out[:, k] = np.interp(p, grid, pooled)
    return out


def test_inverse_cdf_is_that_of_interpolated_distribution_functions():
    a, b = samples()
    np.testing.assert_allclose(methods.inverse_cdf(a, b, 0.3), by_hand_inverse(a, b, 0.3), rtol=1e-4, atol=1e-4)


def test_inverse_cdf_keeps_a_distribution_that_is_far_from_normal():
    a, b = (RNG.exponential(size=(6000, 1)).astype(np.float32) for _ in range(2))
    middle = np.asarray(methods.inverse_cdf(a, b, 0.5))
    assert stats.kstest(middle[:, 0], "expon").statistic < 0.03
    assert stats.kstest(np.asarray(methods.arc(a, b, 0.5))[:, 0], "expon").statistic > 0.05


def test_inverse_cdf_in_principal_components_is_the_same_in_turned_coordinates():
    a, b = samples()
    pooled = np.concatenate([a, b]).astype(float)
    mean = pooled.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov(pooled, rowvar=False))
    expected = by_hand_inverse((a - mean) @ vectors, (b - mean) @ vectors, 0.6) @ vectors.T + mean
    np.testing.assert_allclose(methods.inverse_cdf_pca(a, b, 0.6), expected, rtol=1e-3, atol=1e-3)


def test_samples_that_are_diagonal_in_one_basis_are_connected_there():
    """scipy.linalg.eigh solves the generalised problem of both covariances at once."""
    from scipy.linalg import eigh

    a, b = samples()
    b = (b * [1.0, 2.0, 0.5, 3.0]).astype(np.float32)
    covariances = [np.cov(x, rowvar=False, bias=True) for x in (a, b)]
    _, basis = eigh(covariances[1], covariances[0])
    mean = np.concatenate([a, b]).astype(float).mean(axis=0)
    expected = by_hand_inverse((a - mean) @ basis, (b - mean) @ basis, 0.3) @ np.linalg.inv(basis) + mean
    np.testing.assert_allclose(methods.simultaneous_diagonalisation(a, b, 0.3), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_a_network_is_connected_with_itself_by_itself_where_the_method_interpolates(name):
    """Few units of many weights, equal columns and a constant: nothing is divided by a variance of 0."""
    a, b = samples(shape=(3, 7))
    a[:, 2] = b[:, 2] = 1.5
    a[:, 4], b[:, 4] = a[:, 3], b[:, 3]
    found = np.asarray(METHODS[name](a, b, 0.5))
    assert np.all(np.isfinite(found))
    if name != "arc_without_mean":
        np.testing.assert_allclose(found[:, 2], 1.5, atol=1e-3)
        np.testing.assert_allclose(found[:, 4], found[:, 3], atol=1e-3)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"expected samples \[n, d\]"):
        methods.linear(np.zeros((2, 3)), np.zeros((3, 3)), 0.5)
    with pytest.raises(ValueError, match=r"t lies in \[0, 1\], got 1.5"):
        methods.arc(np.zeros((2, 3)), np.zeros((2, 3)), 1.5)
    with pytest.raises(ValueError, match="no connect method 'slerp'"):
        by_name("slerp")
    with pytest.raises(ValueError, match="takes no principal components"):
        by_name("arc", 3)
    with pytest.raises(ValueError, match="at least 1 principal component"):
        by_name("arc_pca", 0)


def test_single_samples_and_such_as_do_not_vary_are_connected_by_finite_numbers():
    """A bias is one sample, and has no variance to measure others by."""
    one, other = np.float32([[1, 2, 3]]), np.float32([[2, 0, 5]])
    np.testing.assert_allclose(methods.simultaneous_diagonalisation(one, other, 0.5), [[1.5, 1.0, 4.0]], rtol=1e-5)
    varied = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    assert np.isfinite(methods.simultaneous_diagonalisation(np.zeros((4, 3), np.float32), varied, 0.5)).all()


def test_between_whole_numbers_are_others():
    found = METHODS["linear"](np.array([[0, 3]]), np.array([[1, 4]]), 0.5)
    np.testing.assert_array_equal(found, [[0.5, 3.5]])
