"""Data sets as arrays: every row of DATASETS, prepared, cached, missing, half prepared and spoilt."""

import collections
import dataclasses
import functools
import io
import os
import pathlib
import pickle
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from test_builders import DEBIAN, write_idx

from subspaces_jax.data import catalogue, functions, prepared, recipes, sources
from subspaces_jax.data.builders import idx, png
from subspaces_jax.errors import DataError

OURS = ("digits", *functions.FAMILIES, *recipes.made_from("archive"))
CATALOGUE = [name for name in catalogue.DATASETS if name not in OURS]
ARRAYS = [name for name in CATALOGUE if not catalogue.DATASETS[name].streams]
NUM = {"train": 30, "test": 20}


def counted(images, labels):
    return collections.Counter((image.tobytes(), int(label)) for image, label in zip(images, labels))


def said(call):
    """The one line of the DataError that a call raises."""
    with pytest.raises(DataError) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


@functools.cache
def examples(name, split):
    """A few images and labels of the form of a catalogue data set, the largest label among them."""
    info = catalogue.DATASETS[name]
    images = np.random.default_rng(len(split)).integers(0, 256, (NUM[split], *info.image_shape), dtype=np.uint8)
    return images, (np.arange(NUM[split]) * 7 + info.num_classes - 1) % info.num_classes


def prepare(name, root, file_format="array_record", change=lambda example: example):
    """Lets TFDS's own builder of this name write our examples instead of those that it would download."""
    builder = tfds.builder(name, data_dir=str(root), file_format=file_format)

    def generate(split):
        for i, (image, label) in enumerate(zip(*examples(name, split))):
            example = {"image": png.encode(image.squeeze()), "label": int(label), "coarse_label": 0}
            example |= {"id": f"{i}", "file_name": f"{i}.JPEG"}
            yield i, change({key: example[key] for key in builder.info.features})

    test_split = catalogue.DATASETS[name].test_split
    builder._split_generators = lambda dl_manager: {"train": generate("train"), test_split: generate("test")}
    tfds.disable_progress_bar()
    builder.download_and_prepare()
    return pathlib.Path(builder.data_path)


@pytest.fixture(scope="module")
def digits_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    sources.load("digits", "train", data_dir=str(root))
    return root


@pytest.fixture
def digits_copy(digits_dir, tmp_path):
    shutil.copytree(digits_dir, tmp_path / "copy")
    return tmp_path / "copy"


# What is read


@pytest.mark.parametrize("name", catalogue.DATASETS)
def test_rows_of_the_table_agree_with_themselves(name):
    info = catalogue.DATASETS[name]
    assert len(info.mean) == len(info.std) == (info.image_shape[2] if info.label == "class" else 0)
    assert all(0 < value < 1 for value in info.mean + info.std)


@pytest.mark.parametrize("name", CATALOGUE)
def test_rows_of_the_table_agree_with_the_catalogue(name, tmp_path):
    info, features = catalogue.DATASETS[name], tfds.builder(name, data_dir=str(tmp_path)).info.features
    assert features["label"].num_classes == info.num_classes
    assert features["image"].shape == ((None, None, 3) if info.streams else info.image_shape)


def test_digits_have_the_counts_shapes_and_moments_of_the_table(digits_dir):
    info = catalogue.DATASETS["digits"]
    for split, num in (("train", info.num_train), ("test", info.num_test)):
        images, labels = sources.load("digits", split, data_dir=str(digits_dir))
        assert images.shape == (num, *info.image_shape) and images.dtype == np.uint8
        assert labels.shape == (num,) and labels.dtype == np.int32
        assert set(labels) == set(range(info.num_classes))
        if split == "train":
            np.testing.assert_allclose(
                [(images / 255).mean(), (images / 255).std()], [*info.mean, *info.std], atol=5e-5
            )


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_has_the_moments_of_the_table():
    pixels, info = idx.read(DEBIAN, "train")[0] / 255, catalogue.DATASETS["fashion_mnist"]
    np.testing.assert_allclose([pixels.mean(), pixels.std()], [*info.mean, *info.std], atol=5e-5)


