"""Lengths against closed forms and NumPy on flattened networks, statistics and barriers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subspaces_jax.analysis import paths
from subspaces_jax.geometry import Arc, Bezier, Chain, Line, contract, layerwise


def brute_force(tree, points):
    """Distances of float64 networks, made one by one by NumPy alone."""
    flat = np.concatenate(
        [np.asarray(leaf, np.float64).reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(tree)], 1
    )
    return np.linalg.norm(np.diff(np.asarray(points, np.float64) @ flat, axis=0), axis=1)


def halfway(tree, t):
    """A path that is more than coordinates: to the first endpoint's square."""
    return jax.tree.map(lambda leaf: (1.0 - t) * leaf[0] + t * leaf[0] ** 2, tree)


@pytest.mark.parametrize("subspace", [Line(), Bezier(4), Chain(3), Arc()], ids=lambda of: type(of).__name__)
def test_distances_are_those_of_the_networks(small_stack, subspace):
    tree, points = small_stack(subspace.num_endpoints), subspace.grid(7)
    found = paths.point_distances(tree, points)
    assert found[0] == 0.0 and found.shape == (7,)
    np.testing.assert_allclose(found[1:], brute_force(tree, points), rtol=1e-6)
    by_networks = paths.point_distances(tree, points, contracted)
    np.testing.assert_allclose(found, by_networks, rtol=1e-4)


def contracted(tree, point):
    return contract(tree, point)


def test_a_segment_has_equal_steps_and_the_length_of_the_difference(small_stack):
    tree = small_stack(2)
    found = paths.point_distances(tree, Line().grid(9))
    squares = [np.sum((np.asarray(leaf[1], np.float64) - np.asarray(leaf[0])) ** 2) for leaf in jax.tree.leaves(tree)]
    length = np.sqrt(sum(squares))
    np.testing.assert_allclose(found.sum(), length, rtol=1e-6)
    np.testing.assert_allclose(found[1:], length / 8, rtol=1e-5)


def test_a_quarter_of_a_circle_is_as_long_as_its_chords():
    tree = {"w": jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])}
    found = paths.point_distances(tree, Arc().grid(10))
    np.testing.assert_allclose(found[1:], 2 * np.sin(np.pi / 4 / 9), rtol=1e-5)


def test_endpoints_that_nearly_coincide_keep_their_distance():
    """float32 endpoints 10^5 times as far from zero as from each other."""
    base = np.float32(1000.0)
    apart = np.float32(base + 0.01) - base
    tree = {"w": jnp.stack([jnp.full(50, base), jnp.full(50, base).at[7].add(0.01)])}
    points = np.array([[1.0, 0.0], [0.75, 0.25], [0.5, 0.5], [0.0, 1.0]], np.float32)
    np.testing.assert_allclose(paths.point_distances(tree, points)[1:], apart * np.array([0.25, 0.25, 0.5]), rtol=1e-12)


def test_coordinates_need_not_sum_to_one(small_stack):
    tree, points = small_stack(3), np.array([[1.0, 2.0, -0.5], [0.0, 0.3, 0.1], [4.0, 4.0, 4.0]], np.float32)
    np.testing.assert_allclose(paths.point_distances(tree, points)[1:], brute_force(tree, points), rtol=1e-6)


def test_layerwise_points_are_summed_layer_by_layer(small_stack, getkey):
    tree = small_stack(2)
    points = layerwise(Line(), tree).sample(getkey(), (5,))
    found = paths.point_distances(tree, points)
    networks = [contract(tree, jax.tree.map(lambda leaf: leaf[t], points)) for t in range(5)]
    flat = np.array([np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)]) for params in networks])
    np.testing.assert_allclose(found[1:], np.linalg.norm(np.diff(flat, axis=0), axis=1), rtol=1e-4)


def test_distances_of_any_path_are_those_of_consecutive_networks(small_stack):
    tree, ts = small_stack(1), jnp.array([0.0, 0.25, 1.0])
    flat = np.concatenate([np.ravel(leaf[0]) for leaf in jax.tree.leaves(tree)]).astype(np.float64)
    length = np.linalg.norm(flat**2 - flat)
    np.testing.assert_allclose(paths.point_distances(tree, ts, halfway), [0.0, 0.25 * length, 0.75 * length], rtol=1e-5)


def test_points_without_a_common_length_are_refused(small_stack):
    with pytest.raises(ValueError, match=r"expected points \[T, ...\]"):
        paths.point_distances(small_stack(2), {"a": jnp.ones((3, 2)), "b": jnp.ones((4, 2))})


def test_statistics_by_hand():
    found = paths.path_statistics(np.array([0.0, 1.0, 3.0]), np.array([2.0, 4.0, 0.0]))
    assert found == {"min": 0.0, "max": 4.0, "avg": 2.0, "int": pytest.approx((1 * 3 + 3 * 2) / 4)}


def test_the_mean_over_length_is_the_trapezoidal_rule():
    rng = np.random.default_rng(0)
    lengths, values = rng.uniform(size=31), rng.normal(size=31)
    places = np.cumsum(lengths)
    expected = np.trapezoid(values, places) / (places[-1] - places[0])
    assert paths.path_statistics(lengths, values)["int"] == pytest.approx(expected)
    assert paths.path_statistics(np.zeros(31), values)["int"] == pytest.approx(values.mean())


def test_statistics_of_what_does_not_fit_are_refused():
    for lengths, values in ((np.ones(3), np.ones(4)), (np.ones(1), np.ones(1)), (np.ones((2, 3)), np.ones((2, 3)))):
        with pytest.raises(ValueError, match=r"lengths and values \[T\]"):
            paths.path_statistics(lengths, values)
    with pytest.raises(ValueError, match="at least 0, got -2.0"):
        paths.path_statistics(np.array([0.0, -2.0]), np.ones(2))
    with pytest.raises(ValueError, match="at least 0, got nan"):
        paths.path_statistics(np.array([0.0, np.nan]), np.ones(2))


def test_barriers_by_hand():
    values = np.array([[1.0, 4.0, 3.0], [1.0, 1.5, 3.0]])
    np.testing.assert_allclose(paths.barrier(values), [2.0, 0.0])
    np.testing.assert_allclose(paths.barrier(values, ends="mean"), [2.0, 1.0])
    np.testing.assert_allclose(paths.barrier(values, ts=[0.0, 0.5, 2.0]), [2.5, 0.0])
    assert paths.barrier(values[0]).shape == ()


def test_a_barrier_does_not_change_with_a_line_added():
    rng = np.random.default_rng(1)
    values, t = rng.normal(size=(5, 11)), np.linspace(0, 3, 11)
    tilted = values + 2.0 - 0.7 * t
    np.testing.assert_allclose(paths.barrier(tilted, t), paths.barrier(values, t))
    assert np.all(paths.barrier(values) >= 0.0)
    assert np.isnan(paths.barrier(np.array([0.0, np.nan, 1.0])))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"values": [1.0]}, r"expected values \[..., T\]"),
        ({"ends": "max"}, "ends is one of line, mean, got 'max'"),
        ({"ts": [0.0, 1.0]}, "expected 3 increasing ts"),
        ({"ts": [0.0, 1.0, 1.0]}, "expected 3 increasing ts"),
    ],
)
def test_barriers_of_what_is_no_path_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        paths.barrier(**{"values": [1.0, 2.0, 1.0]} | options)
