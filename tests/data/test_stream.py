"""Streams of batches: which examples, in which order, what is done to them, and going on from a checkpoint."""

import contextlib
import io
import itertools
import json
import math
import random

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from subspaces_jax.data import corruption, crops, sources, stream
from subspaces_jax.errors import CheckpointError, ConfigError, DataError


def encode(pixels, form="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def ramp(width, height):
    """An image whose red grows from left to right and whose green from top to bottom, in levels of 0 to 250."""
    image = np.zeros((height, width, 3))
    image[..., 0] += np.linspace(0, 250, width)
    image[..., 1] += np.linspace(0, 250, height)[:, None]
    return np.rint(image).astype(np.uint8)


@pytest.fixture(scope="module")
def numbered():
    """103 images whose label is their number, and so is their level of blue."""
    return [(encode(np.full((9, 7, 3), (0, 0, i), np.uint8)), i) for i in range(103)]


def take(batches, num):
    with contextlib.closing(batches):
        return list(itertools.islice(batches, num))


def same(a, b):
    return len(a) == len(b) and all(
        np.array_equal(x, y) for one, two in zip(a, b) for x, y in zip(one, two, strict=True)
    )


def labels_of(batches):
    return [batch.labels.tolist() for batch in batches]


# Which examples


def test_an_epoch_gives_each_example_at_most_once_and_the_next_one_another_order(numbered):
    given = take(stream.train_stream(numbered, 10, image_size=4, num_threads=2), 30)
    assert {batch.images.shape for batch in given} == {(10, 4, 4, 3)} and {batch.labels.shape for batch in given} == {
        (10,)
    }
    assert given[0].images.dtype == np.uint8 and given[0].labels.dtype == np.int32 and given[0].mask.all()
    epochs = [np.concatenate(labels_of(given[start : start + 10])) for start in (0, 10, 20)]
    for epoch in epochs:
        assert len(set(epoch)) == 100 and set(epoch) <= set(range(103))
    left_out = set(range(103)) - set.intersection(*map(set, epochs))
    assert len(left_out) > 3  # not the same three each time
    assert all(np.sum(a == b) < 12 for a, b in itertools.combinations(epochs, 2))
    for batch in given:
        np.testing.assert_array_equal(batch.images[:, 0, 0, 2], batch.labels)


def test_runs_of_neighbouring_seeds_share_no_epoch(numbered):
    runs = [take(stream.train_stream(numbered, 103, image_size=1, seed=seed), 3) for seed in (0, 1, 2)]
    assert len({tuple(epoch) for run in runs for epoch in labels_of(run)}) == 9


def test_evaluation_gives_every_example_once_in_order(numbered):
    given = take(stream.eval_stream(numbered, 32, resize=4, crop=4), 10)
    assert [batch.mask.sum() for batch in given] == [32, 32, 32, 7]
    np.testing.assert_array_equal(np.concatenate([batch.labels[batch.mask] for batch in given]), np.arange(103))
    np.testing.assert_array_equal(np.concatenate([b.images[b.mask][:, 1, 1, 2] for b in given]), np.arange(103))
    assert {batch.images.shape for batch in given} == {(32, 4, 4, 3)} and not given[-1].images[7:].any()


def test_labels_are_replaced_by_number(numbered):
    noise = corruption.label_noise(103, 0.5, 200, seed=1)
    given = take(stream.train_stream(numbered, 50, image_size=2, relabel=noise), 4)
    numbers = np.concatenate([batch.images[:, 0, 0, 2] for batch in given])
    expected = np.where(noise < 0, np.arange(103), noise)[numbers]
    np.testing.assert_array_equal(np.concatenate(labels_of(given)), expected)


# Going on


def test_a_resumed_stream_is_the_uninterrupted_one(numbered):
    whole = take(stream.train_stream(numbered, 20, image_size=4, seed=3), 12)
    begun = stream.train_stream(numbered, 20, image_size=4, seed=3, num_threads=1)
    for stop in (0, 3, 5, 7):  # in an epoch and at its end
        given = list(itertools.islice(begun, stop - begun.get_state()["step"]))
        state = json.loads(json.dumps(begun.get_state()))
        assert state == {"step": stop} and same(given, whole[stop - len(given) : stop])
        resumed = stream.train_stream(numbered, 20, image_size=4, seed=3)
        resumed.set_state(state)
        assert same(take(resumed, 4), whole[stop : stop + 4])
        assert resumed.get_state() == {"step": stop + 4}
        assert same(
            take(stream.train_stream(numbered, 20, image_size=4, seed=3, start_step=stop), 2), whole[stop : stop + 2]
        )
    begun.set_state({"step": 1})  # back again
    assert same(take(begun, 3), whole[1:4])
    assert not same(take(stream.train_stream(numbered, 20, image_size=4, seed=4), 12), whole)


def test_a_step_far_away_is_reached_at_once(numbered):
    given = take(stream.train_stream(numbered, 10, image_size=1, start_step=10**9), 10)
    assert len(set(np.concatenate(labels_of(given)))) == 100


def test_worker_processes_give_what_threads_give(data_dir, monkeypatch):
    """In processes with another hash seed, from a source of ArrayRecord files, going on where threads have stopped."""
    source = sources.open_source("digits", "train")
    whole = take(stream.train_stream(source, 32, image_size=8), 5)
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    resumed = stream.train_stream(source, 32, image_size=8, num_workers=2)
    resumed.set_state({"step": 2})
    with contextlib.closing(resumed):
        assert same(list(itertools.islice(resumed, 2)), whole[2:4])
        assert resumed.get_state() == {"step": 4}


def test_worker_processes_evaluate_every_example_once(numbered):
    given = take(stream.eval_stream(numbered, 60, resize=2, crop=2, num_workers=1), 10)
    np.testing.assert_array_equal(np.concatenate([batch.labels[batch.mask] for batch in given]), np.arange(103))


# Parts of a batch


class Counted:
    """A source that knows which of its examples were read."""

    def __init__(self, examples):
        self.examples, self.read = examples, []

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        self.read.append(index)
        return self.examples[index]


@pytest.fixture(scope="module")
def varied():
    """103 images of several sizes in random colours, whose label is their number."""
    rng = np.random.default_rng(0)
    sizes = [(9 + i % 4, 7 + i % 3, 3) for i in range(103)]
    return [(encode(rng.integers(0, 256, size, dtype=np.uint8)), i) for i, size in enumerate(sizes)]


def joined(parts):
    """The batches that several processes have a part of each."""
    return [stream.Batch(*map(np.concatenate, zip(*batch))) for batch in zip(*parts, strict=True)]


@pytest.mark.parametrize("num_parts", [1, 2, 4])
@pytest.mark.parametrize("start_step", [0, 3, 5, 123_456_789])
def test_parts_of_training_batches_are_the_batches_of_one_process(varied, num_parts, start_step):
    noise = corruption.label_noise(103, 0.5, 200, seed=1)
    options = dict(image_size=4, seed=3, relabel=noise, pixel_seed=1, start_step=start_step, num_threads=1)
    whole = take(stream.train_stream(varied, 20, **options), 12)  # epochs have 5
    parts = [take(stream.train_stream(varied, 20, part=(i, num_parts), **options), 12) for i in range(num_parts)]
    assert {len(batch.labels) for part in parts for batch in part} == {20 // num_parts}
    assert same(joined(parts), whole)


def test_parts_go_on_with_other_workers(varied):
    whole = take(stream.train_stream(varied, 20, image_size=4, seed=3), 12)
    begun = stream.train_stream(varied, 20, image_size=4, seed=3, part=(1, 4))
    given = take(begun, 4)
    resumed = stream.train_stream(varied, 20, image_size=4, seed=3, part=(1, 4), num_workers=2)
    resumed.set_state(begun.get_state())
    given += take(resumed, 3)
    assert same(given, [stream.Batch(*(rows[5:10] for rows in batch)) for batch in whole[:7]])


@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_parts_of_evaluation_batches_are_the_batches_of_one_process(varied, num_parts):
    options = dict(resize=6, crop=4, pixel_seed=1, num_threads=1)
    whole = take(stream.eval_stream(varied, 32, **options), 10)
    parts = [take(stream.eval_stream(varied, 32, part=(i, num_parts), **options), 10) for i in range(num_parts)]
    assert same(joined(parts), whole) and [batch.mask.sum() for batch in whole] == [32, 32, 32, 7]
    if num_parts == 4:
        assert not parts[3][-1].mask.any() and not parts[3][-1].images.any() and not parts[3][-1].labels.any()
        assert parts[3][-1].images.shape == (8, 4, 4, 3) and parts[3][-1].labels.dtype == np.int32


def test_a_part_reads_its_own_rows_alone(varied):
    epochs = [Counted(varied) for _ in range(2)]
    for i, source in enumerate(epochs):
        given = take(stream.train_stream(source, 20, image_size=4, part=(i, 2), num_threads=1), 5)
        seen = {label for labels in labels_of(given) for label in labels}
        assert len(seen) == 50 and seen <= set(source.read)
        assert len(source.read) <= 10 * 5 + 10 * 4  # batches that are made ahead
    source = Counted(varied)
    take(stream.eval_stream(source, 32, resize=4, crop=4, part=(1, 2)), 10)
    padding = [0]  # for the form of its label, where a part holds nothing else
    assert sorted(source.read) == [*padding, *range(16, 32), *range(48, 64), *range(80, 96)]


def test_labels_may_be_real_or_none(numbered):
    real = [(content, np.float32([i, -i / 2])) for content, i in numbered]
    given = take(stream.eval_stream(real, 60, resize=2, crop=2), 10)
    assert given[0].labels.dtype == np.float32 and given[1].labels.shape == (60, 2)
    np.testing.assert_array_equal(np.concatenate([b.labels[b.mask] for b in given])[:, 1], -np.arange(103) / 2)
    assert not given[1].labels[43:].any()
    (batch,) = take(stream.train_stream([(content, ()) for content, _ in numbered], 10, image_size=2), 1)
    assert batch.labels == () and batch.images.shape == (10, 2, 2, 3)
    parts = [take(stream.eval_stream(real, 60, resize=2, crop=2, part=(i, 6)), 2) for i in range(6)]
    assert same(joined(parts), given)


# What is done to an image


def draw_box(generator, width, height):
    """The published recipe, one number at a time."""
    for _ in range(10):
        area, log_ratio = (
            width * height * generator.uniform(0.08, 1),
            generator.uniform(math.log(3 / 4), math.log(4 / 3)),
        )
        ratio = math.exp(log_ratio)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if w <= width and h <= height:
            left, top = generator.randint(0, width - w), generator.randint(0, height - h)
            return left, top, left + w, top + h
    return None


@pytest.mark.parametrize("width, height", [(500, 375), (64, 64), (200, 260)])
def test_crops_have_the_distribution_of_the_recipe(width, height):
    rng, generator = np.random.default_rng(0), random.Random(0)
    ours = np.array([crops.random_box(rng, width, height) for _ in range(3000)])
    theirs = np.array([draw_box(generator, width, height) or (0, 0, 0, 0) for _ in range(3000)])
    assert np.all(ours[:, :2] >= 0) and np.all(ours[:, 2] <= width) and np.all(ours[:, 3] <= height)
    for measure in (
        lambda left, top, right, bottom: (right - left) * (bottom - top),
        lambda left, top, right, bottom: (right - left) / np.maximum(bottom - top, 1),
        lambda left, top, right, bottom: left,
        lambda left, top, right, bottom: top,
        lambda left, top, right, bottom: bottom,
    ):
        assert scipy.stats.ks_2samp(measure(*ours.T), measure(*theirs.T)).pvalue > 1e-3


def test_where_no_crop_fits_the_largest_one_in_the_middle_is_taken():
    rng = np.random.default_rng(0)
    assert crops.random_box(rng, 10, 1000) == (0, 493, 10, 506)  # 10 / 13 is nearest to 3 / 4
    assert crops.random_box(rng, 1000, 9) == (494, 0, 506, 9)
    assert crops.random_box(rng, 1, 1) == (0, 0, 1, 1)


def test_a_training_image_is_a_resized_and_maybe_mirrored_crop():
    """On a ramp: what is cut out can be read off, and is a ramp again."""
    width, height, size = 250, 200, 32
    source = [(encode(ramp(width, height)), 0)] * 64
    (batch,) = take(stream.train_stream(source, 64, image_size=size, seed=1), 1)
    images = batch.images.astype(float)
    mirrored = images[:, :, 0, 0].mean(1) > images[:, :, -1, 0].mean(1)
    assert 16 < mirrored.sum() < 48
    areas = set()
    for image, mirror in zip(images, mirrored):
        red, green = (image[:, ::-1] if mirror else image)[..., 0], image[..., 1]
        wide, high = (
            (a[-3] - a[2]) / 250 / (size - 5) * size for a in (red.mean(0), green.mean(1))
        )  # away from the borders
        for profile in (red.mean(0)[2:-2], green.mean(1)[2:-2]):
            assert np.abs(profile - np.linspace(profile[0], profile[-1], size - 4)).max() < 2
        assert np.ptp(red, axis=0).max() <= 1 and np.ptp(green, axis=1).max() <= 1
        assert 0.07 < wide * high < 1.03 and 0.7 < wide * width / (high * height) < 1.4
        areas.add(round(wide * high, 2))
    assert len(areas) > 20


@pytest.mark.parametrize("width, height", [(384, 512), (512, 384), (100, 128)])
def test_an_evaluation_image_is_the_middle_of_the_resized_one(width, height):
    (batch,) = take(stream.eval_stream([(encode(ramp(width, height)), 5)], 1), 1)
    assert batch.images.shape == (1, 224, 224, 3)
    scale = 256 / min(width, height)
    for channel, length, axis in ((0, width, 0), (1, height, 1)):
        resized = int(length * scale)
        place = (np.arange(224) + 0.5 + round((resized - 224) / 2)) * length / resized - 0.5
        difference = batch.images[0, ..., channel].mean(axis=axis) - place * 250 / (length - 1)
        assert (
            np.abs(difference).max() < 1.3 and abs(difference.mean()) < 0.15
        )  # rounded three times; half a pixel is 0.3


def test_grey_and_transparent_images_become_colour_images():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    forms = [encode(grey), encode(grey, "JPEG", quality=100), encode(np.dstack([grey] * 3 + [np.full_like(grey, 255)]))]
    (batch,) = take(stream.eval_stream([(content, 0) for content in forms], 3, resize=16, crop=16), 1)
    assert np.abs(batch.images.astype(int) - grey[None, :, :, None]).max() <= 2
    (batch,) = take(stream.train_stream([(content, 0) for content in forms], 3, image_size=8), 1)
    np.testing.assert_array_equal(batch.images[..., 0], batch.images[..., 1])


def test_large_jpegs_are_decoded_at_a_fraction_of_their_size():
    pixels = ramp(1600, 1200)
    forms = [(encode(pixels), 0)] * 16, [(encode(pixels, "JPEG", quality=95), 0)] * 16
    png, jpeg = (take(stream.train_stream(source, 16, image_size=50), 1)[0].images for source in forms)
    assert np.abs(png.astype(int) - jpeg).max() <= 6
    image = Image.open(io.BytesIO(forms[1][0][0]))
    assert crops._draft(image, 5) == 4 and image.size == (400, 300)
    assert crops._draft(Image.open(io.BytesIO(forms[0][0][0])), 5) == 1


# What is refused


TRUNCATED = encode(ramp(40, 40), "JPEG")[:-300]


@pytest.mark.parametrize("content, num_workers", [(b"", 0), (b"no image", 0), (TRUNCATED, 0), (TRUNCATED, 1)])
def test_an_image_that_cannot_be_decoded_is_named(content, num_workers):
    source = [(encode(ramp(40, 40)), 0), (content, 0)]
    for batches in (stream.train_stream(source, 2, num_workers=num_workers), stream.eval_stream(source, 2)):
        with contextlib.closing(batches), pytest.raises(DataError, match="image 1 of .* cannot be decoded") as raised:
            next(batches)
        assert "\n" not in str(raised.value)


def test_arguments_out_of_range_are_refused(numbered):
    with pytest.raises(DataError, match="batch_size is 104 but the data have 103 examples"):
        stream.train_stream(numbered, 104)
    with pytest.raises(ConfigError, match=r"relabel has shape \(5,\) for 103 examples"):
        stream.train_stream(numbered, 10, relabel=np.zeros(5, np.int32))
    with pytest.raises(ConfigError, match="crop is 257 and resize 256"):
        stream.eval_stream(numbered, 10, crop=257)
    with pytest.raises(ConfigError, match="start_step is -1"):
        stream.train_stream(numbered, 10, start_step=-1)
    for start in (stream.train_stream, stream.eval_stream):
        with pytest.raises(ConfigError, match="batch_size is 30 for 4 processes: choose a multiple of 4"):
            start(numbered, 30, part=(0, 4))
        for part in ((2, 2), (-1, 2), (0, 0)):
            with pytest.raises(ConfigError, match="part is .*: it is a process's number, from 0"):
                start(numbered, 30, part=part)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        stream.eval_stream(numbered, 0)
    for state in ({"step": -1}, {"step": "1"}, {}, None):
        with pytest.raises(CheckpointError, match="the state of a data stream is"):
            stream.train_stream(numbered, 10).set_state(state)
