"""Several runs together: members in one program, captures, sweeps, analyses, their figures and tables."""

import csv
import json
import pathlib
import shutil

import chex
import jax
import numpy as np
import pytest
from flax import serialization
from scipy.special import logsumexp
from test_configs import SMALL, assert_drawn, load, module_of
from test_runs import launch, rows

from launch import app
from subspaces_jax import checkpoints, evaluation, records, rngs
from subspaces_jax.data import catalogue, sources
from subspaces_jax.errors import CheckpointError, ConfigError, DataError, RunDirectoryError
from subspaces_jax.experiments import analyze, build, evaluate, export, plot, sweep, train
from subspaces_jax.plots import families, tables

PLAIN = dict(subspace="none", beta=0.0, network="mlp_16", batch_size=64, num_epochs=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs to analyse: two lines, a simplex, two networks in one program, and one that captured checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    tiny = dict(network="mlp_16", num_epochs=2, num_points=3)
    for seed in (0, 1):
        train.run(load("fashion_mnist", "line,tiny", seed=seed, **tiny), folder / f"line_{seed}")
    train.run(load("fashion_mnist", "simplex_3,tiny", **tiny), folder / "simplex")
    train.run(load("fashion_mnist", "ensemble,tiny", num_members=2, **tiny), folder / "members")
    train.run(load("fashion_mnist", "swa_constant,tiny", **tiny | {"num_epochs": 4, "num_cycles": 3}), folder / "swa")
    train.run(load("line_digits", **tiny | {"network": "mlp_8"}), folder / "other")
    train.run(load("fashion_mnist", "line,tiny", pixel_shuffle=True, **tiny), folder / "shuffled")
    train.run(load("fashion_mnist", "line,tiny", augmentation="crop_flip", **tiny), folder / "flipped")
    return folder


def analysis(trained, form, names, **fields):
    config = module_of("analyze").get_config(form)
    config.update({"runs": ",".join(str(trained / name) for name in names)} | fields)
    return app.to_dict(config)


@pytest.mark.parametrize("devices", [1, 2])
def test_members_in_one_program_are_runs_of_their_own_seeds(devices, tmp_path):
    config = load("line_digits") | PLAIN | {"num_devices": devices}
    train.run(config | {"num_members": 2}, tmp_path / "together")
    together = checkpoints.restore(tmp_path / "together")
    for seed in (0, 1):
        alone = config | {"seed": seed, "num_devices": 1}
        train.run(alone, tmp_path / str(seed))
        member = jax.tree.map(lambda leaf: leaf[seed : seed + 1], together.params)
        chex.assert_trees_all_close(member, checkpoints.restore(tmp_path / str(seed)).params, rtol=1e-4, atol=1e-5)
    losses = [np.mean([rows(tmp_path / str(seed))[i]["loss"] for seed in (0, 1)]) for i in range(2)]
    np.testing.assert_allclose([row["loss"] for row in rows(tmp_path / "together")], losses, rtol=1e-4)


def test_members_resume_bit_for_bit_and_are_tested_one_by_one(tmp_path):
    config = load("line_digits") | PLAIN | {"num_members": 2, "test_every": 1, "checkpoint_every": 1}
    train.run(config, tmp_path / "whole")
    train.run(config, tmp_path / "parts")
    last = tmp_path / "parts" / "checkpoints" / "44"
    last.rename(last.with_name("44.orbax-checkpoint-tmp"))
    assert train.run(config, tmp_path / "parts")["resumed_from"] == 22
    first, second = (checkpoints.restore(tmp_path / name) for name in ("whole", "parts"))
    chex.assert_trees_all_equal(first.params, second.params)
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    row = rows(tmp_path / "whole")[-1]
    assert row["test_accuracy"] == pytest.approx((row["test_accuracy_0"] + row["test_accuracy_1"]) / 2)


def test_captures_are_the_exact_epochs_and_their_mean_is_evaluated(trained):
    """SWA of 4 epochs from the half on: after epochs 2, 3 and 4 of 11 steps."""
    steps = sorted(int(path.name) for path in (trained / "swa" / "checkpoints").iterdir())
    assert steps == [22, 33, 44]
    facts = evaluate.run(None, trained / "swa")
    assert facts["midpoint"] == 0 and len(facts["scores"]["accuracy"]) == 4
    mean = analyze.run(analysis(trained, "mean", ["swa"], members="captures"), trained / "mean")
    assert mean["scores"]["nll"][0] == pytest.approx(facts["scores"]["nll"][0], rel=1e-5)
    assert [name.split()[2] for name in mean["members"]] == ["22", "33", "44"]
    assert len(facts["ensembles"]["accuracy"]) == 3


def test_an_ensemble_is_made_of_what_runs_give(trained):
    members = {"midpoint": 2, "endpoints": 4, "random": 6}
    for kind, number in members.items():
        facts = analyze.run(
            analysis(trained, "ensemble", ["line_0", "line_1"], members=kind, num_draws=3), trained / kind
        )
        assert len(facts["members"]) == len(facts["scores"]["accuracy"]) == number
        assert len(facts["ensembles"]["nll"]) == number and np.shape(facts["disagreement"]) == (number, number)
    arrays, _ = records.load_results(trained / "endpoints", "ensemble")
    assert arrays["logits"].shape == (4, 360, 10)
    assert "ensembles of 4: " in analyze.table(facts)


def test_the_midpoint_of_captures_is_their_mean(trained):
    facts = analyze.run(analysis(trained, "ensemble", ["swa"]), trained / "of_swa")
    assert facts["members"] == ["swa mean of steps 22, 33, 44"]
    own = evaluate.run(None, trained / "swa")
    assert facts["scores"]["nll"] == pytest.approx([own["scores"]["nll"][0]], rel=1e-5)
    with pytest.raises(ConfigError, match="captured checkpoints, which are evaluated together: leave step out"):
        evaluate.run(None, trained / "swa", step=22)


def test_folders_that_are_no_runs_are_named(trained, tmp_path):
    analyze.run(analysis(trained, "ensemble", ["line_0"]), tmp_path / "analysis")
    records.write_header(tmp_path, "sweep", {"config": "configs/fashion_mnist.py", "fields": ""})
    for folder, kind in ((tmp_path, "a sweep"), (tmp_path / "analysis", "an analysis")):
        with pytest.raises(RunDirectoryError, match=f"is the folder of {kind}: name the directory of a run"):
            evaluate.run(None, folder)


def test_a_run_starts_from_trained_networks(trained, tmp_path):
    """At a learning rate of 0 the line between two midpoints, and a line that was trained, are what is evaluated."""
    still = dict(network="mlp_16", num_epochs=1, num_points=3, learning_rate=0.0, schedule="constant", weight_decay=0.0)
    ends = analyze.run(analysis(trained, "line", ["line_0", "line_1"], num_points=3), trained / "line_of_midpoints")
    for names, expected in (
        (("line_0", "line_1"), ends["scores"]["nll"]),
        (("line_0",), evaluate.run(None, trained / "line_0")["scores"]["nll"]),
    ):
        initial = ",".join(str(trained / name) for name in names)
        train.run(load("fashion_mnist", "line,tiny", initial=initial, **still), tmp_path / names[-1])
        found = evaluate.run(None, tmp_path / names[-1])["scores"]["nll"]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    for name, form, error, message in (
        ("line_0,simplex", "simplex_3,tiny", ConfigError, "initial gives 2 networks, and subspace 'simplex' has 3"),
        ("other,other", "line,tiny", CheckpointError, "another architecture"),
        ("nowhere", "plain,tiny", RunDirectoryError, "nowhere is no run directory"),
    ):
        initial = ",".join(str(trained / part) for part in name.split(","))
        with pytest.raises(error, match=message):
            train.run(load("fashion_mnist", form, initial=initial, **still), tmp_path / "refused")


def test_another_test_set_is_scored_with_statistics_from_the_runs_own(tmp_path, monkeypatch):
    """Stands for ImageNet-C: the same classes and image shape, other images, no training split that is read."""
    config = load("fashion_mnist", "plain,tiny", network=SMALL, num_epochs=1)
    train.run(config, tmp_path / "run")
    load_own, shapes = sources.load, catalogue.info("digits")
    monkeypatch.setitem(catalogue.DATASETS, "mnist", shapes)

    def load_other(name, split, **folders):
        images, labels = load_own("digits", split, **folders | {"archive": None})
        assert name == "digits" or split == "test"
        return sources.Arrays(255 - images, labels) if name == "mnist" else sources.Arrays(images, labels)

    monkeypatch.setattr(sources, "load", load_other)
    facts = analyze.run(analysis(tmp_path, "ensemble", ["run"], test_dataset="mnist"), tmp_path / "other")

    model, checkpoint = build.experiment(config).model, checkpoints.restore(tmp_path / "run")
    variables = {"params": jax.tree.map(lambda leaf: leaf[0], checkpoint.params), "batch_stats": checkpoint.batch_stats}
    nll = {}
    for name, train_images in (("own", load_own("digits", "train").images), ("other", None)):
        test_images, labels = load_own("digits", "test")
        of = 255 - test_images if train_images is None else train_images
        key = rngs.stream(jax.random.key(config["seed"]), "refresh")
        stats = evaluation.refresh_batch_stats(model.apply_train, variables, of, key, config["eval_batch_size"])
        logits = np.asarray(model.apply(variables | {"batch_stats": stats}, 255 - test_images), np.float64)
        nll[name] = np.mean(logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels])
    assert facts["scores"]["nll"][0] == pytest.approx(nll["own"], rel=1e-3)
    assert abs(nll["own"] - nll["other"]) > 0.01 * nll["own"]


