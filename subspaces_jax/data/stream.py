"""Batches of encoded images streamed from disk through Grain, for data sets that do not fit on the device.

A training batch is a function of the seed and of its number alone, whoever decodes it. So the state of a stream is one
number, and a stream may go on with other workers than it began with.
"""

import contextlib
import functools
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import grain
import numpy as np
from absl import flags
from PIL import Image

from subspaces_jax.data import batches, corruption
from subspaces_jax.errors import CheckpointError, ConfigError, DataError

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # of a training crop: fraction of the image, width over height
ATTEMPTS = 10  # draws of a crop before the largest one in the middle is taken

Source = Sequence[tuple[bytes, int]]  # encoded images and their labels, as of sources.open_source


class Batch(NamedTuple):
    """images: uint8 [B, H, W, 3]; labels: int32 [B]; mask: bool [B], False where a last batch is filled up."""

    images: np.ndarray
    labels: np.ndarray
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
    seed: int = 0,
    relabel: np.ndarray | None = None,
    pixel_seed: int | None = None,
    start_step: int = 0,
    num_workers: int = 0,
    num_threads: int | None = None,
) -> Stream:
    """Endless batches, in a new order each epoch, of random crops that are mirrored with probability 1/2.

    A crop is 8 to 100 % of the image's area at an aspect of 3:4 to 4:3, resized bilinearly. What does not fill a batch
    at the end of an epoch is left out.

    Args:
        source: encoded images and labels by index.
        batch_size: B.
        image_size: H and W of the batches, pixels.
        seed: of order, crops and mirroring.
        relabel: int32 [N], as of `corruption.label_noise`: labels that replace the source's where not negative.
        pixel_seed: of `corruption.pixel_shuffle`, after all else; None leaves pixels where they are.
        start_step, num_workers, num_threads: as in Stream.

    Raises:
        DataError: the source has fewer examples than a batch; from the stream, an image that cannot be decoded.
        ConfigError: relabel has another length than the source.

    Reference: Szegedy et al., Going Deeper with Convolutions, 2014, arXiv:1409.4842, for the crops.
    """
    batches.steps_per_epoch(len(source), batch_size)  # refuses a batch larger than the data
    if relabel is not None and np.shape(relabel) != (len(source),):
        raise ConfigError(f"relabel has shape {np.shape(relabel)} for {len(source)} examples: give each a label or -1")
    dataset = (
        grain.MapDataset.source(source)
        .map_with_index(functools.partial(_indexed, len(source), relabel))
        .shuffle(_named_seed(seed, "order"))
        .random_map(functools.partial(_train_example, image_size), seed=_named_seed(seed, "crops"))
        .batch(batch_size, drop_remainder=True, batch_fn=functools.partial(_batch, batch_size, pixel_seed))
        .repeat()
    )
    return Stream(dataset, start_step, num_workers, num_threads)


def eval_stream(
    source: Source,
    batch_size: int,
    *,
    resize: int = 256,
    crop: int = 224,
    pixel_seed: int | None = None,
    num_workers: int = 0,
    num_threads: int | None = None,
) -> Stream:
    """Every example once and in order, its shorter side resized bilinearly to `resize` and the middle cut out.

    Args:
        source: encoded images and labels by index.
        batch_size: B; the last batch is filled up with zeros, where its mask is False.
        resize, crop: pixels; equal ones leave images of that size as they are.
        pixel_seed: as in train_stream.
        num_workers, num_threads: as in Stream.

    Raises:
        ConfigError: the crop is larger than what it is cut from.
        DataError: from the stream, an image that cannot be decoded.
    """
    if not 1 <= crop <= resize:
        raise ConfigError(f"crop is {crop} and resize {resize}: the crop is cut from the resized image, lower it")
    dataset = (
        grain.MapDataset.source(source)
        .map_with_index(functools.partial(_indexed, len(source), None))
        .map(functools.partial(_eval_example, resize, crop))
        .batch(batch_size, drop_remainder=False, batch_fn=functools.partial(_batch, batch_size, pixel_seed))
    )
    return Stream(dataset, 0, num_workers, num_threads)


def random_box(rng: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
    """A random crop (left, top, right, bottom) of an image, in pixels.

    Area and logarithm of the aspect are uniform, and so is the place; what does not fit is drawn again.
    """
    area = width * height * rng.uniform(*AREA, ATTEMPTS)
    aspect = np.exp(rng.uniform(*np.log(ASPECT), ATTEMPTS))
    widths, heights = (np.rint(np.sqrt(sides)).astype(int) for sides in (area * aspect, area / aspect))
    fits = np.flatnonzero((widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height))
    if not len(fits):
        wide, high = min(width, round(height * ASPECT[1])), min(height, round(width / ASPECT[0]))
        left, top = (width - wide) // 2, (height - high) // 2
    else:
        wide, high = int(widths[fits[0]]), int(heights[fits[0]])
        left, top = int(rng.integers(width - wide + 1)), int(rng.integers(height - high + 1))
    return left, top, left + wide, top + high


def _indexed(num: int, relabel: np.ndarray | None, index: int, example: tuple[bytes, int]) -> tuple[int, bytes, int]:
    index, (content, label) = index % num, example  # Grain counts on through the epochs
    return index, content, label if relabel is None or relabel[index] < 0 else int(relabel[index])


def _train_example(size: int, example: tuple[int, bytes, int], rng: np.random.Generator) -> tuple[np.ndarray, int]:
    index, content, label = example
    with _opened(index, content) as image:
        left, top, right, bottom = random_box(rng, *image.size)
        scale = _draft(image, min(right - left, bottom - top) // size)
        box = (left // scale, top // scale, right // scale, bottom // scale)
        pixels = _rgb(image.crop(box).resize((size, size), Image.Resampling.BILINEAR))
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels, label


def _eval_example(resize: int, crop: int, example: tuple[int, bytes, int]) -> tuple[np.ndarray, int]:
    index, content, label = example
    with _opened(index, content) as image:
        width, height = (resize * side // min(image.size) for side in image.size)
        left, top = round((width - crop) / 2), round((height - crop) / 2)
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        return _rgb(resized.crop((left, top, left + crop, top + crop))), label


def _draft(image: Image.Image, times: int) -> int:
    """Has a JPEG file that is `times` as large as needed decoded at a half, a quarter or an eighth of its size, and
    returns that 2, 4 or 8; 1 where it stays as it is."""
    width, height = image.size
    if times > 1:
        image.draft(None, (width // times, height // times))
    return round(width / image.size[0])


def _rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


@contextlib.contextmanager
def _opened(index: int, content: bytes) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(content)) as image:
            yield image
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow makes of damage
        raise DataError(f"image {index} of the source cannot be decoded ({error}): prepare the data again") from None


def _batch(batch_size: int, pixel_seed: int | None, examples: Sequence[tuple[np.ndarray, int]]) -> Batch:
    first, num = examples[0][0], len(examples)
    images, labels = np.zeros((batch_size, *first.shape), np.uint8), np.zeros(batch_size, np.int32)
    for i, (image, label) in enumerate(examples):
        images[i], labels[i] = image, label
    if pixel_seed is not None:
        images = corruption.pixel_shuffle(images, pixel_seed)
    return Batch(images, labels, np.arange(batch_size) < num)


def _named_seed(seed: int, name: str) -> int:
    """The 32 bits that Grain takes. It adds the epoch to the seed of a shuffle: given the run's own, runs of seeds next
    to each other would share orders."""
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0])
