"""Which examples are used, labels that are wrong and pixels that have orders of their own: golden values of the
specification of Gamba et al., from NumPy's legacy generator, and properties."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from subspaces_jax.data import corruption, files, images, subsets
from subspaces_jax.errors import ConfigError, DataError


def test_classes_are_drawn_as_published():
    letters = np.array(list("abcdef"))
    assert "".join(letters[subsets.drawn_classes(6, 3, seed=42)]) == "abf"
    assert subsets.first_classes(6, 3).tolist() == [0, 1, 2]


def test_examples_of_classes_keep_their_order_and_get_new_labels():
    labels = np.array([3, 0, 5, 3, 1, 9, 0], np.int32)
    rows, found = subsets.of_classes(labels, np.array([5, 0, 3]))
    assert rows.tolist() == [0, 1, 2, 3, 6] and found.tolist() == [2, 1, 0, 2, 1] and found.dtype == np.int32
    rows, found = subsets.of_classes(labels, np.array([7, 12]))
    assert len(rows) == len(found) == 0


@pytest.mark.parametrize("num", [-1, 0, 1, 7])
def test_too_few_and_too_many_classes_are_refused(num):
    with pytest.raises(ConfigError, match=f"takes {num} of 6 classes: choose 2 to 6"):
        subsets.drawn_classes(6, num, 0)


def test_what_is_held_out_is_as_published():
    parts = lambda seed: [part.tolist() for part in subsets.last(10, 0.3, seed)]
    assert parts(None) == [[0, 1, 2, 3, 4, 5, 6], [7, 8, 9]]
    assert parts(42) == [[8, 1, 5, 0, 7, 2, 9], [4, 3, 6]]
    assert len(subsets.last(10, 0.39)[1]) == 3


def test_a_stratified_part_has_all_classes_as_often():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    train, held = subsets.stratified(labels, 0.2, seed=3)
    assert sorted([*train, *held]) == list(range(100))
    assert np.bincount(labels[held]).tolist() == [12, 6, 2]
    assert not np.array_equal(held, subsets.stratified(labels, 0.2, seed=4)[1])


@pytest.mark.parametrize("fraction, message", [(0.0, "in \\(0, 1\\)"), (1.5, "in \\(0, 1\\)"), (0.01, "leaves some")])
def test_fractions_that_hold_out_nothing_are_refused(fraction, message):
    with pytest.raises(ConfigError, match=message):
        subsets.last(10, fraction)
    with pytest.raises(ConfigError, match=message if fraction != 0.01 else "cannot be stratified"):
        subsets.stratified(np.repeat([0, 1], 5), fraction, 0)


def test_a_selection_of_a_source():
    source = [(b"a", 3), (b"b", 1), (b"c", 3)]
    assert [subsets.Selected(source, np.array([2, 0]))[i] for i in range(2)] == [(b"c", 3), (b"a", 3)]
    relabelled = subsets.Selected(source, np.array([2, 1]), np.array([0, 7]))
    assert list(relabelled) == [(b"c", 0), (b"b", 7)] and len(relabelled) == 2


def test_wrong_labels_are_those_that_are_published():
    labels = np.tile(np.arange(10), 2)
    found = corruption.wrong_labels(labels, 0.5, 10, seed=42)
    assert found.tolist() == [3, 1, 2, 3, 1, 9, 5, 7, 8, 9, 3, 1, 2, 8, 7, 2, 1, 7, 7, 6]
    assert np.sum(found != labels) == 11


def test_wrong_labels_are_never_true():
    labels = np.random.default_rng(0).integers(0, 4, 20_000)
    np.testing.assert_array_equal(corruption.wrong_labels(labels, 0.0, 4), labels)
    assert np.all(corruption.wrong_labels(labels, 1.0, 4) != labels)
    some = corruption.wrong_labels(labels, 0.3, 4, seed=5)
    assert abs(np.mean(some != labels) - 0.3) < 4 * np.sqrt(0.21 / 20_000)
    shifts = np.bincount((some - labels) % 4, minlength=4)[1:]
    assert np.all(np.abs(shifts - shifts.mean()) < 4 * np.sqrt(shifts.mean()))


@pytest.mark.parametrize("fraction, num_classes, message", [(1.2, 10, "in \\[0, 1\\]"), (0.5, 1, "needs two classes")])
def test_wrong_labels_that_cannot_be(fraction, num_classes, message):
    with pytest.raises(ConfigError, match=message):
        corruption.wrong_labels(np.zeros(3, int), fraction, num_classes)


def test_orders_of_their_own_are_as_published():
    pixels = (np.arange(2 * 32 * 32 * 3) % 251).astype(np.uint8).reshape(2, 32, 32, 3)
    carrying = corruption.with_orders(pixels, seed=7)
    orders = carrying[..., 3].astype(int) + 256 * carrying[..., 4].astype(int)
    assert orders[0].ravel()[:4].tolist() == [570, 146, 360, 746]
    draws = np.random.RandomState(7)
    expected = [draws.permutation(1024) for _ in range(2)]
    moved = np.asarray(corruption.in_order(jnp.asarray(carrying), 3)).reshape(2, 1024, 3)
    for i in range(2):
        np.testing.assert_array_equal(moved[i], pixels[i].reshape(1024, 3)[expected[i]])
    np.testing.assert_array_equal(corruption.in_order(jnp.asarray(pixels), 3), pixels)
    with pytest.raises(ConfigError, match="at most 65,536"):
        corruption.with_orders(np.zeros((1, 300, 300, 1), np.uint8))


def test_images_are_resized_and_then_padded():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    found = images.all_resized(pixels, (28, 28, 1), padding=4)
    assert found.shape == (3, 28, 28, 1)
    inner = found[:, 4:24, 4:24, 0]
    assert found.astype(int).sum() == inner.astype(int).sum()
    # half-pixel centres: row 7 of 20 lies at (7 + 0.5) * 8 / 20 - 0.5 = 2.5, in the middle of rows 2 and 3
    between = pixels[:, 2:4, 2:4, 0].astype(float).mean((1, 2))
    assert np.abs(inner[:, 7, 7] - between).max() <= 1
    expected = np.asarray(Image.fromarray(pixels[1, :, :, 0]).resize((20, 20), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(inner[1], expected)


def test_what_does_not_fit_into_memory_says_how_much_it_needs(monkeypatch):
    monkeypatch.setattr(files, "free_memory", lambda: 2**30)
    many = np.broadcast_to(np.uint8(0), (50_000, 32, 32, 3))
    with pytest.raises(DataError, match="50,000 images of 224x224 pixels need 7.0 GiB of memory, and 1.0 GiB are free"):
        images.all_resized(many, (224, 224, 3))


def test_free_memory_is_less_than_all():
    free = files.free_memory()
    assert free is None or 0 < free < 2**50


def test_labels_of_one_byte_have_classes_too():
    rows, labels = subsets.of_classes(np.array([0, 255, 3], np.uint8), np.array([3, 255]))
    assert rows.tolist() == [1, 2] and labels.tolist() == [1, 0] and labels.dtype == np.uint8