@pytest.mark.parametrize("name", ARRAYS)
def test_catalogue_data_sets_are_read_as_prepared(name, tmp_path):
    prepare(name, tmp_path)
    for split in prepared.SPLITS:
        arrays = sources.load(name, split, data_dir=str(tmp_path))
        assert arrays.images.shape == (NUM[split], *catalogue.DATASETS[name].image_shape)
        assert (arrays.images.dtype, arrays.labels.dtype) == (np.uint8, np.int32)
        assert counted(*arrays) == counted(*examples(name, split))


@pytest.mark.parametrize("name", ["cifar10", "imagenet2012"])
def test_any_data_set_is_read_image_by_image(name, tmp_path):
    prepare(name, tmp_path)
    for split in prepared.SPLITS:
        source = sources.open_source(name, split, data_dir=str(tmp_path))
        for reader in (source, pickle.loads(pickle.dumps(source))):
            decoded = [(np.asarray(Image.open(io.BytesIO(content))), label) for content, label in reader]
            assert counted(*zip(*decoded)) == counted(*examples(name, split))
        with pytest.raises(IndexError):
            source[len(source)]


def test_what_streams_is_not_loaded(tmp_path):
    prepare("imagenet2012", tmp_path)
    line = said(lambda: sources.load("imagenet2012", "train", data_dir=str(tmp_path)))
    assert line == "imagenet2012 is too big to be loaded: stream it from sources.open_source"


def test_data_dir_is_that_of_tfds_by_default(digits_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(digits_dir))
    assert str(digits_dir) == prepared._default_data_dir() == tfds.core.constants.get_default_data_dir()
    assert len(sources.load("digits", "test").labels) == 360
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert os.path.expanduser(prepared._default_data_dir()) == tfds.core.constants.get_default_data_dir()


def test_a_mistake_in_a_builder_is_no_damage_of_what_it_never_wrote(tmp_path):
    class Wrong:
        name = "wrong"

        def __init__(self, **options):
            raise RuntimeError("of the builder")

    with pytest.raises(RuntimeError, match="of the builder"):
        prepared._build(Wrong, tmp_path, {})
    (tmp_path / "wrong").mkdir()
    with pytest.raises(DataError, match=r"wrong is damaged \(of the builder\): delete that folder"):
        prepared._build(Wrong, tmp_path, {})


@pytest.mark.parametrize("name", recipes.made_from("idx_dir"))
def test_idx_folders_are_prepared_once_and_read_without_them(name, tmp_path):
    written = write_idx(tmp_path / "files", compress=True)
    data_dir, idx_dir = str(tmp_path / "data"), str(tmp_path / "files")
    for options in ({"idx_dir": idx_dir}, {"idx_dir": idx_dir}, {}, {"idx_dir": None}):
        for split, (images, labels) in written.items():
            assert counted(*sources.load(name, split, data_dir=data_dir, **options)) == counted(images, labels)
        shutil.rmtree(idx_dir, ignore_errors=True)  # from now on what was prepared is used


def test_what_is_prepared_can_be_read_where_nothing_can_be_written(digits_dir, monkeypatch):
    monkeypatch.setattr(prepared, "_locked", None)
    assert len(sources.load("digits", "test", data_dir=str(digits_dir)).labels) == 360


# What is kept


