"""Data sets as arrays or image by image, all of them from TFDS, without TensorFlow, and never downloaded here.

`digits`, IDX folders, Tiny ImageNet, CelebA and ImageNet-C are prepared by our own builders when first asked for.
Catalogue data sets (cifar10, imagenet2012 ...) are read where TFDS has prepared them in ArrayRecord format.
"""

import contextlib
import math
import pathlib
import struct
import zipfile
import zlib
from typing import Any, NamedTuple

import numpy as np

from subspaces_jax import logs, writing
from subspaces_jax.data import files, images
from subspaces_jax.data.catalogue import DatasetInfo, info
from subspaces_jax.data.prepared import builder_of
from subspaces_jax.errors import DataError, first_line

CACHE_FROM = 256  # examples: digits take .4 s to decode and .01 to read decoded, 60,000 PNG images 4 s and .1


_ZIP_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error)
REMEDY = "delete that folder and prepare it again"

Label = int | np.ndarray | tuple[()]  # of an example: a class, real values, or none


class Arrays(NamedTuple):
    """One split, NumPy, in TFDS's random order.

    Attributes:
        images: uint8 [N, H, W, channels], or float32 [N, ...] where the data set's inputs are real; of
            one that streams a function that begins a pass.
        labels: int32 [N] of classes, float32 [N, ...] of real values, or () where there are none.
    """

    images: Any
    labels: Any


