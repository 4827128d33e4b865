"""The studies of orientation and of resets, on small networks of digits, against NumPy and plain evaluation."""

import json
import shutil

import jax
import numpy as np
import pytest
from test_configs import SMALL, assert_drawn, assert_made, load

from subspaces_jax import analysis, checkpoints, geometry, records
from subspaces_jax.data import sources
from subspaces_jax.errors import CheckpointError, ConfigError, RunDirectoryError
from subspaces_jax.experiments import analyze, describe, plot, train
from subspaces_jax.experiments.build import training as build_training
from subspaces_jax.experiments.studies import reinit, training_variation

QUICK = dict(
    network="mlp_8_6", num_epochs=2, weight_decay=1e-3, augmentation="none", checkpoint_every=1, keep_steps="0,11"
)
PLAIN = QUICK | dict(subspace="none", beta=0.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two dense networks, a line, and a convolution with BatchNorm."""
    folder = tmp_path_factory.mktemp("trained")
    for seed, name in enumerate("ab"):
        train.run(load("line_digits", **PLAIN, seed=seed), folder / name)
    train.run(load("line_digits", **QUICK), folder / "line")
    train.run(load("line_digits", **PLAIN | {"network": SMALL, "num_epochs": 1, "keep_steps": "0"}), folder / "conv")
    return folder


def study(name, out, folders, **fields):
    facts = analyze.run({"analysis": name, "runs": ",".join(map(str, folders))} | fields, out)
    return records.load_results(out, name)[0], facts


def network(folder, step=None):
    return jax.device_get(geometry.unstack(checkpoints.restore(folder, step).params)[0])


def accuracy(params):
    """On the test split, in float64."""
    images, labels = sources.load("digits", "test")
    x = (images.reshape(len(images), -1) / 255 - 0.3053) / 0.3762
    for i in range(3):
        x = x @ np.float64(params[f"Dense_{i}"]["kernel"]) + np.float64(params[f"Dense_{i}"]["bias"])
        x = np.maximum(x, 0) if i < 2 else x
    return np.mean(x.argmax(1) == labels), np.mean((np.argsort(x, 1)[:, -5:] == labels[:, None]).any(1))


def test_orientation_over_training(trained, tmp_path):
    folders = [trained / "a", trained / "b"]
    arrays, facts = study("orientation", tmp_path, folders, with_dense=True, num_bins=8)
    assert facts["steps"] == [0, 11, 22] and facts["epochs"] == [0, 1, 2] and facts["members"] == ["a", "b"]
    assert [(of["name"], of["stage"], of["block"]) for of in facts["layers"]] == [
        ("Dense_0", 0, 0), ("Dense_1", 0, 1), ("Dense_2", 0, 2)
    ]  # fmt: skip
    for m, folder in enumerate(folders):
        first = network(folder, 0)
        for s, step in enumerate((0, 11, 22)):
            params = network(folder, step)
            expected = analysis.orientation(params, True, True)
            for layer, of in expected.items():
                np.testing.assert_allclose(arrays[f"{layer}/projections"][m, s], of["projections"], atol=1e-6)
                assert arrays[f"{layer}/mass"][m, s] == pytest.approx(float(of["mass"]))
                assert arrays[f"{layer}/mean"][m, s] == pytest.approx(float(of["mean"]), abs=1e-6)
                assert arrays[f"{layer}/histogram"][m, s].sum() == len(of["projections"])
            moved = analysis.distance_from_init(params, first, True)
            assert arrays["Dense_1/l2"][m, s] == pytest.approx(float(moved["Dense_1"]["l2"]), abs=1e-6)
    np.testing.assert_array_equal(arrays["Dense_2/linf"][:, 0], 0)
    np.testing.assert_array_equal(arrays["stage_0/projections"], arrays["net/projections"])
    text = analyze.table(facts)
    assert "Dense_1" in text and f"epoch    2.00: net mass {arrays['net/mass'][:, 2].mean():.4f} ±" in text
    assert_drawn(plot.run(None, tmp_path)["figures"], {"orientation_layers", "orientation_training"})


def test_orientation_in_the_schema_of_the_reference(trained, tmp_path):
    arrays, _ = study("orientation", tmp_path, [trained / "a"], with_dense=True, normalize=False, steps="11")
    found = json.loads((tmp_path / "results" / "orientation_a_11.json").read_text())
    assert found.keys() == {"0", "net", "arch", "dataset", "seed", "epoch"}
    assert (found["arch"], found["dataset"], found["seed"], found["epoch"]) == ("mlp_8_6", "digits", "0", "1")
    assert found["0"].keys() == {"0", "1", "2"}
    layer, kernel = found["0"]["1"], network(trained / "a", 11)["Dense_1"]["kernel"]
    np.testing.assert_allclose(layer["projections"], kernel.sum(0), rtol=1e-5, atol=1e-6)
    assert layer["mass"] == np.mean(kernel.sum(0) <= 0)
    change = kernel - network(trained / "a", 0)["Dense_1"]["kernel"]
    assert layer["l_inf_dist"] == pytest.approx(
        np.abs(change).max() / np.abs(network(trained / "a", 0)["Dense_1"]["kernel"]).max(), rel=1e-5
    )
    assert layer.keys() == {"projections", "mass", "mean", "l2_dist", "l_inf_dist"}
    assert records.plain({"a": np.array([1.0, np.nan])}) == {"a": [1.0, None]}


def test_orientation_along_a_line(trained, tmp_path, monkeypatch):
    arrays, facts = study(
        "orientation", tmp_path, [trained / "line"], with_dense=True, num_points=3, members="endpoints", steps="22"
    )
    assert facts["members"] == ["line endpoint 0", "line endpoint 1"]
    for name in ("Dense_0", "net"):
        for end, t in ((0, 0), (1, 2)):
            np.testing.assert_allclose(
                arrays[f"along/{name}/projections"][0, t], arrays[f"{name}/projections"][end, 0], atol=1e-6
            )
    ends = geometry.unstack(checkpoints.restore(trained / "line").params)
    middle = jax.tree.map(lambda x, y: (np.asarray(x) + np.asarray(y)) / 2, *ends)
    found = analysis.orientation(middle, True, True)["Dense_1"]
    assert arrays["along/Dense_1/mean"][0, 1] == pytest.approx(float(found["mean"]), abs=1e-6)
    assert arrays["along/accuracy"][0, 1] == pytest.approx(accuracy(middle)[0], abs=1e-6)
    assert_made(monkeypatch, tmp_path, {"orientation_layers", "orientation_along"})


def test_resets_are_those_networks(trained, tmp_path):
    """Every layer at every checkpoint by hand; to its own checkpoint nothing changes."""
    arrays, facts = study(
        "reinit", tmp_path, [trained / "a"], checkpoints="0,11,22", num_fresh=1, parts="dense,Dense_0+Dense_2"
    )
    assert facts["rows"] == ["0", "1", "2", "rand"] and list(facts["parts"]) == [
        "Dense_0", "Dense_1", "Dense_2", "Dense_0+Dense_2"
    ]  # fmt: skip
    last = network(trained / "a")
    assert arrays["trained_accuracy"][0] == pytest.approx(accuracy(last)[0], abs=1e-6)
    for k, step in enumerate((0, 11, 22)):
        other = network(trained / "a", step)
        for g, layers in enumerate((["Dense_0"], ["Dense_1"], ["Dense_2"], ["Dense_0", "Dense_2"])):
            expected = accuracy(last | {layer: other[layer] for layer in layers})
            assert arrays["accuracy"][0, k, g] == pytest.approx(expected[0], abs=1e-6), (step, layers)
            assert arrays["top_5"][0, k, g] == pytest.approx(expected[1], abs=1e-6)
    np.testing.assert_array_equal(arrays["drop"][0, 2], 0)
    assert np.all(arrays["nll"][0, 2] == arrays["trained_nll"][0])
    drop = (arrays["trained_accuracy"][0] - arrays["accuracy"][0, 0, 3]) / arrays["trained_accuracy"][0]
    assert arrays["drop"][0, 0, 3] == pytest.approx(drop)
    found = json.loads((tmp_path / "results" / "reinit_a.json").read_text())
    assert found["init_from_epoch"].keys() == {"0", "1", "2", "rand"} and found["epoch"] == "2"
    np.testing.assert_allclose(found["init_from_epoch"]["1"], 100 * arrays["accuracy"][0, 1])
    assert found["top1_test"] == pytest.approx(100 * arrays["trained_accuracy"][0]) and found["top5_test"] > 0
    assert "fresh" in analyze.table(facts)
    figures = plot.run(None, tmp_path)["figures"]
    assert [name.rsplit("/", 1)[1] for name in figures] == ["reinit.pdf", "reinit.png"]


def test_resets_of_points_of_a_line(trained, tmp_path):
    arrays, facts = study(
        "reinit", tmp_path, [trained / "line"], at="0,0.5", checkpoints="0", num_fresh=0, parts="dense"
    )
    assert facts["members"] == ["line t=0", "line t=0.5"]
    now, before = ([jax.device_get(row) for row in geometry.unstack(checkpoints.restore(trained / "line", step).params)]
                   for step in (None, 0))  # fmt: skip
    middle = lambda ends: jax.tree.map(lambda x, y: (x + y) / 2, *ends)
    for m, (trained_one, start) in enumerate(((now[0], before[0]), (middle(now), middle(before)))):
        assert arrays["trained_accuracy"][m] == pytest.approx(accuracy(trained_one)[0], abs=1e-6)
        expected = accuracy(trained_one | {"Dense_1": start["Dense_1"]})[0]
        assert arrays["accuracy"][m, 0, 1] == pytest.approx(expected, abs=1e-6)
    assert reinit.figures(arrays, facts).keys() == {"reinit_t0", "reinit_t0.5"}


def test_the_first_epochs_are_kept():
    assert build_training.kept_steps("5", 2, 6, 10, keep_first=1) == (0, 5, 10, 20, 40, 60)
    assert build_training.kept_steps("", 0, 2, 10, keep_first=9) == (0, 10, 20)
    assert build_training.kept_steps("", 0, 2, 10) == ()


@pytest.mark.parametrize("statistics", ["refreshed", "trained"])
def test_resets_with_batch_norm_keep_the_trained_network(statistics, trained, tmp_path):
    """Statistics: of the trained network as an evaluation refreshes them; a reset of them to what they are is none."""
    fields = dict(checkpoints="0,11", num_fresh=0, parts="kernels,norms", statistics=statistics, together=2)
    arrays, facts = study("reinit", tmp_path, [trained / "conv"], **fields)
    assert list(facts["parts"]) == ["Conv_0", "Dense_0", "BatchNorm_0"]
    np.testing.assert_allclose(arrays["nll"][0, 1], arrays["trained_nll"][0], rtol=1e-6)
    assert np.all(arrays["nll"][0, 0, :2] != arrays["trained_nll"][0])
    assert np.all(arrays["top_5"] >= arrays["accuracy"]) and np.all(arrays["top_5"][0, 1] == arrays["trained_top_5"][0])
    _, alone = study("ensemble", tmp_path / "alone", [trained / "conv"])
    assert arrays["trained_nll"][0] == pytest.approx(alone["scores"]["nll"][0], rel=1e-4)


@pytest.mark.parametrize(
    "name, fields, error, message",
    [
        ("orientation", {}, ConfigError, "no layer counts; the tree's kernels are Dense_0 .*with_dense"),
        (
            "orientation",
            {"with_dense": True, "steps": "0,7,9"},
            CheckpointError,
            "no checkpoint of step 7, 9: there are",
        ),
        ("orientation", {"with_dense": True, "initial_step": 5}, CheckpointError, "checkpoint of step 5"),
        ("orientation", {"with_dense": True, "num_points": 3}, ConfigError, "num_points is for lines and curves"),
        ("reinit", {"checkpoints": "0,7"}, CheckpointError, r"no checkpoints .*a@7: .*a has \[0, 11, 22\]"),
        ("reinit", {"checkpoints": "nowhere@0"}, RunDirectoryError, "nowhere"),
        ("reinit", {"checkpoints": "nowhere"}, ConfigError, "'.*nowhere' is no step"),
        ("reinit", {"checkpoints": "{conv}@0"}, CheckpointError, "cannot be reset to those of .*conv: .*- Dense_1"),
        ("reinit", {"parts": "convolutions"}, ConfigError, "config.parts: the network has no convolutions"),
        ("reinit", {"at": "0.5"}, ConfigError, "config.at is for lines and curves"),
        ("reinit", {"at": "2"}, ConfigError, "config.at is '2': it takes str"),
    ],
)
def test_what_cannot_be_studied_is_named(name, fields, error, message, trained, tmp_path):
    fields = {key: value.format(conv=trained / "conv") if isinstance(value, str) else value
              for key, value in fields.items()}  # fmt: skip
    with pytest.raises(error, match=message) as caught:
        study(name, tmp_path / "out", [trained / "a"], **fields)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_the_orientation_along_a_line_is_that_of_the_step(trained, tmp_path):
    fields = dict(with_dense=True, num_points=2, members="endpoints", steps="11")
    arrays, _ = study("orientation", tmp_path, [trained / "line"], **fields)
    for end in (0, 1):
        of_end = analysis.orientation(jax.tree.map(lambda leaf: leaf[end], at_step(trained / "line", 11)), True, True)
        for found in (arrays["along/Dense_0/projections"][0, end], arrays["Dense_0/projections"][end, 0]):
            np.testing.assert_allclose(found, of_end["Dense_0"]["projections"], atol=1e-6)


def at_step(folder, step):
    return jax.device_get(checkpoints.restore(folder, step).params)


def test_runs_whose_folders_are_called_alike_are_told_apart(trained, tmp_path):
    for name in "ab":
        shutil.copytree(trained / name, tmp_path / name / "0")
    folders = [tmp_path / name / "0" for name in "ab"]
    _, facts = study("reinit", tmp_path / "reinit", folders, checkpoints="0", num_fresh=0, parts="dense")
    assert facts["members"] == ["a/0", "b/0"]
    results = {path.name for path in (tmp_path / "reinit" / "results").iterdir()}
    assert results == {"reinit.json", "reinit.npz", "reinit_a_0.json", "reinit_b_0.json"}
    arrays, facts = study("training_variation", tmp_path / "variation", folders)
    assert [network["name"] for network in facts["networks"]] == ["a/0", "b/0"]
    lines = training_variation.figures(arrays, facts)["training_variation"].axes[0].lines
    assert len(lines) == 2
    assert describe.run(None, tmp_path / "reinit")["tables"].keys() == {
        "reinit"
    }  # exports are no results of another version


def test_columns_are_in_the_order_of_the_network_and_say_what_they_show(trained, tmp_path):
    study("reinit", tmp_path, [trained / "conv"], checkpoints="0", num_fresh=0, parts="Dense_0,Conv_0,BatchNorm_0")
    facts = records.load_facts(tmp_path, "reinit")
    (figure,) = reinit.figures(*records.load_results(tmp_path, "reinit")[:2]).values()
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert shown == list(facts["parts"]) == ["Dense_0", "Conv_0", "BatchNorm_0"]
    assert "drop of the test" in figure.axes[1].get_ylabel().replace("\n", " ")
    facts["columns"] = [["loss", "loss", "", 1.0]]
    assert reinit._label(facts) == "relative rise of the test loss"