def test_an_ensemble_of_a_network_with_itself_is_that_network(trained):
    facts = analyze.run(analysis(trained, "ensemble", ["line_0", "line_0"]), trained / "itself")
    assert facts["ensembles"]["accuracy"][1] == facts["scores"]["accuracy"][0]
    assert facts["ensembles"]["nll"][1] == pytest.approx(facts["scores"]["nll"][0], rel=1e-6)


def test_a_line_between_two_networks_begins_and_ends_at_them(trained):
    facts = analyze.run(
        analysis(trained, "line", ["line_0", "members"], members="midpoint", num_points=3)
        | {"runs": str(trained / "members")},
        trained / "between",
    )
    own = evaluate.run(None, trained / "members")["scores"]
    np.testing.assert_allclose([facts["scores"]["nll"][0], facts["scores"]["nll"][-1]], own["nll"], rtol=1e-5)
    assert len(facts["scores"]["pair_accuracy"]) == 3


@pytest.mark.parametrize(
    "average, number",
    [
        ("mean", 1),
        ("random", 4),
        ("random_layerwise", 4),
        ("random_per_weight", 4),
        ("towards_each", 3),
        ("swag", 4),
        ("swag_diagonal", 4),
    ],
)
def test_every_average_is_scored(average, number, trained):
    config = analysis(trained, average, ["simplex"], members="endpoints", num_draws=4)
    facts = analyze.run(config, trained / f"average_{average}")
    assert len(facts["scores"]["nll"]) == number and np.isfinite(facts["scores"]["nll"]).all()
    assert len(facts.get("ensembles", {"nll": [0]})["nll"]) == number
    if number > 1:
        assert len(set(facts["scores"]["nll"])) == number
        assert 0 < np.max(facts["disagreement"]) <= 1 and "ensembles of 3: " in analyze.table(facts)


