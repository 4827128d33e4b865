"""Curves between trained networks, forks of a run, and the studies of paths and planes, on digits."""

import itertools

import chex
import jax
import numpy as np
import pytest
from PIL import Image
from scipy.special import log_softmax
from test_configs import SMALL, assert_drawn, load

from subspaces_jax import checkpoints, geometry, losses, records
from subspaces_jax.analysis import lpips
from subspaces_jax.data import sources
from subspaces_jax.errors import CheckpointError, ConfigError, DataError
from subspaces_jax.evaluation import Measure
from subspaces_jax.experiments import analyze, plot, runs, train
from subspaces_jax.experiments.build.splits import Splits

QUICK = dict(network="mlp_8", num_epochs=2, num_points=3, weight_decay=1e-3, augmentation="none", checkpoint_every=1)
PLAIN = QUICK | dict(subspace="none", beta=0.0)
NONE = dict(subspace="none", frozen_endpoints="")
CURVE = QUICK | dict(subspace="bezier(3)", beta=0.0, frozen_endpoints="ends", decay="point", num_epochs=3)


def digits(**fields):
    return load("line_digits", **fields)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three networks, two of them with checkpoints on the way, and the curve between two of them."""
    folder = tmp_path_factory.mktemp("trained")
    for seed, name in enumerate("abc"):
        train.run(digits(**PLAIN, seed=seed, keep_steps="0,11,22"), folder / name)
    train.run(digits(**CURVE, initial=between(folder, "a", "b"), keep_steps="0"), folder / "curve")
    return folder


def between(folder, *names):
    return ",".join(str(folder / name) for name in names)


def network(folder, name, step=None):
    return geometry.unstack(checkpoints.restore(folder / name, step).params)[0]


def study(name, out, *folders, **fields):
    facts = analyze.run({"analysis": name, "runs": ",".join(map(str, folders))} | fields, out)
    return records.load_results(out, name)[0], facts


def by_hand(params, split, weight_decay=0.0):
    """Mean nll plus the L2 term, and the error in percent, in float64."""
    images, labels = sources.load("digits", split)
    x, params = (images.reshape(len(images), -1) / 255 - 0.3053) / 0.3762, jax.device_get(params)
    for i in range(2):
        layer = {name: np.asarray(value, np.float64) for name, value in params[f"Dense_{i}"].items()}
        x = x @ layer["kernel"] + layer["bias"]
        x = np.maximum(x, 0) if i < 1 else x
    nll = -log_softmax(x, axis=1)[np.arange(len(labels)), labels].mean()
    l2 = 0.5 * weight_decay * sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(params))
    return nll, nll + l2, 100 * np.mean(x.argmax(1) != labels)


def test_a_curve_begins_as_the_segment_and_its_ends_keep_their_bits(trained):
    first, last = (checkpoints.restore(trained / "curve", step).params for step in (0, None))
    a, b = network(trained, "a"), network(trained, "b")
    middle = jax.tree.map(lambda x, y: 0.5 * (x + y), a, b)
    chex.assert_trees_all_close(geometry.unstack(first)[1], middle, rtol=1e-6)
    for stack, k, end in itertools.product((first, last), (0, 2), (a, b)):
        same = all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (geometry.unstack(stack)[k], end))))
        assert same == ((k == 0) == (end is a))
    moved = jax.tree.map(lambda leaf: np.abs(leaf[1] - (leaf[0] + leaf[2]) / 2).max(), last)
    assert min(jax.tree.leaves(moved)) > 1e-4


def test_a_curve_goes_on_bit_for_bit(trained, tmp_path):
    config = digits(**CURVE, initial=between(trained, "a", "b"))
    train.run(config, tmp_path)
    last = tmp_path / "checkpoints" / "33"
    last.rename(last.with_name("33.orbax-checkpoint-tmp"))
    assert train.run(config, tmp_path)["resumed_from"] == 22
    chex.assert_trees_all_equal(checkpoints.restore(tmp_path).params, checkpoints.restore(trained / "curve").params)


def test_the_regulariser_of_a_curve_is_that_of_the_drawn_point(trained, tmp_path):
    """One step of SGD from the segment, its gradient by hand: c (dL(w) + decay w) at the t that was drawn."""
    fields = CURVE | dict(num_epochs=1, frozen_endpoints="", momentum=0.0, learning_rate=0.5, schedule="constant")
    ends = between(trained, "a", "b")
    stacks = []
    for decay in (0.0, 0.1):
        config = digits(**fields | {"weight_decay": decay}, initial=ends, keep_steps="0,1", warmup_epochs=0)
        train.run(config, tmp_path / str(decay))
        stacks.append(checkpoints.restore(tmp_path / str(decay), 1).params)
    begin = checkpoints.restore(tmp_path / "0.1", 0).params
    pulls = jax.tree.map(lambda with_decay, without: (without - with_decay) / (0.5 * 0.1), stacks[1], stacks[0])
    flat = np.concatenate([np.reshape(leaf, (3, -1)) for leaf in jax.tree.leaves(pulls)], axis=1)
    weights = np.concatenate([np.reshape(leaf, (3, -1)) for leaf in jax.tree.leaves(begin)], axis=1)
    shares = np.linalg.norm(flat, axis=1)
    t = np.sqrt(shares[2]) / (np.sqrt(shares[0]) + np.sqrt(shares[2]))  # c = ((1-t)^2, 2t(1-t), t^2)
    c = np.array([(1 - t) ** 2, 2 * t * (1 - t), t**2])
    np.testing.assert_allclose(flat, np.outer(c, c @ weights), atol=2e-3 * np.abs(weights).max())


@pytest.mark.parametrize(
    "initial, fields, expected",
    [
        ("a,random", {}, ("a", None, None)),
        ("random,b", {"subspace": "chain(4)"}, (None, None, None, "b")),
        ("a,c,b", {}, ("a", "c", "b")),
        ("a@11,b@0", {"subspace": "line"}, (("a", 11), ("b", 0))),
        ("a,b", {"subspace": "bezier(4)", "inner_endpoints": "fresh"}, ("a", None, None, "b")),
    ],
)
def test_ends_come_from_runs_from_their_steps_or_are_random(initial, fields, expected, trained, tmp_path):
    named = ",".join(part if part == "random" else str(trained / part) for part in initial.split(","))
    fields = CURVE | fields | {"num_epochs": 1, "frozen_endpoints": "", "learning_rate": 0.0, "schedule": "constant"}
    train.run(digits(**fields, initial=named), tmp_path / "run")
    train.run(digits(**fields), tmp_path / "random")
    found, random = (geometry.unstack(checkpoints.restore(tmp_path / name).params) for name in ("run", "random"))
    inner = fields.get("inner_endpoints", "linear")
    for k, (row, source) in enumerate(zip(found, expected, strict=True)):
        if source is not None:
            source = source if isinstance(source, tuple) else (source,)
            chex.assert_trees_all_equal(jax.device_get(row), jax.device_get(network(trained, *source)))
        elif inner == "fresh" or k in (0, len(expected) - 1):
            chex.assert_trees_all_equal(row, random[k])
        else:
            share = k / (len(expected) - 1)
            line = jax.tree.map(lambda x, y: (1 - share) * x + share * y, found[0], found[-1])
            chex.assert_trees_all_close(row, line, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "fields, error, message",
    [
        ({"initial": "a,b,c,a"}, ConfigError, "gives 4 networks, and subspace 'bezier\\(3\\)' has 3 endpoints"),
        ({"initial": "a"}, ConfigError, "gives 1 networks"),
        ({"initial": "a,b@7"}, CheckpointError, "no checkpoint of step 7 in .*: there are \\[0, 11, 22\\]"),
        ({"initial": "a,b", "network": "mlp_9"}, CheckpointError, "another architecture than the config: .*kernel"),
        ({"initial": "a,b", "frozen_endpoints": "end"}, ConfigError, "frozen_endpoints is 'end': .* or ends"),
        ({"fork": "a"}, ConfigError, "config.fork is '.*a': it takes a run and its step, as in runs/a@200"),
        ({"fork": "a@11", "initial": "a,b"}, ConfigError, "and initial='' with it"),
        ({"fork": "a@7", **NONE}, CheckpointError, "no checkpoint of step 7"),
        ({"fork": "a@11", **NONE, "num_epochs": 1}, ConfigError, "leaves nothing to train: .* after 11 steps"),
        ({"fork": "a@11", **NONE, "batch_size": 64}, ConfigError, "11 steps an epoch and this run 22"),
        ({"fork": "a@11", **NONE, "optimizer": "adam"}, CheckpointError, "or of another optimizer"),
        ({"fork": "a@11", **NONE, "network": "mlp_9"}, CheckpointError, "of another architecture than the config"),
        ({"fork": "a@11"}, ConfigError, "has 1 endpoints and this run 3: keep its subspace"),
        (
            {"fork": "a@11", **NONE, "num_epochs": 2, "capture": True, "swa_start": 0.5, "num_cycles": 2},
            ConfigError, "a@11 is past step 11, which this run would capture: raise swa_start",
        ),
    ],
)  # fmt: skip
def test_what_a_run_cannot_start_from_is_named(fields, error, message, trained, tmp_path):
    place = lambda text: ",".join(str(trained / part) for part in text.split(","))
    fields = {name: place(text) if name in ("initial", "fork") else text for name, text in fields.items()}
    with pytest.raises(error, match=message):
        train.run(digits(**CURVE | fields), tmp_path / "refused")
    assert not (tmp_path / "refused" / "checkpoints").exists()


def test_ends_of_different_data_sets_are_refused(trained, tmp_path):
    folder = tmp_path / "other"
    train.run(digits(**PLAIN | {"num_epochs": 1}), folder)
    header = records.read_header(folder)
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('"digits"', '"mnist"'))
    assert header.config["dataset"] == "digits"
    with pytest.raises(ConfigError, match="other was trained on mnist, and config.dataset is digits"):
        train.run(digits(**CURVE, initial=f"{trained / 'a'},{folder}"), tmp_path / "refused")


def test_a_fork_with_the_seed_of_its_run_is_that_run_and_with_another_it_is_not(trained, tmp_path):
    fork = str(trained / "a@11")
    last = train.run(digits(**PLAIN, seed=0, fork=fork), tmp_path / "same")
    assert last["step"] == 22 and last["resumed_from"] == 11
    whole = checkpoints.restore(trained / "a").params
    chex.assert_trees_all_equal(checkpoints.restore(tmp_path / "same").params, whole)
    assert [row["epoch"] for row in records.read_metrics(tmp_path / "same")] == [2.0]
    train.run(digits(**PLAIN, seed=7, fork=fork, num_members=2), tmp_path / "pair")
    pair = geometry.unstack(checkpoints.restore(tmp_path / "pair").params)
    for member, seed in zip(pair, (7, 8)):
        train.run(digits(**PLAIN, seed=seed, fork=fork), tmp_path / str(seed))
        alone = network(tmp_path, str(seed))
        chex.assert_trees_all_close(member, alone, rtol=1e-4, atol=1e-6)
        assert not np.allclose(member["Dense_0"]["kernel"], network(trained, "a")["Dense_0"]["kernel"], atol=1e-3)


def test_a_curve_is_scored_with_its_segment_on_both_splits(trained, tmp_path):
    arrays, facts = study("curve", tmp_path, trained / "curve", num_points=5)
    knots = geometry.unstack(checkpoints.restore(trained / "curve").params)
    ts = np.linspace(0, 1, 5)
    np.testing.assert_allclose(arrays["ts"], ts)
    for prefix, weights in (
        ("", [((1 - t) ** 2, 2 * t * (1 - t), t * t) for t in ts]),
        ("segment_", [(1 - t, 0, t) for t in ts]),
    ):
        points = [jax.tree.map(lambda *rows: sum(c * w for c, w in zip(of, rows)), *knots) for of in weights]
        for short, split in (("tr", "train"), ("te", "test")):
            nll, loss, err = zip(*(by_hand(point, split, 1e-3) for point in points))
            np.testing.assert_allclose(arrays[f"{prefix}{short}_nll"], nll, rtol=1e-4)
            np.testing.assert_allclose(arrays[f"{prefix}{short}_loss"], loss, rtol=1e-4)
            np.testing.assert_allclose(arrays[f"{prefix}{short}_err"], err, atol=1e-4)
            np.testing.assert_allclose(arrays[f"{prefix}{short}_acc"], 100 - arrays[f"{prefix}{short}_err"])
        flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(point)]).astype(float) for point in points]
        dl = np.array([0, *(np.linalg.norm(y - x) for x, y in itertools.pairwise(flat))])
        np.testing.assert_allclose(arrays[f"{prefix}dl"], dl, rtol=1e-4, atol=1e-6)
        loss = arrays[f"{prefix}te_loss"]
        assert arrays[f"{prefix}te_loss_max"] == loss.max() and arrays[f"{prefix}te_loss_avg"] == loss.mean()
        integral = np.sum(0.5 * (loss[1:] + loss[:-1]) * dl[1:]) / dl.sum()
        assert arrays[f"{prefix}te_loss_int"] == pytest.approx(integral, rel=1e-5)
    line = np.linspace(arrays["te_loss"][0], arrays["te_loss"][-1], 5)
    assert facts["barriers"]["segment"]["te_loss"] == pytest.approx(np.max(arrays["segment_te_loss"] - line))
    assert facts["lengths"]["curve"] >= facts["lengths"]["segment"] > 0
    assert [end["same"] for end in facts["ends"]] == [True, True] and facts["ends"][0]["difference"] == 0
    assert "bit for bit the same" in analyze.table(facts)
    assert_drawn(plot.run(None, tmp_path)["figures"], {"curve"})


def test_the_ends_of_a_curve_with_batch_norm_are_their_checkpoints(tmp_path):
    """With a checkpoint's own statistics the outputs are its own; the curve's scores are those of refreshed ones."""
    fields = dict(network=SMALL, num_epochs=1)
    for seed in (0, 1):
        train.run(digits(**PLAIN | fields, seed=seed), tmp_path / f"{seed}")
    config = CURVE | fields | {"frozen_endpoints": "0"}
    train.run(digits(**config, initial=between(tmp_path, "0", "1")), tmp_path / "curve")
    arrays, facts = study("curve", tmp_path / "study", tmp_path / "curve", num_points=3)
    assert [end["same"] for end in facts["ends"]] == [True, False]
    assert facts["ends"][0]["difference"] == 0 and facts["ends"][1]["difference"] > 0 < facts["ends"][1]["distance"]
    _, alone = study("ensemble", tmp_path / "ensemble", tmp_path / "0")
    assert arrays["te_nll"][0] == pytest.approx(alone["scores"]["nll"][0], rel=1e-5)


def test_a_chain_goes_through_its_networks(trained, tmp_path):
    folders = [trained / name for name in "abc"]
    arrays, facts = study("chain", tmp_path / "chain", *folders, num_points=3)
    few, _ = study("chain", tmp_path / "few", *folders, num_points=2, num_examples=50)
    right = few["te_acc"] / 100 * 50
    np.testing.assert_allclose(right, np.round(right), atol=1e-3)
    np.testing.assert_allclose(arrays["ts"], [0, 0.5, 1, 1.5, 2])
    _, alone = study("ensemble", tmp_path / "ensemble", *folders)
    np.testing.assert_allclose(arrays["te_nll"][::2], alone["scores"]["nll"], rtol=1e-5)
    middle = jax.tree.map(lambda x, y: (x + y) / 2, network(trained, "b"), network(trained, "c"))
    assert arrays["tr_nll"][3] == pytest.approx(by_hand(middle, "train")[0], rel=1e-4)
    assert len(facts["lengths"]) == 2 and sum(facts["lengths"]) == pytest.approx(arrays["dl"].sum())
    assert_drawn(plot.run(None, tmp_path / "chain")["figures"], {"chain"})


def test_a_study_of_paths_scores_the_test_split_that_it_names(trained, tmp_path, monkeypatch):
    """Here one of 50 examples; the training split stays the runs' own."""
    monkeypatch.setattr(Splits, "test_of", lambda own, *of: sources.Arrays(*(part[:50] for part in own.test)))
    named = dict(num_points=2, test_dataset="digits")
    other, _ = study("chain", tmp_path / "other", trained / "a", trained / "b", **named)
    own, _ = study("chain", tmp_path / "own", trained / "a", trained / "b", num_points=2)
    few, _ = study("chain", tmp_path / "few", trained / "a", trained / "b", num_points=2, num_examples=50)
    np.testing.assert_array_equal(other["te_nll"], few["te_nll"])
    np.testing.assert_array_equal(other["tr_nll"], own["tr_nll"])
    assert not np.allclose(other["te_nll"], own["te_nll"])


