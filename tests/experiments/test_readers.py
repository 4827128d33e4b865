"""Run directories are read in one place: runs of the first version, kinds of folders, and what a run's networks are."""

import json
import pathlib
import shutil

import chex
import jax
import numpy as np
import pytest
from test_configs import load
from test_runs import rows

from subspaces_jax import checkpoints, geometry, records
from subspaces_jax.errors import CheckpointError, ConfigError, RunDirectoryError
from subspaces_jax.experiments import analyze, build, evaluate, fields, plot, runs, schema, train
from subspaces_jax.plots import tables

STORED = pathlib.Path(__file__).parent / "stored_run"  # of the first version: a line of mlp_8 on digits, two epochs


@pytest.fixture
def stored(tmp_path):
    shutil.copytree(STORED, tmp_path / "stored")
    return tmp_path / "stored"


def test_a_run_of_the_first_version_is_opened_without_data(stored, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "/nonexistent")
    run = runs.open_run(stored)
    assert run.kind == "train" and run.run_id == "" and run.steps == [11, 22]
    assert run.plan == build.Plan(11, 22, (), ())
    assert run.config["network"] == "mlp_8" and run.config["task"] == "classification"
    assert run.config.keys() == fields.FIELDS.keys()


def test_a_run_of_the_first_version_evaluates_to_what_it_stored(stored):
    before = json.loads((stored / "results" / "points.json").read_text())
    (stored / "results" / "points.json").unlink()
    facts = evaluate.run(None, stored)
    assert facts["step"] == before["step"] and facts["midpoint"] == before["midpoint"]
    for name, values in before["scores"].items():
        np.testing.assert_allclose(facts["scores"][name], values, rtol=1e-5, atol=1e-6, err_msg=name)
    figures = plot.run(None, stored)["figures"]
    assert {pathlib.Path(path).stem for path in figures} == {"training", "profile"}


def test_results_of_the_first_version_are_drawn_and_analysed(stored):
    assert len(plot.run(None, stored)["figures"]) == 4
    facts = analyze.run({"runs": str(stored), "members": "endpoints"}, stored.parent / "study")
    own = json.loads((stored / "results" / "points.json").read_text())["scores"]["nll"]
    np.testing.assert_allclose(facts["scores"]["nll"], [own[0], own[-1]], rtol=1e-5)


def test_a_run_of_the_first_version_goes_on_and_ends_as_it_did(stored):
    """The config of then against that of now, every field that was added being at its default; the very weights."""
    shutil.rmtree(stored / "checkpoints" / "22")
    header = records.read_header(stored)
    last = train.run(header.config, stored)
    assert last["resumed_from"] == 11 and last["step"] == 22
    chex.assert_trees_all_close(
        checkpoints.restore(stored).params, checkpoints.restore(STORED).params, rtol=1e-5, atol=1e-6
    )
    before, after = ([row["loss"] for row in records.read_metrics(folder)] for folder in (STORED, stored))
    np.testing.assert_allclose(after, before, rtol=1e-5)
    with pytest.raises(RunDirectoryError, match="another config .beta = 1.0 there, 0.5 here"):
        train.run(header.config | {"beta": 0.5}, stored)