def test_a_point_all_the_way_towards_each_network_is_that_network(trained):
    config = analysis(trained, "towards_each", ["simplex"], members="endpoints", t=1.0)
    found = analyze.run(config, trained / "all_the_way")["scores"]["nll"]
    own = analyze.run(analysis(trained, "ensemble", ["simplex"], members="endpoints"), trained / "simplex_ends")
    np.testing.assert_allclose(found, own["scores"]["nll"], rtol=1e-5)


def test_steps_choose_checkpoints(trained):
    """The line between the first and the last checkpoint that a run captured."""
    config = analysis(trained, "line", ["swa", "swa"], steps="22,44", num_points=3)
    facts = analyze.run(config, trained / "steps")
    assert [name.split()[2] for name in facts["members"]] == ["22", "44"]
    captures = analyze.run(analysis(trained, "ensemble", ["swa"], members="captures"), trained / "captures")
    ends = [facts["scores"]["nll"][i] for i in (0, -1)]
    np.testing.assert_allclose(ends, [captures["scores"]["nll"][i] for i in (0, -1)], rtol=1e-5)


@pytest.mark.parametrize("form, names", [("line", ["line_0", "line_1"]), ("ensemble", ["line_0", "line_1"])])
def test_an_analysis_is_drawn_from_its_files(form, names, trained):
    analyze.run(analysis(trained, form, names, num_points=3), trained / f"drawn_{form}")
    assert_drawn(plot.run(None, trained / f"drawn_{form}")["figures"], {form})