def test_barriers_of_all_pairs(trained, tmp_path):
    folders = [trained / name for name in "abc"]
    arrays, facts = study("barriers", tmp_path / "all", *folders, num_points=5)
    matrix = arrays["te_loss_barrier"]
    np.testing.assert_array_equal(matrix, matrix.T)
    assert (np.diag(matrix) == 0).all() and (matrix[np.triu_indices(3, 1)] > 0).all()
    ends = [network(trained, name) for name in "ac"]
    points = [jax.tree.map(lambda x, y: (1 - t) * x + t * y, *ends) for t in np.linspace(0, 1, 5)]
    losses = np.array([by_hand(point, "test", 1e-3)[1] for point in points])
    np.testing.assert_allclose(arrays["te_loss"][0, 2], losses, rtol=1e-4)
    assert matrix[0, 2] == pytest.approx(np.max(losses - np.linspace(losses[0], losses[-1], 5)), rel=1e-3)
    squares = sum(np.sum((x - y) ** 2) for x, y in zip(*map(jax.tree.leaves, ends)))
    assert arrays["distances"][2, 0] == pytest.approx(np.sqrt(squares), rel=1e-5)
    names = {f"barriers_{split}_{name}" for split in ("tr", "te") for name in ("loss", "nll", "err")}
    figures = plot.run(None, tmp_path / "all")["figures"]
    assert {path.split("/")[-1] for path in figures} == {f"{n}.{end}" for n in names for end in ("pdf", "png")}