def test_a_renamed_field_is_read_by_its_old_name(stored, monkeypatch):
    content = json.loads((stored / "config.json").read_text())
    content["old_name"] = content.pop("momentum")
    (stored / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="config field 'old_name', which is unknown"):
        runs.open_run(stored)
    monkeypatch.setitem(schema.RENAMED, "old_name", "momentum")
    assert runs.open_run(stored).config["momentum"] == 0.9


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A line that kept its beginning and more, two members, and one network that captured checkpoints."""
    folder = tmp_path_factory.mktemp("readers")
    tiny = dict(network="mlp_8", num_epochs=2, num_points=3)
    train.run(load("line_digits", keep_steps="0, 11", layerwise=True, **tiny), folder / "line")
    train.run(load("fashion_mnist", "ensemble,tiny", num_members=2, **tiny), folder / "members")
    train.run(load("fashion_mnist", "swa_constant,tiny", **tiny | {"num_epochs": 4, "num_cycles": 3}), folder / "swa")
    return folder


def test_a_midpoint_that_is_not_among_the_points_of_a_line_has_its_place_among_them(trained, tmp_path):
    """Of an even number: ends stay ends, mirror images pair, and the figure and the table know where points lie."""
    shutil.copytree(trained / "line", tmp_path / "line")
    odd = evaluate.run({"num_points": 7}, tmp_path / "line")
    even = evaluate.run({"num_points": 4}, tmp_path / "line")
    assert even["t"] == pytest.approx([0, 1 / 3, 0.5, 2 / 3, 1]) and even["midpoint"] == 2
    for name in ("nll", "pair_nll", "pair_disagreement"):
        np.testing.assert_allclose(even["scores"][name], np.array(odd["scores"][name])[[0, 2, 3, 4, 6]], rtol=1e-5)
    (figure,) = evaluate.figures({}, even).values()
    np.testing.assert_allclose(figure.axes[0].lines[0].get_xdata(), even["t"])
    six = evaluate.run({"num_points": 6}, tmp_path / "line")
    (row,) = tables.of_family({"line": [six]}).rows
    assert row.cells[3] == (pytest.approx(100 * six["scores"]["pair_accuracy"][1]), None)


@pytest.mark.parametrize(
    "name, which, names",
    [
        ("line", "midpoint", ["line step 22 midpoint"]),
        ("line", "endpoints", ["line step 22 endpoint 0", "line step 22 endpoint 1"]),
        ("line", "random", ["line step 22 random 0", "line step 22 random 1", "line step 22 random 2"]),
        ("line", "snapshots", ["line step 0 midpoint", "line step 11 midpoint"]),
        ("members", "midpoint", ["members step 22 endpoint 0", "members step 22 endpoint 1"]),
        ("swa", "midpoint", ["swa mean of steps 22, 33, 44"]),
        ("swa", "captures", ["swa step 22 midpoint", "swa step 33 midpoint", "swa step 44 midpoint"]),
    ],
)
def test_networks_of_a_run(name, which, names, trained):
    run = runs.open_run(trained / name)
    found = runs.networks(run, which, key=jax.random.key(0), num_draws=3)
    assert found.names == names and geometry.num_endpoints(found.stack) == len(names)
    stack = checkpoints.restore(trained / name).params
    if which == "random":  # layerwise: the share of the first endpoint differs from module to module
        kernels = [(np.asarray(leaf), np.asarray(ends)) for leaf, ends in zip(
            jax.tree.leaves(found.stack), jax.tree.leaves(stack)) if ends.ndim == 3]  # fmt: skip
        shares = [
            np.vdot(leaf[0] - ends[0], ends[1] - ends[0]) / np.vdot(ends[1] - ends[0], ends[1] - ends[0])
            for leaf, ends in kernels
        ]
        assert len(kernels) == 2 and 0 <= min(shares) and max(shares) <= 1 and abs(shares[0] - shares[1]) > 1e-3
    if name == "line" and which == "midpoint":
        chex.assert_trees_all_close(found.stack, jax.tree.map(lambda w: w.mean(0)[None], stack), rtol=1e-6)
    if name == "swa" and which == "midpoint":
        rows_of = [checkpoints.restore(trained / name, step).params for step in (22, 33, 44)]
        mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *rows_of)
        chex.assert_trees_all_close(found.stack, mean, rtol=1e-5, atol=1e-7)


def test_the_beginning_of_a_run_is_its_random_weights(trained):
    run = runs.open_run(trained / "line")
    assert run.steps == [0, 11, 22] and run.plan.kept_steps == (0, 11)
    beginning = checkpoints.restore(run.folder, 0)
    chex.assert_trees_all_equal(beginning.params, jax.device_get(run.experiment.programs.initial_state().params))


@pytest.mark.parametrize(
    "name, which, error, message",
    [
        ("members", "random", ConfigError, "no subspace to draw from"),
        ("line", "captures", ConfigError, "line captured none"),
        ("swa", "middle", ConfigError, "networks are midpoint, .*got 'middle'"),
        ("members", "snapshots", ConfigError, "members kept no checkpoints"),
    ],
)
def test_networks_that_a_run_has_not(name, which, error, message, trained):
    with pytest.raises(error, match=message):
        runs.networks(runs.open_run(trained / name), which)


def test_a_frozen_endpoint_keeps_the_bits_of_what_it_started_from(trained, tmp_path):
    """A line from the midpoints of two runs of one architecture, its first end frozen: curves between checkpoints."""
    train.run(load("line_digits", network="mlp_8", num_epochs=1, seed=5), tmp_path / "other")
    initial = f"{trained / 'line'}, {tmp_path / 'other'},"
    config = load("line_digits", network="mlp_8", num_epochs=1, initial=initial, frozen_endpoints="0", num_points=3)
    train.run(config, tmp_path / "between")
    after = checkpoints.restore(tmp_path / "between").params
    ends = [runs.networks(runs.open_run(folder), "midpoint").stack for folder in (trained / "line", tmp_path / "other")]
    row = lambda k: jax.tree.map(lambda leaf: leaf[k : k + 1], after)
    chex.assert_trees_all_equal(row(0), jax.device_get(ends[0]))
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(row(1)), jax.tree.leaves(ends[1])))


def test_a_checkpoint_of_another_run_is_not_taken(trained, tmp_path):
    shutil.copytree(trained / "line", tmp_path / "line")
    train.run(load("line_digits", network="mlp_8", num_epochs=2, layerwise=True, seed=9), tmp_path / "other")
    shutil.rmtree(tmp_path / "line" / "checkpoints" / "22" / "params")
    shutil.copytree(
        tmp_path / "other" / "checkpoints" / "22" / "params", tmp_path / "line" / "checkpoints" / "22" / "params"
    )
    with pytest.raises(CheckpointError, match="params"):
        checkpoints.restore(tmp_path / "line", step=22)
    config = runs.open_run(tmp_path / "line").config
    assert train.run(config, tmp_path / "line")["resumed_from"] == 11
    assert rows(tmp_path / "line") == rows(trained / "line")


@pytest.mark.parametrize(
    "paths, names",
    [
        (["runs/a", "runs/b"], ["a", "b"]),
        (["runs/a/0", "runs/b/0"], ["a/0", "b/0"]),
        (["/x/a/0", "/x/a/1", "/y/a/0"], ["x/a/0", "x/a/1", "y/a/0"]),
        (["runs/a", "runs/a"], ["a", "a"]),
        (["a", "b/a"], ["a", "b/a"]),
        ([], []),
    ],
)
def test_paths_are_told_apart_by_as_little_as_it_takes(paths, names):
    assert runs.told_apart(paths) == names
    assert runs.file_name("a/0 t=0.5") == "a_0_t=0.5"
