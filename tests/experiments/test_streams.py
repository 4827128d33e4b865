"""Training and evaluation of a data set that does not fit on the device, on a small one of ImageNet's form."""

import dataclasses
import itertools

import chex
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from test_configs import SMALL, load
from test_imagenet_c import WNIDS, write_images
from test_runs import Interrupted, assert_same_run, interrupt_at, rows

from subspaces_jax import checkpoints, evaluation, geometry, records
from subspaces_jax.data import catalogue, corruption
from subspaces_jax.data.builders import imagenet_c, png
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import analyze, build, evaluate, train

IMAGENET = catalogue.DATASETS["imagenet2012"]
SIZE, NUM = 16, {"train": 40, "validation": 22}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """imagenet2012 as TFDS prepares it, of few images of two colours in several sizes."""
    root = tmp_path_factory.mktemp("imagenet")
    builder = tfds.builder("imagenet2012", data_dir=str(root), file_format="array_record")
    rng = np.random.default_rng(0)

    def generate(split):
        for i in range(NUM[split]):
            image = rng.integers(0, 60, (20 + i % 3, 24, 3)).astype(np.uint8)
            image[..., i % 2] += 150
            yield i, {"image": png.encode(image), "label": i % 2, "file_name": f"{i}.JPEG"}

    builder._split_generators = lambda dl_manager: {split: generate(split) for split in NUM}
    tfds.disable_progress_bar()
    builder.download_and_prepare()
    return root


@pytest.fixture
def config(folder, monkeypatch):
    small = dataclasses.replace(catalogue.DATASETS["imagenet2012"], image_shape=(SIZE, SIZE, 3))
    monkeypatch.setitem(catalogue.DATASETS, "imagenet2012", small)
    fields = dict(network=SMALL, batch_size=8, num_epochs=3, num_points=3, eval_batch_size=8, num_refresh_batches=3)
    return load(
        "imagenet",
        "line",
        data_dir=str(folder),
        checkpoint_every=1,
        test_every=3,
        warmup_epochs=0,
        log_every=2,
        **fields,
    )


def test_a_stream_trains_and_is_evaluated(config, tmp_path):
    last = train.run(config, tmp_path)
    assert last["step"] == 15 and np.isfinite(last["loss"]) and 0 <= last["test_accuracy"] <= 1
    facts = evaluate.run(None, tmp_path)
    assert len(facts["scores"]["pair_accuracy"]) == 3 and np.isfinite(facts["scores"]["pair_feature_cosine"]).all()
    ensemble = dict(load("analyze", "ensemble"), runs=str(tmp_path), members="endpoints")
    ensemble.pop("num_devices")
    found = analyze.run(ensemble, tmp_path / "ensemble")
    assert np.shape(found["feature_cosine"]) == (2, 2)


def test_a_stream_goes_on_where_it_was(config, tmp_path, monkeypatch):
    train.run(config, tmp_path / "whole")
    with monkeypatch.context() as context, pytest.raises(Interrupted):
        interrupt_at(context, 8)
        train.run(config, tmp_path / "parts")
    assert train.run(config, tmp_path / "parts")["resumed_from"] == 5
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_devices_share_a_batch_of_a_stream(config, tmp_path):
    config |= {"batch_norm": "global", "num_epochs": 1, "test_every": 0}
    for devices in (1, 4):
        train.run(config | {"num_devices": devices}, tmp_path / str(devices))
    np.testing.assert_allclose(
        *([row["loss"] for row in rows(tmp_path / str(n))] for n in (1, 4)), rtol=1e-4, atol=1e-6
    )
    chex.assert_trees_all_close(*(checkpoints.restore(tmp_path / str(n)).params for n in (1, 4)), rtol=1e-3, atol=1e-4)


def test_streamed_evaluation_is_that_of_the_arrays(config):
    made = build.experiment(config)
    model, data = made.model, made.data.test
    images = np.concatenate([batch[mask] for batch, _, mask in data.images()])
    assert images.shape == (22, SIZE, SIZE, 3) and sorted(data.labels) == [0] * 11 + [1] * 11
    stacked = jax.jit(model.init, static_argnums=1)(jax.random.key(0), 2)
    points = [
        {"params": params, "batch_stats": stacked["batch_stats"]} for params in geometry.unstack(stacked["params"])
    ]
    both = [evaluation.predict(model.apply, points[0], of, 8) for of in (data.images, images)]
    np.testing.assert_allclose(*both, rtol=1e-4, atol=1e-5)
    both = [evaluation.feature_cosine(model.features, *points, of, 8) for of in (data.images, images)]
    np.testing.assert_allclose(*both, rtol=1e-4)
    full = lambda: (batch for batch in data.images() if batch.mask.all())  # two batches of 8
    straight = lambda variables, images, key: model.apply_train(variables, images, jax.random.key(0))
    first = evaluation.refresh_batch_stats(straight, points[0], lambda: itertools.islice(full(), 1), jax.random.key(1))
    second = evaluation.refresh_batch_stats(
        straight, points[0], lambda: itertools.islice(full(), 1, 2), jax.random.key(1)
    )
    mean = evaluation.refresh_batch_stats(straight, points[0], full, jax.random.key(1))
    chex.assert_trees_all_close(mean, jax.tree.map(lambda a, b: (a + b) / 2, first, second), rtol=1e-4, atol=1e-6)


