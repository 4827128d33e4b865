"""How each data set comes to be prepared: by a builder of ours, from which files, and what to do where it is not.

A new data set is a row here and one in the catalogue; its builder is a file in `builders`. A data set that has no row
is one of TFDS's catalogue, which TFDS prepares.
"""

import json
import pathlib
import shlex
from collections.abc import Callable
from typing import Any, NamedTuple

SOURCE = "source.txt"  # in a prepared folder: where the user's files were that it was made from


def _by_tfds(name: str, root: pathlib.Path) -> str:
    return f"run {_command(name, root)}"


class Recipe(NamedTuple):
    """How a data set is prepared.

    Attributes:
        builder: (name) -> a TFDS builder class of ours and its options, imported when it is needed, as TFDS takes a
            second to import; None where TFDS's own prepares it.
        files: the field that names what the builder reads, given to it as `folder`: "idx_dir" or "archive"; "" where
            it needs nothing, and the data set is prepared when it is first asked for.
        remedy: (name, root) -> what the user is to do where it is not prepared.
        folder: of the builder in the data directory where it is not the data set's name, which then is its config.
    """

    builder: Callable[[str], tuple[Any, dict[str, Any]]] | None = None
    files: str = ""
    remedy: Callable[[str, pathlib.Path], str] = _by_tfds
    folder: str = ""


def _digits(name: str) -> tuple[Any, dict[str, Any]]:
    from subspaces_jax.data.builders.digits import Digits

    return Digits, {}


def _idx_images(name: str) -> tuple[Any, dict[str, Any]]:
    import tensorflow_datasets as tfds

    from subspaces_jax.data.builders.idx import IdxImages

    return IdxImages, {"config": tfds.core.BuilderConfig(name=name, version=IdxImages.VERSION)}


def _tiny_imagenet(name: str) -> tuple[Any, dict[str, Any]]:
    from subspaces_jax.data.builders.tiny_imagenet import TinyImagenet

    return TinyImagenet, {}


def _imagenet_c(name: str) -> tuple[Any, dict[str, Any]]:
    from subspaces_jax.data.builders.imagenet_c import ImagenetC

    return ImagenetC, {"config": name.partition("/")[2]}


def _celeba(name: str) -> tuple[Any, dict[str, Any]]:
    import tensorflow_datasets as tfds

    from subspaces_jax.data.builders.celeba import Celeba

    config = name.partition("/")[2]
    return Celeba, {"config": tfds.core.BuilderConfig(name=config, version=Celeba.VERSION)} if config else {}


def _functions(name: str) -> tuple[Any, dict[str, Any]]:
    import tensorflow_datasets as tfds

    from subspaces_jax.data import functions
    from subspaces_jax.data.builders.functions import Constant, Sine

    builder = {"constant": Constant, "sine": Sine}[name.partition("/")[0]]
    return builder, {"config": tfds.core.BuilderConfig(name=functions.canonical(name), version=builder.VERSION)}


def _idx_files(name: str, root: pathlib.Path) -> str:
    return f"{_by_tfds(name, root)}; or set idx_dir to a folder of its IDX files"


def _tiny_imagenet_archive(name: str, root: pathlib.Path) -> str:
    from subspaces_jax.data.builders.tiny_imagenet import HINT

    return HINT


def _imagenet_c_archive(name: str, root: pathlib.Path) -> str:
    from subspaces_jax.data.builders.imagenet_c import hint

    return hint(name.partition("/")[2])


def _celeba_folder(name: str, root: pathlib.Path) -> str:
    from subspaces_jax.data.builders.celeba import HINT

    return HINT


def _imagenet_archives(name: str, root: pathlib.Path) -> str:
    manual = 'download_config=tfds.download.DownloadConfig(manual_dir="FOLDER")'
    return f"with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in FOLDER, run {_command(name, root, manual)}"


def _command(name: str, root: pathlib.Path, options: str = "") -> str:
    """Not `tfds build`, which in TFDS 4.9.10 imports Apache Beam and mlcroissant: the library needs TensorFlow only."""
    code = (
        f'import tensorflow_datasets as tfds; tfds.builder("{name}", data_dir={json.dumps(str(root))}, '
        f'file_format="array_record").download_and_prepare({options})'
    )
    return f"pip install -e '.[prepare]' && python -c {shlex.quote(code)}"


_IDX = Recipe(_idx_images, "idx_dir", _idx_files, folder="idx_images")

RECIPES: dict[str, Recipe] = {
    "digits": Recipe(_digits),
    "constant": Recipe(_functions),
    "sine": Recipe(_functions),
    "mnist": _IDX,
    "fashion_mnist": _IDX,
    "kmnist": _IDX,
    "tiny_imagenet": Recipe(_tiny_imagenet, "archive", _tiny_imagenet_archive),
    "celeba": Recipe(_celeba, "archive", _celeba_folder),
    "imagenet_c": Recipe(_imagenet_c, "archive", _imagenet_c_archive),
    "imagenet2012": Recipe(remedy=_imagenet_archives),
}


def recipe(name: str) -> Recipe:
    """How a data set is prepared, by its name, which may end in a config: "imagenet_c/snow_1"."""
    return RECIPES.get(name.partition("/")[0], Recipe())


def made_from(field: str) -> tuple[str, ...]:
    """The data sets that are prepared from what a field names."""
    return tuple(name for name, row in RECIPES.items() if row.files == field)
