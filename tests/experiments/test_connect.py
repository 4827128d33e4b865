"""Paths between trained networks as run directories, gathered, and as the start of a curve; on digits."""

import shutil

import jax
import numpy as np
import pytest
from scipy.special import softmax
from test_configs import assert_drawn, load, module_of
from test_connectivity import by_hand, network, study

from launch import app
from subspaces_jax import checkpoints, connecting, evaluation, geometry, records
from subspaces_jax.data import sources
from subspaces_jax.errors import CheckpointError, ConfigError, RunDirectoryError
from subspaces_jax.experiments import analyze, build, compile, connect, evaluate, plot, runs, train
from subspaces_jax.experiments.studies import shared_trunk
from subspaces_jax.networks import axes

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


@pytest.mark.parametrize("connector", ["linear", "simultaneous"])
def test_networks_whose_layers_are_not_known_are_connected_by_what_looks_at_weights_alone(connector, tmp_path):
    fields = PLAIN | {"network": "outside_module:OutsideNet", "num_epochs": 1, "num_train_examples": 200}
    for seed, name in enumerate("ab"):
        train.run(load("line_digits", **fields, seed=seed), tmp_path / name)
    arrays, facts = connected(tmp_path, "ab", tmp_path / "path", connector, num_points=3)
    assert np.isfinite(arrays["te_loss"]).all() and facts["num_pieces"] == 1
    with pytest.raises(ConfigError, match="a network from elsewhere needs a method `unit_axes`"):
        connected(tmp_path, "ab", tmp_path / "ot", "ot", num_points=3)


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
        ("aba", {}, ConfigError, "give 3 networks, a path connects two"),
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


def test_a_path_between_members_that_differ_in_options_is_a_run_as_any_other(tmp_path):
    fields = PLAIN | dict(num_epochs=1, num_members=2, member_options="learning_rate=0.1; learning_rate=0.2")
    train.run(load("line_digits", **fields), tmp_path / "run")
    connected(tmp_path, ["run"], tmp_path / "path", "linear", members="endpoints", num_points=3, num_refined=0)
    assert evaluate.run({"num_points": 2}, tmp_path / "path")["scores"]["accuracy"][0] > 0


@pytest.mark.parametrize(
    "fields",
    [
        dict(subspace="simplex(4)", layerwise=True, num_samples=2, feature_diversity=1.0, frozen_endpoints="0"),
        dict(subspace="none", beta=0.0, num_members=2, member_options="seed=1; seed=5"),
        dict(subspace="none", beta=0.0, capture=True, schedule="swa_constant", keep_steps="0", keep_first=1),
        dict(initial="a,b", inner_endpoints="fresh", subspace="bezier", stop="plateau", test_every=1),
    ],
)
def test_of_every_set_of_networks_there_is_the_config_of_one_of_them(fields):
    config = build.check({"dataset": "digits", "network": "mlp_8"} | fields)
    for one in (config | connect.ALONE | {"subspace": "chain(3)"}, config | compile.PLAIN):
        assert build.check(one)["num_members"] == 1 and not one["member_options"]


def test_a_paths_folder_holds_one_path(trained, tmp_path):
    """Its weights and its scores were once those of two."""
    connected(trained, "ab", tmp_path / "path", "linear", num_points=3, num_refined=0)
    connected(trained, "ab", tmp_path / "path", "linear", num_points=2, num_refined=0)  # scored otherwise
    assert evaluate.run(None, tmp_path / "path")["scores"]["accuracy"]
    results = tmp_path / "path" / "results" / "path.json"
    for content in ("", "{}"):  # what is damaged is made anew
        results.write_text(content)
        connected(trained, "ab", tmp_path / "path", "linear", num_points=2, num_refined=0)
    for names, connector in (("ba", "linear"), ("ab", "arc")):
        with pytest.raises(RunDirectoryError, match="holds another path .* name another workdir"):
            connected(trained, names, tmp_path / "path", connector, num_points=3)
    for name in "ab":
        shutil.copytree(trained / name, tmp_path / name)
    connected(tmp_path, "ab", tmp_path / "other", "linear", num_points=2, num_refined=0)
    train.run(load("line_digits", **PLAIN | {"num_epochs": 3, "override": "num_epochs"}, seed=1), tmp_path / "b")
    with pytest.raises(RunDirectoryError, match="between other weights than its runs have now"):
        connected(tmp_path, "ab", tmp_path / "other", "linear", num_points=2, num_refined=0)


