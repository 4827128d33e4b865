"""Data sets as arrays. TFDS is the source of all of them, read without TensorFlow and never downloaded here.

`digits` and IDX folders are prepared by our own builders when first asked for. Catalogue data sets (cifar10 ...) are read
where TFDS has prepared them in ArrayRecord format.
"""

import contextlib
import dataclasses
import difflib
import fcntl
import json
import os
import pathlib
import shlex
import sys
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from subspaces_jax import logs
from subspaces_jax.errors import DataError

SPLITS = ("train", "test")
IDX_SETS = ("mnist", "fashion_mnist", "kmnist")
RANDOM_ACCESS = ("array_record", "parquet")
CACHE_FROM = 10_000  # examples: 60,000 PNG images take 4 s to decode and 0.1 s to read decoded


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before it is read.

    Attributes:
        image_shape: (H, W, channels).
        num_classes: C.
        num_train, num_test: examples of each split.
        mean, std: a channel, of pixels scaled to [0, 1], for normalisation.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    num_train: int
    num_test: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what the subspace paper's code uses for CIFAR as well

DATASETS: dict[str, DatasetInfo] = {
    "digits": DatasetInfo((8, 8, 1), 10, 1_437, 360, (0.3053,), (0.3762,)),
    "mnist": DatasetInfo((28, 28, 1), 10, 60_000, 10_000, (0.1307,), (0.3081,)),
    "fashion_mnist": DatasetInfo((28, 28, 1), 10, 60_000, 10_000, (0.2860,), (0.3530,)),
    "kmnist": DatasetInfo((28, 28, 1), 10, 60_000, 10_000, (0.1918,), (0.3483,)),  # the usual values, not measured here
    "cifar10": DatasetInfo((32, 32, 3), 10, 50_000, 10_000, *_IMAGENET),
    "cifar100": DatasetInfo((32, 32, 3), 100, 50_000, 10_000, *_IMAGENET),
}


class Arrays(NamedTuple):
    """One split. images: uint8 [N, H, W, channels]; labels: int32 [N]. NumPy, in TFDS's order, which is a random one."""

    images: np.ndarray
    labels: np.ndarray


def load(name: str, split: str, *, data_dir: str | None = None, idx_dir: str | None = None) -> Arrays:
    """One split of a data set.

    Args:
        name: a key of DATASETS.
        split: "train" or "test".
        data_dir: the TFDS data directory; None for TFDS's own default (TFDS_DATA_DIR, or tensorflow_datasets at home).
        idx_dir: a folder of MNIST-format IDX files, from which mnist, fashion_mnist or kmnist is prepared when it is
            first asked for.

    Raises:
        DataError: unknown name or split, not prepared (the message has the command that prepares it), damaged, or not
            of the form that DATASETS says.
    """
    _check_known("data set", name, DATASETS)
    _check_known("split", split, SPLITS)
    if idx_dir and name not in IDX_SETS:
        raise DataError(f"idx_dir is for {', '.join(IDX_SETS)}, not for {name}: leave it empty")
    root = pathlib.Path(data_dir or _default_data_dir()).expanduser().absolute()
    with logs.quiet():
        builder = _prepared(name, root, idx_dir)
        try:
            arrays = _arrays(builder, split)
        except Exception as error:  # whatever the file format's reader makes of damage
            raise DataError(
                f"the {split} split of {name} in {builder.data_path} cannot be read ({_line(error)}): delete that folder and "
                "prepare it again"
            ) from None
    info, (images, labels) = DATASETS[name], arrays
    low, high = labels.min(), labels.max()
    if images.shape[1:] != info.image_shape or images.dtype != np.uint8 or low < 0 or high >= info.num_classes:
        raise DataError(
            f"{name} in {builder.data_path} has {images.dtype} images of shape {images.shape[1:]} and labels {low} to {high}, "
            f"expected uint8 {info.image_shape} and {info.num_classes} classes: it is another data set"
        )
    return arrays


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


def _prepared(name: str, root: pathlib.Path, idx_dir: str | None) -> Any:
    """The TFDS builder of a prepared data set; prepares it where that needs nothing but what is at hand."""
    if name == "digits":
        from subspaces_jax.data.builders.digits import Digits  # imports TFDS: a second, and only reading data needs it

        return _prepare(Digits, root, {})
    if idx_dir:
        return _prepare_idx(name, root, pathlib.Path(idx_dir).expanduser().absolute())
    return _find(name, root)