def test_instability_falls_with_the_step_of_the_fork(trained, tmp_path):
    folders = []
    for base, step in itertools.product("ab", (0, 11)):
        folders.append(tmp_path / f"{base}_{step}")
        train.run(digits(**PLAIN, seed=20, num_members=2, fork=str(trained / f"{base}@{step}")), folders[-1])
    arrays, facts = study("instability", tmp_path / "study", *folders, num_points=3)
    assert facts["steps"] == [0, 11, 0, 11]
    distances = np.reshape(facts["distances"], (2, 2))
    assert (distances[:, 1] < 0.7 * distances[:, 0]).all()
    ends = geometry.unstack(checkpoints.restore(folders[2]).params)
    points = [jax.tree.map(lambda x, y: (1 - t) * x + t * y, *ends) for t in (0, 0.5, 1)]
    losses = [by_hand(point, "test", 1e-3)[1] for point in points]
    assert arrays["te_loss"][2] == pytest.approx(
        max(np.array(losses) - (losses[0] + losses[2]) / 2), rel=1e-3, abs=1e-6
    )
    assert_drawn(plot.run(None, tmp_path / "study")["figures"], {f"instability_{n}" for n in ("loss", "nll", "err")})
    with pytest.raises(ConfigError, match="a is no fork of two members"):
        study("instability", tmp_path / "refused", trained / "a")


