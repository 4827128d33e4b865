"""Options of data and of training that are chosen by a config: what is used of a data set, fixed orders, validation,
snapshots, plateaus, fields that change in the middle of a run."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subspaces_jax import checkpoints, geometry, records
from subspaces_jax.data import corruption, images, sources, subsets
from subspaces_jax.errors import ConfigError, RunDirectoryError
from subspaces_jax.experiments import build, describe, evaluate, plot, runs, train
from subspaces_jax.experiments.build import data as build_data
from subspaces_jax.training.loop import Plateau

PLAIN = dict(dataset="digits", network="mlp_8", subspace="none", beta=0.0, num_devices=1, batch_size=128)
CHOSEN = PLAIN | dict(classes="drawn(4, seed=42)", validation="drawn(0.25, seed=1)", image_size=20, image_padding=4)
NOISY = CHOSEN | dict(label_noise=0.5, label_noise_kind="wrong", corruption_seed=9)


@pytest.fixture(scope="module")
def digits(data_dir):
    return {split: sources.load("digits", split) for split in ("train", "test")}


def test_what_is_used_of_a_data_set(digits):
    made, clean = build.experiment(NOISY), build.experiment(CHOSEN)
    classes = subsets.drawn_classes(10, 4, seed=42).tolist()
    assert made.data.info.num_classes == 4 and made.data.info.image_shape == (28, 28, 1)
    whole = digits["train"]
    rows = [i for i, label in enumerate(whole.labels) if label in classes]
    kept, held = subsets.last(len(rows), 0.25, seed=1)
    for split, chosen in ((clean.data.train, sorted(kept)), (clean.data.validation, sorted(held))):
        chosen = [rows[i] for i in chosen]
        assert split.labels.tolist() == [classes.index(whole.labels[i]) for i in chosen]
        np.testing.assert_array_equal(split.images[3], images.all_resized(whole.images[chosen[3:4]], (28, 28, 1), 4)[0])
    assert clean.data.test.labels.tolist() == [
        classes.index(label) for label in digits["test"].labels if label in classes
    ]
    expected = corruption.wrong_labels(clean.data.train.labels, 0.5, 4, seed=9)
    np.testing.assert_array_equal(made.data.train.labels, expected)
    assert 0.4 < np.mean(expected != clean.data.train.labels) < 0.6
    for split in ("validation", "test"):
        np.testing.assert_array_equal(getattr(made.data, split).labels, getattr(clean.data, split).labels)
    assert made.plan.steps_per_epoch == len(kept) // 128
    assert (
        abs(build.Experiment(made.config, without_data=True).data.num_examples - len(kept)) < 25
    )  # as if all were as many


def test_a_stream_uses_the_same_examples_in_their_order():
    fixed = NOISY | dict(stream=True, shuffle=False, eval_batch_size=50)
    made, in_memory = build.experiment(fixed), build.experiment(NOISY)
    stream = build_data.train_stream(made.data.settings, 64, seed=3)
    for _ in range(2):
        for start in range(0, made.data.num_examples // 64 * 64, 64):
            pixels, labels, _ = next(stream)
            np.testing.assert_array_equal(pixels, in_memory.data.train.images[start : start + 64])
            np.testing.assert_array_equal(labels, in_memory.data.train.labels[start : start + 64])
    stream.close()
    for split in ("train", "validation"):
        found, expected = made.data.scored_split(split), in_memory.data.scored_split(split)
        pixels = np.concatenate([batch.images[batch.mask] for batch in found.images()])
        np.testing.assert_array_equal(pixels, expected.images)
        np.testing.assert_array_equal(found.labels, expected.labels)


def test_labels_of_a_source_are_kept_beside_it(digits, monkeypatch, tmp_path):
    source = sources.open_source("digits", "test")
    monkeypatch.setattr(source, "_folder", str(tmp_path))
    monkeypatch.setattr(sources, "CACHE_FROM", 361)
    np.testing.assert_array_equal(source.labels(), digits["test"].labels)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(sources, "CACHE_FROM", 10)
    np.testing.assert_array_equal(source.labels(), digits["test"].labels)
    np.save(tmp_path / "labels-test.npy", np.full(360, 7, np.int32))
    assert set(source.labels().tolist()) == {7}
    for damage in (b"", b"x" * 50):
        (tmp_path / "labels-test.npy").write_bytes(damage)
        np.testing.assert_array_equal(source.labels(), digits["test"].labels)
    chosen = subsets.Selected(source, np.array([5, 3]))
    assert chosen.labels().tolist() == digits["test"].labels[[5, 3]].tolist()


def test_without_shuffling_every_epoch_has_the_order_of_the_data(digits):
    made = build.experiment(PLAIN | {"shuffle": False})
    keys = jnp.stack([jax.random.key(0)])
    for epoch in (0, 3):
        found = np.asarray(made.programs.epoch_order()(keys, epoch))
        assert found.ravel().tolist() == list(range(1437 // 128 * 128))


def test_pixels_in_orders_of_their_own_are_moved_after_augmentation(digits):
    made = build.experiment(
        PLAIN | dict(pixel_shuffle=True, pixel_orders="own", augmentation="flip", corruption_seed=7)
    )
    plain = build.experiment(PLAIN | dict(augmentation="flip"))
    draws, keys = np.random.RandomState(7), jax.random.split(jax.random.key(1), 5)
    orders = [draws.permutation(64) for _ in range(5)]
    moved = lambda pixels: np.stack([image.reshape(64)[order] for image, order in zip(np.asarray(pixels), orders)])
    flipped = jax.jit(plain.model.augment)(keys, digits["train"].images[:5])
    assert np.any(np.asarray(flipped) != digits["train"].images[:5])
    carrying = made.data.train.images[:5]
    found = jax.jit(made.model.augment)(keys, carrying)
    np.testing.assert_array_equal(np.asarray(found).reshape(5, 64), moved(flipped))
    inputs = jax.jit(lambda pixels: made.model.inputs(pixels))
    expected = plain.model.inputs(moved(digits["train"].images[:5]))
    np.testing.assert_array_equal(inputs(carrying.reshape(5, -1)), expected)
    np.testing.assert_array_equal(made.data.test.images, digits["test"].images)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"classes": "drawn(11)"}, "takes 11 of 10 classes"),
        ({"classes": "first(1)"}, "takes 1 of 10 classes"),
        ({"classes": "some(3)"}, "config.classes is 'some': it takes one of all, first, drawn"),
        ({"label_noise": 1.5}, r"config.label_noise is 1.5: it takes float, fraction .*\[0, 1\]"),
        ({"stop": "plateau"}, "there are no tests: set test_every"),
        ({"eval_split": "validation"}, "config.validation holds nothing out"),
        ({"pixel_shuffle": True, "pixel_orders": "own", "stream": True}, "images in memory: choose 'shared'"),
        ({"dataset": "imagenet2012", "image_padding": 4}, "are crops: set it 0"),
        ({"dataset": "celeba", "classes": "first(2)", "task": "reconstruction"}, "config.classes .* celeba has none"),
        ({"stop": "plateau", "test_every": 1, "capture": True}, "captures are of the whole training: set stop='never'"),
        ({"task": "reconstruction", "label_smoothing": 0.1}, "label_smoothing is for classification, and the task is"),
        ({"override": "num_epochs,seed"}, "config.override is 'num_epochs,seed': it takes str, fields"),
    ],
)
def test_options_that_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        build.experiment(PLAIN | fields).data.info  # noqa: B018


def test_the_value_of_regularisation_is_that_of_the_paper():
    params = {
        "Dense_0": {"kernel": np.diag([3.0, 4.0]), "bias": np.ones(2)},
        "BatchNorm_0": {"scale": np.ones(2), "bias": np.ones(2)},
    }
    np.testing.assert_allclose(0.1 * geometry.weight_norms(params), 0.64142, rtol=1e-5)


def test_a_plateau_is_where_a_test_scores_as_the_one_before():
    rows = [{"step": 10 * e, "epoch": e, "test_accuracy": score} for e, score in ((1, 0.5), (2, 0.6), (4, 0.6))]
    assert Plateau("test_accuracy", 4, rows).ended_at == 40
    assert Plateau("test_accuracy", 3, rows).ended_at is None
    plateau = Plateau("test_accuracy", 9, rows[:2])
    assert not plateau(25, {"epoch": 2.5, "loss": 1.0}) and plateau(30, {"epoch": 3, "test_accuracy": 0.6})


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    """A run of 3 epochs with 8 steps each, and what was returned."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    config = PLAIN | dict(validation="stratified(0.25, seed=1)", num_epochs=3, keep_first=1, test_every=1)
    config |= dict(test_train=True, learning_rate=0.05, warmup_epochs=0, weight_decay=1e-3)
    return config, folder, train.run(config, folder)


