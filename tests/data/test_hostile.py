"""Files that are meant to do harm, or might as well be: one line each, in bounded time and memory."""

import contextlib
import gzip
import io
import os
import pathlib
import signal
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image
from test_builders import IMAGES, LABELS, write_idx
from test_imagenet_c import WNIDS, write_images
from test_sources import counted, said
from test_tiny_imagenet import WNIDS as TINY_WNIDS
from test_tiny_imagenet import jpeg, write_archive

from subspaces_jax.data import images, sources, stream
from subspaces_jax.data.builders import idx, imagenet_c, tiny_imagenet
from subspaces_jax.errors import DataError

MEGABYTE = 1 << 20


@pytest.fixture(autouse=True)
def in_time():
    """Whoever waits for a named pipe is interrupted."""

    def interrupt(number, frame):
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 30)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def memory_below(limit):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def png(width, height, bits=8, colour=2):
    """A PNG file of any size whose pixels are missing."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def encode(pixels, form="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def large_jpeg(width, height):
    """A JPEG file whose header claims another size than its pixels have."""
    content = jpeg(0)
    place = content.index(b"\xff\xc0") + 5
    return content[:place] + struct.pack(">HH", height, width) + content[place + 4 :]


def tiny(tmp_path, archive=None):
    """The line that Tiny ImageNet's files in `tmp_path` are refused with."""
    given = {"data_dir": str(tmp_path / "data"), "archive": str(archive or tmp_path)}
    return said(lambda: sources.load("tiny_imagenet", "train", **given))


# Images

BOMBS = {
    "error": png(60_000, 60_000),
    "warning": png(10_000, 10_000),
    "JPEG": large_jpeg(60_000, 60_000),
    "flat": png(1_000_000_000, 1),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_an_image_that_claims_to_be_huge_is_refused_before_it_is_decoded(tmp_path, bomb):
    write_archive(tmp_path)
    path = tmp_path / "tiny-imagenet-200" / "val" / "images" / "val_3.JPEG"
    path.write_bytes(BOMBS[bomb])
    with memory_below(100 * MEGABYTE):
        line = tiny(tmp_path)
    assert str(path) in line and ("cannot be decoded" in line or "it is another data set" in line)
    for start in (stream.train_stream, stream.eval_stream):
        with contextlib.closing(start([(BOMBS[bomb], 0)], 1)) as batches, memory_below(MEGABYTE * 10):
            line = said(lambda: next(batches))
        assert "image 0 of the source cannot be decoded" in line and "are more than 89,478,485" in line


def test_a_bomb_in_images_of_corruptions_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet_c, "EXPECTED_FOLDERS", len(WNIDS))
    write_images(tmp_path / "files")
    path = sorted((tmp_path / "files").rglob("*.JPEG"))[0]
    path.write_bytes(BOMBS["error"])
    options = {"data_dir": str(tmp_path / "data"), "archive": str(tmp_path / "files")}
    assert f"{path} cannot be decoded" in said(lambda: sources.open_source("imagenet_c/snow_1", "test", **options))


def test_a_line_of_pixels_is_not_enlarged_without_bound():
    """Its shorter side resized to 256, an image of 1 x 65,000 would have four thousand million pixels."""
    content = encode(np.zeros((1, 65_000, 3), np.uint8))
    with contextlib.closing(stream.eval_stream([(content, 0)], 1)) as batches:
        assert "16640000x256 pixels are more than 89,478,485" in said(lambda: next(batches))
    with contextlib.closing(stream.train_stream([(content, 0)], 1, image_size=8)) as batches:
        assert next(batches).images.shape == (1, 8, 8, 3)


DEEP = encode((np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64))


def test_pixels_of_another_kind_are_refused_and_not_cut_off():
    assert Image.open(io.BytesIO(DEEP)).mode.startswith("I")
    with contextlib.closing(stream.eval_stream([(DEEP, 0)], 1, resize=8, crop=8)) as batches:
        assert "not of 8 bits" in said(lambda: next(batches))
    assert "not of 8 bits" in said(lambda: tiny_imagenet.in_colour(DEEP, (64, 64), "it"))
    colour = encode(np.zeros((4, 4, 3), np.uint8))
    assert "pixels of the kind RGB, expected L" in said(lambda: images.decode(colour, (4, 4, 1), "it", "mend it"))
    bitmap = encode(np.zeros((4, 4, 3), np.uint8), "BMP")
    assert "neither a PNG nor a JPEG file" in said(lambda: images.decode(bitmap, (4, 4, 3), "it", "mend it"))


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_damage_anywhere_is_a_line_and_never_a_traceback(form):
    rng = np.random.default_rng(0)
    whole = encode(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8), form)
    refused = 0
    for _ in range(400):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), 4):
            content[place] = rng.integers(256)
        try:
            assert images.decode(bytes(content), (12, 12, 3), "it", "mend it").shape == (12, 12, 3)
        except DataError as error:
            refused += "\n" not in str(error)
    assert refused > 100 or form == "JPEG"


