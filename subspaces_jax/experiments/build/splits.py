"""The splits of an experiment, each read when it is asked for, and once."""

import dataclasses
from functools import cached_property
from typing import Any, NamedTuple

import jax

from subspaces_jax.data import catalogue, corruption, sources
from subspaces_jax.experiments.build import data as build_data


class Given(NamedTuple):
    """Data that stand in for the data set of a config: what is known of them, and their splits."""

    info: catalogue.DatasetInfo
    train: sources.Arrays
    test: sources.Arrays


@dataclasses.dataclass(frozen=True, eq=False)
class Splits:
    """What an experiment is trained and scored on; arrays, or streams where images are read one by one.

    Attributes:
        settings: which data, and how they are read.
        seed: of the order in which a stream refreshes statistics.
        eval_split: what is scored, of calls.SPLITS.
        given: data in the place of the data set.
        from_catalogue: whether the catalogue's numbers of examples stand for data that are not read.
    """

    settings: build_data.Settings
    seed: int
    eval_split: str
    given: Given | None = None
    from_catalogue: bool = False

    @property
    def info(self) -> catalogue.DatasetInfo:
        return self.given.info if self.given else self.settings.info

    @property
    def streams(self) -> bool:
        """Whether data are read image by image."""
        return self.info.streams

    @cached_property
    def train(self) -> sources.Arrays:
        """The training split, see `build.data.load`."""
        return self.given.train if self.given else build_data.load(self.settings, "train", self.seed, _part())

    @cached_property
    def test(self) -> sources.Arrays:
        """The test split."""
        return self.given.test if self.given else build_data.load(self.settings, "test", self.seed, _part())

    @cached_property
    def validation(self) -> sources.Arrays | None:
        """What is held out of the training split, None where nothing is."""
        if self.given or self.settings.held_out is None:
            return None
        return build_data.load(self.settings, "validation", self.seed, _part())

    @property
    def tested(self) -> str:
        """The split that tests during training score: what is held out, or the test split."""
        return "test" if self.settings.held_out is None else "validation"

    @cached_property
    def scored(self) -> sources.Arrays:
        """The split that evaluation scores; training images without augmentation."""
        return self.scored_split(self.eval_split)

    def scored_split(self, split: str) -> sources.Arrays:
        """A split as evaluation reads it, see `build.data.scored`."""
        if split == "train" and not self.given:
            return self._scored_train
        found = {"train": lambda: self.train, "validation": lambda: self.validation, "test": lambda: self.test}[split]()
        assert found is not None, f"nothing is held out for {split}, which `check` refuses"
        return found

    @cached_property
    def _scored_train(self) -> sources.Arrays:
        """The training split as it is: without augmentation, which is what brings its pixels into another order."""
        if self.streams:
            return build_data.scored(self.settings, "train", _part())
        if self.settings.pixel_seed is None:
            return self.train
        return self.train._replace(images=corruption.pixel_shuffle(self.train.images, self.settings.pixel_seed))

    def info_of(self, dataset: str) -> catalogue.DatasetInfo:
        """What is known of another data set, read as this one is."""
        return self.settings._replace(dataset=dataset).info

    def test_of(self, dataset: str, archive: str) -> sources.Arrays:
        """Another data set's test split, read as this one's is."""
        other = self.settings._replace(dataset=dataset, archive=archive, idx_dir="")
        return build_data.load(other, "test", self.seed, _part())

    def train_streams(self, batch_size: int, num_members: int, start_step: int) -> list[Any]:
        """A stream of training batches for each member, this process' share of each."""
        return [
            build_data.train_stream(self.settings, batch_size, self.seed + m, start_step, _part())
            for m in range(num_members)
        ]

    @property
    def num_examples(self) -> int:
        """Of the training split; where no data are read, as the catalogue says."""
        if self.from_catalogue:
            return self.settings.num_train
        return len(self.train.labels) if self.streams else len(self.train.images)


def _part() -> tuple[int, int]:
    return jax.process_index(), jax.process_count()
