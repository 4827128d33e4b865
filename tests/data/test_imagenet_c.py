"""ImageNet-C from small folders of the published layout, read image by image."""

import io
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from subspaces_jax.data import catalogue, sources, stream
from subspaces_jax.data.builders import imagenet_c
from subspaces_jax.errors import DataError

WNIDS = ("n01440764", "n01443537", "n01484850")


def write_images(folder, corruption="snow", severity="1", size=(224, 224)):
    """Two images a class; returns {pixels: label}."""
    written = {}
    for label, wnid in enumerate(WNIDS):
        for i in range(2):
            path = folder / corruption / severity / wnid / f"ILSVRC2012_val_{label}{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            small = np.random.default_rng([label, i, int(severity)]).integers(0, 256, (7, 7, 3), dtype=np.uint8)
            Image.fromarray(small).resize(size).save(path, "JPEG", quality=85)
            written[Image.open(path).tobytes()] = label
    return written


@pytest.fixture
def three_classes(monkeypatch):
    """Completeness is that of three classes here; the labels' range stays that of 1,000."""
    monkeypatch.setattr(imagenet_c, "EXPECTED_FOLDERS", len(WNIDS))


def opened(tmp_path, name="imagenet_c/snow_1", split="test", **options):
    return sources.open_source(name, split, data_dir=str(tmp_path / "data"), **options)


def said(call):
    with pytest.raises(DataError) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_each_severity_is_a_data_set_whose_labels_follow_the_sorted_classes(tmp_path, three_classes):
    for severity in ("1", "2"):
        written = write_images(tmp_path / "files", severity=severity)
        for options in ({"archive": str(tmp_path / "files")}, {}):
            source = opened(tmp_path, f"imagenet_c/snow_{severity}", **options)
            assert len(source) == 6 and {type(label) for _, label in source} == {int}
            assert {Image.open(io.BytesIO(content)).tobytes(): label for content, label in source} == written
    assert {path.name for path in (tmp_path / "data" / "imagenet_c").glob("snow_*")} == {"snow_1", "snow_2"}


def test_images_of_that_size_are_streamed_as_they_are(tmp_path, three_classes):
    written = write_images(tmp_path / "files")
    (batch,) = stream.eval_stream(opened(tmp_path, archive=str(tmp_path / "files")), 8, resize=224)
    assert batch.mask.tolist() == [True] * 6 + [False] * 2
    assert {image.tobytes(): label for image, label in zip(batch.images[:6], batch.labels)} == written


def test_there_is_no_train_split(tmp_path):
    line = said(lambda: opened(tmp_path, split="train"))
    assert "imagenet_c/snow_1 has no train split" in line and "clean data" in line


def test_it_is_not_loaded_as_a_whole(tmp_path):
    assert "stream it from sources.open_source" in said(lambda: sources.load("imagenet_c/snow_1", "test"))


@pytest.mark.parametrize(
    "name", ["imagenet_c", "imagenet_c/", "imagenet_c/snw_1", "imagenet_c/snow", "imagenet_c/snow_6"]
)
def test_unknown_corruptions_are_answered_with_a_known_one(name):
    assert "as in imagenet_c/snow_" in said(lambda: catalogue.info(name))


def test_the_labels_are_those_of_the_catalogue():
    """Sorted WordNet ids are the order of TFDS's imagenet2012, so that a network trained there can be tested here."""
    names = tfds.builder("imagenet2012", data_dir="/nonexistent").info.features["label"].names
    assert names == sorted(names) and tuple(names[:3]) == WNIDS and len(names) == imagenet_c.NUM_CLASSES
    assert len(imagenet_c.CONFIGS) == len(set(imagenet_c.CONFIGS)) == 95  # 15 corruptions and 4 more, of 5 severities


def test_what_is_missing_is_named_with_where_to_get_it(tmp_path):
    line = said(lambda: opened(tmp_path, "imagenet_c/zoom_blur_3"))
    assert "is not prepared" in line and "unpack blur.tar from https://zenodo.org/records/2235448" in line
    line = said(lambda: opened(tmp_path, "imagenet_c/zoom_blur_3", archive=str(tmp_path)))
    assert f"there is no {tmp_path}/zoom_blur/3: unpack blur.tar" in line


def test_folders_that_are_not_whole_are_refused(tmp_path, monkeypatch):
    write_images(tmp_path / "files")
    line = said(lambda: opened(tmp_path, archive=str(tmp_path / "files")))
    assert "snow/1 holds 3 folders of classes, expected 1000: unpack weather.tar" in line
    monkeypatch.setattr(imagenet_c, "EXPECTED_FOLDERS", 4)
    (tmp_path / "files" / "snow" / "1" / "n09999999").mkdir()
    assert "n09999999 holds no .JPEG files" in said(lambda: opened(tmp_path, archive=str(tmp_path / "files")))


@pytest.mark.parametrize(
    "spoil, expected", [({"size": (64, 64)}, "has 64x64 pixels, expected 224x224"), ({}, "cannot be decoded")]
)
def test_images_of_another_kind_are_refused(tmp_path, three_classes, spoil, expected):
    write_images(tmp_path / "files", **spoil)
    path = sorted(pathlib.Path(tmp_path / "files").rglob("*.JPEG"))[0]
    path.write_bytes(path.read_bytes()[: None if spoil else -800])
    line = said(lambda: opened(tmp_path, archive=str(tmp_path / "files")))
    assert f"{path} {expected}" in line
