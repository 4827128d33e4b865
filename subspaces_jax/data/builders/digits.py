"""Scikit-learn's digits as a TFDS data set: real scans that come with a Python package."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from subspaces_jax.data.builders import png

TEST_EVERY = 5


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 grey 8x8 images of handwritten digits, levels 0 to 16 scaled to 0 to 255.

    Every fifth image of scikit-learn's order is in the test split (360), the others in the train split (1,437). The
    order goes through the writers one after another, so the same writers are on both sides.

    Reference: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": tfds.features.Image(shape=(8, 8, 1)), "label": tfds.features.ClassLabel(num_classes=10)}
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {"train": self._generate_examples(False), "test": self._generate_examples(True)}

    def _generate_examples(self, test: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        from sklearn.datasets import load_digits  # a second to import, and only preparing needs it

        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)
        for i, (image, label) in enumerate(zip(images, digits.target)):
            if (i % TEST_EVERY == 0) == test:
                yield i, {"image": png.encode(image), "label": int(label)}
