"""Crops of images of any size: random ones for training, the middle for evaluation."""

import numpy as np
from PIL import Image

from subspaces_jax.data import images

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # of a training crop: fraction of the image, width over height
ATTEMPTS = 10  # draws of a crop before the largest one in the middle is taken


def random_crop(image: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """A crop of `random_box`, resized bilinearly and mirrored with probability 1/2, uint8 [size, size, 3]."""
    left, top, right, bottom = random_box(rng, *image.size)
    scale = _draft(image, min(right - left, bottom - top) // size)
    box = (left // scale, top // scale, right // scale, bottom // scale)
    pixels = images.in_colour(image.crop(box).resize((size, size), Image.Resampling.BILINEAR))
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def middle_crop(image: Image.Image, resize: int, crop: int) -> np.ndarray:
    """The middle of an image whose shorter side is resized bilinearly to `resize`, uint8 [crop, crop, 3]."""
    width, height = (resize * side // min(image.size) for side in image.size)
    images.check_size(width, height)  # a line of pixels grows to `resize` lines
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return images.in_colour(resized.crop((left, top, left + crop, top + crop)))


def random_box(rng: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
    """A random crop (left, top, right, bottom) of an image, in pixels.

    Area and logarithm of the aspect are uniform, and so is the place; what does not fit is drawn again.
    """
    area = width * height * rng.uniform(*AREA, ATTEMPTS)
    aspect = np.exp(rng.uniform(np.log(ASPECT[0]), np.log(ASPECT[1]), ATTEMPTS))
    widths, heights = (np.rint(np.sqrt(sides)).astype(int) for sides in (area * aspect, area / aspect))
    fits = np.flatnonzero((widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height))
    if not len(fits):
        wide, high = min(width, round(height * ASPECT[1])), min(height, round(width / ASPECT[0]))
        left, top = (width - wide) // 2, (height - high) // 2
    else:
        wide, high = int(widths[fits[0]]), int(heights[fits[0]])
        left, top = int(rng.integers(width - wide + 1)), int(rng.integers(height - high + 1))
    return left, top, left + wide, top + high


def _draft(image: Image.Image, times: int) -> int:
    """Has a JPEG file that is `times` as large as needed decoded at a half, a quarter or an eighth of its size, and
    returns that 2, 4 or 8; 1 where it stays as it is."""
    width, height = image.size
    if times > 1:
        image.draft(None, (width // times, height // times))
    return round(width / image.size[0])
