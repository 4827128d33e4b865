"""What users call their runs, in figures and tables: drawn as it is, whatever it is."""

import numpy as np
import pytest

from subspaces_jax.plots import curves, families, paths, style, tables, together, training

HOSTILE = ["a$_{$b", "_old", "50 % & more #1", "line,augmentation=crop|flip"]
COLUMN = ("acc", "accuracy", "%", 1.0)


def shown(figure):
    """The texts of its legends."""
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


@pytest.mark.parametrize(
    "draw",
    [
        lambda name: together.ensembling({name: ([90, 91], [90, 90]), "new": ([89, 90], [88, 89])}, title=name),
        lambda name: together.costs({name: ([90, 91], [90, 90])}, {name: 1.0}, title=name),
        lambda name: curves.connection({name: {"test": {"acc": np.ones((1, 3))}}}, [COLUMN], title=name),
    ],
)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_drawn_and_stands_in_the_legend_as_it_is(draw, name, tmp_path):
    figure = draw(name)
    assert any(text.replace(r"\$", "$").strip() == name for text in shown(figure))
    assert all(path.stat().st_size > 1000 for path in style.save(figure, tmp_path, "x"))


def test_names_that_are_too_long_to_stand_side_by_side_are_turned():
    for names, turned in ((["a", "b"], False), ([f"a rather long kind of a network {k}" for k in range(8)], True)):
        (axis,) = together.scores_of({name: [1.0, 2.0] for name in names}, "accuracy").axes
        assert [label.get_text() for label in axis.get_xticklabels()] == names
        assert all((label.get_rotation() > 0) == turned for label in axis.get_xticklabels())


def test_many_members_have_ticks_that_can_be_read():
    by_size = {name: np.linspace(0.9, 0.95, 30) for name in ("accuracy", "accuracy_std", "ece_20", "ece_20_std")}
    for axis in families.ensemble_sizes(by_size).axes:
        ticks = axis.get_xticks()
        assert len(ticks) <= 11 and np.all(ticks == np.round(ticks))


@pytest.mark.parametrize("losses, scale", [([2.0, 1.0], "log"), ([1.0, 0.0], "linear"), ([-1.0, -2.0], "linear")])
def test_losses_that_a_logarithmic_axis_leaves_out_have_another(losses, scale):
    rows = [{"epoch": k, "loss": loss, "learning_rate": 0.1} for k, loss in enumerate(losses)]
    axis = training.dynamics(rows).axes[0]
    assert axis.get_yscale() == scale and list(axis.lines[0].get_ydata()) == losses


def test_a_training_without_a_finite_loss_says_so():
    rows = [{"epoch": k, "loss": np.nan, "learning_rate": 0.1} for k in range(2)]
    first, second = training.dynamics(rows).axes
    assert [text.get_text() for text in first.texts] == ["not finite"] and not second.texts


def test_a_profile_without_points_is_refused_in_words():
    with pytest.raises(ValueError, match="at least one column and one point"):
        paths.profile({"columns": [COLUMN], "scores": {"acc": []}})


def test_tables_print_names_as_they_are(tmp_path):
    assert all(tables.LATEX[letter] == f"${letter}$" for letter in "<>|")  # which the usual fonts lack
    table = tables.Table([tables.Row(r"crop|flip, 50% & a_b #1 ~^{}\ $x", 2, [(1.2, 0.1)])], (("cos^2 (%)", 2),))
    latex = tables.write(table, tmp_path, "t")[1].read_text().splitlines()
    assert latex[2] == r"variant & seeds & cos$^2$ (\%) \\"
    row = r"crop$|$flip, 50\% \& a\_b \#1 \textasciitilde{}\textasciicircum{}\{\}\textbackslash{} \$x & 2 & "
    assert latex[4].startswith(row)
    markdown = tables.text(table).splitlines()
    assert markdown[2].startswith(r"| crop\|flip, 50% & a_b #1 ~^{}\ $x | 2 |")


@pytest.mark.parametrize("scale, lowest", [("linear", -2.0), ("log", 0.1)])
def test_a_band_that_reaches_below_zero_does_not_flood_a_logarithmic_axis(scale, lowest):
    with style.panels(1) as (_, (axis,)):
        axis.set_yscale(scale)
        style.band_about(axis, [0, 1], np.array([1.0, 10.0]), np.array([3.0, 1.0]))
    heights = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (lowest, 11.0)
