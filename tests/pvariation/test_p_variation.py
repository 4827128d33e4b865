"""p-variation against brute force, a NumPy recursion in float64, closed forms and laws."""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subspaces_jax import pvariation
from subspaces_jax.pvariation import bellman_residual, p_variation, p_variation_partition, running_p_variation

METHODS = ("auto", "push", "fixed_point", "blocked")
ORDERS = {"l2": 2, "l1": 1, "linf": np.inf}
K = np.arange(50)
SPRING = np.stack([np.sin(K), np.cos(2 * K), K / 10], axis=-1)
SQUARE = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])


def brute_force(path, p, order=2):
    """The largest sum over all subsequences, by looking at each."""
    inner, best = range(1, len(path) - 1), 0.0
    for size in range(len(path) - 1):
        for chosen in itertools.combinations(inner, size):
            points = path[[0, *chosen, len(path) - 1]]
            best = max(best, float(np.sum(np.linalg.norm(np.diff(points, axis=0), ord=order, axis=1) ** p)))
    return best


def recursion(path, p, order=2):
    """Running values [L] in float64."""
    path = np.asarray(path, np.float64)
    best = np.zeros(len(path))
    for j in range(1, len(path)):
        best[j] = np.max(best[:j] + np.linalg.norm(path[:j] - path[j], ord=order, axis=1) ** p)
    return best


def of_partition(path, indices, p, order=2):
    steps = np.diff(np.asarray(path, np.float64)[indices], axis=0)
    return float(np.sum(np.linalg.norm(steps, ord=order, axis=1) ** p))


def rough_paths():
    rng = np.random.default_rng(0)
    t = np.linspace(0.0, 1.0, 150)[:, None]
    curve = np.sin(t * rng.uniform(1, 5, 40) + rng.uniform(0, 6, 40))
    return {
        "independent": rng.normal(size=(150, 40)),
        "curve": curve,
        "curve with noise far away": 30.0 + curve + 0.05 * rng.normal(size=(150, 40)),
        "Brownian": np.cumsum(rng.normal(size=(150, 40)), axis=0),
        "duplicates": np.repeat(rng.normal(size=(50, 40)), 3, axis=0),
    }


ROUGH = rough_paths()


@pytest.mark.parametrize("norm", ORDERS)
def test_no_partition_of_a_short_path_is_better(norm):
    path = np.random.default_rng(1).normal(size=(9, 3)).cumsum(axis=0).astype(np.float32)
    exponents = (1.0, 1.3, 3.0)
    found = p_variation(path, exponents, norm=norm)
    assert found.shape == (3,) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, [brute_force(path, p, ORDERS[norm]) for p in exponents], rtol=2e-6)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_the_recursion(method):
    """Of paths of 150 points: in blocks of 16, whose last has 6 points, and all exponents in one program."""
    exponents = (1.0, 1.5, 2.7)
    paths = np.stack(list(ROUGH.values())).astype(np.float32)
    options = {"block_size": 16} if method == "blocked" else {}
    found = p_variation(paths, exponents, method=method, **options)
    expected = [[recursion(path, p)[-1] for path in paths] for p in exponents]
    np.testing.assert_allclose(found, expected, rtol=3e-6)


@pytest.mark.parametrize("method", METHODS[1:])
def test_products_of_matrices_find_partitions_as_good_as_differences_do(method, monkeypatch):
    """As of long paths, in float32: far from the origin, and p so near to 1 that many partitions are nearly as good."""
    monkeypatch.setattr(pvariation.distances, "FEW", 0)
    paths = np.stack(list(ROUGH.values())).astype(np.float32)[:, :149]
    options = {"block_size": 16} if method == "blocked" else {}
    found = p_variation(paths, (1.1, 3.0), method=method, **options)
    expected = [[recursion(path, p)[-1] for path in paths] for p in (1.1, 3.0)]
    np.testing.assert_allclose(found, expected, rtol=3e-6)


