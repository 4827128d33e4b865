"""What figures of curves and of barriers show."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from subspaces_jax.plots import barriers, curves, style

T = 5
COLUMNS = [("nll", "nll", "nats", 1.0), ("accuracy", "accuracy", "%", 100.0)]


def path(scale, seeds=None):
    """Scores of a path, all different."""
    rng = np.random.default_rng(int(10 * scale))
    draw = lambda: scale * rng.uniform(size=T if seeds is None else (seeds, T))
    return {split: {"nll": draw(), "accuracy": draw()} for split in ("train", "test")}


def lines(axis):
    return {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}


def bands(axis):
    """(lower, upper) edges [T] of each band."""
    edges = [collection.get_paths()[0].vertices for collection in axis.collections]
    return [(corners[1 : T + 1, 1], corners[T + 2 : -1, 1][::-1]) for corners in edges]


def test_paths_share_panels_of_splits_and_scores():
    paths = {"curve": path(1.0), "segment": path(2.0)}
    figure = curves.connection(paths, COLUMNS, title="two modes")
    assert [axis.get_ylabel() for axis in figure.axes] == [
        *("train nll (nats)", "test nll (nats)", "train accuracy (%)", "test accuracy (%)")
    ]
    assert {axis.get_xlabel() for axis in figure.axes} == {"$t$"} and figure.get_suptitle() == "two modes"
    for axis, (name, factor, split) in zip(
        figure.axes, [("nll", 1, "train"), ("nll", 1, "test"), ("accuracy", 100, "train"), ("accuracy", 100, "test")]
    ):
        shown = lines(axis)
        for label in paths:
            np.testing.assert_allclose(shown[label].get_xdata(), np.linspace(0, 1, T))
            np.testing.assert_allclose(shown[label].get_ydata(), factor * paths[label][split][name])
        assert [shown[label].get_linestyle() for label in paths] == ["-", "--"]
        ends = [line.get_xydata() for line in axis.lines if line.get_marker() == "o" and len(line.get_xdata())]
        for label, found in zip(paths, ends):
            np.testing.assert_allclose(found, shown[label].get_xydata()[[0, -1]])
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim() != figure.axes[2].get_ylim()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["curve", "segment", "ends"]


def test_seeds_are_a_mean_with_a_band():
    paths = {"curve": path(1.0, seeds=4)}
    figure = curves.connection(paths, COLUMNS[1:], ts=np.linspace(0.0, 3.0, T))
    for axis, split in zip(figure.axes, ("train", "test")):
        values = 100 * paths["curve"][split]["accuracy"]
        mean, width = values.mean(0), values.std(0, ddof=1)
        np.testing.assert_allclose(lines(axis)["curve"].get_ydata(), mean)
        np.testing.assert_allclose(lines(axis)["curve"].get_xdata(), np.linspace(0, 3, T))
        ((lower, upper),) = bands(axis)
        np.testing.assert_allclose((lower, upper), (mean - width, mean + width))


def test_paths_without_a_score_are_refused():
    broken = {"train": path(1.0)["train"], "test": {"nll": np.ones(T)}}
    with pytest.raises(ValueError, match="the path 'segment' has no test 'accuracy'"):
        curves.connection({"curve": path(1.0), "segment": broken}, COLUMNS)
    with pytest.raises(ValueError, match="at least one path and one column, got 0 and 2"):
        curves.connection({}, COLUMNS)
    with pytest.raises(ValueError, match=r"'nll' of 'curve' as \[T\]"):
        curves.connection({"curve": {"test": {"nll": [1.0]}}}, COLUMNS[:1])


def test_a_matrix_shows_names_and_numbers():
    values = np.array([[np.nan, 0.125, 9.0], [0.5, np.nan, -1.0]])
    figure = barriers.matrix(values, ["a", "b"], ["p", "q", "r"], label="barrier (%)", decimals=1)
    axis, bar = figure.axes
    assert [text.get_text() for text in axis.get_xticklabels()] == ["p", "q", "r"]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["a", "b"] and bar.get_ylabel() == "barrier (%)"
    written = {text.get_position(): text.get_text() for text in axis.texts}
    assert written == {(1, 0): "0.1", (2, 0): "9.0", (0, 1): "0.5", (2, 1): "-1.0"}
    np.testing.assert_array_equal(np.ma.filled(axis.images[0].get_array(), np.nan), values)
    colours = {text.get_position(): text.get_color() for text in axis.texts}
    assert colours[2, 0] == "white" and colours[2, 1] == "black", "the highest is dark and the lowest light"
    with pytest.raises(ValueError, match=r"expected values \[2, 2\]"):
        barriers.matrix(values, ["a", "b"])


def test_instability_by_step_of_the_fork():
    steps, rng = [0, 10, 100, 1000, 5000], np.random.default_rng(0)
    values = {"train": rng.uniform(size=(3, T)), "test": rng.uniform(size=T)}
    figure = barriers.instability(steps, values | {"train": values["train"].T}, stable=2.0)
    (axis,) = figure.axes
    shown = lines(axis)
    np.testing.assert_allclose(shown["train"].get_xydata(), np.stack([steps, values["train"].mean(0)], -1))
    np.testing.assert_allclose(shown["test"].get_ydata(), values["test"])
    np.testing.assert_allclose(bands(axis)[0][0], values["train"].mean(0) - values["train"].std(0, ddof=1))
    np.testing.assert_allclose(bands(axis)[1][0], values["test"])
    np.testing.assert_allclose(shown["stable below"].get_ydata(), 2.0)
    assert to_rgb(shown["train"].get_color()) != to_rgb(shown["test"].get_color())
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("step of the fork", "error barrier (%)")
    assert axis.get_xscale() == "symlog" and axis.get_xlim()[0] == 0
    places = axis.transData.transform([(step, 0.0) for step in steps])[:, 0]
    assert np.all(np.diff(places) > 20), "every step, 0 too, has its place"
    assert barriers.instability([0, 1, 2], {"test": np.ones(3)}).axes[0].get_xscale() == "linear"


def test_steps_that_do_not_fit_are_refused():
    for steps in ([0, 0], [2, 1], [-1, 3], []):
        with pytest.raises(ValueError, match="increasing steps of at least 0"):
            barriers.instability(steps, {"test": np.ones(2)})
    with pytest.raises(ValueError, match="'test' has barriers of 3 steps, and there are 2"):
        barriers.instability([0, 1], {"test": np.ones(3)})


def test_every_seed_of_a_fork_counts_however_many_others_have():
    (axis,) = barriers.instability([0, 10], {"test": [[10.0, 30.0], [1.0]]}).axes
    np.testing.assert_allclose(lines(axis)["test"].get_ydata(), [20.0, 1.0])
    heights = axis.collections[0].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([heights.min(), heights.max()], [1.0, 20.0 + 200.0**0.5])


@pytest.mark.parametrize(
    "values, written",
    [
        ([[0.0, 0.0031], [0.00042, 0.0]], {"0.0000", "0.0031", "0.0004"}),
        ([[12.346, 1.0], [0.0, -0.001]], {"12.35", "1.00", "0.00"}),
        ([[1e30, 2e-9], [0.0, 1.0]], {"1.0e+30", "2.0e-09", "0.0e+00", "1.0e+00"}),
        ([[np.nan, np.inf], [-np.inf, 2.0]], {r"$\infty$", r"$-\infty$", "2.00"}),
    ],
)
def test_numbers_in_cells_can_be_read_and_infinity_is_no_blank(values, written):
    assert {text.get_text() for text in barriers.matrix(values, ["a", "b"]).axes[0].texts} == written


def test_a_figure_is_saved_whole_and_leaves_nothing_beside(tmp_path):
    paths = style.save(barriers.instability([0, 1, 2], {"test": np.ones(3)}), tmp_path / "figures", "instability")
    assert sorted((tmp_path / "figures").iterdir()) == sorted(paths)
    assert paths[0].read_bytes()[:5] == b"%PDF-" and paths[1].read_bytes()[1:4] == b"PNG"