@pytest.mark.parametrize(
    "form, names, fields, error, message",
    [
        ("line", ["line_0", "shuffled"], {}, CheckpointError, "shuffled has pixel_shuffle True but .* has False"),
        ("line", ["line_0"], {"steps": "3,x"}, ConfigError, "config.steps is '3,x': it takes 1 whole numbers"),
        ("ensemble", ["swa"], {"members": "captures", "steps": "3"}, ConfigError, "chooses single checkpoints"),
        ("line", ["line_0", "line_1"], {"steps": "3,4"}, CheckpointError, "no checkpoint"),
        (
            "ensemble",
            ["line_0"],
            {"test_dataset": "cifar100"},
            ConfigError,
            "config.test_dataset 'cifar100' has 100 classes",
        ),
        (
            "ensemble",
            ["line_0", "flipped"],
            {},
            CheckpointError,
            "flipped has augmentation 'crop_flip' but .* has 'flip'",
        ),
        ("ensemble", ["members"], {"members": "random"}, ConfigError, "no subspace to draw from"),
        (
            "ensemble",
            ["line_0", "other"],
            {},
            CheckpointError,
            "has network 'mlp_8' but .*'mlp_16': networks are analysed",
        ),
        ("ensemble", ["line_0", "nowhere"], {}, RunDirectoryError, "nowhere is no run directory"),
        ("line", ["line_0"], {}, ConfigError, "give 1 networks, an analysis 'line' takes exactly two"),
        ("mean", ["line_0"], {}, ConfigError, "give 1 networks, an analysis 'average' takes at least two"),
        ("mean", ["line_0"], {"members": "captures"}, ConfigError, "line_0 captured none"),
        (
            "mean",
            ["line_0"],
            {"average": "median"},
            ConfigError,
            "config.average is 'median': it takes str, one of mean",
        ),
        ("line", [], {"runs": ""}, ConfigError, "config.runs names no run directory"),
        (
            "ensemble",
            ["line_0"],
            {"test_dataset": "digit"},
            DataError,
            "data set 'digit' is unknown: did you mean digits",
        ),
    ],
)
def test_what_cannot_be_analysed_is_named(form, names, fields, error, message, trained, tmp_path):
    with pytest.raises(error, match=message) as caught:
        analyze.run(analysis(trained, form, names, **fields), tmp_path / "analysis")
    assert "\n" not in str(caught.value) and not (tmp_path / "analysis").exists()


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of two variants, run by its command."""
    folder = tmp_path_factory.mktemp("swept")
    options = ["--config=configs/sweep_fashion_mnist.py:tiny", f"--workdir={folder}"]
    options += [
        "--config.variants=('plain,tiny','line,tiny')",
        "--config.seeds=(3,)",
        "--config.fields=network=mlp_16 num_devices=1 num_points=3",
    ]
    process = launch("sweep", *options)
    assert process.returncode == 0, process.err
    return folder, options, process


def test_a_sweep_runs_every_variant_and_seed_and_skips_what_is_finished(swept):
    folder, options, process = swept
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[-1].isdigit())
    assert names == ["line+tiny_3", "plain+tiny_3"]
    assert "0 runs were finished, 2 ran" in process.out
    (folder / "line+tiny_3" / "results" / "points.json").unlink()
    again = launch("sweep", *options)
    assert again.returncode == 0 and "1 runs were finished, 1 ran" in again.out
    assert sweep.is_finished(folder / "line+tiny_3")


def test_a_sweep_of_another_config_is_refused(swept):
    folder, options, _ = swept
    process = launch("sweep", *options[:3], "--config.fields=network=mlp_8")
    assert process.returncode == 2 and "holds a run of another config (fields = " in process.err


def test_failed_runs_are_named_and_the_others_go_on(tmp_path):
    config = dict(
        config="configs/fashion_mnist.py",
        variants=("plain,tiny", "plane,tiny"),
        seeds=(0,),
        fields="network=mlp_16",
        cluster="",
        cluster_options="",
    )
    with pytest.raises(
        RunDirectoryError, match=r"1 of 2 runs failed \(plane\+tiny_0: error: variant 'plane' is unknown"
    ) as caught:
        sweep.run(config, tmp_path)
    assert "\n" not in str(caught.value) and sweep.is_finished(tmp_path / "plain+tiny_0")


def test_a_sweep_as_cluster_jobs(tmp_path):
    config = dict(
        config="configs/line_digits.py",
        variants=("tiny",),
        seeds=(0,),
        fields="network=mlp_16",
        cluster="local",
        cluster_options="timeout_min=5",
    )
    assert sweep.run(config, tmp_path) == {"finished": 0, "ran": 1}
    assert sweep.run(config, tmp_path) == {"finished": 1, "ran": 0}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"seeds": (0.5,)}, "config.seeds is"),
        ({"seeds": ()}, r"config.seeds is \(\): .*at least one"),
        ({"fields": "a"}, "'a' in 'a' has no value"),
        ({"cluster": "moon"}, "config.cluster is 'moon'"),
        ({"fields": "a='b"}, "is not name=value"),
        ({"fields": "seed=5"}, "may not set seed: config.seeds does"),
        ({"variants": ("line,seed=3",)}, "may not set seed"),
        ({"variants": ("line,data_dir=/x",)}, "give fields with a / in config.fields"),
        ({"variants": (1, 2)}, r"config.variants is \(1, 2\)"),
        ({"cluster": "local", "cluster_options": "gpus=1"}, "config.cluster 'local' with {'gpus': 1}: "),
    ],
)
def test_a_wrong_sweep_is_named(fields, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        sweep.run(app.to_dict(module_of("sweep").get_config()) | fields, tmp_path / "sweep")


def test_a_sweep_goes_over_values_of_fields():
    config = app.to_dict(module_of("sweep").get_config()) | {
        "config": "configs/fashion_mnist.py",
        "variants": ("line,tiny,beta=0.5", "subspace=bezier(4)"),
        "seeds": (4,),
    }
    first, second = sweep.jobs(config, pathlib.Path("runs"))
    assert first == sweep.Job(
        "line+tiny+beta=0.5_4",
        "configs/fashion_mnist.py",
        "line,tiny",
        {"variant": "line,tiny,beta=0.5", "seed": "4", "beta": "0.5"},
        pathlib.Path("runs/line+tiny+beta=0.5_4"),
    )
    assert second.form == "" and sweep.config_of(second)["subspace"] == "bezier(4)"
    found = sweep.config_of(first)
    assert found["beta"] == 0.5 and found["seed"] == 4 and found["subspace"] == "line" and found["dataset"] == "digits"


@pytest.mark.parametrize("name", ["sweep_cifar10", "sweep_fashion_mnist", "sweep_tiny_imagenet"])
def test_sweeps_name_variants_that_exist(name):
    config = module_of(name).get_config()
    for job in sweep.jobs(app.to_dict(config), pathlib.Path("runs")):
        assert sweep.config_of(job)["variant"] == job.fields["variant"]


def invented_family():
    """Results as evaluation writes them, with numbers to recognise."""
    rng = np.random.default_rng(0)

    def facts(subspace, shift, noise=0.0, endpoints=0, layerwise=False, seed=0):
        curve = subspace in ("line", "bezier")
        accuracy = (shift + 0.01 * seed + 0.001 * rng.random(5 if curve else 1)).tolist()
        scores = {"accuracy": accuracy, "nll": accuracy, "ece_20": accuracy}
        scores |= {f"pair_{name}": values for name, values in scores.items()} if curve else {}
        config = dict(
            subspace=subspace,
            num_endpoints=endpoints,
            layerwise=layerwise,
            label_noise=noise,
            beta=1.0,
            num_samples=1,
            seed=seed,
        )
        weights = {"cosine_squared": 0.25} if curve else {}
        return weights | {"scores": scores, "midpoint": 2 if curve else 0, "config": config}

    both = lambda *args, **options: [facts(*args, seed=seed, **options) for seed in (0, 1)]
    family = {"plain": both("none", 0.9), "line": both("line", 0.91), "curve": both("bezier", 0.92)}
    family |= {f"simplex_{n}": both("simplex", 0.9 + n / 100, endpoints=n) for n in (3, 4)}
    return family | {f"line,noise_{p}": both("line", 0.9 - p / 100, noise=p / 100) for p in (20, 40)}


def test_figures_show_what_results_hold():
    family = invented_family()
    two = [{"scores": {"accuracy": [0.93], "ece_20": [0.05]}, "midpoint": None}]
    figure = families.profiles({name: family[name] for name in ("line", "curve", "plain")}, family["plain"], two)
    labelled = [{line.get_label(): line for line in axis.lines} for axis in figure.axes]
    two_level = [lines["standard ensemble of two"].get_ydata()[0] for lines in labelled]
    assert two_level == pytest.approx([93.0, 5.0])
    solid, dashed = figure.axes[0].lines[:2]
    np.testing.assert_allclose(
        solid.get_ydata(), 100 * np.mean([run["scores"]["pair_accuracy"] for run in family["line"]], 0)
    )
    np.testing.assert_allclose(
        dashed.get_ydata(), 100 * np.mean([run["scores"]["accuracy"] for run in family["line"]], 0)
    )
    sizes = families.simplex_sizes(family, family["plain"]).axes[0]
    assert sizes.get_xticks().tolist() == [2, 3, 4]
    other = family | {
        "simplex_4,weight_decay=0.0": family["simplex_3"],
        "line,noise_20,beta=0.0": family["line,noise_20"],
    }
    same = families.simplex_sizes(other, family["plain"]).axes[0]
    np.testing.assert_array_equal(same.lines[0].get_xydata(), sizes.lines[0].get_xydata())
    best = {
        "early_stopping,noise_40": [{"scores": {"accuracy": [0.7]}, "midpoint": None, "config": {"label_noise": 0.4}}]
    }
    noise = families.label_noise(family, best)
    assert [text.get_text() for text in noise.legends[0].texts] == [families.BEST_EPOCH, "line"]
    run_of = lambda accuracy: {"scores": {"accuracy": [accuracy]}, "midpoint": None, "config": {"label_noise": 0.4}}
    noisy = {f"{name},noise_40": [run_of(0.6), run_of(0.7)] for name in ("plain", "early_stopping")}
    for twice in (noisy, {"early_stopping,noise_40": noisy["early_stopping,noise_40"]}):  # which train alike
        (axis,) = families.label_noise(twice).axes
        (bar,) = axis.containers[0][2][0].get_segments()
        np.testing.assert_allclose(bar[1, 1] - bar[0, 1], 2 * 100 * np.std([0.6, 0.7], ddof=1))
    wrong = run_of(0.6) | {"split": "validation", "config": {"label_noise": 0.4, "label_noise_kind": "wrong"}}
    (axis,) = families.label_noise({"line,noise_40": [wrong]}).axes
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("wrong labels (%)", "validation accuracy (%)")
    more = [text.get_text() for text in families.label_noise(other).legends[0].texts]
    assert more == ["line", "line, beta=0.0"], "another config is another method"
    assert (
        families.profiles({"plain": family["plain"]}) is None
        and families.label_noise({"plain": family["plain"]}) is None
    )


def test_a_variant_looks_the_same_in_all_lines_of_a_figure():
    family = invented_family()
    mine = {"line,beta=0.5": family["line"], "my_curve": family["curve"]}
    axis = families.profiles(mine | {"line": family["line"]}).axes[0]
    solid, dashed = axis.lines[:6:2], axis.lines[1:6:2]
    assert [line.get_label() for line in solid] == ["line", "line, beta=0.5", "my curve"]
    assert [line.get_color() for line in solid] == [line.get_color() for line in dashed]
    assert len({line.get_color() for line in solid}) == 3


def test_tables_hold_means_and_deviations(tmp_path):
    family = invented_family()
    written = tables.write(tables.summary(family), tmp_path, "family")
    with open(written[0]) as file:
        found = {row["variant"]: row for row in csv.DictReader(file)}
    midpoints = [100 * run["scores"]["accuracy"][2] for run in family["line"]]
    assert float(found["line"]["midpoint accuracy (%)"]) == pytest.approx(np.mean(midpoints))
    assert float(found["line"]["midpoint accuracy (%) std"]) == pytest.approx(np.std(midpoints, ddof=1))
    several = {
        "ensemble": [{"scores": {"accuracy": [0.8, 0.9]}, "midpoint": None, "ensembles": {"accuracy": [0.85, 0.95]}}]
    }
    (of_several,) = tables.summary(several)
    assert [cell and round(cell[0], 6) for cell in of_several.cells[:5]] == [85.0, None, None, None, 95.0]
    assert found["line"]["pair .2/.8 (%)"] == "", "five points do not include t = 0.2"
    assert found["plain"]["ends accuracy (%)"] == "" and found["plain"]["seeds"] == "2"
    assert float(found["line"]["cos^2 of ends"]) == 0.25 and found["line"]["ends differ (%)"] == ""
    latex = written[1].read_text()
    assert latex.count(r"\\") == len(family) + 1 and r"simplex\_3" in latex and r"$\pm$" in latex
    assert tables.text(tables.summary(family)).count("\n") == len(family) + 1


def test_a_sweep_is_drawn_from_its_files(swept):
    folder, _, _ = swept
    figures = [pathlib.Path(path) for path in plot.run(None, folder)["figures"]]
    tables = [path for path in figures if path.stem == "family"]
    assert [path.suffix for path in tables] == [".csv", ".tex"] and "line,tiny" in tables[0].read_text()
    assert_drawn([path for path in figures if path not in tables], {"profiles", "dynamics"})


def test_reliability_is_of_the_test_sets_of_all_seeds(swept, tmp_path):
    """And of variants by the name that runs carry, whatever their folders are called."""
    shutil.copy(swept[0] / "config.json", tmp_path)
    for seed in (0, 1):
        copy = tmp_path / f"renamed-{seed}"
        shutil.copytree(swept[0] / "plain+tiny_3", copy)
        rename(copy / "config.json", {"variant": "plain"})
        rename(copy / "results" / "points.json", {"config": {"seed": seed}})
    facts = sweep.gather(tmp_path)
    assert list(facts["family"]) == ["plain"] and len(facts["standard"]) == 2 and len(facts["pair"]) == 1
    arrays, _ = records.load_results(tmp_path, "family")
    logits = records.load_results(tmp_path / "renamed-0", "points")[0]["logits"][0]
    confidence = np.exp(logits - logsumexp(logits, -1, keepdims=True)).max(-1)
    np.testing.assert_array_equal(arrays["reliability/plain/count"], 2 * np.histogram(confidence, 20, (0, 1))[0])
    figures = {pathlib.Path(path).stem for path in plot.run(None, tmp_path)["figures"]}
    assert figures == {"family", "reliability"}


def rename(path, changes):
    """Other values in a JSON file, one level deep."""
    content = json.loads(path.read_text())
    for name, value in changes.items():
        content[name] = content[name] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(content))


def test_snapshots_of_members_are_networks_of_their_own(tmp_path):
    """And their exports have the statistics of their own."""
    config = load("line_digits") | PLAIN | {"network": SMALL, "num_members": 2, "keep_steps": "22,44"}
    train.run(config, tmp_path / "members")
    fields = {"analysis": "ensemble", "runs": str(tmp_path / "members"), "members": "snapshots"}
    facts = analyze.run(fields, tmp_path / "x")
    with pytest.raises(ConfigError, match="is of 2 members: fork a run of num_members=1"):
        train.run(config | {"keep_steps": "", "fork": f"{tmp_path / 'members'}@22"}, tmp_path / "fork")
    assert facts["members"] == [f"members step {step} endpoint {m}" for step in (22, 44) for m in (0, 1)]
    last = evaluate.run(None, tmp_path / "members")["scores"]["nll"]
    np.testing.assert_allclose(facts["scores"]["nll"][2:], last, rtol=1e-4)
    stats = checkpoints.restore(tmp_path / "members").batch_stats
    for m, path in enumerate(export.run(tmp_path / "members", tmp_path / "of.msgpack")):
        own = serialization.msgpack_restore(path.read_bytes())["batch_stats"]
        chex.assert_trees_all_equal(own, jax.tree.map(lambda leaf: np.asarray(leaf[m]), stats))


def test_runs_of_one_variant_and_seed_are_not_one_another(trained, tmp_path):
    evaluate.run(None, trained / "line_0")
    for change in ({}, {"network": "mlp_8"}):
        shutil.copytree(trained / "line_0", other := tmp_path / f"line_{len(change)}")
        header = json.loads((other / "config.json").read_text())
        header["config"] |= change
        (other / "config.json").write_text(json.dumps(header))
        facts = json.loads((other / "results" / "points.json").read_text())
        facts["config"] |= change | {"seed": len(change)}
        (other / "results" / "points.json").write_text(json.dumps(facts))
    with pytest.raises(RunDirectoryError, match="line_0 and .*line_0 are both line with seed 0: name one of them"):
        analyze.run({"analysis": "family", "runs": f"{trained / 'line_0'},{tmp_path / 'line_0'}"}, tmp_path / "x")
    with pytest.raises(RunDirectoryError, match="line_1 has network 'mlp_8' but .*line_0 has 'mlp_16'"):
        analyze.run({"analysis": "family", "runs": f"{trained / 'line_0'},{tmp_path / 'line_1'}"}, tmp_path / "x")


def test_a_family_of_regressions_has_the_scores_of_its_task(tmp_path):
    config = load("line_digits", network="mlp_8", task="regression", learning_rate=1e-3, num_epochs=1, num_points=3)
    for seed in (0, 1):
        train.run(config | {"seed": seed}, tmp_path / str(seed))
    scores = [evaluate.run(None, tmp_path / str(seed))["scores"]["mae"] for seed in (0, 1)]
    fields = {"analysis": "family", "runs": f"{tmp_path / '0'},{tmp_path / '1'}"}
    analyze.run(fields, tmp_path / "family")
    found = plot.run(None, tmp_path / "family")
    head, _, row = ([cell.strip() for cell in line.strip("| ").split("|")] for line in found["table"].splitlines())
    values = [score[1] for score in scores]
    assert row[head.index("midpoint MAE")] == f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
    assert {pathlib.Path(path).stem for path in found["figures"]} >= {"family", "dynamics"}
