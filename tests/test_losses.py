"""The Laplacian pyramid against SciPy in float64, published numbers and what a pyramid has to be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from subspaces_jax import losses, tasks

TAPS = np.array([1, 4, 6, 4, 1]) / 16
ROWS, COLUMNS, CHANNELS = np.meshgrid(np.arange(64), np.arange(64), np.arange(3), indexing="ij")
A = (np.sin(0.37 * ROWS + 0.11 * CHANNELS) + np.cos(0.23 * COLUMNS - 0.5 * CHANNELS)) / 4 + 0.5
B = np.sin(0.31 * ROWS + 0.2 * CHANNELS + 0.4) * np.cos(0.19 * COLUMNS) / 2 + 0.5
GOLDEN = {
    1: 0.0341215851,
    3: 0.3052879810,
    5: 0.4477917286,
}  # of A and B, in float64, by an implementation that is not ours
RESIDUAL = 0.0319086567


def blurred(image, taps):
    for axis in (0, 1):
        image = scipy.ndimage.correlate1d(image, taps, axis, mode="mirror")
    return image


def upsampled(image):
    spread = np.zeros((2 * image.shape[0], 2 * image.shape[1], image.shape[2]))
    spread[::2, ::2] = image
    return blurred(spread, 2 * TAPS)


def pyramid(image, num_levels):
    """Bands and what is left of one image [H, W, channels], in float64."""
    bands = []
    for _ in range(num_levels):
        lower = blurred(image, TAPS)[::2, ::2]
        bands.append(image - upsampled(lower))
        image = lower
    return bands, image


def by_hand(a, b, num_levels, residual=False):
    (bands_a, low_a), (bands_b, low_b) = (pyramid(np.asarray(x, np.float64), num_levels) for x in (a, b))
    total = sum(np.abs(x - y).mean() for x, y in zip(bands_a, bands_b))
    return total + residual * np.abs(low_a - low_b).mean()


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return rng.random((2, 3, 16, 24, 2)).astype(np.float32)


@pytest.mark.parametrize("num_levels", GOLDEN)
def test_published_numbers(num_levels):
    found = losses.laplacian_pyramid_loss(jnp.asarray(A)[None], jnp.asarray(B)[None], num_levels)
    assert float(found) == pytest.approx(GOLDEN[num_levels], rel=2e-6)
    assert by_hand(A, B, num_levels) == pytest.approx(GOLDEN[num_levels], abs=1e-10)


@pytest.mark.parametrize("residual, expected", [(False, GOLDEN[5]), (True, GOLDEN[5] + RESIDUAL)])
def test_published_numbers_through_the_task(residual, expected):
    task = tasks.reconstruction("laplacian", residual=residual)
    assert task.output_shape((64, 64, 3), 10) == (64, 64, 3)
    inputs, outputs = (jnp.stack([image, 0 * image]) for image in (jnp.asarray(A), jnp.asarray(B)))
    loss = task.loss(outputs, task.targets(inputs, ()))
    np.testing.assert_allclose(loss, [expected, 0.0], rtol=2e-6)
    found = task.read(task.scores(outputs, inputs, jnp.array([True, False])))
    expected_scores = {"loss": expected, "laplacian": GOLDEN[5], "mae": 0.2831274627, "mse": ((A - B) ** 2).mean()}
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected_scores, rel=3e-6)


@pytest.mark.parametrize("num_levels", [1, 2])
@pytest.mark.parametrize("residual", [False, True])
def test_each_example_is_scipys(images, num_levels, residual):
    found = losses.laplacian_pyramid(*images, num_levels, residual)
    expected = [by_hand(a, b, num_levels, residual) for a, b in zip(*images)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    mean = losses.laplacian_pyramid_loss(*images, num_levels)
    assert float(mean) == pytest.approx(np.mean([by_hand(a, b, num_levels) for a, b in zip(*images)]), rel=1e-5)


def test_it_is_a_norm_of_the_difference_that_shifts_do_not_change(images):
    a, b = images
    of = lambda *pair, **options: np.asarray(losses.laplacian_pyramid(*map(jnp.asarray, pair), 2, **options))
    np.testing.assert_allclose(of(2 * a, 2 * b), 2 * of(a, b), rtol=1e-6)
    np.testing.assert_allclose(of(b, a), of(a, b), rtol=1e-6)
    np.testing.assert_array_equal(of(a, a, residual=True), np.zeros(3))
    shift = np.array([0.3, -0.2], np.float32)
    assert np.abs(of(a, a + shift)).max() < 1e-6
    np.testing.assert_allclose(of(a, a + shift, residual=True), 0.25, rtol=1e-5)
    assert (of(a, b) > 0.1).all()


def test_up_keeps_a_constant_and_the_pyramid_gives_the_image_back(images):
    """From the matrices that the loss takes, in the order that inverts it."""
    image, ups, bands = images[0], [], []
    low = image
    for _ in range(2):
        (down_rows, up_rows), (down_columns, up_columns) = (losses._pyramid_matrices(side) for side in low.shape[1:3])
        lower = np.einsum("ih,bhwc,jw->bijc", down_rows, low, down_columns)
        up = lambda x, rows=up_rows, columns=up_columns: np.einsum("ih,bhwc,jw->bijc", rows, x, columns)
        bands.append(low - up(lower))
        ups.append(up)
        low = lower
        np.testing.assert_array_equal(up(np.ones_like(lower)), np.ones((3, *bands[-1].shape[1:])))
    for band, up in zip(bands[::-1], ups[::-1]):
        low = band + up(low)
    np.testing.assert_allclose(low, image, atol=1e-6)


def test_the_gradient_is_that_of_differences(images):
    a, b = (image[:1, :8, :8] for image in images)
    direction = np.random.default_rng(1).normal(size=a.shape)
    gradient = jax.grad(lambda a: losses.laplacian_pyramid_loss(a, b, 2))(jnp.asarray(a))
    step = 1e-5  # of float64; no band changes its sign within it
    ends = [by_hand(a[0] + sign * step * direction[0], b[0], 2) for sign in (1, -1)]
    assert float(np.sum(gradient * direction)) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4)


@pytest.mark.parametrize(
    "shape, most",
    [((64, 64, 3), 5), ((32, 32, 3), 4), ((28, 28, 1), 2), ((8, 8, 1), 2), ((4, 4, 1), 1), ((2, 2, 1), 0),
     ((64, 16, 3), 3), ((7, 8, 1), 0), ((64,), 0)],
)  # fmt: skip
def test_the_deepest_pyramid_of_a_shape(shape, most):
    """By hand: every side that is blurred is even and wider than the border that is mirrored, two pixels."""
    assert losses.max_levels(shape) == most
    if most:
        losses.check_levels(most, shape)
    with pytest.raises(ValueError, match=f"a pyramid of {most + 1} levels is too deep") as raised:
        losses.check_levels(most + 1, shape)
    assert "\n" not in str(raised.value) and str(shape) in str(raised.value)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: losses.laplacian_pyramid(A[None], B[None, :32], 3), "expected two arrays"),
        (lambda: losses.laplacian_pyramid(A, B, 3), "expected two arrays"),
        (lambda: losses.laplacian_pyramid(A[None], B[None], 0), "whole number from 1 up, got 0"),
        (lambda: losses.laplacian_pyramid_loss(A[None], B[None], 6), "multiples of 64 from 128 up; choose at most 5"),
        (lambda: tasks.reconstruction("laplacian", levels=0), "levels is a whole number from 1 up, got 0"),
        (lambda: tasks.reconstruction("mae", residual=True), "residual belongs to the loss laplacian, got 'mae'"),
        (lambda: tasks.reconstruction("laplacian").output_shape((8, 8, 1), 0), "choose at most 2, or resize"),
    ],
)
def test_what_there_is_no_pyramid_of_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_smoothing_may_be_an_argument_of_a_program():
    logits, labels = jnp.array([[1.0, 2.0, -1.0]]), jnp.array([1])
    for smoothing in (0.0, 0.3):
        traced = jax.jit(losses.cross_entropy)(logits, labels, smoothing)
        np.testing.assert_allclose(traced, losses.cross_entropy(logits, labels, smoothing), rtol=1e-6)
