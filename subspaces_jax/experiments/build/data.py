"""The data of an experiment: splits in memory or as streams, corrupted as the config says."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from subspaces_jax.data import catalogue, corruption, images, sources, subsets
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import choices
from subspaces_jax.experiments.calls import CLASSES, HOLDOUTS


class Settings(NamedTuple):
    """What data are read, and how; fields of a config by their names."""

    dataset: str
    data_dir: str
    idx_dir: str
    archive: str
    image_size: int
    image_padding: int
    classes: str
    validation: str
    shuffle: bool
    crops: str
    stream: bool
    num_train_examples: int
    train_fraction: float
    label_noise: float
    label_noise_kind: str
    pixel_shuffle: bool
    pixel_orders: str
    corruption_seed: int
    num_workers: int
    num_refresh_batches: int
    eval_batch_size: int

    @property
    def info(self) -> catalogue.DatasetInfo:
        """What is known of the data set before it is read, as it is used: sizes of images, classes, and the numbers of
        examples, which of some classes are as many as if all had as many."""
        known, chosen = catalogue.info(self.dataset), self.chosen_classes
        changed: dict[str, Any] = {"streams": known.streams or self.stream}
        if self.image_size or self.image_padding:
            height, width, channels = known.image_shape
            height, width = (self.image_size or side for side in (height, width))
            changed["image_shape"] = (height + 2 * self.image_padding, width + 2 * self.image_padding, channels)
        if chosen is not None:
            changed["num_classes"] = len(chosen)
            share = len(chosen) / known.num_classes
            changed |= {name: int(share * getattr(known, name)) for name in ("num_train", "num_test")}
        return dataclasses.replace(known, **changed)

    @property
    def num_train(self) -> int:
        """Examples to train on, as far as is known before data are read."""
        num, options = self.first_of(self.info.num_train), {"fraction": 0.1}
        if self.held_out is None:
            return num
        options |= choices.options("validation", self.validation, HOLDOUTS)
        return num - int(num * options["fraction"])

    def first_of(self, num: int) -> int:
        """How many of `num` training examples are used, those that are held out included."""
        return self.num_train_examples or int(self.train_fraction * num)

    @property
    def chosen_classes(self) -> np.ndarray | None:
        """The classes that are used, in the order of their new labels; None for all."""
        chosen = choices.make("classes", self.classes, CLASSES)
        return chosen and chosen(catalogue.info(self.dataset).num_classes)

    @property
    def held_out(self) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None:
        """labels -> rows to train on, and rows for validation; None where nothing is held out."""
        return choices.make("validation", self.validation, HOLDOUTS)

    @property
    def whole_shape(self) -> tuple[int, ...] | None:
        """Of the images of a stream that are whole; None where they are crops, being of all sizes."""
        return None if catalogue.info(self.dataset).streams else self.info.image_shape

    @property
    def resize(self) -> int:
        """Pixels of the shorter side of images whose middle is taken."""
        crop = self.info.image_shape[0]
        return crop if self.dataset.startswith("imagenet_c") else round(crop / 0.875)  # ImageNet-C's are such crops

    @property
    def folders(self) -> dict[str, str | None]:
        """Where it is, as `sources` takes it."""
        return {name: getattr(self, name) or None for name in ("data_dir", "idx_dir", "archive")}

    @property
    def own_orders(self) -> bool:
        """Whether each training image carries an order of its pixels."""
        return self.pixel_shuffle and self.pixel_orders == "own"

    @property
    def pixel_seed(self) -> int | None:
        """Of `corruption.pixel_shuffle`, one order for all; None where there is none."""
        return self.corruption_seed if self.pixel_shuffle and not self.own_orders else None


def load(settings: Settings, split: str, seed: int, part: tuple[int, int] = (0, 1)) -> sources.Arrays:
    """One split, corrupted as the config says: training labels, and pixels of the other splits.

    Pixels of training images are shuffled after augmentation, by it, see `model`; where each has an order of its own,
    it carries it, see `corruption.with_orders`, and those of other splits stay.

    NumPy arrays; of a data set that streams, images are a function that begins one pass, see `evaluation`, in training
    form for "train", and the training labels, which only training reads, are not there ([N] zeros).

    Args:
        split: "train", "validation" or "test".
        seed: of the order in which a stream of training images refreshes statistics.
        part: (p, P), the share of every streamed batch that process p of P gives.
    """
    if settings.info.streams:
        return _of_training(settings, seed, part) if split == "train" else scored(settings, split, part)
    inputs, labels = sources.load(settings.dataset, _source_split(split), **settings.folders)
    rows, labels = _rows(settings, split, labels, len(inputs))
    inputs = inputs if rows is None else inputs[rows]
    if settings.image_size or settings.image_padding:
        inputs = images.all_resized(inputs, settings.info.image_shape, settings.image_padding)
    if split == "train":
        labels = _noisy(settings, labels)
        inputs = corruption.with_orders(inputs, settings.corruption_seed) if settings.own_orders else inputs
    elif settings.pixel_seed is not None:
        inputs = corruption.pixel_shuffle(inputs, settings.pixel_seed)
    return sources.Arrays(inputs, labels)


def scored(settings: Settings, split: str, part: tuple[int, int] = (0, 1)) -> sources.Arrays:
    """One split as evaluation reads it: `load`, of a data set that streams without augmentation and with labels."""
    if not settings.info.streams:
        return load(settings, split, 0, part)
    from subspaces_jax.data import stream

    source, size, crop = _source(settings, split), settings.eval_batch_size, settings.info.image_shape[0]
    options: dict[str, Any] = {"shape": settings.whole_shape, "padding": settings.image_padding}
    options |= {"pixel_seed": settings.pixel_seed, "num_workers": settings.num_workers}
    begin = partial(stream.eval_stream, source, size, resize=settings.resize, crop=crop, part=part, **options)
    return sources.Arrays(begin, source.labels() if split != "train" else _noisy(settings, source.labels()))


def train_stream(
    settings: Settings, batch_size: int, seed: int, start_step: int = 0, part: tuple[int, int] = (0, 1)
) -> Any:
    """The training batches of a data set that streams, from `start_step` on; see `data.stream`.

    Args:
        batch_size: of the whole batch.
        seed: of order, crops and mirroring.
        start_step: batches to leave out.
        part: (p, P), the share of every batch that process p of P reads.
    """
    from subspaces_jax.data import stream  # Grain takes a second to import

    info, source, relabel = settings.info, _source(settings, "train"), None
    if settings.label_noise and settings.label_noise_kind == "wrong":
        relabel = _noisy(settings, source.labels())
    elif settings.label_noise:
        relabel = corruption.label_noise(len(source), settings.label_noise, info.num_classes, settings.corruption_seed)
    return stream.train_stream(
        source,
        batch_size,
        image_size=info.image_shape[0],
        resize=settings.resize if settings.crops == "middle" else None,
        shape=settings.whole_shape,
        padding=settings.image_padding,
        shuffle=settings.shuffle,
        seed=seed,
        relabel=relabel,
        pixel_seed=settings.pixel_seed,
        start_step=start_step,
        num_workers=settings.num_workers,
        part=part,
    )


def _source_split(split: str) -> str:
    return "test" if split == "test" else "train"


def _rows(settings: Settings, split: str, labels: Any, num: int) -> tuple[np.ndarray | None, Any]:
    """The examples of a split of the source that are used, in their order (None for all), and their labels."""
    rows, chosen = None, settings.chosen_classes
    if chosen is not None:
        rows, labels = subsets.of_classes(labels, chosen)
        num = len(rows)
    if split == "test":
        return rows, labels
    if settings.num_train_examples > num:
        raise ConfigError(
            f"config.num_train_examples is {settings.num_train_examples}, but {settings.dataset} has {num}: at most "
            "that"
        )
    if not (used := settings.first_of(num)):
        raise ConfigError(
            f"config.train_fraction is {settings.train_fraction}, which of {num} examples leaves none: raise it"
        )
    if used < num or settings.held_out is not None:
        kept = np.arange(used)
        if settings.held_out is not None:
            kept = np.sort(
                settings.held_out(labels[kept] if isinstance(labels, np.ndarray) else kept)[split == "validation"]
            )
        rows = kept if rows is None else rows[kept]
        labels = labels[kept] if isinstance(labels, np.ndarray) else labels
    return rows, labels


def _noisy(settings: Settings, labels: Any) -> Any:
    if not settings.label_noise:
        return labels
    noisy = corruption.wrong_labels if settings.label_noise_kind == "wrong" else corruption.noisy_labels
    return noisy(labels, settings.label_noise, settings.info.num_classes, settings.corruption_seed)


def _source(settings: Settings, split: str) -> Any:
    """A split of a data set that streams, by the examples that are used."""
    for name, all_of_them in (("num_train_examples", 0), ("train_fraction", 1.0)):
        if getattr(settings, name) != all_of_them:
            raise ConfigError(
                f"config.{name} is for data sets that fit on the device, {settings.dataset} streams: "
                f"set it to {all_of_them}"
            )
    source = sources.open_source(settings.dataset, _source_split(split), **settings.folders)
    if settings.chosen_classes is None and (split == "test" or settings.held_out is None):
        return source
    labels = source.labels()
    rows, labels = _rows(settings, split, labels, len(source))
    return (
        source if rows is None else subsets.Selected(source, rows, labels if isinstance(labels, np.ndarray) else None)
    )


def _of_training(settings: Settings, seed: int, part: tuple[int, int]) -> sources.Arrays:
    source, size = _source(settings, "train"), settings.eval_batch_size
    most = len(source) // size
    begin = partial(_some, settings, size, seed, min(settings.num_refresh_batches or most, most), part)
    return sources.Arrays(begin, np.zeros(len(source), np.int32))


def _some(settings: Settings, batch_size: int, seed: int, num_batches: int, part: tuple[int, int]) -> Iterator[Any]:
    stream = train_stream(settings, batch_size, seed, part=part)
    try:
        yield from itertools.islice(stream, num_batches)
    finally:
        stream.close()
