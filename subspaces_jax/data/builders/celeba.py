"""CelebA's aligned faces as a TFDS data set of 64x64 images without labels, made from its folder of JPEG files."""

import io
import logging
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from subspaces_jax import trees
from subspaces_jax.data import crops, files, images
from subspaces_jax.data.builders import png
from subspaces_jax.data.recipes import SOURCE
from subspaces_jax.errors import DataError

log = logging.getLogger(__name__)

SIDE = 64  # pixels
FOLDER = "img_align_celeba"
ENDINGS = (".jpg", ".jpeg", ".png")
MAX_BYTES = 1 << 20  # of one file; those of 178x218 pixels have about 7,000
HINT = f"set archive to CelebA's folder {FOLDER}, or to the one that holds it"
EXAMPLE = "celeba/test_0.2-skip_unreadable"


class Options(NamedTuple):
    """Attributes:
    test_fraction: of the files, in their order, the last of which are the test split; in (0, 1).
    skip_unreadable: whether files that cannot be read are left out; they are refused otherwise.
    """

    test_fraction: float = 0.25
    skip_unreadable: bool = False


class Celeba(tfds.core.GeneratorBasedBuilder):
    """Faces whose shorter side is resized bilinearly to 64 pixels, and of which the middle 64x64 are cut out.

    Of N files, "2.jpg" before "10.jpg", the last int(N test_fraction) are the test split; of the published 202,599,
    with the usual fraction, 151,950 and 50,649. An unreadable file that is left out moves no other one from split to
    split. The name of the config holds the options, see `options`. The folder of the images, or the one that holds it,
    is given to the constructor and needed only to prepare.

    Reference: Liu et al., Deep Learning Face Attributes in the Wild, 2015, arXiv:1411.7766.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, folder: str | pathlib.Path = "", **keywords: Any):
        self._folder = pathlib.Path(folder)
        super().__init__(**keywords)

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(SIDE, SIDE, 3))
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({"image": image}))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        chosen = options(self.builder_config.name if self.builder_config else "")
        splits = split_files(self._folder, chosen.test_fraction)  # both, before anything is written
        pathlib.Path(self.data_dir, SOURCE).write_text(str(self._folder))  # TFDS's temporary folder, renamed at the end
        return {split: self._generate_examples(paths, chosen.skip_unreadable) for split, paths in splits.items()}

    def _generate_examples(
        self, paths: list[pathlib.Path], skip_unreadable: bool
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        skipped = 0
        for path in paths:
            try:
                image = face(path)
            except DataError as error:
                if not skip_unreadable:
                    raise
                skipped += 1
                log.warning("left out: %s", error)
                continue
            yield path.name, {"image": image}
        if skipped == len(paths):
            raise DataError(f"none of the {skipped} files from {paths[0]} to {paths[-1]} can be read: {HINT}")


def options(config: str) -> Options:
    """The options that the name of a config holds: "test_0.2", "skip_unreadable", both with - between them, or "".

    Raises:
        DataError: it is none of these, or the fraction is not between 0 and 1.
    """
    match = re.fullmatch(r"(?:test_(\d*\.?\d+))?(-?)(skip_unreadable)?", config)
    if not match or bool(match[2]) != bool(match[1] and match[3]) or not 0.0 < float(match[1] or 0.5) < 1.0:
        raise DataError(
            f"data set 'celeba/{config}' is unknown: name the fraction of the files that are the test split, between 0 "
            f"and 1, or that unreadable files are left out, or both, as in {EXAMPLE}"
        )
    return Options(float(match[1] or Options().test_fraction), bool(match[3]))


def split_files(folder: pathlib.Path, test_fraction: float) -> dict[str, list[pathlib.Path]]:
    """The files of each split, in their order.

    Raises:
        DataError: no such folder, or too few images in it for two splits.
    """
    place = next((path for path in (folder / FOLDER, folder) if path.is_dir()), None)
    if place is None:
        raise DataError(f"there is no folder {folder}: {HINT}")
    found = sorted((path for path in place.iterdir() if path.suffix.lower() in ENDINGS), key=_natural)
    num_test = int(len(found) * test_fraction)
    if not 0 < num_test < len(found):
        raise DataError(
            f"{place} holds {len(found)} images ({', '.join(ENDINGS)}), of which a test fraction of {test_fraction} "
            f"takes {num_test}: {HINT}"
        )
    return {"train": found[:-num_test], "test": found[-num_test:]}


def face(path: pathlib.Path) -> io.BytesIO:
    """The middle of an image as a PNG file.

    Raises:
        DataError: it cannot be read or decoded, or is smaller than what is cut out.
    """
    remedy = "fetch it again, or leave such files out with celeba/skip_unreadable"
    try:
        content = files.read(path, MAX_BYTES)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}): {remedy}") from None
    with images.opened(content, str(path), remedy) as image:
        if min(image.size) < SIDE:
            width, height = image.size
            raise DataError(f"{path} has {height}x{width} pixels, fewer than {SIDE}x{SIDE}: {remedy}")
        return png.encode(crops.middle_crop(image, SIDE, SIDE))


def _natural(path: pathlib.Path) -> tuple[list[Any], str]:
    """Numbers within names by their value."""
    return trees.natural(path.name), path.name
