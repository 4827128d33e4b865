"""Batches of encoded images streamed from disk through Grain, for data sets that do not fit on the device.

A training batch is a function of the seed and of its number alone, whoever decodes it. So the state of a stream is one
number, a stream may go on with other workers than it began with, and processes may share a batch, each decoding a part.
"""

import contextlib
import dataclasses
import functools
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import grain
import numpy as np
from absl import flags
from PIL import Image

from subspaces_jax.data import batches, corruption, crops, images
from subspaces_jax.data.sources import Label
from subspaces_jax.errors import CheckpointError, ConfigError

Source = Sequence[tuple[bytes, Label]]  # encoded images and their labels, as of sources.open_source


class Batch(NamedTuple):
    """images: uint8 [B, H, W, channels]; labels: int32 [B], or float32 [B, ...] where they are real values, or () where
    there are none; mask: bool [B], False where a last batch is filled up."""

    images: np.ndarray
    labels: np.ndarray | tuple[()]
    mask: np.ndarray


class Stream:
    """An iterator of batches whose state is how many of them it has given.

    Batches are made ahead by threads of this process, or by worker processes where Python's lock slows threads down.
    Workers import the program's main module: keep what it does under `if __name__ == "__main__"`.

    Args:
        dataset: the batches by their number.
        start_step: batches to leave out at the beginning, at no cost.
        num_workers: processes, each at work on one batch at a time; 0 for threads.
        num_threads: threads where num_workers is 0; None for one a core.
    """

    def __init__(
        self, dataset: grain.MapDataset, start_step: int = 0, num_workers: int = 0, num_threads: int | None = None
    ):
        if start_step < 0 or num_workers < 0 or (num_threads or 1) < 1:
            raise ConfigError(
                f"start_step is {start_step}, num_workers {num_workers} and num_threads {num_threads}: none may be "
                "negative, and num_threads is at least 1, or None for one a core"
            )
        self._dataset, self._step = dataset, start_step
        self._num_workers, self._num_threads = num_workers, num_threads or os.cpu_count() or 1
        self._iterator: grain.DatasetIterator | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = self._start()
        batch = next(self._iterator)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """{"step": batches given so far, start_step included}, to be kept in a checkpoint."""
        return {"step": self._step}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to where a stream of the same arguments was when this was its state."""
        step = state.get("step") if isinstance(state, dict) else None
        if not isinstance(step, int) or step < 0:
            raise CheckpointError(f'the state of a data stream is {state!r}, expected {{"step": a number of batches}}')
        self.close()
        self._step = step

    def close(self) -> None:
        """Ends threads and processes; the next batch starts new ones."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _start(self) -> grain.DatasetIterator:
        threads = 0 if self._num_workers else self._num_threads
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        remaining = self._dataset.slice(slice(self._step, None)).to_iter_dataset(options)
        if self._num_workers:
            if not flags.FLAGS.is_parsed():  # as in notebooks; Grain reads flags of its own before it starts workers
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(self._num_workers, per_worker_buffer_size=2)
            remaining = remaining.mp_prefetch(options)
        return iter(remaining)


