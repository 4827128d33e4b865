"""Data sets as arrays or image by image, all of them from TFDS, without TensorFlow, and never downloaded here.

`digits`, IDX folders, Tiny ImageNet and ImageNet-C are prepared by our own builders when first asked for. Catalogue
data sets (cifar10, imagenet2012 ...) are read where TFDS has prepared them in ArrayRecord format.
"""

import contextlib
import os
import pathlib
import zipfile
from typing import Any, NamedTuple

import numpy as np

from subspaces_jax import logs
from subspaces_jax.data.catalogue import info
from subspaces_jax.data.prepared import builder_of, first_line
from subspaces_jax.errors import DataError

CACHE_FROM = 10_000  # examples: 60,000 PNG images take 4 s to decode and 0.1 s to read decoded


class Arrays(NamedTuple):
    """One split. images: uint8 [N, H, W, channels]; labels: int32 [N]. NumPy, in TFDS's random order."""

    images: np.ndarray
    labels: np.ndarray


class Encoded:
    """One split image by image: source[i] is the image as it was encoded, bytes, and its label, int.

    It can be sent to other processes, and threads may share it. Reading what is damaged raises DataError.
    """

    def __init__(self, records: Any, name: str, folder: str):
        self._records, self._name, self._folder = records, name, folder

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"there is no example {index} of {len(self)}")
        try:
            example = self._records[index]
            return bytes(example["image"]), int(example["label"])  # damage may also come as None
        except Exception as error:  # whatever the file format's reader makes of damage
            raise DataError(_unreadable(f"example {index}", self._name, self._folder, error)) from None


class Part:
    """Every `num_parts`-th example of a source from `part` on, for processes that share a batch."""

    def __init__(self, source: Encoded, part: int, num_parts: int):
        self._source, self._part, self._num_parts = source, part, num_parts

    def __len__(self) -> int:
        return len(range(self._part, len(self._source), self._num_parts))

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        return self._source[range(self._part, len(self._source), self._num_parts)[index]]


def load(
    name: str, split: str, *, data_dir: str | None = None, idx_dir: str | None = None, archive: str | None = None
) -> Arrays:
    """One split of a data set.

    Args:
        name: a key of catalogue.DATASETS.
        split: "train" or "test".
        data_dir: the TFDS data directory; None for TFDS's own default (TFDS_DATA_DIR, or tensorflow_datasets at home).
        idx_dir: a folder of MNIST-format IDX files, from which mnist, fashion_mnist or kmnist is prepared when it is
            first asked for.
        archive: what tiny_imagenet (tiny-imagenet-200.zip or its folder) or imagenet_c (the folder that holds its
            corruptions) is prepared from when it is first asked for.

    Raises:
        DataError: unknown name or split, not prepared (the message has the command that prepares it), damaged, not of
            the form that the catalogue says, or too big for this.
    """
    expected = info(name)
    if expected.streams:
        raise DataError(f"{name} is too big to be loaded: stream it from sources.open_source")
    with logs.quiet():
        builder = builder_of(name, split, data_dir, idx_dir, archive)
        try:
            arrays = _arrays(builder, split)
        except Exception as error:  # whatever the file format's reader makes of damage
            raise DataError(_unreadable(f"the {split} split", name, builder.data_path, error)) from None
    images, labels = arrays
    low, high = labels.min(), labels.max()
    if images.shape[1:] != expected.image_shape or images.dtype != np.uint8 or low < 0 or high >= expected.num_classes:
        raise DataError(
            f"{name} in {builder.data_path} has {images.dtype} images of shape {images.shape[1:]} "
            f"and labels {low} to {high}, "
            f"expected uint8 {expected.image_shape} and {expected.num_classes} classes: it is another data set"
        )
    return arrays


def open_source(
    name: str, split: str, *, data_dir: str | None = None, idx_dir: str | None = None, archive: str | None = None
) -> Encoded:
    """One split image by image, for `stream`, of any data set. Arguments and errors are those of `load`."""
    expected = info(name)
    with logs.quiet():
        builder = builder_of(name, split, data_dir, idx_dir, archive)
        tfds_split = expected.test_split if split == "test" else split
        if tfds_split not in builder.info.splits:
            raise DataError(
                f"{name} in {builder.data_path} has no {tfds_split} split: delete that folder and prepare all splits"
            )
        num_classes = builder.info.features["label"].num_classes
        if num_classes != expected.num_classes:
            raise DataError(
                f"{name} in {builder.data_path} has {num_classes} classes, expected {expected.num_classes}: "
                "it is another data set"
            )
        source = _encoded(builder, name, tfds_split)
        source[0]  # damage of the file as a whole is found now, not when a worker reads
    return source


def _encoded(builder: Any, name: str, tfds_split: str) -> Encoded:
    import tensorflow_datasets as tfds

    try:
        records = builder.as_data_source(split=tfds_split, decoders={"image": tfds.decode.SkipDecoding()})
        return Encoded(records, name, str(builder.data_path))
    except Exception as error:  # whatever the file format's reader makes of damage
        raise DataError(_unreadable(f"the {tfds_split} split", name, builder.data_path, error)) from None


def _arrays(builder: Any, split: str) -> Arrays:
    """Decodes a split, or reads what an earlier call has decoded and left beside it."""
    source = builder.as_data_source(split=split)
    cache = builder.data_path / f"decoded-{split}.npz"
    with contextlib.suppress(OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile), open(cache, "rb") as file:
        decoded = np.load(file)  # of a path it would leave the file open where the content is damaged
        if len(decoded["images"]) == len(decoded["labels"]) == len(source):
            return Arrays(decoded["images"], decoded["labels"])
    examples = source.__getitems__(range(len(source)))
    images = np.stack([example["image"] for example in examples])
    arrays = Arrays(images, np.array([example["label"] for example in examples], np.int32))
    if len(source) >= CACHE_FROM:
        _write_cache(pathlib.Path(cache), arrays)
    return arrays


def _write_cache(path: pathlib.Path, arrays: Arrays) -> None:
    """Written elsewhere and renamed, so that no reader sees half of it; left out where the folder cannot be written."""
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial")
    with contextlib.suppress(OSError):
        try:
            with open(partial, "wb") as file:
                np.savez(file, **arrays._asdict())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _unreadable(what: str, name: str, folder: Any, error: Exception) -> str:
    return f"{what} of {name} in {folder} cannot be read ({first_line(error)}): delete that folder and prepare it again"
