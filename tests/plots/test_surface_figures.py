"""What figures of surfaces show: artists, labels, and pixels where a figure could be blank."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from subspaces_jax.analysis.surfaces import levels
from subspaces_jax.plots import surfaces
from subspaces_jax.plots.surfaces import Surface

X, Y = np.linspace(-2.0, 12.0, 11), np.linspace(-1.0, 7.0, 9)
VALUES = 0.1 + 0.02 * (X[:, None] - 4.0) ** 2 + 0.2 * (Y[None] - 1.0) ** 2  # lowest at (4, 1)


def pixels(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def pixel_at(figure, axis, x, y):
    picture = pixels(figure)
    column, row = axis.transData.transform((x, y)).round().astype(int)
    return picture[len(picture) - 1 - row, column] / 255


def panels_of(figure):
    """Axes of surfaces, and those of colour bars."""
    return [axis for axis in figure.axes if axis.get_xlabel()], [axis for axis in figure.axes if not axis.get_xlabel()]


def by_label(axis):
    return {line.get_label(): np.stack(line.get_data(), axis=-1) for line in axis.lines}


def coloured(picture):
    """The share of pixels that are not a shade of grey."""
    return np.mean(np.ptp(picture.astype(int), axis=-1) > 40)


def test_contours_show_ends_bend_curve_and_segment():
    ends, bend, curve = [(0.0, 0.0), (10.0, 0.0)], [(5.0, 6.0)], np.stack([np.linspace(0, 10, 7), np.ones(7)], -1)
    panels = [Surface(VALUES, "training loss (nats)", vmax=3.0), Surface(10 * VALUES, "test error (%)", log_alpha=-1)]
    figure = surfaces.contours(X, Y, panels, ends=ends, bends=bend, curve=curve, title="a plane")
    places, bars = panels_of(figure)
    assert [bar.get_ylabel() for bar in bars] == ["training loss (nats)", "test error (%)"]
    for axis in places:
        found = by_label(axis)
        np.testing.assert_array_equal(found["curve"], curve)
        np.testing.assert_array_equal(found["segment"], ends)
        np.testing.assert_array_equal(found["ends"], ends)
        np.testing.assert_array_equal(found["bend"], bend)
        assert {line.get_label(): line.get_linestyle() for line in axis.lines}["segment"] == "--"
        assert axis.get_aspect() == 1.0 and "distance" in axis.get_xlabel() and "distance" in axis.get_ylabel()
        assert axis.get_xlim() == (-2.0, 12.0) and axis.get_ylim() == (-1.0, 7.0)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["segment", "curve", "ends", "bend"]
    assert figure.get_suptitle() == "a plane"


def test_the_colour_bar_names_the_levels_and_what_is_above_them():
    figure = surfaces.contours(X, Y, [Surface(VALUES, "loss (nats)", vmax=3.0), Surface(VALUES, "loss (nats)")])
    texts = [[text.get_text() for text in bar.get_yticklabels()] for bar in panels_of(figure)[1]]
    assert texts[0] == [f"{level:.2g}" for level in levels(VALUES, 3.0)] + ["> 3"]
    assert texts[1] == [f"{level:.2g}" for level in levels(VALUES)], "nothing is above the highest value"


def test_levels_that_look_alike_are_told_apart():
    figure = surfaces.contours(X, Y, [Surface(100 + 1e-3 * VALUES, "loss")])
    texts = [text.get_text() for text in panels_of(figure)[1][0].get_yticklabels()]
    assert len(set(texts)) == 8


def test_x_goes_right_and_y_up():
    figure = surfaces.contours(X, Y, [Surface(VALUES, "loss (nats)", vmax=3.0)], colours=surfaces.PAPER)
    (axis,), _ = panels_of(figure)
    low, high = pixel_at(figure, axis, 4.0, 1.2), pixel_at(figure, axis, 11.9, 6.9)
    assert low[0] > low[2] and high[2] > high[0], "red is low in the paper's colours, and blue high"


def test_what_is_no_number_is_grey_and_what_is_infinite_is_above_all():
    values = VALUES.copy()
    values[1:4, 4:7], values[7:10, 4:7] = np.nan, np.inf
    figure = surfaces.contours(X, Y, [Surface(values, "loss (nats)")], colours=surfaces.PAPER)
    (axis,), (bar,) = panels_of(figure)
    np.testing.assert_allclose(pixel_at(figure, axis, X[2], Y[5]), to_rgb(surfaces.NO_VALUE), atol=0.01)
    red, _, blue = pixel_at(figure, axis, X[8], Y[5])
    assert blue > red
    assert bar.get_yticklabels()[-1].get_text().startswith("> ")


def test_a_constant_surface_and_one_network_have_a_figure():
    figure = surfaces.contours(X, Y, [Surface(np.full(VALUES.shape, 0.5), "loss (nats)")], networks=[(0.0, 0.0)])
    (axis,), _ = panels_of(figure)
    assert list(by_label(axis)) == ["network"]
    assert coloured(pixels(figure)) > 0.2


OUTLIER, BROKEN = VALUES.copy(), VALUES.copy()
OUTLIER[5, 5], BROKEN[0, :3], BROKEN[7, 7] = 1e9, np.nan, np.inf


@pytest.mark.parametrize("values", [VALUES, OUTLIER, BROKEN, 0 * VALUES], ids=["usual", "outlier", "broken", "flat"])
def test_a_relief_is_not_blank(values):
    figure = surfaces.reliefs(X, Y, [Surface(values, "loss (nats)")], title="a relief")
    (axis,) = figure.axes
    assert coloured(pixels(figure)) > 0.05
    low, high = axis.get_zlim()
    assert low == values[np.isfinite(values)].min() and low < high < 30.0
    assert axis.get_xlabel() == surfaces.AXES[0] and "distance" in axis.get_ylabel()
    is_clipped = bool(np.any(values > high))
    assert axis.get_zlabel().startswith("loss (nats)") and ("drawn up to" in axis.get_zlabel()) == is_clipped
    assert is_clipped == (values is OUTLIER or values is BROKEN)


def test_a_relief_stops_at_vmax_and_has_a_hole_where_there_is_no_number():
    holed = VALUES.copy()
    holed[3:, 3:] = np.nan
    whole, cut = (surfaces.reliefs(X, Y, [Surface(values, "loss (nats)", vmax=2.0)]) for values in (VALUES, holed))
    (axis,) = whole.axes
    assert axis.get_zlim()[1] == 2.0 and axis.get_zlabel() == "loss (nats),\ndrawn up to 2"
    assert max(axis.collections[0].get_array()) == 2.0 and len(axis.collections[0].get_array()) == 10 * 8
    assert coloured(pixels(cut)) < 0.8 * coloured(pixels(whole))
    first, second = surfaces.reliefs(X, Y, [Surface(VALUES, "loss (nats)"), Surface(BROKEN, "error (%)")]).axes
    assert first.get_zlim()[1] == VALUES.max() and second.get_zlabel().startswith("error (%)")


@pytest.mark.parametrize("draw", [surfaces.contours, surfaces.reliefs])
def test_surfaces_that_do_not_fit_are_refused(draw):
    with pytest.raises(ValueError, match=r"'loss' has values of shape \(9, 11\) on a grid of 11 x 9 points"):
        draw(X, Y, [Surface(VALUES.T, "loss")])
    with pytest.raises(ValueError, match="'loss' has no finite value"):
        draw(X, Y, [Surface(np.nan * VALUES, "loss")])
    with pytest.raises(ValueError, match="at least one surface"):
        draw(X, Y, [])
