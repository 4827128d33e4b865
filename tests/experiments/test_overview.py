"""Several kinds of results in one figure, from folders that hold nothing but these results."""

from types import SimpleNamespace

import numpy as np
import pytest

from subspaces_jax import records
from subspaces_jax.errors import ConfigError, RunDirectoryError
from subspaces_jax.experiments import analyze, plot
from subspaces_jax.experiments.studies import STUDIES, overview
from subspaces_jax.plots import overview as plots

DROPS = np.array([[[0.2, 0.1], [0.8, 0.7]], [[0.4, 0.1], [0.8, 0.9]]])  # of 2 networks
ERROR = [["err", "error", "%", 1.0]]


def _folder(path, study, arrays, facts):
    config = analyze.complete({"analysis": study})
    path.mkdir()
    records.write_header(path, "study", config)
    records.save_results(path, study, arrays, facts | {"config": config})
    return str(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run that scored a line, and four studies."""
    root, t = tmp_path_factory.mktemp("results"), np.linspace(0.0, 1.0, 5)
    line = root / "line"
    line.mkdir()
    records.write_header(line, "train", {"seed": 0})
    scores = {"accuracy": [0.8, 0.82, 0.84, 0.82, 0.8], "pair_accuracy": [0.85, 0.84, 0.84, 0.84, 0.85]}
    records.save_results(line, "points", {}, {"scores": scores, "columns": [["accuracy", "accuracy", "%", 100.0]]})
    x, y = np.linspace(-1.0, 3.0, 6), np.linspace(-1.0, 2.0, 5)
    of_plane = {"x": x, "y": y, "te_err": 10.0 + x[:, None] ** 2 + y**2, "curve_coordinates": np.ones((4, 2))}
    of_plane["bend_coordinates"] = np.array([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    names = [f"method_{i}" for i in range(6)]
    of_paths = {f"{name}/te_err": np.array([10.0 + i * t, 11.0 + i * t]) for i, name in enumerate(names)}
    masses = np.array([[0.5, 0.6, 0.8], [0.5, 0.7, 0.9]])
    of_filters = {"epochs": np.array([0.0, 1.0, 10.0]), "stage_0/mass": masses, "net/mass": masses + 0.01}
    facts = {"stages": ["stage_0"], "layers": [{"filters": 30}, {"filters": 20}]}
    norms = np.array([[5.0, 4.5], [5.2, 4.7]])
    of_depth = {"0/depth": np.array([0.5, 1.0]), "0/norm": norms, "1/depth": np.array([0.5, 1.0]), "1/norm": norms + 1}
    of_resets = {"members": ["a", "b"], "rows": ["0", "rand"], "parts": {"Conv_0": [], "Dense_0": []}, "columns": ERROR}
    groups = [{"num_layers": num, "family": {}, "layers": "blocks"} for num in (2, 4)]
    return [
        str(line),
        _folder(root / "plane", "plane", of_plane, {"columns": ERROR}),
        _folder(root / "paths", "connections", of_paths, {"columns": ERROR, "connectors": dict.fromkeys(names, {})}),
        _folder(root / "filters", "orientation", of_filters, facts),
        _folder(root / "depth", "regularity", of_depth, {"groups": groups}),
        _folder(root / "resets", "reinit", {"drop": DROPS}, of_resets),
    ]


def test_each_panel_shows_the_numbers_of_its_folder(folders, tmp_path):
    titles = ["a line", "a plane", "paths", "filters", "depth", "resets"]
    config = {"analysis": "overview", "runs": ",".join(folders), "titles": "|".join(titles)}
    facts = analyze.run(config, tmp_path / "all")
    assert [line.split(": ")[0] for line in analyze.table(facts).splitlines()] == titles
    figure = overview.figures(*records.load_results(tmp_path / "all", "overview"))["overview"]
    panels = {axis.get_title(): axis for axis in figure.axes if axis.get_title()}
    assert list(panels) == titles
    drawn = {name: {line.get_label(): line.get_ydata() for line in axis.get_lines()} for name, axis in panels.items()}
    np.testing.assert_allclose(drawn["a line"]["ensemble of $t$ and $1-t$"], [85, 84, 84, 84, 85])
    np.testing.assert_allclose(drawn["a plane"]["bend"], [1.0])
    np.testing.assert_allclose(drawn["paths"]["method_3"], 10.5 + 3 * np.linspace(0, 1, 5))
    np.testing.assert_allclose(drawn["filters"]["stage 0"], [0.5, 0.65, 0.85])
    shown = [line.get_ydata() for line in panels["depth"].get_lines() if len(line.get_xdata())]
    np.testing.assert_allclose(shown, [[5.1, 4.6], [6.1, 5.6]])
    (heat,) = panels["resets"].get_images()
    np.testing.assert_allclose(heat.get_array(), [[0.3, 0.1], [0.8, 0.8]])
    assert [text.get_text() for text in panels["resets"].get_yticklabels()] == ["epoch 0", "fresh"]
    looks = {(line.get_color(), line.get_linestyle()) for line in panels["paths"].get_lines()
             if str(line.get_label()).startswith("method")}  # fmt: skip
    assert len(looks) == 6, "each of six paths is told from the others"


def test_the_figure_is_drawn_from_its_own_results(folders, tmp_path):
    analyze.run({"analysis": "overview", "runs": folders[1]}, tmp_path / "one")
    (tmp_path / "one/config.json").write_text((tmp_path / "one/config.json").read_text().replace(folders[1], "gone"))
    written = plot.run(None, tmp_path / "one")["figures"]
    assert [path.rpartition("/")[2] for path in written] == ["overview.pdf", "overview.png"]


def test_a_new_study_is_shown_by_its_own_panel(tmp_path, monkeypatch):
    panel = lambda axis, arrays, facts: axis.plot(arrays["x"], label=facts["name"])
    monkeypatch.setitem(STUDIES, "mine", SimpleNamespace(panel=panel))
    (tmp_path / "mine").mkdir()
    records.write_header(tmp_path / "mine", "study", {"analysis": "mine"})
    records.save_results(tmp_path / "mine", "mine", {"x": np.arange(3.0)}, {"name": "own"})
    folder = str(tmp_path / "mine")
    arrays, facts = overview.run(SimpleNamespace(runs=folder, titles=""))
    (axis,) = overview.figures(arrays, facts)["overview"].axes
    np.testing.assert_array_equal(axis.lines[0].get_ydata(), [0, 1, 2])


def test_what_cannot_be_shown_is_refused(folders, tmp_path):
    refuse = lambda text, **fields: pytest.raises(ConfigError, match=text)
    with refuse("names no results"):
        analyze.run({"analysis": "overview"}, tmp_path / "none")
    with refuse("has 1 for 2 folders"):
        analyze.run({"analysis": "overview", "runs": ",".join(folders[:2]), "titles": "one"}, tmp_path / "few")
    other = _folder(tmp_path / "barriers", "barriers", {}, {})
    with refuse("'barriers', an overview draws points, plane"):
        analyze.run({"analysis": "overview", "runs": other}, tmp_path / "other")
    empty = tmp_path / "empty"
    empty.mkdir()
    records.write_header(empty, "study", analyze.complete({"analysis": "plane"}))
    with pytest.raises(RunDirectoryError, match="plane"):
        analyze.run({"analysis": "overview", "runs": str(empty)}, tmp_path / "of_empty")
    with pytest.raises(ValueError, match="at least one panel"):
        plots.overview({})


def test_panels_of_one_kind_are_numbered(folders, tmp_path):
    facts = analyze.run({"analysis": "overview", "runs": f"{folders[1]},{folders[1]}"}, tmp_path / "twice")
    assert [part["title"] for part in facts["parts"]] == ["plane", "plane 2"]
