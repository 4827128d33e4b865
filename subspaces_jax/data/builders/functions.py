"""Values of functions of one variable as TFDS data sets of real inputs and real labels, see `data.functions`."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from subspaces_jax.data import functions


class Constant(tfds.core.GeneratorBasedBuilder):
    """One value for all inputs. The name of the config holds the options, see `functions.options`."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        real = lambda *shape: tfds.features.Tensor(shape=shape, dtype=np.float32)
        features = {"image": real(1), "label": real()}  # inputs are "image" in every data set
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        name = f"{self.name}/{self.builder_config.name}"
        inputs, values = functions.examples(name)
        start = len(inputs) - functions.options(name).num_test
        splits = {"train": range(start), "test": range(start, len(inputs))}
        return {split: self._generate_examples(inputs, values, rows) for split, rows in splits.items()}

    def _generate_examples(
        self, inputs: np.ndarray, values: np.ndarray, rows: range
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for i in rows:
            yield i, {"image": inputs[i], "label": values[i]}


class Sine(Constant):
    """A sine of its inputs, likewise."""