def test_label_noise_reaches_a_stream_and_other_corruptions_are_refused(config):
    batches = lambda **fields: next(
        build.experiment(config | {"batch_size": 32} | fields).data.train_streams(32, 1, 0)[0]
    )
    clean, noisy = batches(), batches(label_noise=1.0)
    np.testing.assert_array_equal(clean.images, noisy.images)
    assert set(clean.labels) == {0, 1} and len(set(noisy.labels)) > 10
    with pytest.raises(ConfigError, match="config.num_train_examples is for data sets that fit"):
        batches(num_train_examples=5)


def test_pixels_of_a_stream_are_shuffled_as_those_of_arrays(config):
    """Training crops and test images, in the order of `corruption.pixel_shuffle`."""
    config |= {"corruption_seed": 5}
    for begin in (lambda of: of.data.train_streams(of.batch_size, 1, 0)[0], lambda of: of.data.test.images()):
        made = [build.experiment(config | {"pixel_shuffle": on}) for on in (False, True)]
        plain, shuffled = (next(iter(begin(of))).images for of in made)
        np.testing.assert_array_equal(shuffled, corruption.pixel_shuffle(plain, 5))
        assert not np.array_equal(shuffled, plain)


def test_without_augmentation_a_stream_trains_on_the_images_that_evaluation_sees(config):
    """In the order of the files; what fills no batch is left out. Random crops are others; whole images have none."""
    config |= {"batch_size": 16, "eval_batch_size": 16, "shuffle": False}
    made = build.experiment(config | {"crops": "middle"})
    batches = itertools.islice(made.data.train_streams(16, 1, 0)[0], 4)
    seen = next(iter(made.data.scored_split("train").images()))
    for batch in itertools.islice(batches, 0, None, 2):  # two an epoch, and the first of the next epoch is the same
        np.testing.assert_array_equal(batch.images, seen.images)
        np.testing.assert_array_equal(batch.labels, seen.labels)
    (stream,) = build.experiment(config).data.train_streams(16, 1, 0)
    assert not np.array_equal(next(stream).images, seen.images)
    with pytest.raises(ConfigError, match="config.crops is for images that stream in all sizes, and those of digits"):
        build.experiment(config | {"dataset": "digits", "crops": "middle"})


@pytest.mark.parametrize("devices", [1, 2])
def test_members_of_a_stream_are_runs_of_their_own_seeds(config, devices, tmp_path):
    config |= dict(subspace="none", beta=0.0, network="mlp_8", num_epochs=1, test_every=0, num_devices=devices)
    train.run(config | {"num_members": 2}, tmp_path / "together")
    together = checkpoints.restore(tmp_path / "together")
    for seed in (0, 1):
        train.run(config | {"seed": seed, "num_devices": 1}, tmp_path / str(seed))
        member = jax.tree.map(lambda leaf: leaf[seed : seed + 1], together.params)
        chex.assert_trees_all_close(member, checkpoints.restore(tmp_path / str(seed)).params, rtol=1e-4, atol=1e-5)


def test_imagenet_c_is_scored_with_statistics_from_the_clean_stream(config, tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet_c, "EXPECTED_FOLDERS", len(WNIDS))
    monkeypatch.setitem(catalogue.DATASETS, "imagenet2012", IMAGENET)  # its own size: files of ImageNet-C have it
    written = write_images(tmp_path / "files")
    fields = dict(subspace="none", beta=0.0, num_epochs=1, test_every=0, num_refresh_batches=1)
    fields["network"] = "outside_module:Patches"
    train.run(config | fields, tmp_path / "run")
    analysis = dict(load("analyze", "ensemble"), runs=str(tmp_path / "run"), eval_batch_size=8)
    analysis |= {"test_dataset": "imagenet_c/snow_1", "test_archive": str(tmp_path / "files")}
    analysis.pop("num_devices")
    facts = analyze.run(analysis, tmp_path / "analysis")
    arrays, _ = records.load_results(tmp_path / "analysis", "ensemble")
    assert arrays["logits"].shape == (1, 6, 1000) and sorted(arrays["labels"]) == sorted(written.values())
    assert np.isfinite(facts["scores"]["nll"]).all()
