"""Data sets as arrays. TFDS is the source of all of them, read without TensorFlow and never downloaded here.

`digits` and IDX folders are prepared by our own builders when first asked for. Catalogue data sets (cifar10 ...) are read
where TFDS's command line has prepared them in ArrayRecord format.
"""

import contextlib
import dataclasses
import difflib
import fcntl
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from subspaces_jax import logs
from subspaces_jax.errors import DataError

SPLITS = ("train", "test")
IDX_SETS = ("mnist", "fashion_mnist", "kmnist")
RANDOM_ACCESS = ("array_record", "parquet")
SOURCE = "source.txt"


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
    "digits": DatasetInfo((8, 8, 1), 10, 1_437, 360, (0.3055,), (0.3764,)),
    "mnist": DatasetInfo((28, 28, 1), 10, 60_000, 10_000, (0.1307,), (0.3081,)),
    "fashion_mnist": DatasetInfo((28, 28, 1), 10, 60_000, 10_000, (0.2860,), (0.3530,)),
    "kmnist": DatasetInfo((28, 28, 1), 10, 60_000, 10_000, (0.1918,), (0.3483,)),
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
            source = builder.as_data_source(split=split)
            examples = source.__getitems__(range(len(source)))
        except Exception as error:  # whatever the file format's reader makes of damage
            raise DataError(
                f"the {split} split of {name} in {builder.data_path} cannot be read ({_line(error)}): delete that folder and "
                "prepare it again"
            ) from None
    images = np.stack([example["image"] for example in examples])
    labels = np.array([example["label"] for example in examples], np.int32)
    info = DATASETS[name]
    if images.shape[1:] != info.image_shape or images.dtype != np.uint8 or not (labels < info.num_classes).all():
        raise DataError(
            f"{name} in {builder.data_path} has {images.dtype} images of shape {images.shape[1:]} and labels up to "
            f"{labels.max()}, expected uint8 {info.image_shape} and {info.num_classes} classes: it is another data set"
        )
    return Arrays(images, labels)


def _prepared(name: str, root: pathlib.Path, idx_dir: str | None) -> Any:
    """The TFDS builder of a prepared data set; prepares it where that needs nothing but what is at hand."""
    import tensorflow_datasets as tfds  # a second to import, and only reading data needs it

    if name == "digits":
        from subspaces_jax.data.builders.digits import Digits

        return _prepare(Digits, root, {})
    if idx_dir:
        return _prepare_idx(name, root, idx_dir)
    for folder, options in ((name, {}), ("idx_images", {"config": name})):
        try:
            builder = tfds.core.read_only_builder.builder_from_files(folder, data_dir=root, **options)
        except tfds.core.DatasetNotFoundError:
            continue
        if builder.info.file_format.value not in RANDOM_ACCESS:
            raise DataError(
                f"{name} in {builder.data_path} is in {builder.info.file_format.value} format, which only TensorFlow reads: "
                f"prepare it again with {_command(name, root)} --overwrite"
            )
        return builder
    hint = "; or set idx_dir to a folder of its IDX files" if name in IDX_SETS else ""
    raise DataError(f"{name} is not prepared in {root}: prepare it with {_command(name, root)}{hint}")


def _prepare_idx(name: str, root: pathlib.Path, idx_dir: str) -> Any:
    import tensorflow_datasets as tfds

    from subspaces_jax.data.builders import idx

    folder = pathlib.Path(idx_dir).expanduser().absolute()
    config = tfds.core.BuilderConfig(name=name, version=idx.IdxImages.VERSION)
    source = root / "idx_images" / name / SOURCE
    if source.exists() and source.read_text() != str(folder):
        raise DataError(
            f"{name} in {source.parent} was prepared from {source.read_text()}, but idx_dir is {folder}: leave idx_dir empty to "
            "use it, or delete it"
        )
    if not source.exists():
        for split in SPLITS:
            idx.read(folder, split)  # say what is wrong with the files before TFDS begins
    builder = _prepare(idx.IdxImages, root, {"config": config, "folder": folder})
    source.write_text(str(folder))
    return builder


def _prepare(builder_class: Any, root: pathlib.Path, options: dict[str, Any]) -> Any:
    import tensorflow_datasets as tfds

    with _locked(root):
        builder = builder_class(data_dir=str(root), file_format="array_record", **options)
        if not builder.data_path.exists():  # TFDS writes to another name and renames at the end
            if not sys.stderr.isatty():
                tfds.disable_progress_bar()
            with open(os.devnull, "w") as devnull, contextlib.redirect_stdout(devnull):
                builder.download_and_prepare()
    return builder


@contextlib.contextmanager
def _locked(root: pathlib.Path) -> Iterator[None]:
    """One process prepares, the others wait."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = open(root / ".subspaces_jax.lock", "a")
    except OSError as error:
        raise DataError(f"cannot write to data_dir {root} ({error.strerror}): set data_dir to a folder you own") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _default_data_dir() -> str:
    return os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")


def _command(name: str, root: pathlib.Path) -> str:
    return f"pip install -e '.[prepare]' && tfds build {name} --file_format=array_record --data_dir={root}"


def _check_known(what: str, name: str, known: Any) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise DataError(f"{what} {name!r} is unknown: {hint}")


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
