"""Our convolution against JAX's own, and the forms that it compiles to."""

import re
from collections import Counter

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from subspaces_jax.networks.layers import Conv, convolution

NUMBERS = ("NHWC", "HWIO", "NHWC")
CASES = [  # kernel, strides, padding, (H, W), channels in and out
    ((3, 3), (1, 1), "SAME", (8, 8), 3, 4),
    ((3, 3), (1, 1), "VALID", (7, 9), 1, 4),
    ((3, 3), (2, 2), "SAME", (8, 8), 8, 4),
    ((3, 3), (2, 2), "SAME", (7, 7), 3, 4),
    ((3, 3), (2, 1), "SAME", (9, 6), 3, 5),
    ((3, 3), (2, 2), "VALID", (8, 8), 3, 4),  # the stride does not divide: the last row and column are not read
    ((1, 1), (1, 1), "SAME", (5, 5), 8, 3),
    ((1, 1), (2, 2), "SAME", (6, 7), 3, 4),
    ((5, 5), (1, 1), "SAME", (8, 8), 3, 6),
    ((5, 5), (3, 2), ((2, 1), (0, 3)), (11, 8), 2, 3),
    ((2, 3), (1, 1), ((1, 0), (2, 1)), (6, 6), 3, 3),
    ((3, 3), (1, 1), "SAME", (6, 6), 16, 9),  # too many channels for pairs of columns
    ((3, 3), (1, 1), ((3, 3), (3, 4)), (6, 6), 3, 9),  # more padding than the kernel reaches
    ((3, 2), (1, 1), ((0, 2), (1, 0)), (6, 8), 2, 9),
    ((5, 4), (1, 1), ((2, 2), (0, 1)), (6, 8), 2, 9),
    ((1, 1), (2, 2), ((1, 0), (0, 2)), (6, 7), 3, 4),
    ((2, 2), (3, 3), "VALID", (9, 10), 3, 4),  # the stride passes over pixels
]


def inputs(case, dtype=jnp.float32):
    kernel, _, _, size, channels, features = case
    rng = np.random.default_rng(0)
    drawn = (rng.normal(size=shape) for shape in ((4, *size, channels), (*kernel, channels, features)))
    return tuple(jnp.asarray(numbers, dtype) for numbers in drawn)


