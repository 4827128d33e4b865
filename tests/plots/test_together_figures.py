"""What figures of several networks show."""

import numpy as np

from subspaces_jax.plots import together

CURVES = {
    "independent": (np.array([60.0, 63.0, 65.0]), np.array([60.0, 61.0, 59.0])),
    "WA(1)": (np.array([60.0, 60.5, 60.7]), np.array([60.0, 60.2, 58.0])),
    "WA(2)": (np.array([60.0, 62.0, 63.5]), np.array([60.0, 60.6, 58.5])),
}


def test_ensembles_are_lines_and_members_dots_over_the_number_of_models():
    figure = together.ensembling(CURVES, "ten classes")
    (axis,) = figure.axes
    drawn = [line for line in axis.lines if len(line.get_xdata())]
    for name, line, dots in zip(CURVES, drawn[::2], drawn[1::2], strict=True):
        assert (line.get_label(), dots.get_marker(), dots.get_linestyle()) == (name, "o", "None")
        assert line.get_linestyle() == ("--" if name == "independent" else "-")
        assert line.get_color() == dots.get_color()
        for shown, values in zip((line, dots), CURVES[name]):
            np.testing.assert_array_equal(shown.get_xydata(), np.stack([[1, 2, 3], values], axis=1))
    assert len({str(line.get_color()) for line in drawn}) == len(CURVES)
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("models", "test accuracy (%)")
    assert figure.get_suptitle() == "ten classes"


def test_whole_ensembles_stand_over_what_they_cost():
    ratios = {"independent": 1.0, "WA(1)": 0.34, "WA(2)": 0.6}
    (axis,) = together.costs(CURVES, ratios).axes
    dots = {line.get_label(): line.get_xydata() for line in axis.lines}
    np.testing.assert_array_equal(dots.pop("mean member")[:, 1], 60.0)
    assert {name: tuple(xy[0]) for name, xy in dots.items()} == {
        "independent": (1.0, 65.0),
        "WA(1)": (0.34, 60.7),
        "WA(2)": (0.6, 63.5),
    }


def test_kinds_of_networks_have_a_column_each():
    (axis,) = together.scores_of({"networks": [90.0, 91.0], "mean": [75.0]}, "accuracy", "%").axes
    np.testing.assert_array_equal(
        np.concatenate([line.get_xydata() for line in axis.lines]), [[0, 90], [0, 91], [1, 75]]
    )
    assert [label.get_text() for label in axis.get_xticklabels()] == ["networks", "mean"]
    assert axis.get_ylabel() == "accuracy (%)"