def test_a_plane_through_the_ends_and_the_bend_of_a_curve(trained, tmp_path):
    arrays, _ = study("plane", tmp_path, trained / "curve", num_points=3, margins=0.0)
    ends, bend = arrays["bend_coordinates"][:2], arrays["bend_coordinates"][2]
    a, c = network(trained, "a"), geometry.unstack(checkpoints.restore(trained / "curve").params)[1]
    b = network(trained, "b")
    flat = lambda params: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)]).astype(np.float64)
    to_b, to_c = flat(b) - flat(a), flat(c) - flat(a)
    x_axis = to_b / np.linalg.norm(to_b)
    y_axis = to_c - (to_c @ x_axis) * x_axis
    np.testing.assert_allclose(ends, [(0, 0), (np.linalg.norm(to_b), 0)], rtol=1e-5)
    np.testing.assert_allclose(bend, [to_c @ x_axis, np.linalg.norm(y_axis)], rtol=1e-4)
    t = np.linspace(0, 1, 61)[:, None]
    curve = 2 * t * (1 - t) * bend[None] + t**2 * ends[1:]
    np.testing.assert_allclose(arrays["curve_coordinates"], curve, atol=1e-3 * np.linalg.norm(to_b))
    np.testing.assert_allclose(arrays["te_nll"][0, 0], by_hand(a, "test")[0], rtol=1e-4)
    x, y = arrays["x"][1], arrays["y"][2]
    point = flat(a) + x * x_axis + y * y_axis / np.linalg.norm(y_axis)
    _, unravel = jax.flatten_util.ravel_pytree(a)
    assert arrays["tr_loss"][1, 2] == pytest.approx(by_hand(unravel(point), "train", 1e-3)[1], rel=1e-3)
    assert_drawn(plot.run(None, tmp_path)["figures"], {"plane_contours", "plane_reliefs"})