def loss(convolve, case):
    """A loss whose cotangent differs at every place."""

    def value(images, kernel):
        outputs = convolve(images, kernel, case[1], case[2], dimension_numbers=NUMBERS)
        weights = jnp.sin(jnp.arange(outputs.size, dtype=jnp.float32)).reshape(outputs.shape)
        return jnp.sum(outputs * weights.astype(outputs.dtype)), outputs

    return value


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_are_those_of_lax(case):
    args = inputs(case)
    ours, theirs = (
        jax.jit(jax.value_and_grad(loss(convolve, case), (0, 1), has_aux=True))(*args)
        for convolve in (convolution, lax.conv_general_dilated)
    )
    chex.assert_trees_all_close(ours, theirs, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_vmap_over_kernels_and_scan_give_the_same(case):
    images, kernel = inputs(case)
    kernels = np.stack([kernel, -2 * kernel, kernel**2])
    grad = jax.jit(jax.grad(lambda k, x: loss(convolution, case)(x, k)[0]))
    one_by_one = np.stack([grad(k, images) for k in kernels])
    vmapped = jax.jit(jax.vmap(grad, (0, None)))(kernels, images)
    scanned = jax.jit(lambda kernels: lax.scan(lambda _, k: (None, grad(k, images)), None, kernels)[1])(kernels)
    of_all = lambda kernels: jnp.sum(jax.vmap(lambda k: loss(convolution, case)(images, k)[0])(kernels))
    summed = jax.jit(jax.grad(of_all))(kernels)
    for other in (vmapped, scanned, summed):
        np.testing.assert_allclose(other, one_by_one, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("case", [CASES[0], CASES[2]], ids=str)
def test_gradients_have_the_dtype_of_what_they_are_of(case):
    args = inputs(case, jnp.bfloat16)
    gradients = jax.jit(jax.grad(loss(convolution, case), (0, 1), has_aux=True))
    grads, outputs = gradients(*args)
    assert {leaf.dtype for leaf in (*grads, outputs)} == {jnp.dtype("bfloat16")}
    exact, _ = gradients(*[x.astype(jnp.float32) for x in args])
    for found, expected in zip(grads, exact):
        scale = np.max(np.abs(expected))
        np.testing.assert_allclose(np.asarray(found, np.float32) / scale, expected / scale, atol=0.02)


@pytest.mark.parametrize("options", [{"feature_group_count": 2}, {"rhs_dilation": (2, 2)}, {"lhs_dilation": (2, 1)}])
def test_anything_unusual_is_passed_on(options):
    images = jnp.arange(2 * 8 * 8 * 4, dtype=jnp.float32).reshape(2, 8, 8, 4)
    kernel = jnp.ones((3, 3, 4 // options.get("feature_group_count", 1), 6))
    args = (images, kernel, (1, 1), ((1, 1), (1, 2)))
    ours, theirs = (f(*args, dimension_numbers=NUMBERS, **options) for f in (convolution, lax.conv_general_dilated))
    np.testing.assert_array_equal(ours, theirs)


def convolutions(function, *args):
    """The dimension labels and window of every convolution in the optimized program."""
    text = jax.jit(function).lower(*args).compile().as_text()
    return re.findall(r"convolution\(.*?window=\{(.*?)\}.*?dim_labels=(\S+?),", text)


def in_scan(convolve, case):
    """A gradient step on the kernel, three times, as a training loop does it."""

    def steps(images, kernel):
        def body(kernel, _):
            (value, _), grads = jax.value_and_grad(loss(convolve, case), (0, 1), has_aux=True)(images, kernel)
            return kernel - grads[1], value + jnp.sum(grads[0])

        return lax.scan(body, kernel, length=3)

    return steps


@pytest.mark.parametrize("case", CASES, ids=str)
def test_in_a_loop_every_convolution_has_the_canonical_form(case):
    found = convolutions(in_scan(convolution, case), *inputs(case))
    assert found or case[0] == (1, 1)  # XLA makes a matrix product of a 1x1 convolution
    for window, labels in found:
        assert labels == "b01f_01io->b01f" and "rhs_reversal" not in window and "dilate" not in window


def test_the_criterion_finds_the_slow_form_in_what_jax_derives():
    found = convolutions(in_scan(lax.conv_general_dilated, CASES[0]), *inputs(CASES[0]))
    assert any(labels != "b01f_01io->b01f" for _, labels in found)


def test_conv_has_the_parameters_of_flax_and_kaiming_normal_values(getkey):
    images = jnp.ones((1, 8, 8, 16))
    ours = Conv(64, (3, 3)).init(getkey(), images)["params"]
    theirs = nn.Conv(64, (3, 3), use_bias=False).init(getkey(), images)["params"]
    chex.assert_trees_all_equal_shapes_and_dtypes(ours, theirs)
    kernel = np.asarray(ours["kernel"])
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 16)), rtol=0.03)
    assert np.abs(kernel).max() > 3 * kernel.std()  # not truncated


def gradients_lowered(convolve, case, platforms):
    grad = jax.jit(jax.vmap(jax.grad(loss(convolve, case), (0, 1), has_aux=True)))
    return export.export(grad, platforms=platforms)(*[x[None] for x in inputs(case)])


def operations(lowered):
    """How many of each, but for choices of a form: XLA never sees them."""
    found = re.findall(r"= \"?stablehlo\.(\w+)", lowered.mlir_module())
    return Counter(name for name in found if name not in ("case", "constant"))


@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[7]], ids=str)
def test_elsewhere_a_program_has_what_jax_derives_and_nothing_of_the_cpu(case):
    forms = convolution, lax.conv_general_dilated
    ours, theirs = (operations(gradients_lowered(convolve, case, ("cuda", "tpu"))) for convolve in forms)
    assert ours == theirs and ours["convolution"]
    on_cpu = [operations(gradients_lowered(convolve, case, ("cpu",))) for convolve in forms]
    assert on_cpu[0] != on_cpu[1]


@pytest.mark.parametrize("case", [CASES[0], CASES[2]], ids=str)
def test_a_program_for_several_platforms_has_all_forms_and_takes_the_right_one(case):
    lowered = gradients_lowered(convolution, case, ("cpu", "cuda", "tpu"))
    assert "stablehlo.case" in lowered.mlir_module()
    args = inputs(case)
    found = lowered.call(*[x[None] for x in args])
    expected = jax.jit(jax.grad(loss(lax.conv_general_dilated, case), (0, 1), has_aux=True))(*args)
    chex.assert_trees_all_close(found, jax.tree.map(lambda x: x[None], expected), rtol=2e-4, atol=2e-4)