def test_decoded_images_are_kept_and_renewed_when_spoilt(digits_copy, monkeypatch):
    monkeypatch.setattr(sources, "CACHE_FROM", 1)
    fresh = sources.load("digits", "train", data_dir=str(digits_copy))
    cache = digits_copy / "digits" / "1.0.0" / "decoded-train.npz"
    whole = cache.read_bytes()

    def check():
        again = sources.load("digits", "train", data_dir=str(digits_copy))
        np.testing.assert_array_equal(again.images, fresh.images)
        np.testing.assert_array_equal(again.labels, fresh.labels)
        assert again.images.dtype == np.uint8 and again.labels.dtype == np.int32

    for content in (whole, b"", whole[: len(whole) // 2]):
        cache.write_bytes(content)
        check()
        assert cache.stat().st_size == len(whole)
    np.savez(cache, images=fresh.images[:5], labels=fresh.labels[:5])
    check()
    assert not list(cache.parent.glob("*.partial"))


def test_decoded_images_are_what_is_read(digits_copy):
    fresh = sources.load("digits", "test", data_dir=str(digits_copy))
    sources._write_cache(
        digits_copy / "digits" / "1.0.0" / "decoded-test.npz", sources.Arrays(255 - fresh.images, fresh.labels)
    )
    np.testing.assert_array_equal(sources.load("digits", "test", data_dir=str(digits_copy)).images, 255 - fresh.images)


def test_small_splits_leave_no_copy(digits_copy, monkeypatch):
    for kept in digits_copy.rglob("*.npz"):
        kept.unlink()
    monkeypatch.setattr(sources, "CACHE_FROM", 361)
    for split in ("train", "test"):
        sources.load("digits", split, data_dir=str(digits_copy))
    assert [kept.name for kept in digits_copy.rglob("*.npz")] == ["decoded-train.npz"]


# Interrupted and simultaneous preparations

LOAD = """
import sys
from subspaces_jax.data import sources
print(len(sources.load("digits", "test", data_dir=sys.argv[1]).labels))
"""


def start(root, code=LOAD):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, str(root)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_two_processes_may_prepare_at_once_and_say_nothing(tmp_path):
    for process in [start(tmp_path), start(tmp_path)]:
        assert (*process.communicate(timeout=100), process.returncode) == ("360\n", "", 0)
    assert not list(tmp_path.rglob("incomplete*"))


def test_a_preparation_killed_half_way_does_no_harm(tmp_path):
    kill = (
        "import os; from subspaces_jax.data.builders import png\n"
        "calls = iter(range(400)); encode = png.encode\n"
        "png.encode = lambda image: encode(image) if next(calls) < 300 else os._exit(9)\n"
    )
    process = start(tmp_path, kill + LOAD)
    process.communicate(timeout=100)
    assert process.returncode == 9
    assert list(tmp_path.rglob("incomplete*"))
    assert len(sources.load("digits", "train", data_dir=str(tmp_path)).labels) == 1437


def test_a_refused_idx_folder_leaves_nothing_behind(tmp_path):
    write_idx(tmp_path / "bad", num_classes=26)
    written = write_idx(tmp_path / "good")
    data_dir = str(tmp_path / "data")
    said(lambda: sources.load("mnist", "train", data_dir=data_dir, idx_dir=str(tmp_path / "bad")))
    arrays = sources.load("mnist", "train", data_dir=data_dir, idx_dir=str(tmp_path / "good"))
    assert counted(*arrays) == counted(*written["train"])


def test_importing_is_cheap_and_needs_no_tensorflow(digits_dir):
    code = "import sys; from subspaces_jax.data import sources; assert 'tensorflow_datasets' not in sys.modules; "
    process = start(
        digits_dir, code + LOAD + "assert not any(name.split('.')[0] == 'tensorflow' for name in sys.modules)"
    )
    assert process.communicate(timeout=100) == ("360\n", "")


# What is refused


def test_unknown_names_are_answered_with_near_ones():
    line = said(lambda: sources.load("cifr10", "train"))
    assert "did you mean cifar10 or cifar100?" in line and all(name in line for name in catalogue.DATASETS)
    assert "there are train, test" in said(lambda: sources.load("digits", "validation"))
    assert "not for cifar10" in said(lambda: sources.load("cifar10", "train", idx_dir="/somewhere"))


@pytest.mark.parametrize("name", CATALOGUE)
def test_what_is_not_prepared_is_answered_with_a_command_that_would(name, tmp_path):
    root = tmp_path / 'o\'data "sets"'
    line = said(lambda: sources.open_source(name, "train", data_dir=str(root)))
    assert line.startswith(f"{name} is not prepared in {root}: ")
    if not catalogue.DATASETS[name].streams:
        assert said(lambda: sources.load(name, "train", data_dir=str(root))) == line
    assert ("set idx_dir" in line) == (name in recipes.made_from("idx_dir"))
    command = re.search(r"python -c .*download_and_prepare\(.*\)'", line)[0]
    code = shlex.split(command)[2]
    code, preparation = code.split(".download_and_prepare")
    by_hand = '(download_config=tfds.download.DownloadConfig(manual_dir="FOLDER"))'
    assert preparation == (by_hand if name == "imagenet2012" else "()")
    assert ("ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in FOLDER" in line) == (name == "imagenet2012")
    code += "; print(_.data_path, _.info.file_format.value)"
    code = code.replace("tfds.builder(", "_ = tfds.builder(")
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(rf"{re.escape(str(root))}/{name}/\d\.\d\.\d array_record\n", printed)
    assert not root.exists()


def test_another_file_format_is_refused(tmp_path):
    path = prepare("cifar10", tmp_path)
    info = path / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    line = said(lambda: sources.load("cifar10", "train", data_dir=str(tmp_path)))
    assert f"cifar10 in {path} is in tfrecord format" in line and "delete that folder" in line and "python -c" in line


def test_another_format_does_not_hide_what_was_prepared_from_idx_files(tmp_path):
    info = prepare("mnist", tmp_path) / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    written = write_idx(tmp_path / "files")
    sources.load("mnist", "test", data_dir=str(tmp_path), idx_dir=str(tmp_path / "files"))
    assert counted(*sources.load("mnist", "test", data_dir=str(tmp_path))) == counted(*written["test"])


def test_another_folder_of_idx_files_is_not_taken_for_the_first(tmp_path):
    write_idx(tmp_path / "a")
    data_dir, a, b = (str(tmp_path / name) for name in ("data", "a", "b"))
    sources.load("kmnist", "test", data_dir=data_dir, idx_dir=a)
    line = said(lambda: sources.load("kmnist", "test", data_dir=data_dir, idx_dir=b))
    assert a in line and b in line
    sources.load("fashion_mnist", "test", data_dir=data_dir, idx_dir=a)  # another name, another copy


@pytest.mark.parametrize(
    "change", [{"label": 10}, {"label": -1}, {"image": png.encode(np.zeros((31, 32, 3), np.uint8))}]
)
def test_data_of_another_form_are_refused(tmp_path, change, monkeypatch):
    monkeypatch.setattr(tfds.features.ClassLabel, "encode_example", lambda self, value: np.int64(value))
    path = prepare("cifar10", tmp_path, change=lambda example: example | (change if example["id"] == "0" else {}))
    assert f"cifar10 in {path} " in said(lambda: sources.load("cifar10", "train", data_dir=str(tmp_path)))


def test_a_source_of_another_form_is_refused(tmp_path, monkeypatch):
    path = prepare("imagenet2012", tmp_path)
    open_test = functools.partial(sources.open_source, "imagenet2012", "test", data_dir=str(tmp_path))
    row = catalogue.DATASETS["imagenet2012"]
    monkeypatch.setitem(catalogue.DATASETS, "imagenet2012", dataclasses.replace(row, test_split="test"))
    assert f"imagenet2012 in {path} has no test split" in said(open_test)
    monkeypatch.setitem(catalogue.DATASETS, "imagenet2012", dataclasses.replace(row, num_classes=21_841))
    assert f"imagenet2012 in {path} has 1000 classes, expected 21841: it is another data set" in said(open_test)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", ["digits", "cifar10", "idx"])
@pytest.mark.parametrize("file", ["dataset_info.json", "*train.array_record*"])
@pytest.mark.parametrize("spoil", [truncate, pathlib.Path.unlink], ids=["truncated", "deleted"])
def test_damage_is_refused_with_the_folder_to_delete(name, file, spoil, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CACHE_FROM", 10**9)
    options = {}
    if name == "idx":
        write_idx(tmp_path / "files")
        name, options = "mnist", {"idx_dir": str(tmp_path / "files")}
    elif name == "cifar10":
        prepare(name, tmp_path)
    load = functools.partial(sources.load, name, "train", data_dir=str(tmp_path), **options)
    before = load()
    (path,) = tmp_path.glob(f"**/{file}")
    spoil(path)
    line = said(lambda: sources.open_source(name, "train", data_dir=str(tmp_path), **options))
    assert str(tmp_path) in line and "delete that folder" in line
    line = said(load)
    folder = pathlib.Path(re.search(rf"{re.escape(str(tmp_path))}/[\w./]+", line)[0])
    assert folder in path.parents and folder.name not in ("idx_images", tmp_path.name) and "delete that folder" in line
    if name != "cifar10":
        shutil.rmtree(folder)
        np.testing.assert_array_equal(load().images, before.images)


def test_a_data_dir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    assert "set data_dir" in said(lambda: sources.load("digits", "train", data_dir=str(tmp_path / "file")))


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_all_of_fashion_mnist_comes_back(tmp_path):
    for _ in ("decoded", "from the copy"):
        for split in prepared.SPLITS:
            images, labels = sources.load("fashion_mnist", split, data_dir=str(tmp_path), idx_dir=str(DEBIAN))
            assert counted(images, labels) == counted(*idx.read(DEBIAN, split))
