"""Data sets without labels, of real-valued labels and of real-valued inputs, prepared by a builder of the test."""

import contextlib
import dataclasses
import functools
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from test_sources import said

from subspaces_jax.data import catalogue, recipes, sources, stream
from subspaces_jax.data.builders import png
from subspaces_jax.data.catalogue import DatasetInfo

NUM = {"train": 40, "test": 15}


def features_of(info):
    """The TFDS features of a data set of this form."""
    real = functools.partial(tfds.features.Tensor, dtype=np.float32)
    image = tfds.features.Image(shape=info.image_shape) if info.input_dtype == "uint8" else real(shape=info.image_shape)
    label = {
        "class": lambda: {"label": tfds.features.ClassLabel(num_classes=info.num_classes)},
        "real": lambda: {"label": real(shape=info.label_shape)},
        "none": dict,
    }[info.label]()
    return {"image": image} | label


def examples(info, split):
    """Inputs and labels as they are written."""
    rng, num = np.random.default_rng(NUM[split]), NUM[split]
    images = {
        "uint8": lambda: rng.integers(0, 256, (num, *info.image_shape), dtype=np.uint8),
        "float32": lambda: rng.normal(size=(num, *info.image_shape)).astype(np.float32),
    }[info.input_dtype]()
    labels = {
        "class": lambda: np.arange(num) % max(info.num_classes, 1),
        "real": lambda: rng.normal(size=(num, *info.label_shape)).astype(np.float32),
        "none": lambda: [None] * num,
    }[info.label]()
    return images, labels


class Toy(tfds.core.GeneratorBasedBuilder):
    """A data set of the form that it is told."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = pathlib.Path(__file__).parent  # which TFDS cannot find of what is in no package

    def __init__(self, *, form, **keywords):
        self._form = form
        super().__init__(**keywords)

    def _info(self):
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features_of(self._form)))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in NUM}

    def _generate_examples(self, split):
        for i, (image, label) in enumerate(zip(*examples(self._form, split))):
            encoded = png.encode(image.squeeze()) if self._form.input_dtype == "uint8" else image
            yield i, {"image": encoded} | ({} if label is None else {"label": label})


@pytest.fixture
def toy(monkeypatch):
    """Enters a data set in the tables: how it is prepared is one row, what is known of it another."""

    def enter(written, known=None):
        monkeypatch.setitem(catalogue.DATASETS, "toy", known or written)
        monkeypatch.setitem(recipes.RECIPES, "toy", recipes.Recipe(lambda name: (Toy, {"form": written})))

    return enter


FORMS = {
    "images of classes": DatasetInfo((6, 5, 1), 3, 40, 15, (0.5,), (0.3,)),
    "images without labels": DatasetInfo((6, 5, 3), 0, 40, 15, (), (), label="none"),
    "images with a number": DatasetInfo((6, 5, 1), 0, 40, 15, (), (), label="real"),
    "functions": DatasetInfo((1,), 0, 40, 15, (), (), label="real", label_shape=(1,), input_dtype="float32"),
    "fields": DatasetInfo((4, 2, 3), 0, 40, 15, (), (), label="real", label_shape=(2, 2), input_dtype="float32"),
    "vectors of classes": DatasetInfo((7,), 4, 40, 15, (), (), input_dtype="float32"),
    "vectors alone": DatasetInfo((7,), 0, 40, 15, (), (), label="none", input_dtype="float32"),
}


def ordered(images, labels):
    """Examples in the order of their inputs, as TFDS keeps them in another than they are written."""
    order = np.lexsort(np.reshape(images, (len(images), -1)).T)
    return images[order], labels if isinstance(labels, tuple) else np.asarray(labels)[order]


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_data_of_each_form_are_read_as_written(toy, tmp_path, monkeypatch, form, cache):
    info = FORMS[form]
    toy(info)
    monkeypatch.setattr(sources, "CACHE_FROM", 1 if cache else 10**9)
    for split, num in NUM.items():
        images, labels = examples(info, split)
        expected, expected_labels = ordered(images, () if info.label == "none" else labels)
        for _ in ("decoded", "from the copy") if cache else ("decoded",):
            given, given_labels = ordered(*sources.load("toy", split, data_dir=str(tmp_path)))
            assert given.shape == (num, *info.image_shape) and given.dtype == info.input_dtype
            np.testing.assert_array_equal(given, expected)
            if info.label == "none":
                assert given_labels == ()
            else:
                np.testing.assert_array_equal(given_labels, expected_labels)
                assert given_labels.dtype == (np.int32 if info.label == "class" else np.float32)
        assert len(list(tmp_path.rglob(f"decoded-{split}.npz"))) == cache


@pytest.mark.parametrize("form", ["images without labels", "images with a number", "images of classes"])
def test_images_of_any_labels_stream(toy, tmp_path, form):
    info = FORMS[form]
    toy(info)
    source = sources.open_source("toy", "test", data_dir=str(tmp_path))
    loaded = sources.load("toy", "test", data_dir=str(tmp_path))
    with contextlib.closing(stream.eval_stream(source, 15, resize=5, crop=5)) as batches:
        batch = next(batches)
    assert batch.images.shape == (15, 5, 5, 3)
    assert batch.labels == () if info.label == "none" else np.array_equal(batch.labels, loaded.labels)


def test_real_inputs_do_not_stream(toy, tmp_path):
    toy(FORMS["functions"])
    line = said(lambda: sources.open_source("toy", "train", data_dir=str(tmp_path)))
    assert line == "toy has no images but real inputs, which do not stream: load it with sources.load"


@pytest.mark.parametrize(
    "form, change, expected",
    [
        ("functions", {"image_shape": (2,)}, "has float32 inputs of shape (1,), expected float32 (2,)"),
        ("functions", {"input_dtype": "uint8"}, "has float32 inputs of shape (1,), expected uint8 (1,)"),
        ("functions", {"label_shape": ()}, "has labels of shape (1,), expected ()"),
        ("vectors of classes", {"num_classes": 3}, "has labels 0 to 3, expected 3 classes"),
        ("images of classes", {"image_shape": (5, 5, 1)}, "has 6x5 pixels, expected 5x5"),
        ("images of classes", {"image_shape": (6, 5, 3)}, "has pixels of the kind L, expected RGB"),
        ("images of classes", {"input_dtype": "float32"}, "has uint8 inputs of shape (6, 5, 1), expected float32"),
        ("images without labels", {"label": "class", "num_classes": 2}, "cannot be read"),
    ],
)
def test_another_form_than_the_catalogues_is_refused(toy, tmp_path, form, change, expected):
    toy(FORMS[form], dataclasses.replace(FORMS[form], **change))
    line = said(lambda: sources.load("toy", "train", data_dir=str(tmp_path)))
    assert expected in line and str(tmp_path) in line


@pytest.mark.parametrize("what", ["inputs", "labels"])
def test_values_that_are_not_finite_are_refused(toy, tmp_path, monkeypatch, what):
    toy(FORMS["functions"])
    own = examples

    def spoilt(info, split):
        images, labels = own(info, split)
        (images if what == "inputs" else labels)[3] = np.nan
        return images, labels

    monkeypatch.setitem(globals(), "examples", spoilt)
    assert f"has {what} that are not finite" in said(lambda: sources.load("toy", "train", data_dir=str(tmp_path)))
