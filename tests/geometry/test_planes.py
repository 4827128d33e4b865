"""A plane is an isometry: three points land on their coordinates, distances are those of weight space."""

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subspaces_jax.geometry import contract, plane_along, plane_through, stack, unstack


def distance(a, b):
    squares = jax.tree.map(lambda x, y: np.sum((np.asarray(x, np.float64) - np.asarray(y, np.float64)) ** 2), a, b)
    return np.sqrt(sum(jax.tree.leaves(squares)))


def test_the_three_points_land_on_their_coordinates(small_stack):
    networks = unstack(small_stack(3))
    plane = plane_through(*networks)
    expected = [(0.0, 0.0), (plane.length, 0.0), (plane.offset, plane.height)]
    for k, network in enumerate(networks):
        np.testing.assert_allclose(plane.project(network), expected[k], atol=1e-4)
        np.testing.assert_allclose(plane.coordinates(*expected[k]), np.eye(3)[k], atol=1e-5)
    np.testing.assert_array_equal(plane.corners, expected)
    chex.assert_trees_all_equal(contract(plane.endpoints, plane.coordinates(0.0, 0.0)), networks[0])


def test_distances_in_the_plane_are_those_of_weight_space(small_stack):
    plane = plane_through(*unstack(small_stack(3)))
    a, b = (1.5, -2.0), (-0.25, 4.0)
    points = [contract(plane.endpoints, plane.coordinates(*xy)) for xy in (a, b)]
    np.testing.assert_allclose(distance(*points), np.hypot(a[0] - b[0], a[1] - b[1]), rtol=1e-4)
    np.testing.assert_allclose(plane.project(points[0]), a, atol=1e-4)


def test_projection_is_the_nearest_point(small_stack):
    *corners, outside = unstack(small_stack(4))
    plane = plane_through(*corners)
    x, y = plane.project(outside)
    nearest = distance(contract(plane.endpoints, plane.coordinates(x, y)), outside)
    for dx, dy in ((0.1, 0), (-0.1, 0), (0, 0.1), (0, -0.1)):
        assert distance(contract(plane.endpoints, plane.coordinates(x + dx, y + dy)), outside) > nearest


def test_coordinates_take_a_whole_grid():
    params = [{"w": jnp.eye(3)[k]} for k in range(3)]
    grid = plane_through(*params).coordinates(jnp.zeros((4, 5)), jnp.ones((4, 5)))
    assert grid.shape == (4, 5, 3)
    np.testing.assert_allclose(grid.sum(-1), 1.0, atol=1e-6)


def test_three_networks_on_a_line_are_refused(small_stack):
    a, b = unstack(small_stack(2))
    middle = jax.tree.map(lambda x, y: 0.5 * (x + y), a, b)
    for triple in ((a, b, middle), (a, a, b), (a, a, a)):
        with pytest.raises(ValueError, match="lie on one line"):
            plane_through(*triple)


def oblique(small_stack):
    """An origin and two directions that are far from orthogonal and of different lengths."""
    origin, first, second = unstack(small_stack(3))
    return origin, stack([first, jax.tree.map(lambda a, b: 0.3 * a + 0.1 * b, first, second)])


def test_a_plane_along_oblique_directions_is_an_isometry(small_stack):
    origin, directions = oblique(small_stack)
    plane = plane_along(origin, directions)
    zero = jax.tree.map(jnp.zeros_like, origin)
    np.testing.assert_allclose(plane.length, distance(unstack(directions)[0], zero), rtol=1e-6)
    a, b = (1.5, -2.0), (-0.25, 4.0)
    points = [contract(plane.endpoints, plane.coordinates(*xy)) for xy in (a, b)]
    np.testing.assert_allclose(distance(*points), np.hypot(a[0] - b[0], a[1] - b[1]), rtol=1e-4)
    np.testing.assert_allclose(distance(points[0], origin), np.hypot(*a), rtol=1e-4)
    for xy, point in zip((a, b), points):
        np.testing.assert_allclose(plane.project(point), xy, atol=1e-4)
    chex.assert_trees_all_equal(contract(plane.endpoints, plane.coordinates(0.0, 0.0)), origin)


def test_the_tips_of_directions_are_corners(small_stack):
    origin, directions = oblique(small_stack)
    plane = plane_along(origin, directions)
    for corner, direction in zip(plane.corners[1:], unstack(directions)):
        tip = jax.tree.map(jnp.add, origin, direction)
        np.testing.assert_allclose(plane.project(tip), corner, atol=1e-4)
        chex.assert_trees_all_close(contract(plane.endpoints, plane.coordinates(*corner)), tip, atol=1e-5)


def test_a_plane_along_differences_is_the_plane_through_the_networks(small_stack):
    a, b, c, outside = unstack(small_stack(4))
    differences = stack([jax.tree.map(jnp.subtract, other, a) for other in (b, c)])
    through, along = plane_through(a, b, c), plane_along(a, differences)
    np.testing.assert_allclose(through.corners, along.corners, rtol=1e-5)
    np.testing.assert_allclose(through.project(outside), along.project(outside), rtol=1e-4)
    x, y = np.meshgrid([-1.0, 2.0], [0.5, 3.0, 7.0])
    chex.assert_trees_all_close(
        *(contract(plane.endpoints, plane.coordinates(x, y)[1, 1]) for plane in (through, along)), atol=1e-5
    )
    assert along.coordinates(x, y).shape == (3, 2, 3)


def test_small_steps_along_directions_keep_their_digits():
    """Of an origin 10^4 times as far from zero as the step, within float32."""
    origin, direction = {"w": jnp.full(3, 10.0)}, jnp.array([[1e-3, 0.0, 0.0], [0.0, 1e-3, 0.0]])
    plane = plane_along(origin, {"w": direction})
    assert plane.length == pytest.approx(1e-3, rel=1e-6)
    found = contract(plane.endpoints, plane.coordinates(0.0, 1e-3))
    np.testing.assert_allclose(found["w"], [10.0, 10.001, 10.0], rtol=1e-7)


def test_directions_that_span_no_plane_are_refused(small_stack):
    origin, first = unstack(small_stack(2))
    for second in (jax.tree.map(lambda leaf: -2 * leaf, first), jax.tree.map(jnp.zeros_like, first)):
        with pytest.raises(ValueError, match="parallel, or one is zero"):
            plane_along(origin, stack([first, second]))
        with pytest.raises(ValueError, match="parallel, or one is zero"):
            plane_along(origin, stack([second, first]))
    with pytest.raises(ValueError, match="a plane has 2 directions, got 3"):
        plane_along(origin, small_stack(3))
    with pytest.raises(ValueError, match=r"another architecture than the origin: .*Dense_0/bias"):
        plane_along({"w": jnp.ones(3)}, small_stack(2))


def test_a_plane_of_half_precision_is_that_of_its_values():
    keys = jax.random.split(jax.random.key(0), 3)
    half = [{"Dense_0": {"kernel": jax.random.normal(key, (50, 50)).astype(jnp.bfloat16)}} for key in keys]
    single = [jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params) for params in half]
    found, expected = plane_through(*half), plane_through(*single)
    np.testing.assert_allclose(found.corners, expected.corners, rtol=1e-6)
    point = contract(expected.endpoints, expected.coordinates(3.0, 5.0))
    np.testing.assert_allclose(found.project(point), (3, 5), rtol=1e-5)
    np.testing.assert_allclose(found.project(flax.core.freeze(point)), (3, 5), rtol=1e-5)
