"""ImageNet-C as TFDS data sets, one a corruption and severity, made from the published folders of JPEG files."""

import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from subspaces_jax.data import files
from subspaces_jax.data.builders.tiny_imagenet import MAX_BYTES, in_colour
from subspaces_jax.data.recipes import SOURCE
from subspaces_jax.errors import DataError

SHAPE, NUM_CLASSES = (224, 224), 1_000
EXPECTED_FOLDERS = NUM_CLASSES
URL = "https://zenodo.org/records/2235448"
CORRUPTIONS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra": ("speckle_noise", "gaussian_blur", "spatter", "saturate"),
}  # by the tar file that holds them
SEVERITIES = range(1, 6)
CONFIGS = tuple(f"{kind}_{severity}" for kinds in CORRUPTIONS.values() for kind in kinds for severity in SEVERITIES)


class ImagenetC(tfds.core.GeneratorBasedBuilder):
    """The 50,000 validation images of ImageNet, 224x224, under one corruption at one severity: "snow_1".

    There is a test split only. The label of a class is the place of its WordNet id among the 1,000, sorted, as in
    TFDS's imagenet2012. The folder that holds <corruption>/<severity>/<WordNet id>/*.JPEG, which is what the published
    tar files unpack to, is given to the constructor and needed only to prepare.

    Reference: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations,
    2019, arXiv:1903.12261.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in CONFIGS]

    def __init__(self, *, folder: str | pathlib.Path = "", **keywords: Any):
        self._folder = pathlib.Path(folder)
        super().__init__(**keywords)

    def _info(self) -> tfds.core.DatasetInfo:
        image, label = tfds.features.Image(shape=(*SHAPE, 3)), tfds.features.ClassLabel(num_classes=NUM_CLASSES)
        features = tfds.features.FeaturesDict({"image": image, "label": label})
        return self.dataset_info_from_configs(features=features, supervised_keys=("image", "label"))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        labels = image_labels(self._folder, self.builder_config.name)  # all, before anything is written
        pathlib.Path(self.data_dir, SOURCE).write_text(str(self._folder))  # TFDS's temporary folder, renamed at the end
        return {"test": self._generate_examples(labels)}

    def _generate_examples(self, labels: dict[pathlib.Path, int]) -> Iterator[tuple[str, dict[str, Any]]]:
        for path, label in labels.items():
            image = in_colour(_read(path), SHAPE, str(path))
            yield f"{path.parent.name}/{path.name}", {"image": image, "label": label}


def image_labels(folder: pathlib.Path, config: str) -> dict[pathlib.Path, int]:
    """The labels of all images of one corruption and severity, by path.

    Raises:
        DataError: no such folder, another number of classes than 1,000, or a class without images.
    """
    place = folder.joinpath(*config.rsplit("_", 1))
    if not place.is_dir():
        raise DataError(f"there is no {place}: {hint(config)}")
    classes = sorted(path for path in place.iterdir() if path.is_dir())
    if len(classes) != EXPECTED_FOLDERS:  # labels are places in the list, which a missing class would shift
        raise DataError(f"{place} holds {len(classes)} folders of classes, expected {EXPECTED_FOLDERS}: {hint(config)}")
    found = [sorted(path.glob("*.JPEG")) for path in classes]
    if [] in found:
        raise DataError(f"{classes[found.index([])]} holds no .JPEG files: {hint(config)}")
    return {path: label for label, paths in enumerate(found) for path in paths}


def _read(path: pathlib.Path) -> bytes:
    try:
        return files.read(path, MAX_BYTES)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}): unpack the archive again") from None


def hint(config: str) -> str:
    """Where to get the files of one corruption and severity."""
    corruption = config.rsplit("_", 1)[0]
    tar = next(tar for tar, kinds in CORRUPTIONS.items() if corruption in kinds)
    return f"unpack {tar}.tar from {URL} and set archive to the folder that holds {corruption}"
