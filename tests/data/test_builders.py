"""The TFDS builders, against the sources they are made from, which are read here by other means."""

import collections
import gzip
import pathlib
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from subspaces_jax.data.builders import idx, png
from subspaces_jax.data.builders.digits import Digits
from subspaces_jax.errors import DataError

DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")
IMAGES, LABELS = "{}-images-idx3-ubyte", "{}-labels-idx1-ubyte"


def write_idx(folder, num_images=(12, 7), compress=False, shape=(28, 28), num_classes=10):
    """Random images in MNIST's files, written byte by byte; returns {split: (images, labels)}."""
    folder.mkdir(parents=True, exist_ok=True)
    opener, ending = (gzip.open, ".gz") if compress else (open, "")
    written = {}
    for split, prefix, n in zip(("train", "test"), ("train", "t10k"), num_images):
        images = np.random.default_rng(n).integers(0, 256, (n, *shape), dtype=np.uint8)
        labels = (np.arange(n) * 3 % num_classes).astype(np.uint8)
        with opener(folder / (IMAGES.format(prefix) + ending), "wb") as file:
            file.write(struct.pack(">IIII", 2051, n, *shape) + images.tobytes())
        with opener(folder / (LABELS.format(prefix) + ending), "wb") as file:
            file.write(struct.pack(">II", 2049, n) + labels.tobytes())
        written[split] = images, labels
    return written


def multiset(images, labels):
    return collections.Counter(
        (np.asarray(image, np.uint8).tobytes(), int(label)) for image, label in zip(images, labels)
    )


def prepare(builder):
    """Prepares and reads everything back, in the order on disk: {split: (images, labels)}."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds.core.download.DownloadManager, "download", None)  # nothing may reach a network
        tfds.disable_progress_bar()
        builder.download_and_prepare()
    examples = {split: list(builder.as_data_source(split=split)) for split in ("train", "test")}
    return {split: ([e["image"] for e in es], [e["label"] for e in es]) for split, es in examples.items()}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return prepare(Digits(data_dir=str(tmp_path_factory.mktemp("digits")), file_format="array_record"))


def test_digits_are_scikit_learns_with_every_fifth_one_in_the_test_split(digits):
    source = load_digits()
    images = [[[int(v * 255 / 16 + 0.5) for v in row] for row in image] for image in source.images]  # 127.5 is 128
    for split, chosen in (("test", range(0, 1797, 5)), ("train", [i for i in range(1797) if i % 5])):
        expected = multiset([images[i] for i in chosen], [source.target[i] for i in chosen])
        assert multiset(*digits[split]) == expected, split
    assert [len(digits[split][1]) for split in ("train", "test")] == [1437, 360]
    assert {image.shape for image in digits["train"][0]} == {(8, 8, 1)}
    assert {image.dtype for image in digits["train"][0]} == {np.dtype(np.uint8)}
    assert (np.min(digits["train"][0]), np.max(digits["train"][0])) == (0, 255)


def test_two_preparations_have_one_order(digits, tmp_path):
    again = prepare(Digits(data_dir=str(tmp_path), file_format="array_record"))
    for split in ("train", "test"):
        np.testing.assert_array_equal(again[split][0], digits[split][0])
        np.testing.assert_array_equal(again[split][1], digits[split][1])


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_png_is_lossless(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    feature = tfds.features.Image(shape=(*shape[:2], shape[2] if len(shape) == 3 else 1))
    decoded = feature.decode_example_np(feature.encode_example(png.encode(image)))
    np.testing.assert_array_equal(decoded.reshape(shape), image)


@pytest.mark.parametrize("compress", [False, True])
def test_idx_files_are_read_in_their_order(tmp_path, compress):
    written = write_idx(tmp_path, compress=compress)
    for split, (images, labels) in written.items():
        read_images, read_labels = idx.read(tmp_path, split)
        np.testing.assert_array_equal(read_images, images)
        np.testing.assert_array_equal(read_labels, labels)


@pytest.mark.parametrize("compress", [False, True])
def test_idx_images_are_those_of_the_files(tmp_path, compress):
    written = write_idx(tmp_path / "files", compress=compress)
    config = tfds.core.BuilderConfig(name="kmnist", version=idx.IdxImages.VERSION)
    prepared = prepare(
        idx.IdxImages(
            folder=tmp_path / "files", config=config, data_dir=str(tmp_path / "data"), file_format="array_record"
        )
    )
    for split in written:
        assert multiset(*prepared[split]) == multiset(*written[split])


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def put(content, at):
    return lambda path: path.write_bytes(path.read_bytes()[:at] + content + path.read_bytes()[at + len(content) :])


@pytest.mark.parametrize(
    "name, spoil, said",
    [
        (IMAGES.format("train"), cut, "holds 9407 bytes of data, its header says 9408"),
        (IMAGES.format("train"), lambda path: path.write_bytes(b"\0\0"), "no IDX file of the kind 0x00000803"),
        (
            IMAGES.format("train"),
            lambda path: path.unlink(),
            "no train-images-idx3-ubyte or train-images-idx3-ubyte.gz in",
        ),
        (IMAGES.format("train"), put(b"\0\0\x08\x01", 0), "no IDX file of the kind 0x00000803"),
        (LABELS.format("train"), put(b"\0\0\x0d\x01", 0), "no IDX file of the kind 0x00000801"),
        (
            LABELS.format("train"),
            lambda path: path.write_bytes(struct.pack(">II", 2049, 5) + bytes(5)),
            "12 train images but 5",
        ),
        (LABELS.format("train"), put(b"\x0a", 8), "labels up to 10, expected"),
    ],
)
def test_spoilt_idx_files_are_refused_in_one_line(tmp_path, name, spoil, said):
    write_idx(tmp_path)
    spoil(tmp_path / name)
    with pytest.raises(DataError, match=said) as raised:
        idx.read(tmp_path, "train")
    assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)


def test_spoilt_gzip_is_refused(tmp_path):
    write_idx(tmp_path, compress=True)
    path = tmp_path / (IMAGES.format("t10k") + ".gz")
    cut(path)
    with pytest.raises(DataError, match=f"{path.name} cannot be read"):
        idx.read(tmp_path, "test")
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=f"{path.name} cannot be read"):
        idx.read(tmp_path, "test")


@pytest.mark.parametrize("kind", [{"shape": (27, 28)}, {"num_images": (0, 0)}, {"num_classes": 26}])
def test_another_kind_of_data_is_refused(tmp_path, kind):
    write_idx(tmp_path, **kind)
    with pytest.raises(DataError, match="another data set"):
        idx.read(tmp_path, "train")


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
@pytest.mark.parametrize("split, prefix, num", [("train", "train", 60_000), ("test", "t10k", 10_000)])
def test_fashion_mnist_of_debian(split, prefix, num):
    images, labels = idx.read(DEBIAN, split)
    assert images.shape == (num, 28, 28) and labels.shape == (num,)
    np.testing.assert_array_equal(np.bincount(labels), np.full(10, num // 10))
    with gzip.open(DEBIAN / f"{LABELS.format(prefix)}.gz") as file:
        assert struct.unpack(">IIB", file.read(9)) == (2049, num, labels[0])
    with gzip.open(DEBIAN / f"{IMAGES.format(prefix)}.gz") as file:
        file.read(16)
        assert file.read(784) == images[0].tobytes()