def _find(name: str, root: pathlib.Path) -> Any:
    """A data set that TFDS has prepared, else one that we have prepared from IDX files."""
    import tensorflow_datasets as tfds  # a second, and only reading data needs it

    unreadable = None
    for folder, options in ((name, {}), ("idx_images", {"config": name})):
        try:
            builder = tfds.core.read_only_builder.builder_from_files(folder, data_dir=root, **options)
        except tfds.core.DatasetNotFoundError:
            continue
        except Exception as error:  # whatever TFDS makes of damaged or missing metadata
            raise DataError(
                f"{name} in {root.joinpath(folder, *options.values())} is damaged ({_line(error)}): delete that folder and "
                f"prepare it again with {_command(name, root)}"
            ) from None
        if builder.info.file_format.value in RANDOM_ACCESS:
            return builder
        unreadable = unreadable or builder
    if unreadable:
        raise DataError(
            f"{name} in {unreadable.data_path} is in {unreadable.info.file_format.value} format, not in array_record: "
            f"delete that folder and prepare it again with {_command(name, root)}"
        )
    hint = "; or set idx_dir to a folder of its IDX files" if name in IDX_SETS else ""
    raise DataError(f"{name} is not prepared in {root}: prepare it with {_command(name, root)}{hint}")


def _prepare_idx(name: str, root: pathlib.Path, folder: pathlib.Path) -> Any:
    import tensorflow_datasets as tfds

    from subspaces_jax.data.builders import idx

    config = tfds.core.BuilderConfig(name=name, version=idx.IdxImages.VERSION)
    builder = _prepare(idx.IdxImages, root, {"config": config, "folder": folder})
    source = pathlib.Path(builder.data_path) / idx.SOURCE
    if source.exists() and source.read_text() != str(folder):
        raise DataError(
            f"{name} in {source.parent} was prepared from {source.read_text()}, but idx_dir is {folder}: leave idx_dir empty "
            "to use it, or delete it"
        )
    return builder


def _prepare(builder_class: Any, root: pathlib.Path, options: dict[str, Any]) -> Any:
    """The builder, prepared if it is not: TFDS writes to another name and renames at the end, so what is there is whole."""
    builder = _build(builder_class, root, options)
    if builder.data_path.exists():
        return builder
    try:
        with _locked(root):
            builder = _build(builder_class, root, options)  # another process may have prepared it meanwhile
            if not builder.data_path.exists():
                _write(builder)
    except OSError as error:
        raise DataError(
            f"cannot prepare {builder.data_path} ({_line(error)}): set data_dir to a folder that you own, with room"
        ) from None
    return builder


def _build(builder_class: Any, root: pathlib.Path, options: dict[str, Any]) -> Any:
    try:
        return builder_class(data_dir=str(root), file_format="array_record", **options)
    except Exception as error:  # whatever TFDS makes of damaged metadata, or of another format
        where = root / builder_class.name / (options["config"].name if options else "")
        raise DataError(f"{where} is damaged ({_line(error)}): delete that folder, it is prepared again") from None


def _write(builder: Any) -> None:
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    with open(os.devnull, "w") as devnull, contextlib.redirect_stdout(devnull):
        builder.download_and_prepare()


@contextlib.contextmanager
def _locked(root: pathlib.Path) -> Iterator[None]:
    """One process prepares, the others wait."""
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".subspaces_jax.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _default_data_dir() -> str:
    return os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")


def _command(name: str, root: pathlib.Path) -> str:
    """Not `tfds build`: that of TFDS 4.9.10 imports Apache Beam and mlcroissant, where the library needs TensorFlow only."""
    code = (
        f'import tensorflow_datasets as tfds; tfds.builder("{name}", data_dir={json.dumps(str(root))}, '
        'file_format="array_record").download_and_prepare()'
    )
    return f"pip install -e '.[prepare]' && python -c {shlex.quote(code)}"


def _check_known(what: str, name: str, known: Any) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=2)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise DataError(f"{what} {name!r} is unknown: {hint}there are {', '.join(known)}")


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
