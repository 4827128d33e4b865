"""Images in another size than they are stored, streamed by choice, without labels; and the losses that see them so."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
from test_celeba import write_faces
from test_configs import load

from subspaces_jax import checkpoints, records
from subspaces_jax.data import catalogue, corruption, sources
from subspaces_jax.errors import CheckpointError, ConfigError
from subspaces_jax.experiments import aot, build, evaluate, runs, train
from subspaces_jax.experiments.studies import members

PLAIN = dict(network="mlp_8", augmentation="none", subspace="none", beta=0.0, num_epochs=1, test_every=1,
             learning_rate=0.01)  # fmt: skip


def experiment(**fields):
    return build.experiment(load("line_digits", **PLAIN | fields))


def enlarged(images, size):
    """[N, h, w, 1] interpolated along both sides between the middles of pixels, the outermost beyond them."""
    places = (np.arange(size) + 0.5) * images.shape[1] / size - 0.5
    along = lambda pixels: np.interp(places, np.arange(len(pixels)), pixels)
    return np.apply_along_axis(along, 2, np.apply_along_axis(along, 1, images.astype(np.float64)))


def test_a_size_changes_what_is_known_and_what_is_read():
    images, labels = sources.load("digits", "test")
    made = experiment(image_size=20)
    assert made.data.info == dataclasses.replace(catalogue.info("digits"), image_shape=(20, 20, 1))
    for split, data in (("test", made.data.test), ("other", made.data.test_of("digits", ""))):
        assert data.images.shape == (360, 20, 20, 1) and data.images.dtype == np.uint8, split
        assert np.abs(data.images[:40] - enlarged(images[:40], 20)).max() <= 1.0
        np.testing.assert_array_equal(data.labels, labels)
    assert experiment(image_size=20, num_train_examples=7).data.train.images.shape == (7, 20, 20, 1)
    smaller = experiment(image_size=4).data.test.images[:40]
    expected = jax.image.resize(images[:40].astype(np.float32), (40, 4, 4, 1), "linear", antialias=True)
    assert np.abs(smaller - expected).max() <= 1.0
    shuffled = experiment(image_size=20, pixel_shuffle=True, corruption_seed=3).data.test.images
    np.testing.assert_array_equal(shuffled, corruption.pixel_shuffle(made.data.test.images, 3))


def test_a_size_reaches_the_network_and_what_it_costs():
    made = build.experiment(load("line_digits", **PLAIN | {"image_size": 20}), without_data=True)
    assert made.stack_shapes["Dense_0"]["kernel"].shape == (1, 400, 8)
    assert aot.reading(made, made.mesh).args[0].shape == (1437, 400)
    assert aot.training_step(made, made.mesh).args[1]["images"].shape[1:] == (20, 20, 1)


def run_of(folder, **fields):
    return runs.Run(pathlib.Path(folder), "train", experiment(**fields), "", "", None, [], "run")


def test_runs_of_different_sizes_are_not_analysed_together():
    with pytest.raises(CheckpointError, match="b has image_size 0 but a has 16"):
        members.check_alike([run_of("a", image_size=16), run_of("b")], "")
    with pytest.raises(CheckpointError, match="b has train_fraction 1.0 but a has 0.5"):  # which statistics are of
        members.check_alike([run_of("a", train_fraction=0.5), run_of("b")])
    members.check_alike([run_of("a", label_noise=0.2, corruption_seed=1), run_of("b")])
    members.check_alike([run_of("a", network="mlp_8_4"), run_of("b", network="mlp((8, 4))")])  # one network, two names
    with pytest.raises(CheckpointError, match="b has network 'mlp_4_8' but a has 'mlp_8_4'"):
        members.check_alike([run_of("a", network="mlp_8_4"), run_of("b", network="mlp_4_8")])
    with pytest.raises(ConfigError, match=r"images of shape \(28, 28, 1\), the runs' digits 10 and \(8, 8, 1\)"):
        members.check_alike([run_of("a")], "mnist")
    members.check_alike([run_of("a", image_size=16)] * 2, "mnist")  # which is read in that size, too


@pytest.mark.parametrize("size", [0, 12])
def test_a_stream_by_choice_gives_the_images_of_memory(size):
    both = [experiment(image_size=size, stream=stream, batch_size=100) for stream in (False, True)]
    assert [made.data.streams for made in both] == [False, True]
    assert both[1].data.num_examples == 1437
    batches = list(both[1].data.test.images())
    streamed = np.concatenate([batch.images[batch.mask] for batch in batches])
    np.testing.assert_array_equal(streamed, both[0].data.test.images)
    np.testing.assert_array_equal(both[1].data.test.labels, both[0].data.test.labels)
    (stream,) = both[1].data.train_streams(100, 1, 0)
    epoch = [next(stream) for _ in range(14)]
    stream.close()
    given = {(image.tobytes(), label) for batch in epoch for image, label in zip(batch.images, batch.labels)}
    known = {(image.tobytes(), label) for image, label in zip(*both[0].data.train)}
    assert given <= known and len(given) > 1300  # neither cropped nor mirrored; few of the digits are equal


@pytest.mark.parametrize("stream", [False, True])
def test_faces_without_labels_are_trained_on_and_evaluated(tmp_path, stream):
    """In another size than theirs; scored by hand, as an MLP of known weights does on the test split."""
    write_faces(tmp_path / "faces")
    fields = dict(dataset="celeba", archive=str(tmp_path / "faces"), data_dir=str(tmp_path / "data"), stream=stream,
                  image_size=16, batch_size=5, eval_batch_size=2, learning_rate=0.0,
                  task="reconstruction(laplacian, levels=3, residual=True)")  # fmt: skip
    last = train.run(load("line_digits", **PLAIN | fields), tmp_path / "run")
    scores = evaluate.run(None, tmp_path / "run")["scores"]
    assert last["step"] == 2 and last["test_mae"] == pytest.approx(scores["mae"][0], rel=1e-5)
    images = experiment(**fields | {"stream": False}).data.test.images.reshape(3, -1) / 255.0
    params = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), checkpoints.restore(tmp_path / "run").params)
    hidden = np.maximum(images @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], 0)
    outputs = hidden @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
    assert scores["mae"][0] == pytest.approx(np.abs(outputs - images).mean(), rel=1e-4)
    assert scores["loss"][0] > scores["laplacian"][0] > 0
    arrays, _ = records.load_results(tmp_path / "run", evaluate.RESULTS)
    assert arrays["labels"].size == 0
    if stream:  # which an evaluation may change
        in_memory = evaluate.run({"stream": False}, tmp_path / "run")["scores"]
        assert in_memory.keys() == scores.keys() == {"loss", "mae", "mse", "laplacian"}
        for name, values in scores.items():
            np.testing.assert_allclose(in_memory[name], values, rtol=1e-5)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"image_size": -1}, "config.image_size is -1: it takes int, pixels"),
        ({"image_size": 5000}, "config.image_size is 5000: it takes int, pixels"),
        ({"task": "reconstruction(laplacian)"}, r"config.task: a pyramid of 5 levels .* \(8, 8, 1\).* at most 2, or"),
        ({"task": "reconstruction(laplacian)", "image_size": 32}, r"\(32, 32, 1\).* choose at most 4"),
        ({"task": "reconstruction(laplacian, levels=0)"}, "config.task .*: levels is a whole number from 1 up, got 0"),
        ({"task": "reconstruction(mse, residual=True)"}, "config.task .*: residual belongs to the loss laplacian"),
        ({"task": "reconstruction(laplacian, levels=2.5)"}, "config.task .*: its option levels takes int, got 2.5"),
        ({"dataset": "celeba", "label_noise": 0.1, "task": "reconstruction"}, "label_noise is for classes, and celeba"),
        ({"dataset": "celeba"}, "config.task is classification, which takes labels of the kind class, and the data"),
        (
            {"dataset": "celeba", "task": "regression"},
            "takes labels of the kind class or real, and the data set has 'none'",
        ),
        ({"dataset": "celeba/test_2"}, "config.dataset: data set 'celeba/test_2' is unknown"),
    ],
)
def test_what_cannot_be_is_refused_by_its_field(fields, message):
    with pytest.raises(ConfigError, match=message) as raised:
        experiment(**fields)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("field, value", [("image_size", 16), ("stream", True)])
def test_real_inputs_have_neither_size_nor_stream(monkeypatch, field, value):
    real = dataclasses.replace(catalogue.info("digits"), input_dtype="float32")
    monkeypatch.setitem(catalogue.DATASETS, "digits", real)
    with pytest.raises(ConfigError, match=f"config.{field} is for images, and digits has real inputs: leave it"):
        experiment(**{field: value})
