"""The training split as it is scored, and as connectors see it: whole, without augmentation, its pixels in the order
that the network has learned, in memory and as a stream."""

import numpy as np
import pytest
from test_configs import load
from test_connectivity import study

from subspaces_jax import records
from subspaces_jax.errors import ConfigError, RunDirectoryError
from subspaces_jax.experiments import build, connect, evaluate, train
from subspaces_jax.experiments.studies import network_parts

PLAIN = dict(network="mlp_8", subspace="none", beta=0.0, num_epochs=3, pixel_shuffle=True, corruption_seed=5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two networks that know digits with shuffled pixels, from memory and from a stream."""
    folder = tmp_path_factory.mktemp("shuffled")
    for seed in (0, 1):
        train.run(load("line_digits", **PLAIN, seed=seed), folder / f"{seed}")
        train.run(load("line_digits", **PLAIN, seed=seed, stream=True, augmentation="none"), folder / f"stream_{seed}")
    return folder


def test_scores_of_both_splits_are_of_what_was_learned(trained):
    for name in ("0", "stream_0"):
        of_train, of_test = (evaluate.run({"eval_split": split}, trained / name)["scores"]["accuracy"][0]
                             for split in ("train", "test"))  # fmt: skip
        assert of_train > 0.3 and abs(of_train - of_test) < 0.1, name


def test_studies_of_paths_score_the_training_split_in_memory_and_as_a_stream_alike(trained, tmp_path):
    """The weights of one run, scored by its own config and by one that streams."""
    found = {}
    for name in ("", "stream_"):
        runs = [trained / f"{name}{seed}" for seed in (0, 1)]
        arrays, _ = study("barriers", tmp_path / f"barriers_{name}", *runs, num_points=3)
        expected = evaluate.run({"eval_split": "train"}, runs[0])["scores"]["accuracy"][0]
        found[name] = arrays
        assert np.min(arrays["tr_err"]) == pytest.approx(100 * (1 - expected), abs=8)
    config = {"runs": ",".join(map(str, runs)), "connector": "linear", "num_points": 3, "num_refined": 0}
    connect.run(config, tmp_path / "path")
    assert records.load_results(tmp_path / "path", connect.RESULTS)[0]["tr_err"].shape == (3,)


def test_features_are_of_every_image_once_as_it_is(trained):
    settings = type("Settings", (), {"eval_batch_size": 500, "patches": "coarse"})
    config = load("line_digits", **PLAIN | {"augmentation": "none"})
    both = [build.experiment(config | {"stream": stream}) for stream in (False, True)]
    for split, num in (("train", 1437), ("test", 360)):
        seen = [
            np.concatenate(list(network_parts.features_of(settings, made, made.data.scored_split(split)).images()))
            for made in both
        ]
        assert len(seen[0]) == len(seen[1]) == num
        np.testing.assert_allclose(*(np.sort(images.reshape(num, -1).sum(axis=1)) for images in seen), rtol=1e-4)


def test_networks_with_their_own_statistics_are_not_put_together(tmp_path):
    fields = dict(network="outside_module:Small", subspace="none", beta=0.0, num_epochs=1, num_train_examples=500)
    for seed in (0, 1):
        train.run(load("line_digits", **fields, refresh=False, seed=seed), tmp_path / f"{seed}")
    with pytest.raises(ConfigError, match="has refresh=False, and networks of several checkpoints"):
        study("ensemble", tmp_path / "study", tmp_path / "0", tmp_path / "1")


@pytest.mark.parametrize("name", ["lr[0.1]", "a\\b"])
def test_a_folder_whose_checkpoints_could_not_be_read_is_refused_before_training(name, tmp_path):
    with pytest.raises(RunDirectoryError, match="could not be read: name another"):
        train.run(load("line_digits", **PLAIN), tmp_path / name)
