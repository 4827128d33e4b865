"""Convolutions that stay fast on every platform, inside loops and out.

On CPU the gradients that JAX derives for a convolution have dimension numbers that XLA rewrites to its fast form only
at the top level of a program; inside scan, while or cond they run as naive loops, 30 to 50 times slower. Here both
gradients are written so that XLA meets nothing but canonical NHWC/HWIO convolutions and matrix products:

    stride 1          gradients as canonical convolutions
    stride > 1, 1x1   gradients as one matrix product a kernel position, on shifted slices; so too where padding makes
                      the output larger than the input

The second form spares what a dilated convolution multiplies by zeros: measured on two cores at batch 128, the input
gradient of a 3x3 convolution from 16 to 32 channels with stride 2 at 32x32 takes 2.4 ms instead of 7.3, its kernel
gradient 2.7 instead of 5.0. For stride 1 the first form wins by up to eight times on wide maps.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

NHWC = ("NHWC", "HWIO", "NHWC")
KAIMING_NORMAL = nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # std sqrt(2 / (k k C_in)), untruncated

Pads = tuple[tuple[int, int], tuple[int, int]]
Pair = tuple[int, int]


def convolution(
    lhs: jax.Array, rhs: jax.Array, window_strides: Any, padding: Any, *, dimension_numbers: Any = None, **options: Any
) -> jax.Array:
    """`lax.conv_general_dilated`, with gradients of its own on CPU: for `nn.Conv(conv_general_dilated=convolution)`.

    Plain two-dimensional NHWC/HWIO convolutions on CPU take the custom gradients; anything else (groups, dilation, other
    layouts, other platforms) is passed on as it is.

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
    if jax.default_backend() != "cpu" or not plain or not canonical:
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, dimension_numbers=dimension_numbers, **options)
    strides = tuple(window_strides)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    return _convolve(lhs, rhs, strides, tuple((int(low), int(high)) for low, high in padding))


Conv = partial(nn.Conv, use_bias=False, kernel_init=KAIMING_NORMAL, conv_general_dilated=convolution)
"""A bias-free, Kaiming-normal `nn.Conv` on `convolution`."""


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(images: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads) -> jax.Array:
    return _canonical(images, kernel, strides, pads)


def _forward(images, kernel, strides, pads):
    return _convolve(images, kernel, strides, pads), (images, kernel)


def _backward(strides, pads, residuals, cotangent):
    images, kernel = residuals
    # XLA exchanges the operands of a convolution whose kernel, here the cotangent, is larger than the image: not canonical
    grows = cotangent.shape[1] * cotangent.shape[2] > images.shape[1] * images.shape[2]
    if strides == (1, 1) and kernel.shape[:2] != (1, 1) and not grows:
        gradients = _images_gradient, _kernel_gradient
    else:
        gradients = _images_gradient_by_products, _kernel_gradient_by_products
    to_images, to_kernel = (gradient(images, kernel, cotangent, strides, pads) for gradient in gradients)
    return to_images.astype(images.dtype), to_kernel.astype(kernel.dtype)


_convolve.defvjp(_forward, _backward)


def _canonical(images: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads) -> jax.Array:
    return lax.conv_general_dilated(images, kernel, strides, pads, dimension_numbers=NHWC)


def _images_gradient(images, kernel, cotangent, strides, pads):
    """Stride 1: the cotangent convolved with the kernel turned by half a turn, its channels exchanged."""
    turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    lows = [size - 1 - low for size, (low, _) in zip(kernel.shape, pads)]
    highs = [
        before + size - 1 - after - low
        for before, after, size, low in zip(images.shape[1:3], cotangent.shape[1:3], kernel.shape, lows)
    ]
    return _canonical(cotangent, turned, strides, tuple(zip(lows, highs)))


def _kernel_gradient(images, kernel, cotangent, strides, pads):
    """Stride 1: images convolved with the cotangent as the kernel, the batch in the place of the channels."""
    highs = [
        size - 1 + after - before - low
        for size, after, before, (low, _) in zip(kernel.shape, cotangent.shape[1:3], images.shape[1:3], pads)
    ]
    by_batch = _canonical(
        images.transpose(3, 1, 2, 0),
        cotangent.transpose(1, 2, 0, 3),
        strides,
        tuple((low, high) for (low, _), high in zip(pads, highs)),
    )
    return by_batch.transpose(1, 2, 0, 3)


def _images_gradient_by_products(images, kernel, cotangent, strides, pads):
    """Each kernel position's product, put back to the pixels it came from."""
    padded = [size + low + high for size, (low, high) in zip(images.shape[1:3], pads)]
    total = jnp.zeros((images.shape[0], *padded, images.shape[3]), cotangent.dtype)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            pixels = jnp.einsum("bhwo,co->bhwc", cotangent, kernel[i, j])
            spread = [
                (start, full - start - (count - 1) * stride - 1, stride - 1)
                for start, full, count, stride in zip((i, j), padded, cotangent.shape[1:3], strides)
            ]
            total += lax.pad(pixels, jnp.zeros((), pixels.dtype), ((0, 0, 0), *spread, (0, 0, 0)))
    (top, _), (left, _) = pads
    return total[:, top : top + images.shape[1], left : left + images.shape[2]]


def _kernel_gradient_by_products(images, kernel, cotangent, strides, pads):
    """Each kernel position's pixels times the cotangent, summed over batch and places."""
    padded = jnp.pad(images, ((0, 0), *pads, (0, 0)))
    _, height, width, _ = cotangent.shape
    rows = [
        jnp.einsum(
            "bhwc,bhwo->co",
            padded[:, i : i + (height - 1) * strides[0] + 1 : strides[0], j : j + (width - 1) * strides[1] + 1 : strides[1]],
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