class Encoded:
    """One split image by image: source[i] is the image as it was encoded, bytes, and its label.

    The label is an int where it is a class, float32 where it is real, () where there is none. It can be sent to other
    processes, and threads may share it. Reading what is damaged raises DataError.
    """

    def __init__(self, records: Any, name: str, folder: str, label: str = "class", split: str = "train"):
        self._records, self._name, self._folder, self._label, self._split = records, name, folder, label, split

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[bytes, Label]:
        if not 0 <= index < len(self):
            raise IndexError(f"there is no example {index} of {len(self)}")
        try:
            example = self._records[index]
            return bytes(example["image"]), _label(example, self._label)  # damage may also come as None
        except Exception as error:  # whatever the file format's reader makes of damage
            raise DataError(_unreadable(f"example {index}", self._name, self._folder, error)) from None

    def labels(self) -> np.ndarray | tuple[()]:
        """All labels, int32 [N] of classes, float32 [N, ...] of real values, or () where there are none.

        They take a pass over all examples; those of large data sets are left beside them for the next time.
        """
        if self._label == "none":
            return ()
        cache = pathlib.Path(self._folder) / f"labels-{self._split}.npy"
        if len(self) >= CACHE_FROM:
            with contextlib.suppress(OSError, ValueError, EOFError):
                files.check_regular(cache)
                found = np.load(cache)
                if found.shape[:1] == (len(self),) and found.dtype in (np.int32, np.float32):
                    return found
        dtype = np.int32 if self._label == "class" else np.float32
        found = np.array([self[i][1] for i in range(len(self))], dtype)
        if len(self) >= CACHE_FROM:
            with contextlib.suppress(OSError), writing.replacing(cache) as file:
                np.save(file, found)
        return found


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
        archive: what tiny_imagenet (tiny-imagenet-200.zip or its folder), celeba (its folder img_align_celeba) or
            imagenet_c (the folder that holds its corruptions) is prepared from when it is first asked for.

    Raises:
        DataError: unknown name or split, not prepared (the message has the command that prepares it), damaged, not of
            the form that the catalogue says, or too big for this.
    """
    expected = info(name)
    if expected.streams:
        raise DataError(f"{name} is too big to be loaded: stream it from sources.open_source")
    with logs.quiet():
        builder = builder_of(name, split, data_dir, idx_dir, archive)
        arrays = _arrays(builder, name, split, expected)
    _check_inputs(arrays, expected, f"{name} in {builder.data_path}")
    _check_labels(arrays, expected, f"{name} in {builder.data_path}")
    return arrays


def open_source(
    name: str, split: str, *, data_dir: str | None = None, idx_dir: str | None = None, archive: str | None = None
) -> Encoded:
    """One split image by image, for `stream`, of any data set. Arguments and errors are those of `load`."""
    expected = info(name)
    if expected.input_dtype != "uint8":
        raise DataError(f"{name} has no images but real inputs, which do not stream: load it with sources.load")
    with logs.quiet():
        builder = builder_of(name, split, data_dir, idx_dir, archive)
        records = _records(builder, name, split, expected)
        if expected.label == "class":
            num_classes = builder.info.features["label"].num_classes
            if num_classes != expected.num_classes:
                raise DataError(
                    f"{name} in {builder.data_path} has {num_classes} classes, expected {expected.num_classes}: "
                    "it is another data set"
                )
        source = Encoded(records, name, str(builder.data_path), expected.label, split)
        source[0]  # damage of the file as a whole is found now, not when a worker reads
    return source


def _records(builder: Any, name: str, split: str, expected: DatasetInfo) -> Any:
    """The examples of a split by index, images encoded as they were."""
    import tensorflow_datasets as tfds

    tfds_split = expected.test_split if split == "test" else split
    if tfds_split not in builder.info.splits:
        raise DataError(
            f"{name} in {builder.data_path} has no {tfds_split} split: delete that folder and prepare all splits"
        )
    encoded = isinstance(builder.info.features["image"], tfds.features.Image)
    try:
        return builder.as_data_source(
            split=tfds_split, decoders={"image": tfds.decode.SkipDecoding()} if encoded else None
        )
    except Exception as error:  # whatever the file format's reader makes of damage
        raise DataError(_unreadable(f"the {tfds_split} split", name, builder.data_path, error)) from None


def _arrays(builder: Any, name: str, split: str, expected: DatasetInfo) -> Arrays:
    """Decodes a split, or reads what an earlier call has decoded and left beside it."""
    records = _records(builder, name, split, expected)
    cache = pathlib.Path(builder.data_path) / f"decoded-{split}.npz"
    if found := _cached(cache, len(records), expected):
        return found
    where = f"the {split} split of {name} in {builder.data_path}"
    try:
        examples = records.__getitems__(range(len(records)))
        inputs = np.stack([_input(example, f"example {i} of {where}", expected) for i, example in enumerate(examples)])
        labels = [_label(example, expected.label) for example in examples]
    except DataError:
        raise
    except Exception as error:  # whatever the file format's reader makes of damage
        raise DataError(_unreadable(f"the {split} split", name, builder.data_path, error)) from None
    dtype = np.int32 if expected.label == "class" else np.float32
    arrays = Arrays(inputs, () if expected.label == "none" else np.array(labels, dtype))
    if len(records) >= CACHE_FROM:
        _write_cache(cache, arrays)
    return arrays


def _input(example: dict[str, Any], where: str, expected: DatasetInfo) -> np.ndarray:
    value = example["image"]
    return images.decode(value, expected.image_shape, where, REMEDY) if isinstance(value, bytes) else value


def _label(example: dict[str, Any], kind: str) -> Label:
    """The label of an example, of a kind of DatasetInfo.label."""
    if kind == "none":
        return ()
    return int(example["label"]) if kind == "class" else np.asarray(example["label"], np.float32)


def _check_inputs(arrays: Arrays, expected: DatasetInfo, where: str) -> None:
    """Refuses inputs that are not of the form that the catalogue says."""
    given = arrays.images
    if given.shape[1:] != expected.image_shape or given.dtype != expected.input_dtype:
        raise DataError(
            f"{where} has {given.dtype} inputs of shape {given.shape[1:]}, expected {expected.input_dtype} "
            f"{expected.image_shape}: it is another data set"
        )
    if given.dtype == np.float32 and not np.isfinite(given).all():
        raise DataError(f"{where} has inputs that are not finite: {REMEDY}")


def _check_labels(arrays: Arrays, expected: DatasetInfo, where: str) -> None:
    """Refuses labels that are not of the form that the catalogue says."""
    labels = arrays.labels
    if expected.label == "class" and (labels.min() < 0 or labels.max() >= expected.num_classes):
        raise DataError(
            f"{where} has labels {labels.min()} to {labels.max()}, expected {expected.num_classes} classes: "
            "it is another data set"
        )
    if expected.label == "real":
        if labels.shape[1:] != expected.label_shape:
            raise DataError(
                f"{where} has labels of shape {labels.shape[1:]}, expected {expected.label_shape}: "
                "it is another data set"
            )
        if not np.isfinite(labels).all():
            raise DataError(f"{where} has labels that are not finite: {REMEDY}")


def _cached(path: pathlib.Path, num: int, expected: DatasetInfo) -> Arrays | None:
    """What `_write_cache` has written for `num` examples; None where it is not there, damaged or of another form."""
    keys = ["images"] if expected.label == "none" else ["images", "labels"]
    size = num * np.dtype(expected.input_dtype).itemsize * math.prod(expected.image_shape)
    size += num * 4 * math.prod(expected.label_shape) + 2048  # labels, headers
    with contextlib.suppress(OSError, LookupError, ValueError, EOFError, RuntimeError, MemoryError, *_ZIP_DAMAGE):
        files.check_regular(path)
        with open(path, "rb") as file:  # of a path NumPy would leave the file open where the content is damaged
            decoded = np.load(file)
            if isinstance(decoded, np.lib.npyio.NpzFile) and _size(decoded.zip) <= size:
                found = [decoded[key] for key in keys]
                if {len(array) for array in found} == {num}:
                    return Arrays(*found, *[()] * (2 - len(found)))
    return None


def _size(archive: zipfile.ZipFile | None) -> int:
    """Bytes of all members, unpacked."""
    return sum(member.file_size for member in archive.infolist()) if archive else 0


def _write_cache(path: pathlib.Path, arrays: Arrays) -> None:
    kept = {key: array for key, array in arrays._asdict().items() if isinstance(array, np.ndarray)}
    with contextlib.suppress(OSError), writing.replacing(path) as file:  # left out where the folder cannot be written
        np.savez(file, **kept)  # type: ignore[arg-type]  # a name may be a flag of NumPy's


def _unreadable(what: str, name: str, folder: Any, error: Exception) -> str:
    return f"{what} of {name} in {folder} cannot be read ({first_line(error)}): {REMEDY}"