def test_blocks_of_the_usual_size_find_long_and_short_steps(monkeypatch):
    """Of 400 points that turn slowly far from the origin: steps within blocks of 32 and across several."""
    monkeypatch.setattr(pvariation.distances, "FEW", 0)
    t = np.linspace(0.0, 9.0, 400)[:, None]
    path = np.float32(50.0 + np.sin(t * np.linspace(0.5, 2.0, 12) + np.arange(12)))
    for p, is_right in ((1.05, lambda steps: np.max(steps) < 32), (3.5, lambda steps: np.max(steps) > 64)):
        value, indices = p_variation_partition(path, p, method="blocked")
        np.testing.assert_allclose(value, recursion(path, p)[-1], rtol=3e-6)
        assert is_right(np.diff(indices)), (p, indices)


@pytest.mark.parametrize("method", ["auto", "blocked"])
@pytest.mark.parametrize("norm", ORDERS)
def test_several_exponents_at_once_are_each_alone(norm, method, optimised):
    """In one program with others, an exponent's costs were once rounded in two ways, and its best step not found."""
    rng, t, exponents = np.random.default_rng(3), np.linspace(0, 3, 100)[:, None], (1.0, 1.5, 2.0, 3.0)
    smooth = [np.sin(t) * rng.normal(size=16) + 1e-3 * rng.normal(size=(100, 16)) for _ in range(40)]
    walks = [np.cumsum(rng.normal(size=(100, 16)), axis=0) for _ in range(40)]
    paths = np.stack([*smooth, *walks]).astype(np.float32)
    of_all = jax.jit(lambda paths: p_variation(paths, exponents, norm=norm, method=method), compiler_options=optimised)
    found = of_all(paths)
    for path, values in zip(paths, np.asarray(found).T):
        expected = [recursion(path, p, ORDERS[norm])[-1] for p in exponents]
        np.testing.assert_allclose(values, expected, rtol=2e-5)


def test_the_published_values_of_a_spring():
    expected = [62.69686087648893, 85.32597380677178, 120.11825937811277, 169.47500567239567, 796.9020642233344]
    np.testing.assert_allclose(p_variation(SPRING, (1, 1.5, 2, 2.5, 4)), expected, rtol=1e-6)
    assert len(p_variation_partition(SPRING, 1.5)[1]) == 32


def test_float64_is_kept():
    with jax.enable_x64(True):
        found = p_variation(jnp.asarray(SPRING), 3.0)
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, 239.64078305134095, rtol=1e-14)