def test_images_are_decoded_as_pillow_decodes_them():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(images.decode(encode(pixels), (9, 7, 3), "", ""), pixels)
    np.testing.assert_array_equal(images.decode(encode(pixels[..., 0]), (9, 7, 1), "", "")[..., 0], pixels[..., 0])
    content = encode(pixels, "JPEG")
    np.testing.assert_array_equal(
        images.decode(content, (9, 7, 3), "", ""), np.asarray(Image.open(io.BytesIO(content)))
    )


# Archives


def pack(folder, change=lambda name, content: content, **options):
    path = folder / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(path, "w", **options) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file != path:
                name = str(file.relative_to(folder))
                archive.writestr(name, change(name, file.read_bytes()))
    return path


def test_an_encrypted_archive_is_refused(tmp_path):
    write_archive(tmp_path)
    path = pack(tmp_path)
    content = bytearray(path.read_bytes())
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # bit 0 of the flags of each file
        start = -1
        while (start := content.find(signature, start + 1)) >= 0:
            content[start + place] |= 1
    path.write_bytes(content)
    line = tiny(tmp_path, path)
    assert f"{path}/tiny-imagenet-200/wnids.txt cannot be read" in line and "encrypted" in line


@pytest.mark.parametrize("name", ["wnids.txt", "val/images/val_0.JPEG"])
def test_a_file_that_unpacks_to_too_much_is_not_unpacked(tmp_path, name):
    write_archive(tmp_path)
    zeros = lambda own, content: bytes(64 * MEGABYTE) if own.endswith(name) else content
    path = pack(tmp_path, zeros, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < MEGABYTE
    with memory_below(16 * MEGABYTE):
        line = tiny(tmp_path, path)
    assert f"{name} cannot be read (it claims 67,108,864 bytes, more than 1,048,576)" in line
    content = path.read_bytes().replace(struct.pack("<I", 64 * MEGABYTE), struct.pack("<I", 2000))
    path.write_bytes(content)  # and now it lies
    with memory_below(16 * MEGABYTE):
        assert f"{name} cannot be read (Bad CRC-32" in tiny(tmp_path, path)


def test_other_compressions_and_larger_files_are_refused(tmp_path):
    write_archive(tmp_path)
    assert "compressed by method 14, not by deflate" in tiny(tmp_path, pack(tmp_path, compression=zipfile.ZIP_LZMA))
    os.truncate(path := pack(tmp_path), 1 << 40)
    assert "holds more than 536,870,912 bytes" in tiny(tmp_path, path)
    path.unlink()
    os.truncate(tmp_path / "tiny-imagenet-200" / "wnids.txt", 1 << 40)
    assert "wnids.txt cannot be read (it holds more than 1,048,576 bytes" in tiny(tmp_path)


def test_more_images_than_there_are_are_refused(tmp_path, monkeypatch):
    write_archive(tmp_path)
    monkeypatch.setitem(tiny_imagenet.NUM_IMAGES, "train", 11)
    assert "holds 12 images for train, more than 11: it is another data set" in tiny(tmp_path)


# Named pipes and devices


def replace_by_pipe(path):
    pathlib.Path(path).unlink(missing_ok=True)
    os.mkfifo(path)


def replace_by_device(path):
    pathlib.Path(path).unlink(missing_ok=True)
    os.symlink("/dev/zero", path)


SPECIAL = [(replace_by_pipe, "it is a named pipe"), (replace_by_device, "it is a device")]


@pytest.mark.parametrize("replace, kind", SPECIAL)
def test_what_would_never_end_is_not_opened(tmp_path, monkeypatch, replace, kind):
    write_archive(tmp_path / "tiny")
    replace(image := tmp_path / "tiny" / "tiny-imagenet-200" / "train" / TINY_WNIDS[0] / "images" / "x.JPEG")
    assert f"{image} cannot be read ({kind}, not a regular file)" in tiny(tmp_path, tmp_path / "tiny")
    replace(tmp_path / "archive.zip")
    assert f"archive.zip is no whole zip archive ({kind}" in tiny(tmp_path, tmp_path / "archive.zip")

    monkeypatch.setattr(imagenet_c, "EXPECTED_FOLDERS", len(WNIDS))
    write_images(tmp_path / "c")
    replace(image := sorted((tmp_path / "c").rglob("*.JPEG"))[-1])
    options = {"data_dir": str(tmp_path / "data"), "archive": str(tmp_path / "c")}
    line = said(lambda: sources.open_source("imagenet_c/snow_1", "test", **options))
    assert f"{image} cannot be read ({kind}" in line

    for i, ending in enumerate(("", ".gz")):
        folder = tmp_path / f"idx{i}"
        write_idx(folder, compress=bool(ending))
        replace(path := folder / (IMAGES.format("train") + ending))
        assert f"{path} cannot be read ({kind}" in said(lambda: idx.read(folder, "train"))


def test_pipes_among_prepared_files_are_not_opened(tmp_path):
    load = lambda: sources.load("digits", "train", data_dir=str(tmp_path))
    before = load()
    folder = tmp_path / "digits" / "1.0.0"
    replace_by_pipe(folder / "decoded-train.npz")
    assert "decoded-train.npz cannot be read (it is a named pipe" in said(load)
    (folder / "decoded-train.npz").unlink()
    np.testing.assert_array_equal(load().images, before.images)
    for file in [path for path in folder.iterdir() if path.suffix == ".json" or "train" in path.name]:
        content = file.read_bytes()
        replace_by_pipe(file)
        assert f"{file} cannot be read (it is a named pipe" in said(load)
        file.unlink()
        file.write_bytes(content)
    (tmp_path / "other").mkdir()
    replace_by_pipe(tmp_path / "other" / ".subspaces_jax.lock")
    assert "cannot prepare" in said(lambda: sources.load("digits", "train", data_dir=str(tmp_path / "other")))


def test_a_copy_that_unpacks_to_too_much_is_not_read(tmp_path):
    load = lambda: sources.load("digits", "test", data_dir=str(tmp_path))
    before = load()
    np.savez_compressed(tmp_path / "digits/1.0.0/decoded-test.npz", images=np.zeros(100 * MEGABYTE, np.uint8), labels=0)
    with memory_below(50 * MEGABYTE):
        np.testing.assert_array_equal(load().images, before.images)


# IDX files


def test_what_an_idx_file_holds_beyond_its_header_is_not_read(tmp_path):
    write_idx(tmp_path)
    path = tmp_path / IMAGES.format("train")
    content = path.read_bytes()
    path.unlink()
    with gzip.open(f"{path}.gz", "wb", compresslevel=1) as file:
        file.write(content)
        for _ in range(50):
            file.write(bytes(4 * MEGABYTE))
    with memory_below(2 * MEGABYTE):
        line = said(lambda: idx.read(tmp_path, "train"))
    assert f"{path}.gz holds more than 9408 bytes of data, its header says 9408" in line
    path.write_bytes(content)
    os.truncate(path, 1 << 40)
    with memory_below(2 * MEGABYTE):
        assert "holds more than 9408 bytes" in said(lambda: idx.read(tmp_path, "train"))


@pytest.mark.parametrize("compress", [False, True])
def test_a_header_that_claims_too_much_is_refused(tmp_path, compress):
    write_idx(tmp_path, compress=compress)
    opener, ending = (gzip.open, ".gz") if compress else (open, "")
    for name, header in (
        (LABELS, (2049, 2**32 - 1)),
        (IMAGES, (2051, 2**32 - 1, 28, 28)),
        (IMAGES, (2051, 1, 2**31, 2)),
    ):
        with opener(tmp_path / (name.format("train") + ending), "wb") as file:
            file.write(struct.pack(f">{len(header)}I", *header) + bytes(1000))
        with memory_below(2 * MEGABYTE):
            assert "it is another data set" in said(lambda: idx.read(tmp_path, "train"))


def test_a_gzip_file_is_no_larger_than_what_it_may_hold(tmp_path):
    """Empty parts without end would be read through, a header without end byte by byte."""
    write_idx(tmp_path, compress=True)
    (tmp_path / (LABELS.format("train") + ".gz")).write_bytes(gzip.compress(b"") * 20_000)
    assert "it is larger than 300,008 bytes, the most that it may hold" in said(lambda: idx.read(tmp_path, "train"))


@pytest.mark.parametrize("compress", [False, True])
def test_names_with_a_dot_are_read_as_well(tmp_path, compress):
    written = write_idx(tmp_path / "files", compress=compress)
    for path in (tmp_path / "files").iterdir():
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
        (tmp_path / "files" / path.name).mkdir()  # as some archives unpack
    for split, expected in written.items():
        for given, wanted in zip(idx.read(tmp_path / "files", split), expected):
            np.testing.assert_array_equal(given, wanted)
    arrays = sources.load("mnist", "test", data_dir=str(tmp_path / "data"), idx_dir=str(tmp_path / "files"))
    assert counted(*arrays) == counted(*written["test"])
