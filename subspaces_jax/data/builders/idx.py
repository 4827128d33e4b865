"""Any folder of MNIST-format IDX files as a TFDS data set: MNIST, Fashion-MNIST, KMNIST and their like."""

import gzip
import math
import pathlib
import struct
import zlib
from collections.abc import Iterator
from typing import IO, Any, cast

import numpy as np
import tensorflow_datasets as tfds

from subspaces_jax.data import files
from subspaces_jax.data.builders import png
from subspaces_jax.data.recipes import SOURCE
from subspaces_jax.errors import DataError

PREFIX = {"train": "train", "test": "t10k"}
SHAPE, NUM_CLASSES = (28, 28), 10
MAX_EXAMPLES = 300_000  # of a split: EMNIST's digits, the largest such data set, are 280,000
IMAGES_MAGIC, LABELS_MAGIC = 0x00000803, 0x00000801  # unsigned bytes in 3 dimensions, and in 1


class IdxImages(tfds.core.GeneratorBasedBuilder):
    """Grey 28x28 images of 10 classes from the four IDX files of one folder, gzipped or not.

    The config's name is that of the data set ("fashion_mnist"), its folder is given to the constructor and needed only
    to prepare.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, folder: str | pathlib.Path = "", **keywords: Any):
        self._folder = pathlib.Path(folder)
        super().__init__(**keywords)

    def _info(self) -> tfds.core.DatasetInfo:
        image, label = tfds.features.Image(shape=(*SHAPE, 1)), tfds.features.ClassLabel(num_classes=NUM_CLASSES)
        features = tfds.features.FeaturesDict({"image": image, "label": label})
        return self.dataset_info_from_configs(features=features, supervised_keys=("image", "label"))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        splits = {split: read(self._folder, split) for split in PREFIX}  # all files, before anything is written
        pathlib.Path(self.data_dir, SOURCE).write_text(str(self._folder))  # TFDS's temporary folder, renamed at the end
        return {split: self._generate_examples(*arrays) for split, arrays in splits.items()}

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (image, label) in enumerate(zip(images, labels)):
            yield i, {"image": png.encode(image), "label": int(label)}


def read(folder: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, H, W] and labels uint8 [N] of one split, in the order of the files.

    Raises:
        DataError: a file is missing, truncated, longer than its header says or no IDX file, the images are not 28x28 or
            more than such a data set has, a label is above 9, or there are not as many labels as images, or none.
    """
    images = _read_file(folder, f"{PREFIX[split]}-images-idx3-ubyte", IMAGES_MAGIC)
    labels = _read_file(folder, f"{PREFIX[split]}-labels-idx1-ubyte", LABELS_MAGIC)
    if len(images) != len(labels):
        raise DataError(f"{folder} has {len(images)} {split} images but {len(labels)} labels: fetch the files again")
    if not len(images) or labels.max() >= NUM_CLASSES:
        raise DataError(
            f"{folder} has {len(images)} {split} images and labels up to {labels.max(initial=0)}, "
            f"expected some images and labels below {NUM_CLASSES}: it is another data set"
        )
    return images, labels


def _read_file(folder: pathlib.Path, name: str, magic: int) -> np.ndarray:
    path = _found(folder, name)
    num_dimensions = magic & 0xFF
    try:
        with _opened(path, 4 * (1 + num_dimensions) + MAX_EXAMPLES * math.prod(SHAPE[: num_dimensions - 1])) as file:
            shape = _shape(file, path, magic)
            size = math.prod(shape)
            content = file.read(size + 1)  # to the end, where gzip compares its checksum, and not on past it
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): fetch it again") from None
    if len(content) != size:
        held = f"more than {size}" if len(content) > size else len(content)
        raise DataError(f"{path} holds {held} bytes of data, its header says {size}: fetch it again")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _found(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The file of that name, gzipped or not, or of the name that some unpack it to: train-images.idx3-ubyte."""
    names = [name + ending for name in (name, name.replace("-idx", ".idx")) for ending in ("", ".gz")]
    for path in (folder / name for name in names):
        if path.exists() and not path.is_dir():
            return path
    raise DataError(f"no {name} or {name}.gz in {folder}: idx_dir is to name a folder of MNIST-format IDX files")


def _opened(path: pathlib.Path, limit: int) -> IO[bytes]:
    """The file, unpacked as it is read. One that is gzipped is refused where it is larger than `limit` bytes, the most
    that it may hold, would be without compression: headers and empty parts without end take time as well."""
    files.check_regular(path)
    if path.suffix != ".gz":
        return open(path, "rb")
    if path.stat().st_size > limit + limit // 1000 + 1024:
        raise OSError(f"it is larger than {limit:,} bytes, the most that it may hold")
    return cast(IO[bytes], gzip.open(path, "rb"))


def _shape(file: IO[bytes], path: pathlib.Path, magic: int) -> tuple[int, ...]:
    """What the header says that the file holds, refused where no such data set does."""
    num_dimensions = magic & 0xFF
    header = file.read(4 * (1 + num_dimensions))
    if len(header) < 4 * (1 + num_dimensions) or struct.unpack(">I", header[:4])[0] != magic:
        raise DataError(f"{path} is no IDX file of the kind {magic:#010x}: check that it is what its name says")
    shape = struct.unpack(f">{num_dimensions}I", header[4:])
    expected = SHAPE[: num_dimensions - 1]
    if shape[0] > MAX_EXAMPLES or shape[1:] != expected:
        raise DataError(
            f"{path} says that it holds {shape[0]:,} examples of shape {shape[1:]}, expected at most {MAX_EXAMPLES:,} "
            f"of shape {expected}: it is another data set"
        )
    return shape
