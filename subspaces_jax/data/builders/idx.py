"""Any folder of MNIST-format IDX files as a TFDS data set: MNIST, Fashion-MNIST, KMNIST and their like."""

import gzip
import math
import pathlib
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from subspaces_jax.data.builders import png
from subspaces_jax.errors import DataError

PREFIX = {"train": "train", "test": "t10k"}
SHAPE, NUM_CLASSES = (28, 28), 10
SOURCE = "source.txt"  # in the prepared folder: where the IDX files were
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
        DataError: a file is missing, truncated or no IDX file, the images are not 28x28, a label is above 9, or there
            are not as many labels as images, or none.
    """
    images = _read_file(folder, f"{PREFIX[split]}-images-idx3-ubyte", IMAGES_MAGIC)
    labels = _read_file(folder, f"{PREFIX[split]}-labels-idx1-ubyte", LABELS_MAGIC)
    if len(images) != len(labels):
        raise DataError(f"{folder} has {len(images)} {split} images but {len(labels)} labels: fetch the files again")
    if not len(images) or images.shape[1:] != SHAPE or labels.max() >= NUM_CLASSES:
        raise DataError(
            f"{folder} has {len(images)} {split} images of shape {images.shape[1:]} "
            f"and labels up to {labels.max(initial=0)}, "
            f"expected some of shape {SHAPE} and labels below {NUM_CLASSES}: it is another data set"
        )
    return images, labels


def _read_file(folder: pathlib.Path, name: str, magic: int) -> np.ndarray:
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise DataError(f"no {name} or {name}.gz in {folder}: idx_dir is to name a folder of MNIST-format IDX files")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): fetch it again") from None
    num_dimensions = magic & 0xFF
    header = 4 * (1 + num_dimensions)
    if len(content) < header or struct.unpack(">I", content[:4])[0] != magic:
        raise DataError(f"{path} is no IDX file of the kind {magic:#010x}: check that it is what its name says")
    shape = struct.unpack(f">{num_dimensions}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise DataError(
            f"{path} holds {len(content) - header} bytes of data, its header says {math.prod(shape)}: fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
