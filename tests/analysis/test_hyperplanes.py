"""Orientation against golden values and closed forms, distances by hand, the null law against SciPy and samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from subspaces_jax import analysis, geometry
from subspaces_jax.analysis import hyperplanes
from subspaces_jax.networks import (
    VGG,
    AlexNet,
    BottleneckMLP,
    CifarResNet,
    ConvFC,
    DeepLeNet,
    ImageNetResNet,
    ImageNetVGG,
    LeNet,
    PreResNet,
    axes,
)

OIHW = np.array(
    [[[[1, 2], [3, 4]], [[-1, 0], [0, 1]]], -np.ones((2, 2, 2)), [[[1, -1], [1, -1]], [[2, -2], [0, 0]]]], np.float32
)
GOLDEN = {"Conv_0": {"kernel": jnp.asarray(OIHW.transpose(2, 3, 1, 0)), "bias": jnp.full(3, 100.0)}}


def random_params(seed=0, **shapes):
    rng = np.random.default_rng(seed)
    return {name: {"kernel": rng.normal(size=shape).astype(np.float32)} for name, shape in shapes.items()}


PARAMS = random_params(Conv_0=(3, 3, 2, 5), Conv_1=(3, 3, 5, 4), Dense_0=(6, 7))


def test_golden_values_of_the_reference():
    raw, cosines = analysis.orientation(GOLDEN)["Conv_0"], analysis.orientation(GOLDEN, normalize=True)["Conv_0"]
    np.testing.assert_array_equal(raw["projections"], [10, -8, 0])
    np.testing.assert_allclose(cosines["projections"], [0.625, -1, 0], atol=1e-7)
    assert float(cosines["mean"]) == pytest.approx(-0.125)
    assert float(raw["mass"]) == float(cosines["mass"]) == pytest.approx(2 / 3)
    moved = {"Conv_0": {**GOLDEN["Conv_0"], "kernel": GOLDEN["Conv_0"]["kernel"].at[0, 0, 0, 0].add(3)}}
    found = analysis.distance_from_init(moved, GOLDEN)
    assert found.keys() == {"Conv_0"}
    assert float(found["Conv_0"]["l2"]) == pytest.approx(3 / np.sqrt(52)) == pytest.approx(0.416025, abs=1e-6)
    assert float(found["Conv_0"]["linf"]) == 0.75


@pytest.mark.parametrize("normalize", [False, True])
def test_every_layer_is_that_of_numpy_and_the_net_has_all_filters(normalize):
    found = analysis.orientation(PARAMS, normalize, with_dense=True)
    assert list(found) == ["Conv_0", "Conv_1", "Dense_0", "net"]
    everything = []
    for name, layer in PARAMS.items():
        rows = np.moveaxis(layer["kernel"], -1, 0).reshape(layer["kernel"].shape[-1], -1).astype(np.float64)
        expected = [np.dot(row, np.ones_like(row)) for row in rows]
        if normalize:
            expected = [rho / (np.linalg.norm(row) * np.sqrt(row.size)) for rho, row in zip(expected, rows)]
        np.testing.assert_allclose(found[name]["projections"], expected, atol=2e-6)
        assert float(found[name]["mean"]) == pytest.approx(np.mean(expected), abs=1e-6)
        assert float(found[name]["mass"]) == pytest.approx(np.mean(np.array(expected) <= 0))
        everything += expected
    np.testing.assert_allclose(found["net"]["projections"], everything, atol=2e-6)
    assert float(found["net"]["mean"]) == pytest.approx(np.mean(everything), abs=1e-6)


def test_invariants():
    cosines = lambda kernel: np.asarray(analysis.orientation({"c": {"kernel": kernel}}, True)["c"]["projections"])
    kernel, rng = PARAMS["Conv_0"]["kernel"], np.random.default_rng(1)
    rho = cosines(kernel)
    shuffled = rng.permuted(kernel.reshape(-1, 5), axis=0).reshape(kernel.shape)
    np.testing.assert_allclose(cosines(shuffled), rho, atol=1e-6)
    scales = np.array([1e-30, 1e-3, 1, 1e3, 1e30], np.float32)
    np.testing.assert_allclose(cosines(kernel * scales), rho, atol=1e-6)
    np.testing.assert_array_equal(cosines(-kernel), -rho)
    order = rng.permutation(5)
    np.testing.assert_array_equal(cosines(kernel[..., order]), rho[order])
    np.testing.assert_allclose(cosines(np.full((3, 3, 2, 2), 0.3, np.float32)), 1.0, atol=1e-6)
    assert np.abs(cosines(np.full((3, 3, 64, 4), -0.7, np.float32))).max() <= 1.0


def test_zero_filters_single_filters_and_what_does_not_count():
    kernel = np.ones((3, 3, 1, 2), np.float32)
    kernel[..., 1] = 0
    cosines = analysis.orientation({"Conv_0": {"kernel": kernel}}, normalize=True)["net"]
    assert np.isnan(cosines["projections"][1]) and np.isnan(cosines["mean"]) and float(cosines["mass"]) == 0
    raw = analysis.orientation({"Conv_0": {"kernel": kernel}})["net"]
    assert float(raw["mass"]) == 0.5  # zero counts as negative
    single = analysis.orientation({"Conv_0": {"kernel": kernel[..., :1]}})["Conv_0"]
    assert single["projections"].shape == (1,) and float(single["mean"]) == 9
    point = random_params(Conv_0=(3, 3, 1, 2), Conv_1=(1, 1, 2, 4))
    assert list(analysis.orientation(point)) == ["Conv_0", "net"]
    assert list(analysis.orientation(point, with_pointwise=True)) == ["Conv_0", "Conv_1", "net"]


@pytest.mark.parametrize(
    "params, options, message",
    [
        (random_params(Dense_0=(3, 2)), {}, r"no layer counts; .*Dense_0 \(3, 2\): set with_dense"),
        (random_params(Conv_0=(2, 3, 3, 1, 2)), {}, "take a stack with jax.vmap"),
        (PARAMS, {"layers": ("Conv_0", "Dense_0")}, "do not name Conv_1"),
        (PARAMS, {"layers": (*PARAMS, "Conv_0")}, "one layer twice"),
        ({}, {}, "kernels are none"),
    ],
)
def test_what_has_no_orientation_is_refused(params, options, message):
    with pytest.raises(ValueError, match=message):
        analysis.orientation(params, **options)


def test_distances_are_those_of_numpy_and_of_one_architecture():
    other = random_params(1, Conv_0=(3, 3, 2, 5), Conv_1=(3, 3, 5, 4), Dense_0=(6, 7))
    found = analysis.distance_from_init(PARAMS, other, with_dense=True)
    for name in PARAMS:
        now, before = (np.asarray(of[name]["kernel"], np.float64) for of in (PARAMS, other))
        assert float(found[name]["l2"]) == pytest.approx(
            np.sqrt(((now - before) ** 2).sum() / (before**2).sum()), rel=1e-5
        )
        assert float(found[name]["linf"]) == pytest.approx(np.abs(now - before).max() / np.abs(before).max(), rel=1e-6)
    with pytest.raises(ValueError, match=r"another architecture .*- Conv_1/kernel"):
        analysis.distance_from_init(PARAMS, random_params(Conv_0=(3, 3, 2, 5), Dense_0=(6, 7)))


def test_order_is_that_of_the_forward_pass_and_of_numbers_otherwise():
    many = random_params(**{f"Conv_{i}": (2, 2, 1, 1) for i in (10, 2, 0, 1)})
    assert list(analysis.orientation(many)) == ["Conv_0", "Conv_1", "Conv_2", "Conv_10", "net"]
    named = ("Conv_10", "BatchNorm_0", "Conv_0", "Conv_2", "Conv_1")
    assert list(analysis.orientation(many, layers=named)) == ["Conv_10", "Conv_0", "Conv_2", "Conv_1", "net"]


def test_stacks_and_paths():
    """Of all rows at once as one by one, and along a line as a measure of parameters."""
    stack = geometry.stack([PARAMS, random_params(1, **{name: of["kernel"].shape for name, of in PARAMS.items()})])
    both = jax.jit(jax.vmap(lambda params: analysis.orientation(params, True, True)))(stack)
    for k, row in enumerate(geometry.unstack(stack)):
        alone = analysis.orientation(row, True, True)
        jax.tree.map(lambda many, one: np.testing.assert_allclose(many[k], one, atol=1e-6), both, dict(alone))
    measure = hyperplanes.Oriented(True, True, layers=tuple(PARAMS))
    along = jax.jit(jax.vmap(lambda point: measure(geometry.contract(stack, point))))
    found = along(geometry.Line().grid(3))
    middle = analysis.orientation(jax.tree.map(lambda leaf: leaf.mean(axis=0), stack), True, True)
    np.testing.assert_allclose(found["Conv_1/projections"][1], middle["Conv_1"]["projections"], atol=1e-6)
    np.testing.assert_allclose(found["net/mass"][::2], both["net"]["mass"])


def test_the_null_law_is_that_of_gaussian_filters():
    d, num = 18, 4000
    weights = np.random.default_rng(3).normal(size=(3, 3, 2, num)).astype(np.float32)
    rho = np.asarray(analysis.orientation({"c": {"kernel": weights}}, True)["net"]["projections"])
    assert rho.var() == pytest.approx(1 / d, rel=0.08)
    law = stats.beta((d - 1) / 2, (d - 1) / 2, loc=-1, scale=2)
    assert stats.kstest(rho, lambda x: hyperplanes.null_cdf(x, d)).pvalue > 0.01
    np.testing.assert_allclose(hyperplanes.null_cdf(rho[:50], d), law.cdf(rho[:50]), rtol=1e-9)
    np.testing.assert_allclose(
        hyperplanes.null_quantile([0.025, 0.5, 0.975], d), law.ppf([0.025, 0.5, 0.975]), atol=1e-9
    )
    with pytest.raises(ValueError, match="at least 2 weights, got 1"):
        hyperplanes.null_quantile(0.5, 1)


@pytest.mark.parametrize("num, below", [(6, 0), (6, 3), (7, 6), (64, 40), (1000, 520)])
def test_scores_of_bias_are_those_of_fair_coins(num, below):
    found = hyperplanes.bias_score(below / num, num)
    assert float(found["z"]) == pytest.approx((below - num / 2) / np.sqrt(num / 4))
    assert float(found["p_value"]) == pytest.approx(stats.binomtest(below, num, 0.5).pvalue)


def test_histograms_count_every_finite_projection_once():
    values = np.array([[-1.0, -0.2, 0.0, 1.0], [np.nan, 0.5, 0.5, 0.1]])
    np.testing.assert_array_equal(hyperplanes.histogram(values, [-1, 0, 1]), [[2, 2], [0, 3]])


@pytest.mark.parametrize(
    "network, size, expected",
    [
        (VGG(10, depth=11), 32, "0.0 1.0 2.0 2.1 3.0 3.1 4.0 4.1 5.0 5.1 5.2"),
        (VGG(10, depth=16, batch_norm=True), 32, "0.0 0.1 1.0 1.1 2.0 2.1 2.2 3.0 3.1 3.2 4.0 4.1 4.2 5.0 5.1 5.2"),
        (ImageNetVGG(10, depth=13), 32, "0.0 0.1 1.0 1.1 2.0 2.1 3.0 3.1 4.0 4.1 5.0 5.1 5.2"),
        (AlexNet(10), 64, "0.0 1.0 2.0 2.1 2.2 3.0 3.1 3.2"),
        (DeepLeNet(10), 28, "0.0 0.1 1.0 1.1 2.0 2.1 3.0 3.1 3.2"),
        (BottleneckMLP(10, 8, 4), 32, "0.0 0.1 0.2 0.3 0.4 0.5 0.6 0.7"),
        (LeNet(10), 28, "0.0 1.0 2.0 2.1 2.2"),
        (ConvFC(10), 32, "0.0 1.0 2.0 3.0 3.1 3.2"),
        (CifarResNet(10, 8), 32, "0.0 0.1 0.2 1.0 1.1 2.0 2.1"),
        (PreResNet(10, 11, bottleneck=True), 32, "0.0 0.1 1.0 2.0 2.1"),
        (ImageNetResNet(10, (1, 1, 1, 1)), 64, "0.0 1.0 1.1 2.0 2.1 3.0 3.1 4.0 4.1"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_stages_and_blocks(network, size, expected):
    """Those of the reference for its networks; of residual ones a stage of blocks is a stage. 1x1 kernels are none."""
    channels = 1 if isinstance(network, (LeNet, DeepLeNet)) else 3
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), image)["params"]
    layers = axes.layers(network.unit_axes())
    counted = hyperplanes.counted(params, with_dense=True, layers=layers)
    found = axes.stages(layers, axes.stage_starts(network), counted)
    assert list(found) == list(counted)
    assert " ".join(f"{stage}.{block}" for stage, block in found.values()) == expected


def test_a_stage_cannot_begin_with_what_is_no_layer():
    with pytest.raises(ValueError, match="begin with Conv_9, which is no layer"):
        axes.stages(["Conv_0"], ["Conv_9"], ["Conv_0"])


def test_a_layer_may_not_be_called_as_all_of_them():
    with pytest.raises(ValueError, match="a layer is called 'net', as are all filters together"):
        hyperplanes.orientation({"net": {"kernel": jnp.ones((4, 2))}}, with_dense=True)
