"""Every subspace through shared properties, and each through an oracle of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from subspaces_jax.geometry import Arc, Bezier, Chain, Line, Simplex, layerwise

pytestmark = pytest.mark.usefixtures("strict_dtypes")

CURVES = {
    "line": Line(),
    "bezier2": Bezier(2),
    "bezier3": Bezier(3),
    "bezier7": Bezier(7),
    "chain2": Chain(2),
    "chain3": Chain(3),
    "chain6": Chain(6),
    "arc": Arc(),
}
SIMPLEXES = {f"simplex{n}": Simplex(n) for n in (1, 2, 3, 6)}
SUBSPACES = CURVES | SIMPLEXES
FIRST_AND_LAST = {"arc": (0, 1)}  # rows of the stack that t = 0 and t = 1 stand for, where not first and last


def subspaces(table):
    return pytest.mark.parametrize("subspace", table.values(), ids=table.keys())


@subspaces(SUBSPACES)
def test_rows_sum_to_one(subspace, getkey):
    drawn = jax.jit(subspace.sample, static_argnums=1)(getkey(), (50,))
    for rows in (drawn, subspace.grid(5), np.asarray(subspace.midpoint)[None]):
        assert rows.shape[-1] == subspace.num_endpoints
        assert rows.dtype == jnp.float32
        np.testing.assert_allclose(np.sum(rows, axis=-1), 1.0, atol=1e-6)


@subspaces(SUBSPACES)
def test_sample_has_the_shape_asked_for_and_obeys_jit(subspace, getkey):
    key = getkey()
    assert subspace.sample(key).shape == (subspace.num_endpoints,)
    eager = subspace.sample(key, (2, 3))
    assert eager.shape == (2, 3, subspace.num_endpoints)
    np.testing.assert_allclose(jax.jit(lambda k: subspace.sample(k, (2, 3)))(key), eager, rtol=1e-6)


@subspaces(SUBSPACES)
def test_hashable_and_equal_by_value(subspace):
    assert hash(subspace) == hash(type(subspace)(**{f: getattr(subspace, f) for f in subspace.__dataclass_fields__}))


@subspaces(CURVES)
def test_ends_are_one_hot_bit_for_bit(subspace, request):
    name = request.node.callspec.id
    first, last = FIRST_AND_LAST.get(name, (0, subspace.num_endpoints - 1))
    one_hot = np.eye(subspace.num_endpoints, dtype=np.float32)
    np.testing.assert_array_equal(subspace.coordinates(jnp.float32(0)), one_hot[first])
    np.testing.assert_array_equal(subspace.coordinates(jnp.float32(1)), one_hot[last])
    np.testing.assert_array_equal(np.asarray(subspace.grid(7))[[0, -1]], one_hot[[first, last]])


@subspaces(CURVES)
def test_derivative_is_finite_and_equals_differences(subspace):
    forward, reverse = (jax.jit(of(subspace.coordinates)) for of in (jax.jacfwd, jax.jacrev))
    coordinates = jax.jit(subspace.coordinates)
    for end in (0.0, 1.0):
        assert np.isfinite(forward(np.float32(end))).all()
        assert np.isfinite(reverse(np.float32(end))).all()
    for t in (0.13, 0.47, 0.93):
        after, before = (np.asarray(coordinates(np.float32(t + step))) for step in (1e-3, -1e-3))
        np.testing.assert_allclose(forward(np.float32(t)), (after - before) / 2e-3, atol=2e-3)


@subspaces(CURVES)
def test_grid_is_equally_spaced_and_midpoint_is_its_middle(subspace):
    grid, t = np.asarray(subspace.grid(21)), np.linspace(0.0, 1.0, 21, dtype=np.float32)
    np.testing.assert_allclose(grid, subspace.coordinates(t), atol=1e-6)
    np.testing.assert_allclose(grid[10], subspace.midpoint, atol=1e-6)


@pytest.mark.parametrize("num_endpoints", [2, 3, 5, 9])
def test_bezier_equals_scipy_bernstein(num_endpoints):
    t = np.linspace(0, 1, 33)
    k = np.arange(num_endpoints)
    n = num_endpoints - 1
    bernstein = scipy.special.binom(n, k) * t[:, None] ** k * (1 - t[:, None]) ** (n - k)
    np.testing.assert_allclose(Bezier(num_endpoints).coordinates(jnp.asarray(t, jnp.float32)), bernstein, atol=1e-6)


@pytest.mark.parametrize("num_endpoints", [2, 3, 5])
def test_chain_equals_numpy_interpolation(num_endpoints):
    t, knots = np.linspace(0, 1, 41), np.linspace(0, 1, num_endpoints)
    values = np.random.default_rng(0).normal(size=num_endpoints)
    coordinates = Chain(num_endpoints).coordinates(jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(coordinates @ values.astype(np.float32), np.interp(t, knots, values), atol=1e-5)


def test_line_is_the_two_point_form_of_all_others():
    t = jnp.linspace(0.0, 1.0, 9)
    for subspace in (Bezier(2), Chain(2)):
        np.testing.assert_allclose(subspace.coordinates(t), Line().coordinates(t), atol=1e-7)
    np.testing.assert_array_equal(Simplex(2).coordinates(Line().coordinates(t)), Line().coordinates(t))


def test_arc_is_the_closed_form():
    t = np.linspace(0, 1, 17)
    cosine, sine = np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)
    expected = np.stack([cosine, sine, 1 - cosine - sine], -1)
    np.testing.assert_allclose(Arc().coordinates(jnp.asarray(t, jnp.float32)), expected, atol=1e-6)


@pytest.mark.parametrize("n", [2, 3, 6])
def test_simplex_sampling_is_a_flat_dirichlet(n, getkey):
    draws = np.asarray(jax.jit(Simplex(n).sample, static_argnums=1)(getkey(), (20_000,)))
    np.testing.assert_allclose(draws.mean(0), 1 / n, atol=0.01)
    np.testing.assert_allclose(draws.var(0), (n - 1) / (n**2 * (n + 1)), rtol=0.06)
    for k in range(n):  # marginals are Beta(1, n - 1)
        assert scipy.stats.kstest(draws[:, k], scipy.stats.beta(1, n - 1).cdf).pvalue > 1e-4


@subspaces(CURVES)
def test_curve_sampling_is_uniform_in_t(subspace, getkey):
    draws = np.asarray(jax.jit(subspace.sample, static_argnums=1)(getkey(), (5_000,)))
    t = np.random.default_rng(1).uniform(size=5_000).astype(np.float32)
    expected = np.asarray(subspace.coordinates(jnp.asarray(t)))
    for k in range(subspace.num_endpoints):
        assert scipy.stats.ks_2samp(draws[:, k], expected[:, k]).pvalue > 1e-4


@pytest.mark.parametrize("n, num", [(1, 4), (2, 5), (3, 4), (4, 3), (6, 2)])
def test_simplex_lattice_holds_every_composition_once(n, num):
    rows = np.asarray(Simplex(n).grid(num))
    assert rows.shape == (scipy.special.comb(num + n - 2, n - 1, exact=True), n)
    assert len({tuple(row) for row in np.round(rows * (num - 1)).astype(int)}) == len(rows)
    np.testing.assert_array_equal(rows[0], np.eye(n)[0])


def test_layerwise_draws_once_for_each_module_that_owns_parameters(small_stack, getkey):
    stack = small_stack(3)
    draw = jax.jit(layerwise(Simplex(3), stack).sample, static_argnums=1)(getkey(), (4,))
    assert draw["Dense_0"].shape == draw["inner"]["Dense_1"].shape == draw["inner"]["scale"].shape == (4, 3)
    different = [draw["Dense_0"], draw["inner"]["Dense_1"], draw["inner"]["scale"]]
    for i in range(3):
        for j in range(i):
            assert not np.array_equal(different[i], different[j])
    np.testing.assert_allclose(np.sum(draw["Dense_0"], axis=-1), 1.0, atol=1e-6)


def test_layerwise_evaluates_on_the_diagonal(small_stack):
    space = layerwise(Line(), small_stack(2))
    np.testing.assert_array_equal(space.grid(5), Line().grid(5))
    np.testing.assert_array_equal(space.midpoint, Line().midpoint)
    assert space.num_endpoints == 2


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Bezier(1), "Bezier needs an integer num_endpoints of at least 2, got 1"),
        (lambda: Chain(0), "Chain needs"),
        (lambda: Simplex(0), "Simplex needs an integer num_endpoints of at least 1"),
        (lambda: Simplex(2.0), "got 2.0"),
        (lambda: Line().grid(1), "a grid has at least its 2 ends"),
        (lambda: Simplex(3).coordinates(jnp.zeros(2)), "barycentric"),
        (lambda: layerwise(Line(), {}), "non-empty nested dict"),
    ],
)
def test_wrong_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("num_endpoints", [2, 3, 4])
def test_at_the_knots_of_a_chain_the_derivative_is_that_of_a_piece(num_endpoints):
    pieces, derivative = num_endpoints - 1, jax.jit(jax.jacfwd(Chain(num_endpoints).coordinates))
    for knot in range(num_endpoints):
        piece = min(knot, pieces - 1)
        expected = pieces * (np.eye(num_endpoints)[piece + 1] - np.eye(num_endpoints)[piece])
        np.testing.assert_array_equal(derivative(np.float32(knot / pieces)), expected)


def test_a_draw_of_nothing_is_still_a_point(monkeypatch, getkey):
    """Exponential draws are 0 once in 2^23 times."""
    monkeypatch.setattr(jax.random, "exponential", lambda key, shape, dtype: jnp.zeros(shape, dtype))
    np.testing.assert_array_equal(Simplex(1).sample(getkey(), (3,)), np.ones((3, 1)))


@pytest.mark.parametrize("subspace", [Line(), Simplex(3)], ids=str)
def test_samples_are_float32_whatever_is_enabled(subspace, getkey):
    with jax.enable_x64(True):
        assert subspace.sample(getkey()).dtype == jnp.float32