def test_a_path_takes_no_other_runs_folder(trained):
    with pytest.raises(RunDirectoryError, match="holds a run of the kind train: name another workdir"):
        connected(trained, "ab", trained / "a", "linear")
    with pytest.raises(RunDirectoryError, match="is no path: name run directories of python -m launch.connect"):
        study("connections", trained / "refused", trained / "a")


def hidden_and_logits(params, split, normal=(0.3053, 0.3762)):
    """What an MLP of one hidden layer gives, in float64 by hand: hidden values [N, 8] and logits [N, 10]."""
    images, labels = sources.load("digits", split)
    x = (images.reshape(len(images), -1) / 255 - normal[0]) / normal[1]
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), jax.device_get(params))
    hidden = np.maximum(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], 0)
    return hidden, hidden @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"], labels


def copied(folder, name, out, change):
    """A run like another, whose network is another one."""
    shutil.copytree(folder / name, out)
    shutil.rmtree(out / "checkpoints")
    run, state = runs.open_run(folder / name), checkpoints.restore(folder / name)
    params = geometry.stack([change(network(folder, name))])
    with checkpoints.open_manager(out, keep_steps=(state.step,)) as manager:
        kept = checkpoints.Resumable(params, state.batch_stats, {}, jax.random.key_data(jax.random.key(0)))
        checkpoints.save(manager, state.step, kept, run.config, run.run_id)


@pytest.mark.parametrize("base, split", [("training", "train"), ("test", "test")])
def test_an_ensemble_on_a_shared_trunk_is_that_of_heads_fitted_by_hand(base, split, trained, tmp_path):
    arrays, facts = study("shared_trunk", tmp_path, trained / "a", trained / "b", base=base)
    a, b = network(trained, "a"), network(trained, "b")
    of_a, _, _ = hidden_and_logits(a, split)
    of_b, _, _ = hidden_and_logits(b, split)
    head = np.linalg.lstsq(of_a, of_b @ np.asarray(b["Dense_1"]["kernel"], np.float64), rcond=1e-6)[0]
    on_trunk = {"Dense_0": a["Dense_0"], "Dense_1": {"kernel": head, "bias": b["Dense_1"]["bias"]}}
    for ending, second in (("", b), ("_adjusted", on_trunk)):
        (_, first, labels), (_, other, _) = (hidden_and_logits(params, "test") for params in (a, second))
        both = softmax(first, axis=1) + softmax(other, axis=1)
        single = [100 * np.mean(logits.argmax(1) == labels) for logits in (first, other)]
        np.testing.assert_allclose(arrays[f"one_model_accuracy{ending}"], single, atol=0.3)
        ensemble = [single[0], 100 * np.mean(both.argmax(1) == labels)]
        np.testing.assert_allclose(arrays[f"ensemble_accuracy{ending}"], ensemble, atol=0.3)
    assert facts["operations"] == [2 * 64 * 8, 2 * 8 * 10]
    assert facts["cost_ratio"] == [pytest.approx((64 * 8 + 2 * 80) / (2 * (64 * 8 + 80)))]
    assert "WA(1)" in analyze.table(facts) and arrays["ensemble_accuracy_adjusted"].shape == (2,)
    if base == "training":
        assert_drawn(plot.run(None, tmp_path)["figures"], {"shared_trunk"})


def test_a_bijection_is_trained_on_more_networks_than_are_connected(trained, tmp_path):
    pytest.importorskip("flowjax")
    connector = "bijection(num_epochs=1, width=8)"
    arrays, facts = connected(trained, "aba", tmp_path, connector, num_points=3, num_refined=0)
    assert len(facts["members"]) == 2 and len(facts["others"]) == 1 and facts["num_pieces"] == 1
    for point, name in ((0, "a"), (2, "b")):
        np.testing.assert_allclose(arrays["te_nll"][point], by_hand(network(trained, name), "test")[0], rtol=1e-4)
    assert 0 < arrays["te_acc"][1] < 100


