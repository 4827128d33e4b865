"""Studies of regularity on deep residual networks of digits, against what their checkpoints hold."""

import csv
import pathlib

import jax
import numpy as np
import pytest
from test_configs import assert_drawn, load

from subspaces_jax import checkpoints, records
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import analyze, build, plot, train
from subspaces_jax.experiments.studies import profiles, regularity
from subspaces_jax.plots import style

PLAIN = dict(subspace="none", beta=0.0, weight_decay=1e-3, num_epochs=2, batch_size=0, learning_rate=3.0)
PLAIN |= dict(augmentation="none", warmup_epochs=0, checkpoint_every=1)
NETWORK = "deep_residual(depth={}, width=3, alpha=0.75, gamma=1.0, initialisation=ntrunc)"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two members of each of two depths, a line of one of them, and a dense network without layers of one shape."""
    folder = tmp_path_factory.mktemp("deep")
    for depth in (3, 5):
        config = load("line_digits", **PLAIN, network=NETWORK.format(depth), num_members=2, keep_steps="0,1,2")
        train.run(config, folder / f"{depth}")
    line = PLAIN | dict(subspace="line", network=NETWORK.format(3), num_epochs=1)
    train.run(load("line_digits", **line), folder / "line")
    train.run(load("line_digits", **PLAIN | dict(network="mlp_3", num_epochs=1)), folder / "dense")
    return folder


def study(name, out, *folders, **fields):
    facts = analyze.run({"analysis": name, "runs": ",".join(map(str, folders))} | fields, out)
    return records.load_results(out, name)[0], facts


def blocks(folder, step=None):
    """Kernels of all rows, [M, L, d, d] in float64."""
    return np.asarray(checkpoints.restore(folder, step).params["blocks"]["kernel"], np.float64)


def length(path):
    """The 1-variation."""
    return np.sum(np.linalg.norm(np.diff(path.reshape(len(path), -1), axis=0), axis=1))


def test_regularity_of_several_depths_with_repetitions(trained, tmp_path, monkeypatch):
    fields = dict(exponents="1", positions="(0,0),(2,1)")
    arrays, facts = study("regularity", tmp_path, trained / "5", trained / "3", **fields)
    assert [(group["num_layers"], group["num"], group["beta"]) for group in facts["groups"]] == [
        (3, 2, 0.25),
        (5, 2, 0.25),
    ]
    assert [group["family"] for group in facts["groups"]] == ["", ""]
    for g, depth in enumerate((3, 5)):
        path = depth**0.25 * blocks(trained / f"{depth}")
        np.testing.assert_allclose(arrays[f"{g}/depth"], np.arange(1, depth + 1) / depth)
        np.testing.assert_allclose(arrays[f"{g}/norm"], np.linalg.norm(path, axis=(2, 3)), rtol=1e-5)
        np.testing.assert_allclose(arrays[f"{g}/entries"][:, 1], path[:, :, 2, 1], rtol=1e-5)
        np.testing.assert_allclose(arrays[f"{g}/variation"][:, 0], [length(of) for of in path], rtol=1e-5)
    monkeypatch.setattr(style, "save", lambda figure, folder, name: [name] if figure.axes[0].lines else [])
    written = [pathlib.Path(path).name for path in plot.run(None, tmp_path)["figures"]]
    names = ["regularity_norms", "regularity_entries", "regularity_variations"]
    assert written == ["regularity.csv", "regularity.tex", *names]
    with open(tmp_path / "figures" / "regularity.csv") as file:
        heads, first, second = csv.reader(file)
    assert heads == ["layers", "repetitions", "1-variation", "1-variation std", "1-variation, largest"]
    lengths = [length(of) for of in 5**0.25 * blocks(trained / "5")]
    expected = [np.mean(lengths), np.std(lengths, ddof=1), np.max(lengths)]
    assert second[:2] == ["L = 5", "2"]
    np.testing.assert_allclose(np.float64(second[2:5]), expected, rtol=1e-4)
    line = "L = 5 & 2 & {:.3f} $\\pm$ {:.3f} & {:.3f}".format(*expected)
    assert line in (tmp_path / "figures" / "regularity.tex").read_text()
    assert "| L = 3 | 2 | " in analyze.table(facts) and "beta = 0.25" in analyze.table(facts)


def test_runs_that_differ_in_bookkeeping_alone_are_repetitions():
    told = lambda **fields: regularity._told(build.experiment(load("line_digits", **PLAIN | fields)))
    same = dict(seed=3, keep_first=1, test_every=1, profile_steps="1,2", leaves="shaped", rematerialise="all")
    assert told() == told(**same) and told() != told(dtype="bfloat16")


def test_variation_over_training_of_every_member(trained, tmp_path, monkeypatch):
    arrays, facts = study("training_variation", tmp_path, trained / "3", exponents="1", beta="0")
    at_steps = np.stack([blocks(trained / "3", step) for step in (0, 1, 2)])  # [S, M, L, d, d]; the others are frozen
    assert [of["name"] for of in facts["networks"]] == ["3, member 0", "3, member 1"]
    for m in range(2):
        np.testing.assert_array_equal(arrays[f"{m}/steps"], [0, 1, 2])
        np.testing.assert_allclose(arrays[f"{m}/net"], length(at_steps[:, m]), rtol=1e-4)
        running = [[0], [length(at_steps[:2, m])], [length(at_steps[:, m])]]
        np.testing.assert_allclose(arrays[f"{m}/running"], running, rtol=1e-4)
        of_blocks = [[length(at_steps[:, m, k])] for k in range(3)]
        np.testing.assert_allclose(arrays[f"{m}/layers/blocks"], of_blocks, rtol=1e-4)
        over_depth = [[length(of)] for of in at_steps[:, m]]
        np.testing.assert_allclose(arrays[f"{m}/depth/blocks"], over_depth, rtol=1e-4)
    names = {"training_variation", "training_variation_layers", "depth_variation"}
    monkeypatch.setattr(style, "save", lambda figure, folder, name: [name] if figure.axes[0].lines else [])
    assert set(plot.run(None, tmp_path)["figures"]) == names
    assert "blocks, largest of 3 layers" in analyze.table(facts)


def test_variation_over_depth_along_a_trained_line(trained, tmp_path):
    arrays, facts = study("path_variation", tmp_path, trained / "line", exponents="1", num_points=3, splits="test")
    first, last = blocks(trained / "line")
    points = 3**0.25 * np.stack([first, 0.5 * (first + last), last])
    np.testing.assert_allclose(arrays["variation/blocks"][:, 0], [length(of) for of in points], rtol=1e-5)
    flat = lambda tree: np.concatenate(
        [np.ravel(np.asarray(leaf, np.float64)[1] - leaf[0]) for leaf in jax.tree.leaves(tree)]
    )
    distance = np.linalg.norm(flat(checkpoints.restore(trained / "line").params))
    assert np.sum(arrays["dl"]) == pytest.approx(distance, rel=1e-5) and np.all(np.isfinite(arrays["te_nll"]))
    assert analyze.table(facts).splitlines()[1].split()[:4] == ["blocks,", "p", "=", "1"]
    assert_drawn(plot.run(None, tmp_path)["figures"], {"path_variation"})


def test_a_surface_around_a_deep_network_in_one_program_is_that_of_point_by_point(trained, tmp_path, monkeypatch):
    """Orthogonal directions of the blocks alone, each as long as its layer; the grid is centred on the network."""
    fields = dict(through="random", normalise="layer", orthogonal=True, extent=2.0, num_points=3, num_examples=60)
    at_once, _ = study("plane", tmp_path / "at_once", trained / "line", **fields)
    monkeypatch.setattr(profiles, "offers_all_at_once", lambda *of: False)
    one_by_one, _ = study("plane", tmp_path / "one_by_one", trained / "line", **fields)
    assert at_once.keys() == one_by_one.keys() and {"tr_loss", "te_err", "l2"} < at_once.keys()
    for name, values in one_by_one.items():
        np.testing.assert_allclose(at_once[name], values, rtol=2e-5, atol=1e-6, err_msg=name)
    norm = np.linalg.norm(blocks(trained / "line").mean(axis=0))
    for axis in (at_once["x"], at_once["y"]):
        np.testing.assert_allclose(axis, [-2 * norm, 0, 2 * norm], rtol=1e-5, atol=1e-6)
    assert np.ptp(at_once["te_nll"]) > 1e-3


@pytest.mark.parametrize(
    "name, run, fields, message",
    [
        ("regularity", "dense", {}, "no two layers have the same shape.*Dense_0 \\(64, 3\\), Dense_1 \\(3, 10\\)"),
        ("regularity", "dense", {"layers": "Dense_*"}, "of one path have the same shape, Dense_\\* names Dense_0"),
        ("regularity", "3", {"positions": "(0,3)"}, "position \\(0,3\\) lies outside layers of 3 x 3"),
        ("regularity", "3", {"positions": "0,3"}, "config.positions is '0,3': it takes str, \\(row,column\\)"),
        ("regularity", "3", {"exponents": "1,0.5"}, "config.exponents is '1,0.5': it takes str, p of the p-variations"),
        ("regularity", "", {}, "config.runs names no run directory"),
        ("training_variation", "dense", {}, "dense kept no checkpoints"),
        ("path_variation", "dense", {}, "give 1 networks: a path is that of one run of a curve"),
    ],
)  # fmt: skip
def test_what_has_no_regularity_is_named(name, run, fields, message, trained, tmp_path):
    with pytest.raises(ConfigError, match=message):
        study(name, tmp_path, *[trained / run] * bool(run), **fields)