def test_snapshots_and_tests_of_what_is_held_out(trained):
    config, folder, row = trained
    assert checkpoints.steps(folder)[0] == 0 and runs.open_run(folder).plan.kept_steps == (0, 8, 24)
    assert row["step"] == 24 and not any(name.startswith("test_") for name in row)
    scores = {}
    for split in ("train", "validation", "test"):
        facts = evaluate.run(config | {"eval_split": split}, folder)
        scores[split] = facts["scores"]["accuracy"][0]
        assert facts["split"] == split
    for split in ("train", "validation"):
        np.testing.assert_allclose(row[f"{split}_accuracy"], scores[split], rtol=1e-6)
    assert len(set(scores.values())) == 3 and min(scores.values()) > 0.3
    names = sorted(path.stem for path in (folder / records.RESULTS).glob("*.json"))
    assert names == ["points", "points_train", "points_validation"]
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(checkpoints.restore(folder).params)]
    np.testing.assert_allclose(
        facts["regularisation"]["decay"], 1e-3 / 2 * sum(np.sum(x**2) for x in leaves), rtol=1e-5
    )
    kernels = [np.sqrt(np.sum(x**2)) for x in leaves if x.ndim == 3]
    np.testing.assert_allclose(facts["regularisation"]["norms"], 1e-3 * sum(kernels), rtol=1e-5)