def test_on_the_trunk_of_its_own_copy_a_member_loses_nothing(trained, tmp_path):
    order, table = np.roll(np.arange(8), 3), runs.open_run(trained / "a").experiment.model.network.unit_axes()
    copied(trained, "a", tmp_path / "copy", lambda params: connecting.permute(params, table, {"h0": order}))
    arrays, facts = study("shared_trunk", tmp_path / "all", trained / "a", tmp_path / "copy", num_layers=0)
    assert facts["num_layers"] == [1] and arrays["one_model_accuracy_adjusted"].shape == (1, 2)
    for name in ("one_model_accuracy", "ensemble_accuracy"):
        np.testing.assert_allclose(arrays[f"{name}_adjusted"][0], np.full(2, arrays[name][0]), atol=0.3)


def test_members_with_shortcuts_and_statistics_keep_their_last_layer(tmp_path):
    """A copy with its units in another order loses nothing; another network's layer is that of least squares."""
    fields = PLAIN | {"network": "pre_resnet(depth=8, width=4)", "num_epochs": 0, "num_train_examples": 150}
    for seed, name in enumerate("ab"):
        train.run(load("line_digits", **fields, seed=seed), tmp_path / name)
    made = runs.open_run(tmp_path / "a").experiment
    table = made.model.network.unit_axes()
    sizes = axes.units(table, made.model.shapes)
    order = {name: np.random.default_rng(0).permutation(num) for name, num in sizes.items()}
    copied(tmp_path, "a", tmp_path / "copy", lambda params: connecting.permute(params, table, order))
    names = [tmp_path / name for name in ("a", "copy", "b")]
    features, splits = {}, (made.data.train.images, made.data.test.images)
    for name in "ab":
        variables = {"params": network(tmp_path, name), "batch_stats": checkpoints.restore(tmp_path / name).batch_stats}
        stats = evaluation.refresh_batch_stats(made.model.apply_train, variables, splits[0], made.refresh_key, 500)
        variables["batch_stats"] = stats
        features[name] = [np.asarray(made.model.features(variables, images), np.float64) for images in splits]
    head = {name: np.asarray(leaf, np.float64) for name, leaf in network(tmp_path, "b")["Dense_0"].items()}
    for bias in (False, True):
        arrays, facts = study("shared_trunk", tmp_path / f"all_{bias}", *names, bias=bias, num_layers=0)
        alone, adjusted = arrays["one_model_accuracy"], arrays["one_model_accuracy_adjusted"][0]
        np.testing.assert_allclose([adjusted[0], adjusted[1]], alone[0], atol=0.3)
        before, last = facts["operations"]
        assert facts["num_layers"] == [1] and last == 2 * head["kernel"].size and before > 1000
        assert arrays["cost_ratio"][0] == pytest.approx((before + 3 * last) / (3 * (before + last)))
        of_trunk = [np.hstack([of, np.ones((len(of), 1))]) if bias else of for of in features["a"]]
        offset = head["bias"] if bias else 0.0
        fitted = np.linalg.lstsq(of_trunk[0], features["b"][0] @ head["kernel"] + offset, rcond=1e-6)[0]
        logits = of_trunk[1] @ fitted + head["bias"] - offset
        assert adjusted[2] == pytest.approx(100 * np.mean(logits.argmax(1) == made.data.test.labels), abs=0.6)
    apart, _ = study("shared_trunk", tmp_path / "two", *names, num_layers=2)
    np.testing.assert_array_equal(apart["one_model_accuracy_adjusted"], apart["one_model_accuracy"])
    with pytest.raises(ConfigError, match="num_layers is 3: the networks have 2 layers"):
        study("shared_trunk", tmp_path / "three", *names[:2], num_layers=3)


