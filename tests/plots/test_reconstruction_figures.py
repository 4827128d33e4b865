"""Tables and animations of images, read back pixel by pixel."""

import errno
import os

import numpy as np
import pytest
from PIL import Image

from subspaces_jax.plots import reconstructions

TS, N, SIZE = np.linspace(0.0, 1.0, 10), 3, 16
LEVELS = np.linspace(0.0, 1.0, N)  # of red, which tells images apart; green tells points apart


def frames():
    images = np.zeros((len(TS), N, SIZE, SIZE, 3), np.float32)
    images[..., 0] = LEVELS[None, :, None, None]
    images[..., 1] = TS[:, None, None, None]
    return images


ORIGINALS = np.full((N, SIZE, SIZE, 3), (0.0, 0.0, 1.0), np.float32)


def test_a_table_has_a_row_a_point_and_the_originals_above():
    figure = reconstructions.table(frames(), TS, ORIGINALS, lpips=0.1 + TS, chosen=[0, 4, 9], title="curve")
    (axis,) = figure.axes
    captions = [text.get_text() for text in axis.get_yticklabels()]
    assert captions == [
        *("original", "$t = 0.00$\nLPIPS = 0.100", "$t = 0.44$\nLPIPS = 0.544", "$t = 1.00$\nLPIPS = 1.100")
    ]
    (image,) = axis.images
    picture = np.asarray(image.get_array())
    assert picture.shape == (4 * SIZE + 3, N * SIZE + 2, 3)
    for row, place in enumerate(axis.get_yticks()):
        for column in range(N):
            expected = (0.0, 0.0, 1.0) if row == 0 else (LEVELS[column], TS[[0, 4, 9][row - 1]], 0.0)
            top, left = row * (SIZE + 1), column * (SIZE + 1)
            np.testing.assert_allclose(
                picture[top : top + SIZE, left : left + SIZE], np.broadcast_to(expected, (SIZE, SIZE, 3))
            )
        assert place == row * (SIZE + 1) + (SIZE - 1) / 2
    assert np.all(picture[SIZE] == 1.0) and np.all(picture[:, SIZE] == 1.0), "white between"
    assert figure.get_suptitle() == "curve"


def test_a_table_chooses_points_with_both_ends():
    figure = reconstructions.table(frames(), TS)
    captions = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(captions) == 7 and captions[0] == "$t = 0.00$" and captions[-1] == "$t = 1.00$"


def test_values_are_clipped_and_grey_images_have_three_channels():
    images = np.array([-3.0, 0.5, 7.0, np.nan], np.float32).reshape(1, 1, 2, 2, 1)
    (image,) = reconstructions.table(images, [0.0]).axes[0].images
    picture = np.asarray(image.get_array())
    np.testing.assert_allclose(picture, np.repeat([[[0.0], [0.5]], [[1.0], [0.0]]], 3, axis=-1))


def read(path):
    with Image.open(path) as file:
        pictures, durations = [], []
        for index in range(file.n_frames):
            file.seek(index)
            pictures.append(np.asarray(file.convert("RGB")))
            durations.append(file.info["duration"])
        return np.stack(pictures), durations, file.info["loop"]


@pytest.mark.parametrize("originals", [None, ORIGINALS], ids=["alone", "with originals"])
def test_an_animation_has_a_frame_a_point(tmp_path, originals):
    path = reconstructions.animation(tmp_path / "new" / "curve.gif", frames(), TS, 0.1 + TS, originals)
    assert list(path.parent.iterdir()) == [path]
    pictures, durations, loop = read(path)
    assert len(pictures) == len(TS) and set(durations) == {1000} and loop == 0
    rows = 1 if originals is None else 2
    body = pictures[:, 40:]  # the title takes 0.4 inches of 100 dots
    height, width = body.shape[1] / rows, body.shape[2] / N
    for row in range(rows):
        for column in range(N):
            found = body[:, int((row + 0.5) * height), int((column + 0.5) * width)] / 255
            for t, colour in zip(TS, found):
                is_original = rows == 2 and row == 0
                expected = (0.0, 0.0, 1.0) if is_original else (LEVELS[column], t, 0.0)
                np.testing.assert_allclose(colour, expected, atol=0.03)


def test_each_frame_has_a_title_of_its_own(tmp_path):
    """Equal images stay apart: a writer of GIFs merges frames that are the same."""
    same = np.full((len(TS), 1, 4, 12, 1), 0.5)
    alone, *_ = read(reconstructions.animation(tmp_path / "a.gif", same, 0.4 + 1e-3 * TS, frames_per_second=4.0))
    scored, durations, _ = read(reconstructions.animation(tmp_path / "b.gif", same, 0.4 + 1e-3 * TS, lpips=TS))
    assert len(alone) == len(scored) == len(TS)
    dark = lambda pictures: np.sum(pictures[:, :40].min(-1) < 128, axis=(1, 2))
    assert np.all(dark(alone) > 20) and np.all(dark(scored) > dark(alone) + 50), "t, and LPIPS beside it"
    assert read(tmp_path / "a.gif")[1] == [250] * len(TS)


def test_an_animation_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "curve.gif"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        reconstructions.animation(path, frames()[:2], TS[:2])
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"old"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"frames": np.zeros((10, 3, 4, 4))}, r"expected frames \[T, n, H, W, C\]"),
        ({"frames": np.zeros((10, 3, 4, 4, 2))}, "with C = 1 or 3"),
        ({"ts": TS[:-1]}, "expected 10 increasing ts"),
        ({"ts": TS[::-1]}, "expected 10 increasing ts"),
        ({"lpips": [0.5]}, "expected 10 LPIPS"),
        ({"originals": ORIGINALS[:2]}, r"originals have shape \(2, 16, 16, 3\)"),
    ],
)
def test_images_that_do_not_fit_are_refused(options, message, tmp_path):
    arguments = {"frames": frames(), "ts": TS} | options
    with pytest.raises(ValueError, match=message):
        reconstructions.table(**arguments)
    with pytest.raises(ValueError, match=message):
        reconstructions.animation(tmp_path / "a.gif", **arguments)


def test_points_and_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"points \[0, 10\] of 10: choose some of 0 to 9"):
        reconstructions.table(frames(), TS, chosen=[0, 10])
    with pytest.raises(ValueError, match="expected <name>.gif"):
        reconstructions.animation(tmp_path / "a.png", frames(), TS)
    with pytest.raises(ValueError, match="frames_per_second above 0"):
        reconstructions.animation(tmp_path / "a.gif", frames(), TS, frames_per_second=0.0)
    assert not list(tmp_path.iterdir())