def test_a_run_goes_on_with_fields_that_override_allows(trained, caplog):
    config, folder, _ = trained
    longer = config | {"num_epochs": 4}
    with pytest.raises(RunDirectoryError, match="num_epochs = 3 there, 4 here"):
        train.run(longer, folder)
    with pytest.raises(RunDirectoryError, match=r"\(seed = 0 there, 1 here\)"):
        train.run(longer | {"override": "num_epochs", "seed": 1}, folder)
    with pytest.raises(ConfigError, match="num_epochs is 2, which is 16 steps, and .* has done 24"):
        train.run(config | {"num_epochs": 2, "override": "num_epochs"}, folder)
    with caplog.at_level(logging.WARNING):
        row = train.run(longer | {"override": "num_epochs"}, folder)
    assert (row["resumed_from"], row["step"]) == (24, 32)
    assert f"{folder} goes on with num_epochs = 4, until now 3" in caplog.text
    header = records.read_header(folder)
    assert header.config["num_epochs"] == 4 and header.facts["overrides"] == [{"num_epochs": [3, 4]}]
    assert header.facts["num_steps"] == 32 and [row["step"] for row in records.read_metrics(folder)] == [8, 16, 24, 32]
    caplog.clear()
    assert train.run(longer, folder)["resumed_from"] == 32
    assert "goes on with" not in caplog.text
    on_two = longer | {"num_epochs": 5, "num_devices": 2, "override": "num_epochs,num_devices"}
    assert train.run(on_two, folder)["step"] == 40 and records.read_header(folder).config["num_devices"] == 2


def test_captures_that_are_past_are_not_waited_for(tmp_path):
    config = PLAIN | dict(capture=True, swa_start=0.5, num_cycles=2, num_epochs=4, checkpoint_every=4)
    train.run(config, tmp_path)
    before = checkpoints.steps(tmp_path)
    with pytest.raises(ConfigError, match="has done 44 steps and has no checkpoint of 33, which this config captures"):
        train.run(config | {"num_epochs": 6, "override": "num_epochs"}, tmp_path)
    assert checkpoints.steps(tmp_path) == before and len(evaluate.run(None, tmp_path)["scores"]["nll"]) == 3


def test_steps_to_profile_are_those_of_the_run(tmp_path):
    with pytest.raises(ConfigError, match="config.profile_steps is '100,110', and the run has steps 0 to"):
        train.run(PLAIN | {"num_epochs": 1, "profile_steps": "100,110"}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_line_that_was_not_trained_is_drawn(tmp_path):
    train.run(PLAIN | {"num_epochs": 0, "subspace": "line", "num_points": 3}, tmp_path)
    evaluate.run(None, tmp_path)
    assert {path.rsplit("/", 1)[1] for path in plot.run(None, tmp_path)["figures"]} == {"profile.pdf", "profile.png"}


def test_results_of_a_step_on_another_split_are_described(trained):
    config, folder, _ = trained
    with pytest.raises(ConfigError, match="config.network is 'mlp_9' but .*: an evaluation may change only"):
        evaluate.run({"network": "mlp_9"}, folder)
    evaluate.run({"eval_split": "train"}, folder, step=8)
    assert "points_train_8" in describe.run(None, folder)["tables"]
    (folder / records.RESULTS / "points_train_8.json").unlink()


def test_a_plateau_ends_training_once(trained, tmp_path, caplog):
    config, _, _ = trained
    stuck = config | dict(learning_rate=0.0, num_epochs=9, stop="plateau(within=3)", test_train=False)
    assert train.run(stuck, tmp_path / "a")["step"] == 16
    assert train.run(stuck, tmp_path / "a") | {"seconds": 0} == {"step": 16, "resumed_from": 16, "seconds": 0}
    run = runs.open_run(tmp_path / "a")
    assert (run.num_steps, run.plan.num_steps) == (16, 72)
