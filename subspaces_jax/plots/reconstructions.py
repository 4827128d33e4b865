"""Figures of what autoencoders along a path make of the same images: a table of them, and an animation."""

import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from subspaces_jax import writing
from subspaces_jax.plots import style

NUM_ROWS = 7  # of a table, unless they are chosen


def table(
    frames: Any,
    ts: Any,
    originals: Any = None,
    lpips: Any = None,
    chosen: Sequence[int] | None = None,
    title: str = "",
) -> Figure:
    """Reconstructions of fixed images along a path, a row a point, the originals above.

    Args:
        frames: [T, n, H, W, C], C = 1 or 3; clipped to [0, 1].
        ts: [T], of the points.
        originals: [n, H, W, C], or None.
        lpips: [T], written beside t, or None.
        chosen: indices of points; by default at most seven equally spaced ones with both ends.
        title: above the figure.

    Raises:
        ValueError: shapes that do not fit, or a point that is not there.
    """
    frames, ts, originals, lpips = _checked(frames, ts, originals, lpips)
    if chosen is None:
        chosen = np.unique(np.linspace(0, len(ts) - 1, min(NUM_ROWS, len(ts))).round().astype(int)).tolist()
    if not len(chosen) or min(chosen) < 0 or max(chosen) >= len(ts):
        raise ValueError(f"points {list(chosen)} of {len(ts)}: choose some of 0 to {len(ts) - 1}")
    names = _captions(ts, lpips, separator="\n")
    rows, captions = [frames[t] for t in chosen], [names[t] for t in chosen]
    if originals is not None:
        rows, captions = [originals, *rows], ["original", *captions]
    mosaic = _mosaic(np.stack(rows))
    height = min(0.8 * style.WIDTH * mosaic.shape[0] / mosaic.shape[1], 8.0) + 0.3
    with style.panels(1, height=height) as (figure, (axis,)):
        axis.imshow(mosaic, interpolation="nearest")
        size = frames.shape[2]
        axis.set_yticks(np.arange(len(rows)) * (size + _gap(size)) + 0.5 * (size - 1), captions, fontsize=8)
        axis.tick_params(length=0)
        axis.set_xticks([])
        axis.grid(False)
        axis.spines[:].set_visible(False)
        return style.finished(figure, axis, title)


def animation(
    path: str | pathlib.Path,
    frames: Any,
    ts: Any,
    lpips: Any = None,
    originals: Any = None,
    frames_per_second: float = 1.0,
) -> pathlib.Path:
    """Writes a GIF that goes along a path and begins again, whole or not at all.

    Args:
        path: of the file, <name>.gif.
        frames: [T, n, H, W, C], C = 1 or 3; clipped to [0, 1].
        ts: [T], increasing, in the title of each frame.
        lpips: [T], in the title too, or None.
        originals: [n, H, W, C], a row above the reconstructions, or None.
        frames_per_second: T of them.

    Returns:
        The path.

    Raises:
        ValueError: shapes that do not fit, another ending, or a rate of 0 or below.
    """
    path = pathlib.Path(path)
    frames, ts, originals, lpips = _checked(frames, ts, originals, lpips)
    if path.suffix != ".gif" or not frames_per_second > 0:
        raise ValueError(f"expected <name>.gif and frames_per_second above 0, got {path.name}, {frames_per_second}")
    shown = [frame[None] if originals is None else np.stack([originals, frame]) for frame in frames]
    pictures = _drawn([_mosaic(rows) for rows in shown], _captions(ts, lpips, separator=", "))
    content = io.BytesIO()
    first, *others = [Image.fromarray(picture).quantize(256, dither=Image.Dither.NONE) for picture in pictures]
    duration = max(round(1000 / frames_per_second), 20)  # milliseconds; viewers take less than 20 for a mistake
    first.save(content, format="GIF", save_all=True, append_images=others, duration=duration, loop=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    writing.write_bytes(path, content.getvalue())
    return path


def _drawn(mosaics: Sequence[np.ndarray], titles: Sequence[str]) -> list[np.ndarray]:
    """RGB pictures [h, w, 3] uint8 of one size, each with a title above."""
    height, width = mosaics[0].shape[:2]
    with style.house():
        figure = Figure(figsize=(4.32, 4.32 * height / width + 0.4), dpi=100)
        canvas, axis = FigureCanvasAgg(figure), figure.add_axes((0.0, 0.0, 1.0, 1.0 - 0.4 / figure.get_figheight()))
        axis.set_axis_off()
        image, pictures = axis.imshow(mosaics[0], interpolation="nearest", aspect="auto"), []
        for mosaic, title in zip(mosaics, titles):
            image.set_data(mosaic)
            axis.set_title(title, fontsize=10)
            canvas.draw()
            pictures.append(np.array(canvas.buffer_rgba())[..., :3])
    return pictures


def _mosaic(images: np.ndarray) -> np.ndarray:
    """[rows, n, H, W, 3] -> one image, [rows (H + gap) - gap, n (W + gap) - gap, 3], white between."""
    rows, num, height, width, _ = images.shape
    gap = _gap(height)
    padded = np.pad(images, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=1.0)
    whole = padded.transpose(0, 2, 1, 3, 4).reshape(rows * (height + gap), num * (width + gap), 3)
    return whole[:-gap, :-gap]


def _gap(size: int) -> int:
    """Pixels between images of `size` pixels."""
    return max(size // 16, 1)


def _captions(ts: np.ndarray, lpips: np.ndarray | None, separator: str) -> list[str]:
    """ "$t = 0.25$", and LPIPS; t with two decimals, or as many more as tell all apart."""
    for decimals in range(2, 9):
        texts = [f"{t:.{decimals}f}" for t in ts]
        if len(set(texts)) == len(texts):
            break
    captions = [f"$t = {text}$" for text in texts]
    if lpips is None:
        return captions
    return [f"{caption}{separator}LPIPS = {value:.3f}" for caption, value in zip(captions, lpips)]


def _checked(frames: Any, ts: Any, originals: Any, lpips: Any) -> tuple[np.ndarray, np.ndarray, Any, Any]:
    """Images in [0, 1] with three channels."""
    frames, ts = np.asarray(frames, np.float32), np.asarray(ts, np.float64)
    if frames.ndim != 5 or frames.shape[-1] not in (1, 3) or 0 in frames.shape:
        raise ValueError(f"expected frames [T, n, H, W, C] with C = 1 or 3, got shape {frames.shape}")
    if ts.shape != frames.shape[:1] or not np.all(np.diff(ts) > 0):
        raise ValueError(f"expected {len(frames)} increasing ts, got {ts.tolist()}")
    if lpips is not None and np.shape(lpips) != ts.shape:
        raise ValueError(f"expected {len(ts)} LPIPS, one a point, got shape {np.shape(lpips)}")
    if originals is not None and np.shape(originals) != frames.shape[1:]:
        raise ValueError(f"originals have shape {np.shape(originals)} and their reconstructions {frames.shape[1:]}")
    shown = lambda images: np.clip(np.nan_to_num(np.broadcast_to(images, (*images.shape[:-1], 3))), 0.0, 1.0)
    return shown(frames), ts, None if originals is None else shown(np.asarray(originals, np.float32)), lpips
