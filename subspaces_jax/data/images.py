"""Encoded images decoded within bounds: PNG and JPEG files, whose size is checked before their pixels are decoded."""

import contextlib
import io
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin

from subspaces_jax.data import files
from subspaces_jax.errors import DataError

MAX_PIXELS = 89_478_485  # above it Pillow warns of a bomb: a quarter of a GiB in three channels
# The readers themselves, as Image.open prints a warning of its own where an image is large.
_READERS: dict[bytes, Callable[[io.BytesIO], Image.Image]] = {
    b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
    b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
}
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # of 8 bits: 16 would be cut off at 255
_MODE = {1: "L", 3: "RGB", 4: "RGBA"}  # by number of channels
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, struct.error, zlib.error)


@contextlib.contextmanager
def opened(content: bytes, where: str, remedy: str) -> Iterator[Image.Image]:
    """An image whose header is read and whose pixels are not decoded yet.

    Args:
        content: a PNG or JPEG file.
        where: what it is, for messages.
        remedy: what the user is to do where it is damaged.

    Raises:
        DataError: it is neither, damaged (found here or by what is done with it), of more than MAX_PIXELS, or of more
            than 8 bits a channel.
    """
    try:
        with _reader(content)(io.BytesIO(content)) as image:
            check_size(*image.size)
            if image.mode not in _MODES:
                raise ValueError(f"its pixels are of the kind {image.mode}, not of 8 bits")
            yield image
    except DataError:
        raise
    except _DAMAGE as error:  # what Pillow makes of damage
        raise DataError(f"{where} cannot be decoded ({error}): {remedy}") from None


def check_size(width: int, height: int) -> None:
    """Refuses more pixels than an image may have, with a ValueError."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels are more than {MAX_PIXELS:,}")


def check_shape(image: Image.Image, shape: tuple[int, ...], where: str) -> None:
    """Refuses an image of another (H, W) than that of its data set, with a DataError."""
    width, height = image.size
    if (height, width) != shape[:2]:
        raise DataError(f"{where} has {height}x{width} pixels, expected {shape[0]}x{shape[1]}: it is another data set")


def decode(content: bytes, shape: tuple[int, ...], where: str, remedy: str) -> np.ndarray:
    """The pixels of an image of this shape, uint8 [H, W, channels]. Arguments and errors as of `opened`."""
    with opened(content, where, remedy) as image:
        check_shape(image, shape, where)
        if image.mode != _MODE.get(shape[2]):
            raise DataError(f"{where} has pixels of the kind {image.mode}, expected {_MODE.get(shape[2])}: {remedy}")
        return np.asarray(image).reshape(shape)


def resized(image: Image.Image, shape: tuple[int, ...], padding: int = 0) -> np.ndarray:
    """The pixels of an image of any size, uint8 [H, W, channels] of this shape.

    Another size is resized by Pillow, bilinearly: over all pixels that a new one covers where it shrinks, and with
    half-pixel centres where it grows. Channels are 1 or 3. Of the shape, `padding` pixels on each side are black, and
    the image is resized to what is left.
    """
    image = image if image.mode == _MODE[shape[2]] else image.convert(_MODE[shape[2]])
    size = (shape[1] - 2 * padding, shape[0] - 2 * padding)
    pixels = np.asarray(image if image.size == size else image.resize(size, Image.Resampling.BILINEAR))
    pixels = pixels.reshape(size[1], size[0], shape[2])
    return np.pad(pixels, ((padding, padding), (padding, padding), (0, 0))) if padding else pixels


def all_resized(pixels: np.ndarray, shape: tuple[int, ...], padding: int = 0) -> np.ndarray:
    """Images uint8 [N, H, W, channels] as `resized` has them, [N, *shape].

    Raises:
        DataError: they would not fit into the memory that is free; says how much is needed.
    """
    needed, free = len(pixels) * int(np.prod(shape)), files.free_memory()
    if free is not None and needed > free:
        raise DataError(
            f"{len(pixels):,} images of {shape[0]}x{shape[1]} pixels need {needed / 2**30:.1f} GiB of memory, and "
            f"{free / 2**30:.1f} GiB are free: set stream=True, fewer num_train_examples or a smaller image_size"
        )
    found = np.empty((len(pixels), *shape), np.uint8)
    for i, image in enumerate(pixels):
        found[i] = resized(Image.fromarray(image.squeeze(-1) if shape[-1] == 1 else image), shape, padding)
    return found


def in_colour(image: Image.Image) -> np.ndarray:
    """The pixels of an image, uint8 [H, W, 3]."""
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _reader(content: bytes) -> Callable[[io.BytesIO], Image.Image]:
    for start, reader in _READERS.items():
        if content.startswith(start):
            return reader
    raise ValueError("it is neither a PNG nor a JPEG file")
