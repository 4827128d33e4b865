"""Grids and levels against the formulas of the mode-connectivity paper, point by point."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subspaces_jax.analysis import surfaces
from subspaces_jax.geometry import contract, plane_through


def test_the_grid_is_that_of_the_paper():
    """alpha and beta from -0.2 to 1.2 in units of the base and the height, where the bend is between the ends."""
    x, y = surfaces.grid([(0.0, 0.0), (10.0, 0.0), (4.0, 6.0)])
    np.testing.assert_allclose(x, 10 * np.linspace(-0.2, 1.2, 21))
    np.testing.assert_allclose(y, 6 * np.linspace(-0.2, 1.2, 21))


def test_margins_are_those_of_the_box_of_all_corners():
    x, y = surfaces.grid([(0.0, 0.0), (10.0, 0.0), (-10.0, 5.0)], num=5, margins=(0.1, 0.2, 0.0, 0.4))
    np.testing.assert_allclose([x[0], x[-1], y[0], y[-1]], [-12.0, 14.0, 0.0, 7.0])
    np.testing.assert_allclose(np.diff(x), 26 / 4)
    assert len(x) == len(y) == 5


def test_points_come_row_by_row_with_x_first(getkey):
    networks = [{"w": jax.random.normal(key, (7,))} for key in jax.random.split(getkey(), 3)]
    plane = plane_through(*networks)
    x, y = surfaces.grid(plane.corners, num=3)[0], surfaces.grid(plane.corners, num=4)[1]
    points = surfaces.grid_points(plane, x, y)
    assert points.shape == (12, 3)
    found = np.array([plane.project(contract(plane.endpoints, point)) for point in points]).reshape(3, 4, 2)
    for i in range(3):
        for j in range(4):
            np.testing.assert_allclose(found[i, j], (x[i], y[j]), atol=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"corners": [(0, 0), (1, 0), (2, 0)]}, "span no box"),
        ({"corners": [0, 1, 2]}, r"expected corners \[P, 2\], got shape \(3,\)"),
        ({"num": 1}, "at least 2 points a side, got num = 1"),
        ({"margins": -0.1}, "at least 0"),
        ({"margins": (0.1, 0.2)}, "or four"),
        ({"margins": math.nan}, "at least 0"),
    ],
)
def test_grids_that_are_none_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        surfaces.grid(**{"corners": [(0, 0), (1, 0), (0, 1)]} | options)


def test_levels_are_those_of_the_paper():
    values = np.array([[0.25, 1.0], [3.0, 80.0]])
    found = surfaces.levels(values, vmax=5.0, log_alpha=-5.0, num=7)
    step = (math.log(5.0 - 0.25) + 5.0) / 7
    expected = [0.25, *(0.25 + math.exp(-5.0 + k * step) for k in range(1, 7)), 5.0]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert surfaces.levels(values)[-1] == 80.0 and len(surfaces.levels(values, num=3)) == 4


def test_what_is_not_finite_does_not_count():
    values = np.array([1.0, 2.0, 30.0])
    broken = np.array([1.0, np.nan, 2.0, np.inf, 30.0])
    np.testing.assert_array_equal(surfaces.levels(broken), surfaces.levels(values))


@pytest.mark.parametrize(
    "values", [[0.5, 0.502], [0.7] * 4, [0.0] * 3, [1e-9, 3e-9], [0.0, 1e-8], [-1e6] * 2, [1e30, 9e30]]
)
@pytest.mark.parametrize("log_alpha", [-5.0, -1.0])
def test_levels_increase_whatever_the_range(values, log_alpha):
    found = surfaces.levels(np.array(values), log_alpha=log_alpha)
    assert len(found) == 8 and np.all(np.diff(found) > 0)
    assert found[0] == min(values) and found[-1] >= max(values)


def test_levels_of_nothing_are_refused():
    with pytest.raises(ValueError, match="expected finite values"):
        surfaces.levels(np.array([np.nan, np.inf]))
    with pytest.raises(ValueError, match="vmax = 0.5 is not above the lowest value, 1"):
        surfaces.levels(np.array([1.0, 2.0]), vmax=0.5)
    with pytest.raises(ValueError, match="num = 0"):
        surfaces.levels(np.array([1.0, 2.0]), num=0)


def test_values_of_jax_do_as_well():
    np.testing.assert_allclose(surfaces.levels(jnp.array([1.0, 3.0]))[[0, -1]], [1.0, 3.0])