def test_every_number_of_kept_layers_together_is_each_alone(tmp_path):
    folders = [tmp_path / "of_0", tmp_path / "of_1"]
    train.run(load("line_digits", **PLAIN | {"network": "mlp_6_5", "num_epochs": 1}), folders[0])
    copied(tmp_path, "of_0", folders[1], lambda params: jax.tree.map(lambda leaf: leaf[::-1], params))
    arrays, facts = study("shared_trunk", tmp_path / "all", *folders, num_layers=0)
    alone, _ = study("shared_trunk", tmp_path / "alone", *folders, num_layers=2)
    for name in ("ensemble_accuracy_adjusted", "one_model_accuracy_adjusted"):
        assert arrays[name].shape == (2, 2)
        np.testing.assert_array_equal(arrays[name][1], alone[name])
    own = np.array([50, 50 + 30])
    np.testing.assert_allclose(arrays["cost_ratio"], (464 + own) / (2 * 464))  # of 64 * 6 + 6 * 5 + 5 * 10 weights
    assert facts["num_layers"] == [1, 2] and analyze.table(facts).count("WA(2)") == 2
    assert shared_trunk.figures(arrays, facts).keys() == {"shared_trunk", "shared_trunk_costs"}


@pytest.mark.parametrize("num", [2, 3])
def test_the_mean_of_matched_copies_of_a_network_is_the_network(num, trained, tmp_path):
    table = runs.open_run(trained / "a").experiment.model.network.unit_axes()
    orders = [np.random.default_rng(i).permutation(8) for i in range(num)]
    for i, order in enumerate(orders):
        move = lambda params, order=order: connecting.permute(params, table, {"h0": order})
        copied(trained, "a", tmp_path / f"copy_{i}", move)
    arrays, facts = study("matched", tmp_path / "all", *(tmp_path / f"copy_{i}" for i in range(num)))
    assert facts["members"][num:] == ["mean as they are", "mean of the matched"]
    nll = by_hand(network(trained, "a"), "test")[0]
    np.testing.assert_allclose(np.delete(arrays["nll"], num), np.full(num + 1, nll), rtol=1e-4)
    copies = [network(tmp_path, f"copy_{i}") for i in range(num)]
    mean = jax.tree.map(lambda *leaves: np.mean(np.stack(leaves), axis=0), *copies)
    np.testing.assert_allclose(arrays["nll"][num], by_hand(mean, "test")[0], rtol=1e-4)
    assert abs(arrays["nll"][num] - nll) > 0.01
    in_one_order = [order[of] for order, of in zip(orders, arrays["permutations/h0"])]
    assert len({tuple(of) for of in in_one_order}) == 1
    assert max(facts["distances"]["matched"]) < 1e-5 < min(facts["distances"]["as they are"])
    assert "mean of the matched" in analyze.table(facts)
    assert_drawn(plot.run(None, tmp_path / "all")["figures"], {"matched"})


@pytest.mark.parametrize(
    "name, names, fields, message",
    [
        ("shared_trunk", "a", {}, "give 1 network, a shared trunk takes at least two"),
        ("shared_trunk", "ab", {"num_layers": 3}, "num_layers is 3: the networks have 2 layers"),
        ("matched", "a", {}, "give 1 network, matching takes at least two"),
    ],
)
def test_what_cannot_be_put_together_is_named(name, names, fields, message, trained, tmp_path):
    with pytest.raises(ConfigError, match=message):
        study(name, tmp_path / "refused", *(trained / run for run in names), **fields)


def test_paths_that_have_nothing_to_compare_are_refused(trained, tmp_path):
    connected(trained, "ab", tmp_path / "ab", "linear", num_points=2)
    for seed, name in enumerate("ab"):
        train.run(
            load("line_digits", **PLAIN | {"network": "mlp_5", "num_epochs": 1}, seed=seed), tmp_path / name / "5"
        )
    config = app.to_dict(module_of("connect").get_config("linear"))
    connect.run(config | {"runs": f"{tmp_path}/a/5,{tmp_path}/b/5", "num_points": 2}, tmp_path / "other")
    with pytest.raises(CheckpointError, match="other has network 'mlp_5' but .*ab has 'mlp_8'"):
        study("connections", tmp_path / "x", tmp_path / "ab", tmp_path / "other")
    with pytest.raises(ConfigError, match="names a path twice"):
        study("connections", tmp_path / "x", tmp_path / "ab", f"{tmp_path}/./ab")
