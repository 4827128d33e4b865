"""The data of an experiment: splits in memory or as streams, corrupted as the config says."""

import dataclasses
import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from subspaces_jax.data import catalogue, corruption, images, sources
from subspaces_jax.errors import ConfigError


class Settings(NamedTuple):
    """What data are read, and how; fields of a config by their names."""

    dataset: str
    data_dir: str
    idx_dir: str
    archive: str
    image_size: int
    stream: bool
    num_train_examples: int
    train_fraction: float
    label_noise: float
    pixel_shuffle: bool
    corruption_seed: int
    num_workers: int
    num_refresh_batches: int
    eval_batch_size: int

    @property
    def info(self) -> catalogue.DatasetInfo:
        """What is known of the data set before it is read, its images being of `image_size`."""
        known = catalogue.info(self.dataset)
        size = (self.image_size, self.image_size, known.image_shape[-1]) if self.image_size else known.image_shape
        return dataclasses.replace(known, image_shape=size, streams=known.streams or self.stream)

    @property
    def whole_shape(self) -> tuple[int, ...] | None:
        """Of the images of a stream that are whole; None where they are crops, being of all sizes."""
        return None if catalogue.info(self.dataset).streams else self.info.image_shape

    def num_train(self, total: int) -> int:
        """How many of `total` training examples are used."""
        return self.num_train_examples or int(self.train_fraction * total)

    @property
    def folders(self) -> dict[str, str | None]:
        """Where it is, as `sources` takes it."""
        return {name: getattr(self, name) or None for name in ("data_dir", "idx_dir", "archive")}

    @property
    def pixel_seed(self) -> int | None:
        """Of `corruption.pixel_shuffle`; None leaves pixels where they are."""
        return self.corruption_seed if self.pixel_shuffle else None


def load(settings: Settings, split: str, seed: int, part: tuple[int, int] = (0, 1)) -> sources.Arrays:
    """One split, corrupted as the config says: training labels, and pixels of the test split.

    Pixels of training images are shuffled after augmentation, by it, see `model`.

    NumPy arrays; of a data set that streams, images are a function that begins one pass, see `evaluation`, in training
    form for "train", and the training labels, which only training reads, are not there ([N] zeros).

    Args:
        split: "train" or "test".
        seed: of the order in which a stream of training images refreshes statistics.
        part: (p, P), the share of every streamed batch that process p of P gives.
    """
    if settings.info.streams:
        return _streamed(settings, split, seed, part)
    inputs, labels = sources.load(settings.dataset, split, **settings.folders)
    if split == "train":
        num = settings.num_train(len(inputs))
        if num < 1:
            raise ConfigError(
                f"config.train_fraction is {settings.train_fraction}, which of {len(inputs)} examples leaves none: "
                "raise it"
            )
        if num > len(inputs):
            raise ConfigError(
                f"config.num_train_examples is {num}, but {settings.dataset} has {len(inputs)}: at most that"
            )
        inputs, labels = inputs[:num], labels[:num]
    if settings.image_size:
        inputs = _resized(inputs, settings.info.image_shape)
    if split == "train":
        if settings.label_noise:
            labels = corruption.noisy_labels(
                labels, settings.label_noise, settings.info.num_classes, settings.corruption_seed
            )
    elif settings.pixel_shuffle:
        inputs = corruption.pixel_shuffle(inputs, settings.corruption_seed)
    return sources.Arrays(inputs, labels)


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
    if settings.label_noise:
        relabel = corruption.label_noise(len(source), settings.label_noise, info.num_classes, settings.corruption_seed)
    return stream.train_stream(
        source,
        batch_size,
        image_size=info.image_shape[0],
        shape=settings.whole_shape,
        seed=seed,
        relabel=relabel,
        pixel_seed=settings.pixel_seed,
        start_step=start_step,
        num_workers=settings.num_workers,
        part=part,
    )


def _resized(pixels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Images uint8 [N, H, W, channels] in another (H, W), see `images.resized`."""
    found = np.empty((len(pixels), *shape), np.uint8)
    for i, image in enumerate(pixels):
        found[i] = images.resized(Image.fromarray(image.squeeze(-1) if shape[-1] == 1 else image), shape)
    return found


def _source(settings: Settings, split: str) -> Any:
    for name, all_of_them in (("num_train_examples", 0), ("train_fraction", 1.0)):
        if getattr(settings, name) != all_of_them:
            raise ConfigError(
                f"config.{name} is for data sets that fit on the device, {settings.dataset} streams: "
                f"set it to {all_of_them}"
            )
    return sources.open_source(settings.dataset, split, **settings.folders)


def _streamed(settings: Settings, split: str, seed: int, part: tuple[int, int]) -> sources.Arrays:
    from subspaces_jax.data import stream

    source, size = _source(settings, split), settings.eval_batch_size
    if split == "train":
        most = len(source) // size
        begin = partial(_some, settings, size, seed, min(settings.num_refresh_batches or most, most), part)
        return sources.Arrays(begin, np.zeros(len(source), np.int32))
    crop = settings.info.image_shape[0]
    # ImageNet-C's files are such crops themselves
    resize = crop if settings.dataset.startswith("imagenet_c") else round(crop / 0.875)
    options = {"resize": resize, "crop": crop, "pixel_seed": settings.pixel_seed, "num_workers": settings.num_workers}
    begin = partial(stream.eval_stream, source, size, shape=settings.whole_shape, part=part, **options)
    if settings.info.label == "none":
        return sources.Arrays(begin, ())
    dtype = np.int32 if settings.info.label == "class" else np.float32
    return sources.Arrays(begin, np.array([label for _, label in source], dtype))


def _some(settings: Settings, batch_size: int, seed: int, num_batches: int, part: tuple[int, int]) -> Iterator[Any]:
    stream = train_stream(settings, batch_size, seed, part=part)
    try:
        yield from itertools.islice(stream, num_batches)
    finally:
        stream.close()