def train_stream(
    source: Source,
    batch_size: int,
    *,
    image_size: int = 224,
    resize: int | None = None,
    shape: tuple[int, ...] | None = None,
    padding: int = 0,
    shuffle: bool = True,
    seed: int = 0,
    relabel: np.ndarray | None = None,
    pixel_seed: int | None = None,
    start_step: int = 0,
    part: tuple[int, int] = (0, 1),
    num_workers: int = 0,
    num_threads: int | None = None,
) -> Stream:
    """Endless batches, in a new order each epoch, of random crops that are mirrored with probability 1/2.

    A crop is 8 to 100 % of the image's area at an aspect of 3:4 to 4:3, resized bilinearly. What does not fill a batch
    at the end of an epoch is left out.

    Args:
        source: encoded images and labels by index, all of them in each process.
        batch_size: B, of the whole batch.
        image_size: H and W of the batches, pixels.
        resize: pixels of the shorter side of images whose middle is cut out, as in eval_stream, in the place of random
            crops and mirroring; None for those.
        shape: (H, W, channels) of images that are neither cropped nor mirrored, but resized where they are of another
            size (see `images.resized`); in the place of image_size.
        padding: of these, black pixels on each side.
        shuffle: whether the order is a new one each epoch, not that of the source in all of them.
        seed: of order, crops and mirroring.
        relabel: int32 [N], as of `corruption.label_noise`: labels that replace the source's where not negative.
        pixel_seed: of `corruption.pixel_shuffle`, after all else; None leaves pixels where they are.
        start_step, num_workers, num_threads: as in Stream.
        part: (p, P) for the p-th of P equal parts of each batch, rows p B / P to (p + 1) B / P of what one process
            gets, where P processes share it; only these are decoded.

    Raises:
        DataError: the source has fewer examples than a batch; from the stream, an image that cannot be decoded.
        ConfigError: relabel has another length than the source, B is no multiple of P, or the crop is larger than what
            it is cut from.

    Reference: Szegedy et al., Going Deeper with Convolutions, 2014, arXiv:1409.4842, for the crops.
    """
    steps = batches.steps_per_epoch(len(source), batch_size)  # refuses a batch larger than the data
    if relabel is not None and np.shape(relabel) != (len(source),):
        raise ConfigError(f"relabel has shape {np.shape(relabel)} for {len(source)} examples: give each a label or -1")
    examples = grain.MapDataset.source(source).map_with_index(functools.partial(_indexed, len(source), relabel))
    if shuffle:
        examples = examples.shuffle(_named_seed(seed, "order"))
    if shape:
        examples = examples.map(functools.partial(_whole_example, shape, padding))
    else:
        shape = (image_size, image_size, 3)
        if resize is None:
            examples = examples.random_map(
                functools.partial(_train_example, image_size), seed=_named_seed(seed, "crops")
            )
        else:
            examples = examples.map(_middle(resize, image_size))
    batch = _Batches(source, examples, batch_size, steps, _rows(batch_size, part), shape, pixel_seed)
    return Stream(grain.MapDataset.range(sys.maxsize).map(batch), start_step, num_workers, num_threads)


