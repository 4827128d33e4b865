"""Convolutions that stay fast on every platform, inside loops and out.

On CPU the gradients that JAX derives for a convolution have dimension numbers that XLA rewrites to its fast form only
at the top level of a program; inside scan, while or cond they run as naive loops, 30 to 50 times slower. Here both
gradients are written so that XLA meets nothing but canonical NHWC/HWIO convolutions and matrix products:

    narrow maps             two neighbouring columns as one of twice the channels: XLA packs few channels badly
    input gradient          one convolution with a stride's worth of phases as output channels, then interleaved
    kernel gradient         a convolution with the batch in the place of the channels; for stride > 1, and where padding
                            makes the output larger than the input, one matrix product a kernel position
    1x1 kernels, gradients  one matrix product

Neither form multiplies the zeros of a dilated cotangent, and none copies a map once per kernel position in the common
case of stride 1, which costs more than it gains on wide maps.

Every other platform gets what JAX itself derives. Which forms a program takes is decided when it is lowered, by the
platform that it is lowered for, so that a step compiled for an accelerator on a host without one is the right one.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

NHWC = ("NHWC", "HWIO", "NHWC")
KAIMING_NORMAL = nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # std sqrt(2 / (k k C_in)), untruncated
FAN_OUT_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # std sqrt(2 / (k k C_out))
FAN_AVERAGE_UNIFORM = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")  # Xavier's times sqrt(2)
SMALL_NORMAL = nn.initializers.normal(0.01)
TORCH_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # within +-1 / sqrt(k k C_in)
NARROW = (8, 16)  # channels in and out up to which two columns are convolved as one: more work, but packed better

Pads = tuple[tuple[int, int], tuple[int, int]]
Pair = tuple[int, int]


def convolution(
    lhs: jax.Array, rhs: jax.Array, window_strides: Any, padding: Any, *, dimension_numbers: Any = None, **options: Any
) -> jax.Array:
    """`lax.conv_general_dilated`, with forms of its own on CPU: for `nn.Conv(conv_general_dilated=convolution)`.

    Plain two-dimensional NHWC/HWIO convolutions take them where they are lowered for CPU; anything else (groups,
    dilation, other layouts) is passed on as it is.

    Args:
        lhs: images [B, H, W, C_in].
        rhs: kernel [k, k', C_in, C_out].
        window_strides, padding, dimension_numbers, options: as `lax.conv_general_dilated` takes them.

    Returns:
        [B, H', W', C_out].
    """
    plain = all(_is_default(name, value) for name, value in options.items())
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    canonical = lhs.ndim == 4 and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, NHWC)
    if not plain or not canonical:
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, dimension_numbers=dimension_numbers, **options
        )
    strides = tuple(window_strides)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return _convolve(lhs, rhs, strides, pads, precision)


Conv = partial(nn.Conv, use_bias=False, kernel_init=KAIMING_NORMAL, conv_general_dilated=convolution)
"""A bias-free, Kaiming-normal `nn.Conv` on `convolution`."""
BatchNorm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)
"""An `nn.BatchNorm` that keeps 0.9 of its running statistics a step."""


def uniform_bias(fan_in: int) -> Any:
    """An initial value uniform within +-1 / sqrt(fan_in), as PyTorch's biases have it."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def uniform_dense(fan_in: int, features: int, **options: Any) -> nn.Dense:
    """An `nn.Dense` whose weights and biases start uniform within +-1 / sqrt(fan_in), as PyTorch's do.

    Args:
        fan_in: columns of what it takes.
        features, options: as `nn.Dense` takes them.
    """
    return nn.Dense(features, kernel_init=TORCH_UNIFORM, bias_init=uniform_bias(fan_in), **options)


def max_pool(x: jax.Array, size: int, stride: int) -> jax.Array:
    """[B, H, W, C] -> the greatest of each size x size window, unpadded; a window shrinks to a map that is smaller."""
    return nn.max_pool(x, tuple(min(size, side) for side in x.shape[1:3]), (stride, stride))


def adaptive_average_pool(x: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] -> [B, size, size, C]: means of windows that cover the map and overlap where `size` does not divide.

    Window i of a side of n pixels is [floor(i n / size), ceil((i + 1) n / size)), as in PyTorch: 4 pixels in 3 windows
    are [0, 2), [1, 3), [2, 4), and a map of one pixel is repeated.
    """
    for axis in (1, 2):
        if x.shape[axis] != size:
            means = jnp.asarray(_window_means(x.shape[axis], size), x.dtype)
            x = jnp.moveaxis(jnp.tensordot(means, x, (1, axis), precision="highest"), 0, axis)
    return x


def _window_means(length: int, size: int) -> np.ndarray:
    """[size, length], rows that take the mean of each window."""
    places, i = np.arange(length), np.arange(size)[:, None]
    inside = (places >= i * length // size) & (places < -(-(i + 1) * length // size))
    return inside / inside.sum(1, keepdims=True)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve(images: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads, precision: str | None) -> jax.Array:
    """The convolution; it and its gradient, which is traced later, in that precision of products."""
    with jax.default_matmul_precision(precision):
        return _by_platform(_canonical, _of_lax, strides, pads)(images, kernel)


def _forward(images, kernel, strides, pads, precision):
    return _convolve(images, kernel, strides, pads, precision), (images, kernel)


def _backward(strides, pads, precision, residuals, cotangent):
    with jax.default_matmul_precision(precision):
        return _by_platform(_canonical_gradients, _gradients_of_lax, strides, pads)(*residuals, cotangent)


_convolve.defvjp(_forward, _backward)


def _by_platform(on_cpu, elsewhere, strides: Pair, pads: Pads):
    """Of two forms of one function the one for the platform that a program is lowered for."""
    forms = {"cpu": on_cpu, "default": elsewhere}
    static = {name: partial(form, strides=strides, pads=pads) for name, form in forms.items()}
    return partial(lax.platform_dependent, **static)


def _of_lax(images: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads) -> jax.Array:
    return lax.conv_general_dilated(images, kernel, strides, pads, dimension_numbers=NHWC)


def _gradients_of_lax(images, kernel, cotangent, strides, pads):
    return jax.vjp(partial(_of_lax, strides=strides, pads=pads), images, kernel)[1](cotangent)


def _canonical_gradients(images, kernel, cotangent, strides, pads):
    pointwise = kernel.shape[:2] == (1, 1)
    # XLA exchanges the operands of a convolution whose kernel, here the cotangent, is larger than the image: slow
    grows = cotangent.shape[1] * cotangent.shape[2] > images.shape[1] * images.shape[2]
    to_images = _images_gradient_pointwise if pointwise else _images_gradient
    to_kernel = _kernel_gradient_by_products if pointwise or grows or strides != (1, 1) else _kernel_gradient
    gradients = (gradient(images, kernel, cotangent, strides, pads) for gradient in (to_images, to_kernel))
    return tuple(gradient.astype(primal.dtype) for gradient, primal in zip(gradients, (images, kernel)))


def _canonical(images: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads) -> jax.Array:
    width, out_width = images.shape[2], images.shape[2] + sum(pads[1]) - kernel.shape[1] + 1
    narrow = kernel.shape[1] > 1 and all(size <= most for size, most in zip(kernel.shape[2:], NARROW))
    if narrow and strides == (1, 1) and width % 2 == 0 and out_width % 2 == 0:
        return _by_column_pairs(images, kernel, pads, out_width)
    return _of_lax(images, kernel, strides, pads)


def _by_column_pairs(images: jax.Array, kernel: jax.Array, pads: Pads, out_width: int) -> jax.Array:
    """Stride 1: [B, H, W, C] read as [B, H, W/2, 2C], which moves nothing, under a kernel [k, pairs, 2C, 2 C_out].

    The output columns 2q and 2q + 1 read the pairs q + first to q + last; the kernel is zero where they do not.
    """
    batch, height, width, channels = images.shape
    rows, columns, _, features = kernel.shape
    low, _ = pads[1]
    first, last = -low // 2, (columns - low) // 2
    pairs = last - first + 1
    offset = -low - 2 * first
    wide = jnp.stack(
        [jnp.pad(kernel, ((0, 0), (at, 2 * pairs - columns - at), (0, 0), (0, 0))) for at in (offset, offset + 1)],
        axis=3,
    ).reshape(rows, pairs, 2 * channels, 2 * features)
    paired = lax.conv_general_dilated(
        images.reshape(batch, height, width // 2, 2 * channels),
        wide,
        (1, 1),
        (pads[0], (-first, (out_width - width) // 2 + last)),
        dimension_numbers=NHWC,
    )
    return paired.reshape(batch, -1, out_width, features)


def _images_gradient(images, kernel, cotangent, strides, pads):
    """The cotangent convolved with the kernel turned by half a turn, its channels exchanged.

    With stride s, pixel s q + r of the padded images receives sum_m cotangent[q - m] kernel[s m + r]: every phase r has
    taps m of its own, so all phases are output channels of one convolution with stride 1, and are then interleaved.
    """
    rows, columns, channels, features = kernel.shape
    (sy, sx), (taps_y, taps_x) = strides, [-(-size // stride) for size, stride in zip(kernel.shape, strides)]
    taps = jnp.pad(kernel, ((0, taps_y * sy - rows), (0, taps_x * sx - columns), (0, 0), (0, 0)))
    taps = taps.reshape(taps_y, sy, taps_x, sx, channels, features)[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4)
    firsts = [low // stride for (low, _), stride in zip(pads, strides)]
    ends = [-(-(low + size) // stride) for (low, _), size, stride in zip(pads, images.shape[1:3], strides)]
    phases = _canonical(
        cotangent,
        taps.reshape(taps_y, taps_x, features, sy * sx * channels),
        (1, 1),
        tuple(
            (n - 1 - first, end - m) for n, first, end, m in zip((taps_y, taps_x), firsts, ends, cotangent.shape[1:3])
        ),
    )
    batch, height, width, _ = phases.shape
    pixels = phases.reshape(batch, height, width, sy, sx, channels).transpose(0, 1, 3, 2, 4, 5)
    pixels = pixels.reshape(batch, height * sy, width * sx, channels)
    top, left = [low - first * stride for (low, _), first, stride in zip(pads, firsts, strides)]
    return pixels[:, top : top + images.shape[1], left : left + images.shape[2]]


def _images_gradient_pointwise(images, kernel, cotangent, strides, pads):
    """1x1: the product, spread to the pixels that it came from."""
    pixels = jnp.einsum("bhwo,co->bhwc", cotangent, kernel[0, 0])
    spread = [
        (-low, low + size - (count - 1) * stride - 1, stride - 1)
        for (low, _), size, count, stride in zip(pads, images.shape[1:3], cotangent.shape[1:3], strides)
    ]
    return lax.pad(pixels, jnp.zeros((), pixels.dtype), ((0, 0, 0), *spread, (0, 0, 0)))


def _kernel_gradient(images, kernel, cotangent, strides, pads):
    """Stride 1: images convolved with the cotangent as the kernel, the batch in the place of the channels."""
    highs = [
        size - 1 + after - before - low
        for size, after, before, (low, _) in zip(kernel.shape, cotangent.shape[1:3], images.shape[1:3], pads)
    ]
    by_batch = lax.conv_general_dilated(
        images.transpose(3, 1, 2, 0),
        cotangent.transpose(1, 2, 0, 3),
        strides,
        tuple((low, high) for (low, _), high in zip(pads, highs)),
        dimension_numbers=NHWC,
    )
    return by_batch.transpose(1, 2, 0, 3)


def _kernel_gradient_by_products(images, kernel, cotangent, strides, pads):
    """Each kernel position's pixels times the cotangent, summed over batch and places."""
    padded = jnp.pad(images, ((0, 0), *pads, (0, 0)))
    _, height, width, _ = cotangent.shape
    rows = [
        jnp.einsum(
            "bhwc,bhwo->co",
            padded[
                :, i : i + (height - 1) * strides[0] + 1 : strides[0], j : j + (width - 1) * strides[1] + 1 : strides[1]
            ],
            cotangent,
        )
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]
    return jnp.stack(rows).reshape(kernel.shape)


def _is_default(name: str, value: Any) -> bool:
    if name in ("lhs_dilation", "rhs_dilation"):
        return value is None or all(v == 1 for v in value)
    if name in ("feature_group_count", "batch_group_count"):
        return value == 1
    return value is None
