"""Data sets as TFDS builders: found where they are prepared, or prepared where that needs only what is at hand."""

import contextlib
import fcntl
import json
import os
import pathlib
import shlex
import sys
from collections.abc import Iterator
from typing import Any

from subspaces_jax.data.catalogue import DATASETS, check_known
from subspaces_jax.errors import DataError

SPLITS = ("train", "test")
IDX_SETS = ("mnist", "fashion_mnist", "kmnist")
ARCHIVE_SETS = ("tiny_imagenet", "imagenet_c")
RANDOM_ACCESS = ("array_record", "parquet")


def builder_of(name: str, split: str, data_dir: str | None, idx_dir: str | None, archive: str | None) -> Any:
    """The TFDS builder of a data set; prepares it where that needs nothing but what is at hand."""
    check_known("split", split, SPLITS)
    family = name.partition("/")[0]
    for field, value, sets in (("idx_dir", idx_dir, IDX_SETS), ("archive", archive, ARCHIVE_SETS)):
        if value and family not in sets:
            raise DataError(f"{field} is for {', '.join(sets)}, not for {name}: leave it empty")
    if split == "train" and not DATASETS[family].num_train:
        raise DataError(
            f"{name} has no train split: train on clean data, imagenet2012, and take batch norm's statistics there"
        )
    root = pathlib.Path(data_dir or _default_data_dir()).expanduser().absolute()
    if name == "digits":
        from subspaces_jax.data.builders.digits import Digits  # imports TFDS: a second, and only reading data needs it

        return _prepare(Digits, root, {})
    if given := idx_dir or archive:
        return _prepare_from(name, root, pathlib.Path(given).expanduser().absolute())
    return _find(name, root)


def _find(name: str, root: pathlib.Path) -> Any:
    """A data set that TFDS has prepared, or that we have prepared from files."""
    import tensorflow_datasets as tfds  # a second, and only reading data needs it

    family, _, config = name.partition("/")
    places = [(family, {"config": config} if config else {})]
    unreadable = None
    for folder, options in places + [("idx_images", {"config": name})] * (name in IDX_SETS):
        try:
            builder = tfds.core.read_only_builder.builder_from_files(folder, data_dir=root, **options)
        except tfds.core.DatasetNotFoundError:
            continue
        except Exception as error:  # whatever TFDS makes of damaged or missing metadata
            raise DataError(
                f"{name} in {root.joinpath(folder, *options.values())} is damaged ({first_line(error)}): "
                f"delete that folder and "
                f"prepare it again: {_remedy(name, root)}"
            ) from None
        if builder.info.file_format.value in RANDOM_ACCESS:
            return builder
        unreadable = unreadable or builder
    if unreadable:
        raise DataError(
            f"{name} in {unreadable.data_path} is in {unreadable.info.file_format.value} format, not in array_record: "
            f"delete that folder and prepare it again: {_remedy(name, root)}"
        )
    raise DataError(f"{name} is not prepared in {root}: {_remedy(name, root)}")


def _prepare_from(name: str, root: pathlib.Path, files: pathlib.Path) -> Any:
    """A data set prepared by our own builder from files of the user."""
    import tensorflow_datasets as tfds

    from subspaces_jax.data.builders import idx, imagenet_c, tiny_imagenet

    family, _, config = name.partition("/")
    if family == "tiny_imagenet":
        builder_class, options = tiny_imagenet.TinyImagenet, {}
    elif family == "imagenet_c":
        builder_class, options = imagenet_c.ImagenetC, {"config": config}
    else:
        config = tfds.core.BuilderConfig(name=name, version=idx.IdxImages.VERSION)
        builder_class, options = idx.IdxImages, {"config": config}
    builder = _prepare(builder_class, root, options | {"folder": files})
    source = pathlib.Path(builder.data_path) / idx.SOURCE
    if source.exists() and source.read_text() != str(files):
        field = "idx_dir" if name in IDX_SETS else "archive"
        raise DataError(
            f"{name} in {source.parent} was prepared from {source.read_text()}, but {field} is {files}: leave {field} "
            "empty to use it, or delete it"
        )
    return builder


def _prepare(builder_class: Any, root: pathlib.Path, options: dict[str, Any]) -> Any:
    """The builder, prepared if it is not. TFDS renames what it wrote at the end, so what is there is whole."""
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
            f"cannot prepare {builder.data_path} ({first_line(error)}): set data_dir to a folder of yours, with room"
        ) from None
    return builder


def _build(builder_class: Any, root: pathlib.Path, options: dict[str, Any]) -> Any:
    try:
        return builder_class(data_dir=str(root), file_format="array_record", **options)
    except Exception as error:  # whatever TFDS makes of damaged metadata, or of another format
        config = options.get("config", "")
        where = root / builder_class.name / getattr(config, "name", config)
        raise DataError(f"{where} is damaged ({first_line(error)}): delete that folder, it is prepared again") from None


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


def _remedy(name: str, root: pathlib.Path) -> str:
    """What the user is to do for a data set that is not prepared."""
    if name == "tiny_imagenet":
        from subspaces_jax.data.builders import tiny_imagenet

        return tiny_imagenet.HINT
    if name.startswith("imagenet_c/"):
        from subspaces_jax.data.builders import imagenet_c

        return imagenet_c.hint(name.removeprefix("imagenet_c/"))
    if name == "imagenet2012":
        manual = 'download_config=tfds.download.DownloadConfig(manual_dir="FOLDER")'
        return f"with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in FOLDER, run {_command(name, root, manual)}"
    from_files = "; or set idx_dir to a folder of its IDX files" if name in IDX_SETS else ""
    return f"run {_command(name, root)}{from_files}"


def _command(name: str, root: pathlib.Path, options: str = "") -> str:
    """Not `tfds build`, which in TFDS 4.9.10 imports Apache Beam and mlcroissant: the library needs TensorFlow only."""
    code = (
        f'import tensorflow_datasets as tfds; tfds.builder("{name}", data_dir={json.dumps(str(root))}, '
        f'file_format="array_record").download_and_prepare({options})'
    )
    return f"pip install -e '.[prepare]' && python -c {shlex.quote(code)}"


def first_line(error: Exception) -> str:
    """What went wrong, short enough for a message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