def eval_stream(
    source: Source,
    batch_size: int,
    *,
    resize: int = 256,
    crop: int = 224,
    shape: tuple[int, ...] | None = None,
    padding: int = 0,
    pixel_seed: int | None = None,
    part: tuple[int, int] = (0, 1),
    num_workers: int = 0,
    num_threads: int | None = None,
) -> Stream:
    """Every example once and in order, its shorter side resized bilinearly to `resize` and the middle cut out.

    Args:
        source: encoded images and labels by index, all of them in each process.
        batch_size: B, of the whole batch; the last one is filled up with zeros, where its mask is False.
        resize, crop: pixels; equal ones leave images of that size as they are.
        shape: of images that are not cropped, in the place of both, as in train_stream.
        padding, pixel_seed, part: as in train_stream. A part of the last batch may be zeros alone.
        num_workers, num_threads: as in Stream.

    Raises:
        ConfigError: the crop is larger than what it is cut from, or B is no multiple of P.
        DataError: from the stream, an image that cannot be decoded.
    """
    cropped = _middle(resize, crop)
    whole = functools.partial(_whole_example, shape or (), padding)
    examples = (
        grain.MapDataset.source(source)
        .map_with_index(functools.partial(_indexed, len(source), None))
        .map(whole if shape else cropped)
    )
    rows = _rows(batch_size, part)
    steps = -(-len(source) // batch_size)
    batch = _Batches(source, examples, batch_size, steps, rows, shape or (crop, crop, 3), pixel_seed)
    return Stream(grain.MapDataset.range(steps).map(batch), 0, num_workers, num_threads)


@dataclasses.dataclass(frozen=True)
class _Batches:
    """A batch, or some rows of it, by its number."""

    source: Source
    examples: grain.MapDataset  # of single images, decoded when they are asked for
    batch_size: int
    steps: int  # an epoch
    rows: range  # of each batch, those that are read
    shape: tuple[int, ...]  # of an image
    pixel_seed: int | None

    def __call__(self, step: int) -> Batch:
        num, (epoch, step) = len(self.source), divmod(step, self.steps)
        places = [step * self.batch_size + row for row in self.rows]
        # Grain counts on through the epochs: it draws order and crops by epoch * num + place
        found = [self.examples[epoch * num + place] for place in places if place < num]
        pixels = np.zeros((len(places), *self.shape), np.uint8)
        for i, (image, _) in enumerate(found):
            pixels[i] = image
        if self.pixel_seed is not None:
            pixels = corruption.pixel_shuffle(pixels, self.pixel_seed)
        like = found[0][1] if found else self.source[0][1]
        return Batch(pixels, _stacked([label for _, label in found], like, len(places)), np.array(places) < num)


def _rows(batch_size: int, part: tuple[int, int]) -> range:
    """The rows of a batch that are one of its equal parts."""
    index, num_parts = part
    if not 0 <= index < num_parts:
        raise ConfigError(f"part is {part}: it is a process's number, from 0, and the number of processes")
    if batch_size < 1 or batch_size % num_parts:
        raise ConfigError(
            f"batch_size is {batch_size} for {num_parts} processes: choose a multiple of {num_parts}, of which each "
            "reads the same number of examples"
        )
    size = batch_size // num_parts
    return range(index * size, (index + 1) * size)


def _stacked(labels: list[Label], like: Label, num: int) -> np.ndarray | tuple[()]:
    """The labels of `num` rows, filled up with zeros; all of them are of the form of `like`."""
    if isinstance(like, tuple):
        return ()
    dtype = np.int32 if isinstance(like, int | np.integer) else np.float32
    stacked = np.zeros((num, *np.shape(like)), dtype)
    for i, label in enumerate(labels):
        stacked[i] = label
    return stacked


def _indexed(
    num: int, relabel: np.ndarray | None, index: int, example: tuple[bytes, Label]
) -> tuple[int, bytes, Label]:
    index, (content, label) = index % num, example  # it counts on through the epochs
    return index, content, label if relabel is None or relabel[index] < 0 else int(relabel[index])


def _train_example(size: int, example: tuple[int, bytes, Label], rng: np.random.Generator) -> tuple[np.ndarray, Label]:
    index, content, label = example
    with _opened(index, content) as image:
        return crops.random_crop(image, size, rng), label


def _middle(resize: int, crop: int) -> Callable[[tuple[int, bytes, Label]], tuple[np.ndarray, Label]]:
    """Of an example, the middle of its image."""
    if not 1 <= crop <= resize:
        raise ConfigError(f"crop is {crop} and resize {resize}: the crop is cut from the resized image, lower it")
    return functools.partial(_middle_example, resize, crop)


def _middle_example(resize: int, crop: int, example: tuple[int, bytes, Label]) -> tuple[np.ndarray, Label]:
    index, content, label = example
    with _opened(index, content) as image:
        return crops.middle_crop(image, resize, crop), label


def _whole_example(shape: tuple[int, ...], padding: int, example: tuple[int, bytes, Label]) -> tuple[np.ndarray, Label]:
    index, content, label = example
    with _opened(index, content) as image:
        return images.resized(image, shape, padding), label


def _opened(index: int, content: bytes) -> contextlib.AbstractContextManager[Image.Image]:
    return images.opened(content, f"image {index} of the source", "prepare the data again")


def _named_seed(seed: int, name: str) -> int:
    """The 32 bits that Grain takes. It adds the epoch to the seed of a shuffle: given the run's own, runs of seeds next
    to each other would share orders."""
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0])
