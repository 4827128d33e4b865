"""Tiny ImageNet as a TFDS data set, made from its published archive: TFDS's own catalogue does not have it."""

import io
import logging
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from subspaces_jax.data import files, images
from subspaces_jax.data.builders import png
from subspaces_jax.data.recipes import SOURCE
from subspaces_jax.errors import DataError

log = logging.getLogger(__name__)

SHAPE, NUM_CLASSES = (64, 64), 200
NUM_IMAGES = {"train": 100_000, "test": 10_000}
MAX_BYTES = 1 << 20  # of one file: images have 64x64 or (ImageNet-C) 224x224 pixels, the list of val 10,000 lines
MAX_ARCHIVE_BYTES = 1 << 29  # the published one has 248,100,043
# What reading a zip archive raises where it is damaged; RuntimeError: it is encrypted.
ZIP_DAMAGE = (OSError, KeyError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error)
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
ROOTS = ("", "tiny-imagenet-200/")  # where wnids.txt may be below what the user names
CLASSES, ANNOTATIONS = "wnids.txt", "val/val_annotations.txt"
HINT = f"set archive to tiny-imagenet-200.zip from {URL}, or to the folder that it unpacks to"


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """64x64 colour images of 200 classes, 500 of each to train and 50 of each to test.

    The test split is the archive's `val`; its `test` has no labels and is left out. The label of a class is the place
    of its WordNet id among all of them, sorted. Grey images become colour images of three equal channels. The archive,
    a zip file or what it unpacks to, is given to the constructor as `folder` and needed only to prepare.

    Reference: Le and Yang, Tiny ImageNet Visual Recognition Challenge, CS 231N, 2015.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, folder: str | pathlib.Path = "", **keywords: Any):
        self._folder = pathlib.Path(folder)
        super().__init__(**keywords)

    def _info(self) -> tfds.core.DatasetInfo:
        image, label = tfds.features.Image(shape=(*SHAPE, 3)), tfds.features.ClassLabel(num_classes=NUM_CLASSES)
        features = tfds.features.FeaturesDict({"image": image, "label": label})
        return self.dataset_info_from_configs(features=features, supervised_keys=("image", "label"))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        archive = Archive(self._folder)
        splits = {"train": train_labels(archive), "test": val_labels(archive)}  # both, before anything is written
        pathlib.Path(self.data_dir, SOURCE).write_text(str(self._folder))  # TFDS's temporary folder, renamed at the end
        return {split: self._generate_examples(archive, labels) for split, labels in splits.items()}

    def _generate_examples(self, archive: "Archive", labels: dict[str, int]) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, label in labels.items():
            yield name, {"image": in_colour(archive.read(name), SHAPE, f"{archive.root}{name}"), "label": label}


class Archive:
    """The files of a zip archive or a folder, by their names below the one place that holds wnids.txt.

    Attributes:
        root: that place, for messages.
        names: of all files.

    Raises:
        DataError: neither a file nor a folder, not a whole zip archive, or without wnids.txt.
    """

    def __init__(self, path: pathlib.Path):
        if not path.exists():
            raise DataError(f"there is no {path}: {HINT}")
        self._zip = None if path.is_dir() else _open_zip(path)
        listed = set(self._zip.namelist() if self._zip else ())
        places = (root for root in ROOTS if root + CLASSES in listed or (path / root / CLASSES).is_file())
        prefix = next(places, None)
        if prefix is None:
            raise DataError(f"{path} holds no {CLASSES}: {HINT}")
        self._prefix = prefix
        self.root = f"{path / self._prefix}/"
        if not self._zip:
            listed = {os.path.join(folder, name) for folder, _, names in os.walk(self.root) for name in names}
        self.names = {name.removeprefix(self._prefix if self._zip else self.root) for name in listed}

    def read(self, name: str) -> bytes:
        """The content of a file. DataError where there is no such file, or it is damaged, encrypted, too large or no
        regular file."""
        try:
            if self._zip:
                return _member(self._zip, self._prefix + name)
            return files.read(pathlib.Path(self.root, name), MAX_BYTES)
        except ZIP_DAMAGE as error:
            raise DataError(f"{self.root}{name} cannot be read ({error}): fetch {URL} again") from None


def train_labels(archive: Archive) -> dict[str, int]:
    """The labels of the training images, by file name.

    Raises:
        DataError: a class has no images, or there are more than 200 classes or none, or more images than are published.
    """
    labels = _label_of(archive)
    found = {wnid: [] for wnid in labels}
    for name in sorted(archive.names):
        match name.split("/"):
            case ["train", wnid, "images", image] if wnid in labels and image.endswith(".JPEG"):
                found[wnid].append(name)
    if empty := [wnid for wnid, names in found.items() if not names]:
        raise DataError(f"{archive.root}train/{empty[0]}/images holds no .JPEG files: unpack {URL} again")
    return _checked({name: labels[wnid] for wnid, names in found.items() for name in names}, archive, "train")


def val_labels(archive: Archive) -> dict[str, int]:
    """The labels of the images that val_annotations.txt lists, by file name.

    Raises:
        DataError: a line that is not an image and its class first of all, an image that is missing, no lines, or more
            images than are published.
    """
    labels, listed = _label_of(archive), {}
    for line in archive.read(ANNOTATIONS).decode(errors="replace").splitlines():
        if not line.strip():
            continue
        image, wnid = (*line.split("\t"), "")[:2]
        name = f"val/images/{image}"
        if wnid not in labels or name not in archive.names:
            missing = "image in val/images" if wnid in labels else f"class in {CLASSES}"
            raise DataError(
                f"{archive.root}{ANNOTATIONS} lists {image!r} of class {wnid!r}, but there is no such {missing}: "
                f"unpack {URL} again"
            )
        if listed.setdefault(name, labels[wnid]) != labels[wnid]:
            raise DataError(f"{archive.root}{ANNOTATIONS} lists {image!r} with two classes: unpack {URL} again")
    if not listed:
        raise DataError(f"{archive.root}{ANNOTATIONS} is empty: unpack {URL} again")
    return _checked(listed, archive, "test")


def _checked(labels: dict[str, int], archive: Archive, split: str) -> dict[str, int]:
    if len(labels) > NUM_IMAGES[split]:
        raise DataError(
            f"{archive.root} holds {len(labels):,} images for {split}, more than {NUM_IMAGES[split]:,}: "
            f"it is another data set, unpack {URL} again"
        )
    if len(labels) < NUM_IMAGES[split]:
        log.warning("%s holds %s of the %s images for %s: unpack %s again unless that is meant",
                    archive.root, f"{len(labels):,}", f"{NUM_IMAGES[split]:,}", split, URL)  # fmt: skip
    return labels


def in_colour(content: bytes, shape: tuple[int, int], where: str) -> io.BytesIO:
    """An encoded image as it is where it has three channels, else as a PNG file that has.

    Raises:
        DataError: it cannot be decoded, or is not of this (H, W); the message says `where` it comes from.
    """
    with images.opened(content, where, "fetch the archive again") as image:
        images.check_shape(image, shape, where)
        image.load()
        return io.BytesIO(content) if image.mode == "RGB" else png.encode(images.in_colour(image))


def _open_zip(path: pathlib.Path) -> zipfile.ZipFile:
    try:
        files.check_regular(path)
        if path.stat().st_size > MAX_ARCHIVE_BYTES:
            raise OSError(f"it holds more than {MAX_ARCHIVE_BYTES:,} bytes, which the archive does not")
        return zipfile.ZipFile(path)
    except (*ZIP_DAMAGE, MemoryError) as error:
        raise DataError(f"{path} is no whole zip archive ({error}): fetch {URL} again") from None


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of a file of an archive, of which no more is unpacked than it may hold."""
    found = archive.getinfo(name)
    if found.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # what others unpack to has no bound
        raise OSError(f"it is compressed by method {found.compress_type}, not by deflate")
    if found.file_size > MAX_BYTES:
        raise OSError(f"it claims {found.file_size:,} bytes, more than {MAX_BYTES:,}")
    with archive.open(found) as file:
        return files.read_all(file, MAX_BYTES)


def _label_of(archive: Archive) -> dict[str, int]:
    wnids = sorted(set(archive.read(CLASSES).decode(errors="replace").split()))
    if not 1 <= len(wnids) <= NUM_CLASSES:
        raise DataError(f"{archive.root}{CLASSES} lists {len(wnids)} classes, expected {NUM_CLASSES}: {HINT}")
    return {wnid: label for label, wnid in enumerate(wnids)}
