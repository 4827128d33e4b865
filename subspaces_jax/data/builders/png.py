"""Encoded images, which is the only form in which TFDS takes an image without TensorFlow."""

import io

import numpy as np
from PIL import Image


def encode(image: np.ndarray) -> io.BytesIO:
    """A grey uint8 image [H, W] or an RGB one [H, W, 3] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    file.seek(0)
    return file
