"""Data sets as TFDS builders: found where they are prepared, or prepared where that needs only what is at hand."""

import contextlib
import fcntl
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from subspaces_jax.data import files
from subspaces_jax.data.catalogue import check_known, info
from subspaces_jax.data.recipes import SOURCE, made_from, recipe
from subspaces_jax.errors import DataError, first_line

SPLITS = ("train", "test")
RANDOM_ACCESS = ("array_record", "parquet")


def builder_of(name: str, split: str, data_dir: str | None, idx_dir: str | None, archive: str | None) -> Any:
    """The TFDS builder of a data set; prepares it where that needs nothing but what is at hand."""
    check_known("split", split, SPLITS)
    made = recipe(name)
    for field, value in (("idx_dir", idx_dir), ("archive", archive)):
        if value and made.files != field:
            raise DataError(f"{field} is for {', '.join(made_from(field))}, not for {name}: leave it empty")
    if split == "train" and not info(name).num_train:
        raise DataError(
            f"{name} has no train split: train on clean data, imagenet2012, and take batch norm's statistics there"
        )
    root = pathlib.Path(data_dir or _default_data_dir()).expanduser().absolute()
    if made.builder and not made.files:
        builder_class, options = made.builder(name)
        return _prepare(builder_class, root, options)
    if given := idx_dir or archive:
        return _prepare_from(name, root, pathlib.Path(given).expanduser().absolute())
    return _find(name, root)


def _find(name: str, root: pathlib.Path) -> Any:
    """A data set that TFDS has prepared, or that we have prepared from files."""
    import tensorflow_datasets as tfds  # a second, and only reading data needs it

    family, _, config = name.partition("/")
    places = [(family, {"config": config} if config else {})]
    if made := recipe(name).folder:
        places.append((made, {"config": name}))
    unreadable = None
    for folder, options in places:
        _check_regular(root.joinpath(folder, *options.values()))
        try:
            builder = tfds.core.read_only_builder.builder_from_files(folder, data_dir=root, **options)
        except tfds.core.DatasetNotFoundError:
            continue
        except Exception as error:  # whatever TFDS makes of damaged or missing metadata
            raise DataError(
                f"{name} in {root.joinpath(folder, *options.values())} is damaged ({first_line(error)}): "
                f"delete that folder and "
                f"prepare it again: {recipe(name).remedy(name, root)}"
            ) from None
        if builder.info.file_format.value in RANDOM_ACCESS:
            return builder
        unreadable = unreadable or builder
    if unreadable:
        raise DataError(
            f"{name} in {unreadable.data_path} is in {unreadable.info.file_format.value} format, not in array_record: "
            f"delete that folder and prepare it again: {recipe(name).remedy(name, root)}"
        )
    raise DataError(f"{name} is not prepared in {root}: {recipe(name).remedy(name, root)}")


def _prepare_from(name: str, root: pathlib.Path, given: pathlib.Path) -> Any:
    """A data set prepared by our own builder from files of the user."""
    made = recipe(name)
    assert made.builder is not None, f"{name} is prepared by TFDS"
    builder_class, options = made.builder(name)
    builder = _prepare(builder_class, root, options | {"folder": given})
    source = pathlib.Path(builder.data_path) / SOURCE
    if source.exists() and source.read_text() != str(given):
        raise DataError(
            f"{name} in {source.parent} was prepared from {source.read_text()}, but {made.files} is {given}: leave "
            f"{made.files} empty to use it, or delete it"
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
    config = options.get("config", "")
    where = root / builder_class.name / getattr(config, "name", config)
    _check_regular(where)
    try:
        return builder_class(data_dir=str(root), file_format="array_record", **options)
    except Exception as error:  # whatever TFDS makes of damaged metadata, or of another format
        if not where.exists():
            raise  # of the builder's own code
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
    with open(root / ".subspaces_jax.lock", "a", opener=_without_waiting) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # for whoever reads what may be a named pipe


def _default_data_dir() -> str:
    return os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")


def _check_regular(folder: pathlib.Path) -> None:
    """Refuses what would keep its reader waiting among the files of a prepared data set."""
    for place, _, names in os.walk(folder):
        for path in (pathlib.Path(place, name) for name in names):
            try:
                files.check_regular(path)
            except FileNotFoundError:
                continue  # another process, which prepares it, has renamed its folder
            except OSError as error:
                raise DataError(
                    f"{path} cannot be read ({first_line(error)}): delete that folder and prepare it again"
                ) from None
