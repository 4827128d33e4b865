"""CelebA from a small folder of images of its form."""

import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from subspaces_jax.data import catalogue, prepared, sources
from subspaces_jax.data.builders import celeba
from subspaces_jax.errors import DataError

NUM = 13


def write_faces(folder, num=NUM, size=(178, 218)):
    """JPEG files "1.jpg" to "13.jpg", of colours that tell them apart; returns {name: pixels as decoded}."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for i in range(1, num + 1):
        small = np.random.default_rng(i).integers(0, 256, (11, 9, 3), dtype=np.uint8)
        path = folder / f"{i}.jpg"
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path, "JPEG", quality=90)
        written[path.name] = np.asarray(Image.open(path))
    return written


def by_hand(pixels):
    """The shorter side to 64 pixels, each new pixel a triangle's mean over the old ones, and the middle, in float64."""

    def along(image, size):
        old = image.shape[0]
        scale = old / size
        centres = (np.arange(size)[:, None] + 0.5) * scale
        weights = np.maximum(0, 1 - np.abs((np.arange(old)[None] + 0.5 - centres) / scale))
        return np.tensordot(weights / weights.sum(1, keepdims=True), image, 1)

    rows = along(pixels.astype(np.float64), 78)  # int(64 * 218 / 178)
    image = along(rows.transpose(1, 0, 2), 64).transpose(1, 0, 2)
    return image[7:71]


def load(split, root, folder="", name="celeba"):
    return sources.load(name, split, data_dir=str(root), archive=str(folder))


def said(call):
    with pytest.raises(DataError) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def matched(images, written):
    """The names of the files that the images are made of, each within a grey level and a rounding."""
    expected, names = {name: by_hand(pixels) for name, pixels in written.items()}, []
    for image in images:
        near = [name for name, pixels in expected.items() if np.abs(pixels - image).max() <= 1.01]
        names += near if len(near) == 1 else [None]
    return sorted(names, key=str)


@pytest.mark.parametrize("below", ["img_align_celeba", "."])
def test_faces_are_resized_cut_and_split_in_natural_order(tmp_path, below):
    written = write_faces(tmp_path / "files" / below)
    found = {split: load(split, tmp_path / "data", tmp_path / "files") for split in prepared.SPLITS}
    assert {split: arrays.images.shape for split, arrays in found.items()} == {
        "train": (10, 64, 64, 3),
        "test": (3, 64, 64, 3),
    }
    assert all(arrays.labels == () and arrays.images.dtype == np.uint8 for arrays in found.values())
    assert matched(found["test"].images, written) == ["11.jpg", "12.jpg", "13.jpg"]
    assert set(matched(found["train"].images, written)) == {f"{i}.jpg" for i in range(1, 11)}
    again = load("train", tmp_path / "data")  # the files are not needed any more
    np.testing.assert_array_equal(again.images, found["train"].images)
    source = sources.open_source("celeba", "test", data_dir=str(tmp_path / "data"))
    decoded = [np.asarray(Image.open(io.BytesIO(content))) for content, label in source if label == ()]
    np.testing.assert_array_equal(decoded, found["test"].images)


def test_another_fraction_is_another_data_set_beside_it(tmp_path):
    write_faces(tmp_path / "files")
    name = "celeba/test_0.5"
    sizes = [
        len(load("test", tmp_path / "data", tmp_path / "files", name).images),
        len(load("test", tmp_path / "data", tmp_path / "files").images),
        len(load("train", tmp_path / "data", name=name).images),
    ]
    assert sizes == [6, 3, 7]
    counts = lambda info: (info.num_train, info.num_test)
    assert counts(catalogue.info("celeba")) == (151_950, 50_649)
    assert counts(catalogue.info("celeba/test_0.2")) == (162_080, 40_519)
    assert catalogue.info("celeba/skip_unreadable") == catalogue.info("celeba")


def test_unreadable_files_are_refused_by_name_or_left_out_where_that_is_asked_for(tmp_path, caplog):
    written = write_faces(tmp_path / "files")
    write_faces(tmp_path / "small", 1, (63, 80))
    (tmp_path / "files/12.jpg").write_bytes((tmp_path / "small/1.jpg").read_bytes())
    (tmp_path / "files/2.jpg").write_bytes(b"<html>")
    (tmp_path / "files/list.txt").write_text("no image")
    line = said(lambda: load("train", tmp_path / "data", tmp_path / "files"))
    assert f"{tmp_path / 'files/2.jpg'} cannot be decoded" in line and "celeba/skip_unreadable" in line
    assert not (tmp_path / "data/celeba/1.0.0").exists()
    name = "celeba/skip_unreadable"
    splits = {s: load(s, tmp_path / "data", tmp_path / "files", name).images for s in prepared.SPLITS}
    assert matched(splits["test"], written) == ["11.jpg", "13.jpg"], "no file moves to another split"
    assert len(splits["train"]) == 9
    said_of = [record.getMessage().split(" ")[2] for record in caplog.records if "left out" in record.getMessage()]
    assert said_of == [str(tmp_path / "files/2.jpg"), str(tmp_path / "files/12.jpg")]
    assert "has 80x63 pixels, fewer than 64x64" in caplog.text
    for i in (11, 13):
        (tmp_path / f"files/{i}.jpg").write_bytes(b"")
    line = said(lambda: load("test", tmp_path / "other", tmp_path / "files", name))
    assert line.startswith("none of the 3 files from ") and "11.jpg to " in line


@pytest.mark.parametrize(
    "config", ["test_0", "test_1", "test_0.2-", "-skip_unreadable", "test_x", "skip", "test_0.2/x"]
)
def test_options_that_there_are_not_are_refused(config):
    line = said(lambda: catalogue.info(f"celeba/{config}"))
    assert line.startswith(f"data set 'celeba/{config}' is unknown") and "celeba/test_0.2-skip_unreadable" in line


def test_what_is_missing_is_said(tmp_path):
    assert "set archive to CelebA's folder img_align_celeba" in said(lambda: load("train", tmp_path / "data"))
    assert "there is no folder" in said(lambda: load("train", tmp_path / "data", tmp_path / "none"))
    write_faces(tmp_path / "few", 3)
    line = said(lambda: load("train", tmp_path / "data", tmp_path / "few"))
    assert "holds 3 images" in line and "a test fraction of 0.25 takes 0" in line
    write_faces(tmp_path / "more", 4)
    load("train", tmp_path / "data", tmp_path / "more")
    assert "was prepared from" in said(lambda: load("train", tmp_path / "data", tmp_path / "few"))


def test_numbers_in_names_are_sorted_by_value():
    names = ["a10.jpg", "a9.jpg", "a010.jpg", "b1.jpg", "A1.jpg"]
    ordered = sorted(map(pathlib.Path, names), key=celeba._natural)
    assert [path.name for path in ordered] == ["A1.jpg", "a9.jpg", "a010.jpg", "a10.jpg", "b1.jpg"]
