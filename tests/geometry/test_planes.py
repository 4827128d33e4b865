"""A plane is an isometry: three points land on their coordinates, distances are those of weight space."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subspaces_jax.geometry import contract, plane_through, unstack


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
