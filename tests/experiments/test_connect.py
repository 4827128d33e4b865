"""Paths between trained networks as run directories, gathered, and as the start of a curve; on digits."""

import jax
import numpy as np
import pytest
from test_configs import assert_drawn, load, module_of
from test_connectivity import by_hand, network, study

from launch import app
from subspaces_jax import checkpoints, connecting, geometry, records
from subspaces_jax.errors import ConfigError, RunDirectoryError
from subspaces_jax.experiments import analyze, connect, evaluate, plot, runs, train

PLAIN = dict(network="mlp_8", num_epochs=2, weight_decay=1e-3, augmentation="none", subspace="none", beta=0.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    for seed, name in enumerate("ab"):
        train.run(load("line_digits", **PLAIN, seed=seed), folder / name)
    return folder


def connected(folder, names, out, connector, **fields):
    config = app.to_dict(module_of("connect").get_config("linear"))
    named = ",".join(str(folder / name) for name in names)
    facts = connect.run(config | {"runs": named, "connector": connector} | fields, out)
    return records.load_results(out, connect.RESULTS)[0], facts


def test_the_line_of_matched_networks_is_scored_kept_and_drawn(trained, tmp_path):
    arrays, facts = connected(trained, "ab", tmp_path, "ot", num_points=3)
    a, b = network(trained, "a"), network(trained, "b")
    neurons = [np.concatenate([p["Dense_0"]["kernel"].T, p["Dense_0"]["bias"][:, None], p["Dense_1"]["kernel"]], 1)
               for p in (a, b)]  # fmt: skip
    order = connecting.match(*neurons)
    moved = {
        "Dense_0": {"kernel": b["Dense_0"]["kernel"][:, order], "bias": b["Dense_0"]["bias"][order]},
        "Dense_1": {"kernel": b["Dense_1"]["kernel"][order], "bias": b["Dense_1"]["bias"]},
    }
    points = [jax.tree.map(lambda x, y: (1 - t) * x + t * y, a, moved) for t in (0, 0.5, 1)]
    for prefix, split in (("tr", "train"), ("te", "test")):
        nll, loss, err = zip(*(by_hand(point, split, 1e-3) for point in points))
        np.testing.assert_allclose(arrays[f"{prefix}_loss"], loss, rtol=1e-4)
        np.testing.assert_allclose(arrays[f"{prefix}_err"], err, atol=1e-4)
    keys = {f"{split}_{name}{of}" for split in ("tr", "te") for name in ("loss", "nll", "err")
            for of in ("", "_min", "_max", "_avg", "_int")}  # fmt: skip
    assert keys | {"ts", "dl", "computation_time", "tr_acc", "te_acc"} <= arrays.keys() and len(keys) + 5 == 35
    assert facts["worst"]["test"]["acc"] <= arrays["te_acc"].min() and facts["num_pieces"] == 1
    run = runs.open_run(tmp_path)
    assert run.kind == "connect" and run.steps == [0] and run.config["subspace"] == "chain(2)"
    knots = geometry.unstack(runs.networks(run, "knots").stack)
    for knot, expected in zip(knots, (a, moved), strict=True):
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(knot), jax.device_get(expected))
    assert_drawn(plot.run(None, tmp_path)["figures"], {"path"})
    assert len(evaluate.run({"num_points": 5}, tmp_path)["scores"]["nll"]) == 5


def test_a_network_with_itself_is_constant_and_a_permuted_copy_is_recovered(trained, tmp_path):
    arrays, facts = connected(trained, "aa", tmp_path / "same", "ot", num_points=3, num_refined=0)
    assert facts["length"] == 0 and np.ptp(arrays["te_nll"]) < 1e-6
    train.run(load("line_digits", **PLAIN, seed=0), tmp_path / "copy")
    order = np.random.default_rng(0).permutation(8)
    a, table = network(trained, "a"), runs.open_run(trained / "a").experiment.model.network.unit_axes()
    permuted = connecting.permute(a, table, {"h0": order})
    path = connecting.connect("ot", a, permuted, table)
    np.testing.assert_array_equal(path.permutations["h0"], np.argsort(order))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(path.params(0.5)), jax.device_get(a))


def test_weight_adjusted_paths_and_all_connectors_together(trained, tmp_path):
    folders = []
    for connector in ("linear", "arc", "ot_wa(interpolation=arc)"):
        for names in ("ab", "ba"):
            folders.append(tmp_path / f"{connector}_{names}")
            arrays, facts = connected(trained, names, folders[-1], connector, num_points=5, num_refined=0)
    assert facts["num_pieces"] == 2 and facts["ranks"] and arrays["ts"][-1] == 2
    ends = [study("ensemble", tmp_path / f"of_{name}", trained / name)[1]["scores"]["nll"][0] for name in "ba"]
    np.testing.assert_allclose(arrays["te_nll"][[0, -1]], ends, rtol=1e-4)
    linear, _ = records.load_results(folders[1], connect.RESULTS)
    assert arrays["tr_nll"].max() < linear["tr_nll"].max()
    _, gathered = study("connections", tmp_path / "all", *map(str, folders))
    worst = gathered["connectors"]["arc"]["worst"]["test"]
    assert len(worst) == 2 and list(gathered["connectors"]) == ["linear", "arc", "ot_wa(interpolation=arc)"]
    table = analyze.table(gathered)
    assert f"{np.mean(worst):.2f} ± {np.std(worst, ddof=1):.2f}" in table
    assert_drawn(plot.run(None, tmp_path / "all")["figures"], {"connections"})


def test_a_curve_is_trained_from_matched_ends(trained, tmp_path):
    connected(trained, "ab", tmp_path / "ot", "ot", num_points=2, num_refined=0)
    fields = dict(subspace="bezier(3)", frozen_endpoints="ends", decay="point", initial=str(tmp_path / "ot"))
    train.run(load("line_digits", **PLAIN | fields), tmp_path / "curve")
    curve, knots = (geometry.unstack(checkpoints.restore(tmp_path / name).params) for name in ("curve", "ot"))
    for end, knot in ((curve[0], knots[0]), (curve[2], knots[1])):
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(end), jax.device_get(knot))


@pytest.mark.parametrize(
    "names, fields, error, message",
    [
        ("a", {}, ConfigError, "give 1 networks, a path connects two"),
        ("ab", {"connector": "ark"}, ConfigError, "config.connector is 'ark': .* did you mean arc"),
        ("ab", {"connector": "arc(interpolatio=arc)"}, ConfigError, "did you mean interpolation"),
        ("ab", {"connector": "linear(interpolation=lines)"}, ConfigError, "config.connector .*lines"),
        ("ab", {"connector": "one_hidden_layer", "num_points": 1}, ConfigError, "num_points is 1"),
    ],
)
def test_what_cannot_be_connected_is_named(names, fields, error, message, trained, tmp_path):
    with pytest.raises(error, match=message):
        connected(trained, names, tmp_path / "refused", fields.pop("connector", "linear"), **fields)
    assert not (tmp_path / "refused").exists()


def test_a_path_takes_no_other_runs_folder(trained):
    with pytest.raises(RunDirectoryError, match="holds a run of the kind train: name another workdir"):
        connected(trained, "ab", trained / "a", "linear")
    with pytest.raises(RunDirectoryError, match="is no path: name run directories of python -m launch.connect"):
        study("connections", trained / "refused", trained / "a")
