"""Tiny ImageNet from a small archive of the published layout, as a zip file and unpacked."""

import collections
import io
import pathlib
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from subspaces_jax.data import prepared, sources
from subspaces_jax.errors import DataError

WNIDS = ("n02124075", "n01443537", "n07734744")  # not sorted, as in the published file
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


def jpeg(seed, grey=False, size=(64, 64)):
    small = np.random.default_rng(seed).integers(0, 256, (8, 8) if grey else (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=80)
    return file.getvalue()


def write_archive(folder):
    """The archive's files with three classes; returns {split: [(content, WordNet id)]}."""
    root, written = folder / "tiny-imagenet-200", {"train": [], "test": []}

    def write(name, content):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    write("wnids.txt", "\n".join(WNIDS).encode())
    write("words.txt", b"n01443537\tgoldfish, Carassius auratus\n")
    annotations = ""
    for i, wnid in enumerate(WNIDS):
        for j in range(4):
            content = jpeg(10 * i + j, grey=j == 3)
            write(f"train/{wnid}/images/{wnid}_{j}.JPEG", content)
            written["train"].append((content, wnid))
        write(f"train/{wnid}/{wnid}_boxes.txt", f"{wnid}_0.JPEG\t0\t0\t63\t63\n".encode())
    for j in range(5):
        content, wnid = jpeg(100 + j, grey=j == 1), WNIDS[j % 3]
        write(f"val/images/val_{j}.JPEG", content)
        written["test"].append((content, wnid))
        annotations += f"val_{j}.JPEG\t{wnid}\t0\t32\t44\t62\n"
    write("val/val_annotations.txt", annotations.encode())
    write("test/images/test_0.JPEG", jpeg(200))
    return written


def pack(folder):
    """The zip file of what write_archive has written."""
    path = folder / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for member in sorted((folder / "tiny-imagenet-200").rglob("*")):
            file.write(member, member.relative_to(folder))
    return path


def multiset(examples):
    """Pixels, with three channels, and place of the class among the sorted ones, each as often as it is there."""
    pixels = [Image.open(io.BytesIO(content)).convert("RGB").tobytes() for content, _ in examples]
    return collections.Counter((image, sorted(WNIDS).index(wnid)) for image, (_, wnid) in zip(pixels, examples))


def counted(arrays):
    return collections.Counter((image.tobytes(), int(label)) for image, label in zip(*arrays))


def said(archive, root):
    """The one line of the DataError of loading from this archive, which leaves nothing that seems prepared."""
    with pytest.raises(DataError) as raised:
        sources.load("tiny_imagenet", "train", data_dir=str(root), archive=str(archive))
    assert "\n" not in str(raised.value) and not (root / "tiny_imagenet" / "1.0.0").exists()
    return str(raised.value)


@pytest.mark.parametrize("form", ["zip", "folder", "folder above"])
def test_the_splits_are_those_of_the_archive(tmp_path, form):
    written = write_archive(tmp_path / "files")
    archive = {
        "zip": pack(tmp_path / "files"),
        "folder": tmp_path / "files" / "tiny-imagenet-200",
        "folder above": tmp_path / "files",
    }[form]
    data_dir = str(tmp_path / "data")
    for options in ({"archive": str(archive)}, {}):
        for split in prepared.SPLITS:
            arrays = sources.load("tiny_imagenet", split, data_dir=data_dir, **options)
            assert arrays.images.shape[1:] == (64, 64, 3) and arrays.images.dtype == np.uint8
            assert counted(arrays) == multiset(written[split])
        shutil.rmtree(tmp_path / "files", ignore_errors=True)  # from now on what was prepared is used


def test_a_missing_archive_is_named_with_where_to_get_it(tmp_path):
    line = said(tmp_path / "nowhere.zip", tmp_path / "data")
    assert str(tmp_path / "nowhere.zip") in line and URL in line
    with pytest.raises(DataError, match=f"tiny_imagenet is not prepared in .*: set archive to .*{URL}"):
        sources.load("tiny_imagenet", "train", data_dir=str(tmp_path / "data"))


def test_a_truncated_or_damaged_zip_is_refused_and_the_next_one_taken(tmp_path):
    write_archive(tmp_path)
    path = pack(tmp_path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"<html>not found</html>"):
        path.write_bytes(content)
        assert f"{path} is no whole zip archive" in said(path, tmp_path / "data")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tiny-imagenet-200/readme.txt", "")
    assert f"{path} holds no wnids.txt" in said(path, tmp_path / "data")
    place = whole.index(jpeg(1)[2:40]) if jpeg(1)[2:40] in whole else len(whole) // 3  # inside of some image
    path.write_bytes(whole[:place] + bytes(60) + whole[place + 60 :])
    assert "cannot be read" in (line := said(path, tmp_path / "data")) and URL in line
    path.write_bytes(whole)
    assert len(sources.load("tiny_imagenet", "train", data_dir=str(tmp_path / "data"), archive=str(path)).labels) == 12


def empty_class(root):
    shutil.rmtree(root / "train" / WNIDS[0] / "images")


def drop_image(root):
    (root / "val" / "images" / "val_2.JPEG").unlink()


def add_line(root):
    with open(root / "val" / "val_annotations.txt", "a") as file:
        file.write("val_0.JPEG\tn99999999\t0\t0\t1\t1\n")


def two_classes(root):
    with open(root / "val" / "val_annotations.txt", "a") as file:
        file.write(f"\n\nval_0.JPEG\t{WNIDS[1]}\t0\t0\t1\t1\n")


def rearranged(root):
    (root / "val" / "val_annotations.txt").unlink()


@pytest.mark.parametrize(
    "spoil, expected",
    [
        (lambda root: (root / "wnids.txt").unlink(), "holds no wnids.txt"),
        (lambda root: (root / "wnids.txt").write_text(""), "lists 0 classes, expected 200"),
        (lambda root: (root / "wnids.txt").write_text("\n".join(map(str, range(201)))), "lists 201 classes"),
        (empty_class, f"train/{WNIDS[0]}/images holds no .JPEG files"),
        (drop_image, "lists 'val_2.JPEG' of class 'n07734744', but there is no such image in val/images"),
        (add_line, "lists 'val_0.JPEG' of class 'n99999999', but there is no such class in wnids.txt"),
        (two_classes, "lists 'val_0.JPEG' with two classes"),
        (rearranged, "val/val_annotations.txt cannot be read"),
        (lambda root: (root / "val" / "val_annotations.txt").write_text(""), "val_annotations.txt is empty"),
        (lambda root: (root / "val" / "val_annotations.txt").write_text("val_0.JPEG"), "of class ''"),
        (lambda root: (root / "val/images/val_3.JPEG").write_bytes(jpeg(3)[:500]), "val_3.JPEG cannot be decoded"),
        (lambda root: (root / "val/images/val_3.JPEG").write_bytes(b"?"), "val_3.JPEG cannot be decoded"),
        (
            lambda root: (root / "val/images/val_3.JPEG").write_bytes(jpeg(3, size=(32, 64))),
            "64x32 pixels, expected 64x64",
        ),
    ],
)
def test_another_layout_is_refused_with_the_file(tmp_path, spoil, expected):
    write_archive(tmp_path)
    spoil(tmp_path / "tiny-imagenet-200")
    line = said(tmp_path, tmp_path / "data")
    assert expected in line and str(tmp_path) in line


def test_empty_lines_are_none_and_a_part_of_the_data_set_is_told(tmp_path, caplog):
    written = write_archive(tmp_path / "files")
    with open(tmp_path / "files" / "tiny-imagenet-200" / "val" / "val_annotations.txt", "a") as file:
        file.write("\n\n")
    found = sources.load("tiny_imagenet", "test", data_dir=str(tmp_path / "data"), archive=str(tmp_path / "files"))
    assert len(found.labels) == len(written["test"])
    assert (
        "holds 12 of the 100,000 images for train" in caplog.text and "5 of the 10,000 images for test" in caplog.text
    )


def test_an_archive_is_refused_where_it_is_not_asked_for_or_another_one(tmp_path):
    write_archive(tmp_path / "a")
    data_dir, a, b = str(tmp_path / "data"), str(tmp_path / "a"), str(tmp_path / "b")
    with pytest.raises(
        DataError, match="archive is for tiny_imagenet, celeba, imagenet_c, not for cifar10: leave it empty"
    ):
        sources.load("cifar10", "train", archive=a)
    sources.load("tiny_imagenet", "test", data_dir=data_dir, archive=a)
    with pytest.raises(DataError, match=f"was prepared from {a}, but archive is {b}: leave archive empty"):
        sources.load("tiny_imagenet", "test", data_dir=data_dir, archive=b)
    (json,) = pathlib.Path(data_dir).rglob("dataset_info.json")
    json.write_text("{")
    with pytest.raises(DataError, match="is damaged .* prepare it again: set archive to"):
        sources.load("tiny_imagenet", "test", data_dir=data_dir)
