"""Label noise and pixel shuffles: exact counts, nested sets, nothing that depends on the process."""

import os
import subprocess
import sys

import numpy as np
import pytest

from subspaces_jax.data.corruption import label_noise, noisy_labels, pixel_shuffle, pixel_unshuffle
from subspaces_jax.errors import ConfigError

N, C = 20_000, 10


@pytest.fixture(scope="module")
def labels():
    return np.random.default_rng(5).integers(0, C, N).astype(np.int32)


def test_no_noise_changes_nothing_and_the_input_is_never_written(labels):
    before = labels.copy()
    np.testing.assert_array_equal(noisy_labels(labels, 0.0, C), labels)
    noisy_labels(labels, 1.0, C)
    np.testing.assert_array_equal(labels, before)


@pytest.mark.parametrize("fraction", [0.2, 0.4, 1.0])
def test_the_right_number_changes_to_uniform_classes(labels, fraction):
    noisy = noisy_labels(labels, fraction, C)
    assert noisy.dtype == labels.dtype and noisy.min() >= 0 and noisy.max() < C
    expected = N * fraction * (C - 1) / C
    assert abs(np.sum(noisy != labels) - expected) < 4 * np.sqrt(expected / C)
    counts = np.bincount(noisy[noisy != labels], minlength=C)
    assert np.all(np.abs(counts - expected / C) < 5 * np.sqrt(expected / C))


def test_exactly_the_first_of_the_order_are_touched():
    """Labels of a class that is never drawn show every touched one."""
    hidden = np.full(N, C, np.int64)
    for fraction in (0.0, 0.1, 0.37, 1.0):
        assert np.sum(noisy_labels(hidden, fraction, C) != C) == int(N * fraction)


def test_a_smaller_fraction_is_nested_in_a_larger_one():
    hidden = np.full(N, C, np.int64)
    small, large = (noisy_labels(hidden, fraction, C) for fraction in (0.2, 0.4))
    touched = small != C
    np.testing.assert_array_equal(small[touched], large[touched])
    assert np.sum(large != C) == 2 * np.sum(touched)


@pytest.mark.parametrize("num_classes", [2, 10])
def test_without_the_true_class_every_touched_label_changes(labels, num_classes):
    labels = labels % num_classes
    small, large = (noisy_labels(labels, fraction, num_classes, exclude_true=True) for fraction in (0.25, 0.75))
    assert [np.sum(noisy != labels) for noisy in (small, large)] == [N // 4, 3 * N // 4]
    np.testing.assert_array_equal(small[small != labels], large[small != labels])
    assert large.min() >= 0 and large.max() < num_classes
    counts = np.bincount((large - labels)[large != labels] % num_classes, minlength=num_classes)[1:]  # each other class
    assert np.all(np.abs(counts - counts.mean()) < 5 * np.sqrt(counts.mean()))
    with pytest.raises(ConfigError, match="exclude_true needs two classes"):
        noisy_labels(labels, 0.5, 1, exclude_true=True)


def test_the_noise_of_labels_that_are_not_at_hand_is_the_same(labels):
    noise = label_noise(N, 0.3, C, seed=4)
    assert noise.dtype == np.int32 and np.sum(noise >= 0) == int(N * 0.3)
    np.testing.assert_array_equal(np.where(noise < 0, labels, noise), noisy_labels(labels, 0.3, C, seed=4))


def test_draws_are_those_of_a_generator_written_out_by_hand():
    """PCG64 by its definition (O'Neill 2014, XSL-RR 128/64), from the state that NumPy seeds it with."""
    state = np.random.PCG64(np.random.SeedSequence([3, 0x9EE786F4])).state["state"]  # zlib.crc32 of the name
    value, words = state["state"], []
    for _ in range(6):
        value = (value * 0x2360ED051FC65DA44385DF649FCCF645 + state["inc"]) % 2**128
        folded, turn = (value >> 64) ^ (value % 2**64), value >> 122
        words.append((folded >> turn | folded << (64 - turn)) % 2**64)
    order = sorted(range(6), key=words.__getitem__)
    assert pixel_shuffle(np.arange(6).reshape(1, 2, 3, 1), 3).ravel().tolist() == order


def test_seeds_differ_and_processes_agree(labels):
    assert np.any(noisy_labels(labels, 0.5, C, seed=1) != noisy_labels(labels, 0.5, C, seed=2))
    program = (
        "import numpy as np; from subspaces_jax.data.corruption import *;"
        "print(noisy_labels(np.zeros(50, np.int32), 0.5, 10, 3).tolist(),"
        "pixel_shuffle(np.arange(9).reshape(1, 3, 3, 1), 3).ravel().tolist())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    here = noisy_labels(np.zeros(50, np.int32), 0.5, 10, 3).tolist()
    assert len(outputs) == 1 and outputs.pop().decode().startswith(str(here))


@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
def test_a_fraction_outside_its_range_is_refused(labels, fraction):
    with pytest.raises(ConfigError, match=r"label_noise is .*: it is the fraction .* in \[0, 1\]"):
        noisy_labels(labels, fraction, C)


def test_a_pixel_shuffle_is_one_invertible_order_of_pixels():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3)).astype(np.uint8)
    shuffled = pixel_shuffle(images, seed=7)
    assert shuffled.shape == images.shape and shuffled.dtype == images.dtype and np.any(shuffled != images)
    places = pixel_shuffle(np.arange(24).reshape(1, 4, 6, 1), seed=7).ravel()
    inverse = np.argsort(places)
    np.testing.assert_array_equal(np.sort(places), np.arange(24))
    np.testing.assert_array_equal(shuffled.reshape(5, 24, 3)[:, inverse].reshape(images.shape), images)
    np.testing.assert_array_equal(shuffled[2], pixel_shuffle(images[2:3], seed=7)[0])
    np.testing.assert_array_equal(pixel_unshuffle(shuffled, seed=7), images)
    assert np.any(pixel_unshuffle(shuffled, seed=8) != images)