@pytest.mark.parametrize("through", ["random", "trajectory"])
def test_planes_around_a_network_and_along_its_training(through, trained, tmp_path):
    arrays, facts = study("plane", tmp_path, trained / "a", num_points=3, through=through, margins=0.0)
    a = network(trained, "a")
    if through == "random":
        assert arrays["te_nll"][1, 1] == pytest.approx(by_hand(a, "test")[0], rel=1e-4)
        norm = np.sqrt(sum(np.sum(np.square(a[f"Dense_{i}"]["kernel"])) for i in range(2)))
        assert arrays["x"][-1] == pytest.approx(norm, rel=1e-5)  # one length of a filter-normalised direction
    else:
        assert len(arrays["curve_coordinates"]) == 3 and sum(facts["explained"]) == pytest.approx(1)
        np.testing.assert_allclose(arrays["curve_coordinates"][-1], 0, atol=1e-6)
        assert "explain" in analyze.table(facts)
    assert {path.split("/")[-1] for path in plot.run(None, tmp_path)["figures"]} == {
        f"plane_{kind}.{end}" for kind in ("contours", "reliefs") for end in ("pdf", "png")
    }


def test_the_trajectory_of_a_member_is_that_of_its_run_alone(trained, tmp_path):
    train.run(digits(**PLAIN, seed=0, num_members=2, keep_steps="0,11,22"), tmp_path / "pair")
    fields = dict(num_points=2, through="trajectory", splits="test")
    alone, _ = study("plane", tmp_path / "alone", trained / "b", **fields)
    member, facts = study("plane", tmp_path / "member", tmp_path / "pair", only="1", **fields)
    assert len(facts["members"]) == 3
    np.testing.assert_allclose(member["curve_coordinates"], alone["curve_coordinates"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(member["te_nll"], alone["te_nll"], rtol=1e-3)
    for only, given in (("", ""), ("2", "2"), ("0,1", "0,1")):
        with pytest.raises(ConfigError, match=f"has 2 members.* config.only is '{given}', name one from 0 to 1"):
            study("plane", tmp_path / "refused", tmp_path / "pair", only=only, **fields)


def test_places_of_a_plane_that_are_not_finite_are_holes_on_both_splits(trained, tmp_path):
    fields = dict(through="random", normalise="none", extent=1e20, num_points=3, num_examples=50)
    arrays, _ = study("plane", tmp_path, trained / "a", **fields)
    for name in ("tr_nll", "te_nll"):
        assert np.isfinite(arrays[name][1, 1]) and not np.isfinite(arrays[name]).all()
    assert len(plot.run(None, tmp_path)["figures"]) == 4


@pytest.mark.parametrize(
    "name, folders, fields, message",
    [
        ("curve", "a", {}, "takes one run of a line, bezier or chain"),
        ("chain", "a", {}, "give 1 networks, a chain takes at least two"),
        ("barriers", "a", {}, "give 1 networks, barriers take at least two"),
        ("plane", "ab", {}, "give 2 networks: a plane goes through three"),
        ("plane", "aab", {}, "lie on one line"),
        ("plane", "ab", {"through": "random"}, "start from one network, config.runs gives 2"),
        ("plane", ["curve"], {"through": "trajectory"}, "keep more checkpoints"),
        ("plane", "a", {"through": "trajectory", "steps": "11"}, "leave config.steps empty"),
        ("curve", ["curve"], {"lpips": "alex"}, "compares reconstructions, and the task is classification"),
    ],
)
def test_networks_that_a_study_cannot_take_are_named(name, folders, fields, message, trained, tmp_path):
    with pytest.raises(ConfigError, match=message):
        study(name, tmp_path, *(trained / folder for folder in folders), **fields)


def test_fast_geometric_ensembling_captures_at_the_minima_of_its_rate(trained, tmp_path):
    """A triangle every step from 0.05 to 0.0001 and back, from a trained network; ensembles grow by captures."""
    fields = PLAIN | dict(
        num_epochs=6, schedule="fge(low=0.0001, cycle=2)", learning_rate=0.05, capture=True, log_every=1
    )
    train.run(digits(**fields, initial=str(trained / "a")), tmp_path / "fge")
    rates = {row["step"]: row["learning_rate"] for row in records.read_metrics(tmp_path / "fge")}
    for step, rate in rates.items():
        tau = ((step - 1) / 11 % 2) / 2
        share = 2 * tau if tau < 0.5 else 2 - 2 * tau
        assert rate == pytest.approx((1 - share) * 0.05 + share * 0.0001, rel=1e-4)
    assert runs.open_run(tmp_path / "fge").plan.captured_steps == (11, 33, 55)
    _, facts = study("ensemble", tmp_path / "study", tmp_path / "fge", members="captures")
    assert len(facts["ensembles"]["accuracy"]) == 3
    with pytest.raises(ConfigError, match="cycle is an even number of epochs"):
        train.run(digits(**fields | {"schedule": "fge(cycle=3)"}), tmp_path / "refused")


@pytest.fixture(scope="module")
def reconstructing(tmp_path_factory):
    """A curve between two dense autoencoders of enlarged digits, trained with noise and the Laplacian loss."""
    folder = tmp_path_factory.mktemp("reconstructing")
    fields = QUICK | dict(task="reconstruction(loss=laplacian, levels=3)", normalisation="none", image_size=32)
    fields |= dict(optimizer="adam", learning_rate=0.003, input_noise=0.05, num_train_examples=256, beta=0.0)
    for seed in (0, 1):
        train.run(digits(**fields, subspace="none", seed=seed), folder / f"{seed}")
    curve = dict(subspace="bezier(3)", frozen_endpoints="ends", decay="point", initial=between(folder, "0", "1"))
    train.run(digits(**fields, **curve), folder / "curve")
    return folder


def reconstructed(params, images):
    hidden = images.reshape(len(images), -1) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    return (np.maximum(hidden, 0) @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]).reshape(images.shape)


def test_reconstructions_along_a_curve_with_lpips(reconstructing, tmp_path, monkeypatch):
    """With a stand-in for LPIPS: its numbers have tests of their own."""
    squares = lambda weights, a, b: weights * jax.numpy.mean(jax.numpy.square(a - b), axis=(1, 2, 3))

    def stand_in(weights, scaled):
        assert weights == 3.0 and scaled
        sums = lambda outputs, targets, mask: {
            "lpips": (squares(weights, outputs, targets) * mask).sum(),
            "n": mask.sum(),
        }
        return Measure(sums, lambda found: {"lpips": found["lpips"] / found["n"]})

    with monkeypatch.context() as patch:
        for name, function in (("load_weights", lambda net, path: 3.0), ("distance", squares), ("measure", stand_in)):
            patch.setattr(lpips, name, function)
        arrays, _ = study("curve", tmp_path, reconstructing / "curve", num_points=3, lpips="alex", num_images=2)
    info = runs.open_run(reconstructing / "curve").experiment
    images = info.data.test.images.astype(np.float32) / 255
    assert images.shape[1:] == (32, 32, 1)
    np.testing.assert_allclose(arrays["originals"], images[:2])
    knots = geometry.unstack(checkpoints.restore(reconstructing / "curve").params)
    middle = jax.tree.map(lambda a, b: (a + b) / 2, knots[0], knots[2])
    for name, t, params in (("", 0, knots[0]), ("segment_", 1, middle), ("", 2, knots[2])):
        outputs = reconstructed(params, images)
        np.testing.assert_allclose(arrays[f"{name}images_dynamics"][t], outputs[:2], atol=1e-4)
        assert arrays[f"{name}te_mae"][t] == pytest.approx(np.abs(outputs - images).mean(), rel=1e-4)
        loss = float(np.mean(losses.laplacian_pyramid(outputs, images, 3)))
        assert arrays[f"{name}te_loss"][t] == pytest.approx(loss, rel=1e-3)
        assert arrays[f"{name}lpips"][t] == pytest.approx(3 * np.square(outputs - images).mean(), rel=1e-3)
    names = {"curve", "reconstructions_curve", "reconstructions_segment"}
    figures = plot.run(None, tmp_path)["figures"]
    moving = [path for path in figures if path.endswith(".gif")]
    assert len(moving) == 2 and {path.split("/")[-1].split(".")[0] for path in figures} == names
    with Image.open(moving[0]) as animation:
        assert animation.n_frames == 3
    with pytest.raises(DataError, match="cannot be read as an npz of weights"):
        none = str(tmp_path / "none.npz")
        study("curve", tmp_path / "bad", reconstructing / "curve", lpips="alex", lpips_weights=none)


def test_an_ensemble_of_autoencoders_is_the_mean_of_their_reconstructions(reconstructing, tmp_path):
    arrays, facts = study("ensemble", tmp_path, reconstructing / "0", reconstructing / "1")
    images = runs.open_run(reconstructing / "0").experiment.data.test.images.astype(np.float32) / 255
    outputs = []
    for name in "01":
        outputs.append(reconstructed(network(reconstructing, name), images))
    both = np.abs(np.mean(outputs, axis=0) - images).mean()
    assert facts["running"]["mae"] == pytest.approx([facts["scores"]["mae"][0], both], rel=1e-4)
    assert "ensemble of the first 2: loss" in analyze.table(facts)