def test_closed_forms():
    """In one batch, paths of real numbers in a plane; their last points stay where they are."""
    real = lambda numbers: np.stack([numbers, np.zeros(len(numbers))], axis=-1)
    zigzag, up = np.tile([0.0, 2.0], 6)[:11], np.tile([0.0, 1.0, 1.0, 4.0], 5)
    paths = [np.linspace(0.0, 3.0, 21)[:, None] * np.array([[0.6, 0.8]]), real(zigzag), real(up), SQUARE]
    paths += [real(np.array([0, 1, 0.5, 1.5, 1, 2])), np.array([[0.0, 0.0], [1.0, 1.0]]), np.ones((6, 2))]
    batch = np.stack([np.pad(path, ((0, 21 - len(path)), (0, 0)), mode="edge") for path in paths])
    p = np.array([1, 1.5, 2, 2.5, 3, 4])
    expected = [3.0**p, 10 * 2.0**p, 9 * 4.0**p, np.maximum(4, 2 ** (p / 2 + 1))]
    expected += [np.array([4, 3.707106781, 4, 2**2.5, 8, 16]), 2 ** (p / 2), np.zeros(6)]
    np.testing.assert_allclose(p_variation(batch, p).T, expected, rtol=1e-6)
    np.testing.assert_allclose(running_p_variation(SQUARE, 3), [0, 1, 2.82843, 3.82843, 5.65685], atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_of_equally_good_predecessors_the_earliest_is_taken(method):
    path = np.array([[0, 1], [1, 0], *[[0, 0]] * 6], float)
    for p in (1.5, 2, 3):
        value, indices = p_variation_partition(path, p, method=method)
        np.testing.assert_allclose(value, 1 + 2 ** (p / 2), rtol=1e-6)
        assert indices.tolist() == [0, 1, 7], p


def test_the_partition_attains_the_value_and_the_certificate_says_that_none_is_better():
    for name, path in ROUGH.items():
        value, indices = p_variation_partition(path, 2.0)
        assert indices[0] == 0 and indices[-1] == len(path) - 1 and np.all(np.diff(indices) > 0), name
        np.testing.assert_allclose(value, of_partition(np.float32(path), indices, 2.0), rtol=1e-6)
        running = running_p_variation(path, 2.0)
        np.testing.assert_allclose(running, recursion(np.float32(path), 2.0), rtol=3e-6)
        assert bellman_residual(path, 2.0, running) < 2e-6
        assert bellman_residual(path, 2.0, running * 1.01) > 1e-4
        np.testing.assert_array_equal(p_variation_partition(path, 1.0)[1], np.arange(len(path)))
        assert bellman_residual(path, 2.0, running.at[70].multiply(0.9)) > 1e-4


def test_real_paths_need_their_extrema_alone():
    """With plateaus, at the ends and on slopes as well as on tops."""
    rng = np.random.default_rng(3)
    paths = rng.choice([-1.0, 0.0, 1.0, 0.5], size=(6, 60)).cumsum(axis=1)
    paths[0, :9], paths[1, -7:] = paths[0, 0], paths[1, -1]
    paths[2] = np.sin(np.arange(60) / 6)
    found = p_variation(paths[..., None], (1.0, 1.6, 3.0))
    expected = [[recursion(path[:, None], p)[-1] for path in paths] for p in (1.0, 1.6, 3.0)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert len(p_variation_partition(paths[2, :, None], 2.0)[1]) == 5
    np.testing.assert_allclose(running_p_variation(paths[0, :, None], 3), recursion(paths[0, :, None], 3), rtol=1e-6)


def test_laws():
    path = np.random.default_rng(4).normal(size=(60, 3)).cumsum(axis=0).astype(np.float32)
    exponents = (1.0, 1.5, 2.0, 3.0)
    p = np.array(exponents)
    rotation = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0].astype(np.float32)
    doubled = np.repeat(path, 2, axis=0)[::2]  # of the same shape: a path with its points twice would compile again
    same = np.stack([path, path + 5.0, path @ rotation, path[::-1], doubled, 3.0 * path])
    found = np.asarray(p_variation(same, exponents))
    np.testing.assert_allclose(found[:, :5], np.broadcast_to(found[:, :1], (4, 5)), rtol=2e-5)
    np.testing.assert_allclose(found[:, 5], 3.0**p * found[:, 0], rtol=2e-6)
    roots = found[:, 0] ** (1 / p)
    assert np.all(np.diff(roots) <= 1e-5)
    np.testing.assert_allclose(p_variation(same, exponents, rooted=True)[:, 0], roots, rtol=2e-6)
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    assert np.all(found[:, 0] >= [np.sum(steps**q) * (1 - 1e-6) for q in exponents])
    np.testing.assert_allclose(found[0, 0], steps.sum(), rtol=1e-6)
    diameter = np.max(np.linalg.norm(path[:, None] - path, axis=-1))
    assert np.all(found[1:, 0] <= diameter ** np.diff(p) * found[:-1, 0] * (1 + 1e-6))
    halves = [recursion(path[:30], 2.0)[-1], recursion(path[29:], 2.0)[-1]]
    assert found[2, 0] >= sum(halves) * (1 - 1e-6)


def test_points_that_are_repeated_add_nothing():
    path = np.random.default_rng(6).normal(size=(30, 3))
    rows = np.sort(np.concatenate([np.arange(30), np.random.default_rng(7).integers(0, 30, 20)]))
    np.testing.assert_allclose(p_variation(path[rows], 2.5), recursion(path, 2.5)[-1], rtol=2e-6)


def test_brownian_motion_has_the_known_mean():
    """Of 60 paths of 1,000 steps on [0, 1]: within four standard errors of the means of 400 independent ones."""
    steps = np.random.default_rng(8).normal(size=(60, 1000, 1)) / np.sqrt(1000)
    found = p_variation(np.concatenate([np.zeros((60, 1, 1)), steps.cumsum(axis=1)], axis=1), (1.0, 1.5, 3.0))
    means, deviations = np.array([25.2, 8.23, 6.19]), np.array([0.6, 0.46, 5.5])
    assert np.all(np.abs(np.mean(found, axis=1) - means) < 4 * deviations / np.sqrt(60))


def test_the_gradient_is_that_of_the_sum_over_the_partition():
    """In closed form, sum over used pairs of p d^(p - 2) (x_b - x_a), batched and under jit; and by differences."""
    paths, exponents = np.random.default_rng(9).normal(size=(2, 30, 3)).cumsum(axis=1), (1.0, 1.5, 3.0)
    paths = paths.astype(np.float32).astype(np.float64)
    found = jax.jit(jax.jacrev(lambda x: jnp.sum(p_variation(x, exponents), axis=1)))(np.float32(paths))
    mapped = jax.jit(jax.vmap(jax.grad(lambda x: p_variation(x, 1.5))))(np.float32(paths))
    np.testing.assert_allclose(mapped, found[1], rtol=1e-5, atol=1e-5)
    direction = np.random.default_rng(10).normal(size=(30, 3))
    for p, gradients in zip(exponents, np.asarray(found)):
        for path, gradient in zip(paths, gradients):
            np.testing.assert_allclose(gradient, closed_gradient(path, p), rtol=1e-4, atol=1e-4)
            ends = [recursion(path + sign * 1e-5 * direction, p)[-1] for sign in (1, -1)]
            np.testing.assert_allclose(np.sum(gradient * direction), (ends[0] - ends[1]) / 2e-5, rtol=2e-4)


def test_both_modes_and_second_derivatives_hold_the_points_alone():
    """Of what the search made nothing is kept for the way back; derivatives of the gradient are its differences."""
    path = np.random.default_rng(11).normal(size=(40, 30)).cumsum(axis=0).astype(np.float32)
    value, pull = jax.vjp(lambda x: p_variation(x, 3.0), path)
    assert sum(leaf.size for leaf in jax.tree.leaves(pull)) < path.size + 16 * len(path)
    direction = np.random.default_rng(12).normal(size=path.shape).astype(np.float32)
    gradient = lambda x: closed_gradient(x.astype(np.float64), 3.0)
    _, along = jax.jvp(lambda x: p_variation(x, 3.0), (path,), (direction,))
    np.testing.assert_allclose(along, np.sum(gradient(path) * direction), rtol=1e-5)
    _, second = jax.jvp(jax.grad(lambda x: p_variation(x, 3.0)), (path,), (direction,))
    ends = [gradient(np.float64(path) + sign * 1e-6 * direction) for sign in (1, -1)]
    np.testing.assert_allclose(second, (ends[0] - ends[1]) / 2e-6, rtol=1e-4, atol=1e-3)


def closed_gradient(path, p):
    """By following predecessors back from the last point."""
    values, gradient, b = recursion(path, p), np.zeros(path.shape), len(path) - 1
    while b:
        a = int(np.argmax(values[:b] + np.linalg.norm(path[:b] - path[b], axis=1) ** p))
        pull = p * np.linalg.norm(path[b] - path[a]) ** (p - 2) * (path[b] - path[a])
        gradient[b] += pull
        gradient[a] -= pull
        b = a
    return gradient


@pytest.mark.parametrize("norm", ORDERS)
def test_gradients_where_points_coincide_are_finite(norm):
    paths = jnp.array([[[0.0, 0.0], [0.0, 0.0], [1.0, 2.0], [1.0, 2.0]], [[1.0, 1.0]] * 4])
    rooted = lambda x: jnp.sum(p_variation(x, (1.0, 1.5), norm=norm, rooted=True), axis=1)
    found = np.asarray(jax.jit(jax.jacrev(rooted))(paths))
    assert np.isfinite(found).all() and np.all(np.abs(found[:, 0]).sum(axis=(1, 2)) > 0.5)
    np.testing.assert_array_equal(found[:, 1], np.zeros((2, 4, 2)))


def test_roots_of_large_exponents_do_not_overflow():
    path = np.array([[0.0, 0.0], [3e8, 0.0], [1e8, 0.0], [4e8, 0.0]])
    found = p_variation(np.stack([path, 1e-16 * path]), 8, rooted=True)
    root = recursion(path, 8)[-1] ** (1 / 8)
    np.testing.assert_allclose(found, [root, 1e-16 * root], rtol=1e-5)


def test_nan_is_seen_within_a_program():
    found = jax.jit(lambda x: p_variation(x, 2.0))(
        jnp.stack([jnp.ones((3, 2)), jnp.ones((3, 2)).at[1, 1].set(jnp.nan)])
    )
    assert found[0] == 0 and np.isnan(found[1])


def test_programs_of_accelerators_have_another_search():
    """The text of a program says which: only the fixed point's holds the distances of all points at once."""
    trace = lambda num: jax.jit(lambda x: p_variation(x, 2.0)).trace(jax.ShapeDtypeStruct((num, 20), jnp.float32))
    assert "tensor<700x700xf32>" in trace(700).lower(lowering_platforms=("cuda",)).as_text()
    assert "tensor<700x700xf32>" not in trace(700).lower(lowering_platforms=("cpu",)).as_text()
    assert "10000x10000" not in trace(10_000).lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize(
    "path, p, options, message",
    [
        (SPRING, 0.9, {}, "p is a number of at least 1, or a vector of such, got 0.9"),
        (SPRING, [1.0, np.nan], {}, "p is a number of at least 1"),
        (SPRING, [], {}, "p is a number of at least 1"),
        (np.zeros((0, 3)), 2, {}, "at least one point and one coordinate, got shape \\(0, 3\\)"),
        (np.zeros(5), 2, {}, "expected a path \\[..., L, D\\], got shape \\(5,\\): of numbers, add an axis"),
        (np.full((3, 2), np.nan), 2, {}, "NaN or infinite"),
        (np.ones((3, 2), complex), 2, {}, "points are real"),
        (SPRING, 2, {"method": "fast"}, "method is one of auto, push, fixed_point, blocked, got 'fast'"),
        (SPRING, 2, {"norm": "l3"}, "norm is one of l2, l1, linf, got 'l3'"),
        (SPRING, 2, {"block_size": 0}, "a block has at least 1 point, got block_size = 0"),
    ],
)
def test_bad_input_is_refused_in_one_line(path, p, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        p_variation(path, p, **options)
    assert "\n" not in str(caught.value)


def test_a_certificate_is_of_one_exponent():
    with pytest.raises(ValueError, match="expected one exponent"):
        inspect.unwrap(bellman_residual)(jnp.ones((3, 2)), (1.0, 2.0), jnp.zeros(3))  # without the tests' own checks


def test_what_a_partition_cannot_be_of():
    with pytest.raises(ValueError, match="a partition is of one path \\[L, D\\] and one p, got shape \\(1, 50, 3\\)"):
        p_variation_partition(SPRING[None], 2)
    with pytest.raises(ValueError, match="call p_variation_partition outside of jit"):
        jax.jit(lambda x: p_variation_partition(x, 2))(SPRING)
    with pytest.raises(ValueError, match="p is a constant of the program"):
        jax.jit(lambda p: p_variation(SPRING, p))(2.0)
    with pytest.raises(ValueError, match="expected a path \\[L, D\\] and values \\[L\\]"):
        bellman_residual(SPRING, 2, np.zeros(3))


@pytest.mark.parametrize("method", METHODS)
def test_a_single_point_has_no_variation(method):
    assert float(p_variation(jnp.ones((1, 2)), 2.0, method=method)) == 0


@pytest.mark.parametrize("extent", [1e-30, 6e37, 9e37, 1.5e38, 2.2e38])
def test_the_extent_of_a_path_does_not_matter_up_to_the_largest_numbers(extent):
    path = np.array([[0.0], [1.0], [0.5]]) * extent
    assert p_variation(path.astype(np.float32), 1.0, rooted=True) == pytest.approx(1.5 * extent, rel=1e-5)
    expected = (1 + 0.5**2) ** 0.5 * extent
    if expected < np.finfo(np.float32).max:
        assert p_variation(path.astype(np.float32), 2.0, rooted=True) == pytest.approx(expected, rel=1e-5)
