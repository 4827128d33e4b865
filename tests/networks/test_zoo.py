"""AlexNet, VGG for ImageNet, the deep LeNet and the MLP with bottlenecks: published numbers of parameters, forward
passes in NumPy, initial values."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_layers import convolution, dense, drawn, normalised, relu, windows
from scipy import stats

from subspaces_jax import trees
from subspaces_jax.networks import (
    MLP,
    AlexNet,
    BottleneckMLP,
    DeepLeNet,
    ImageNetVGG,
    ResNet18,
    ResNet34,
    axes,
    layers,
)

GREY, CIFAR, IMAGENET = (28, 28, 1), (32, 32, 3), (224, 224, 3)
# Numbers of the specification of the paper of Gamba et al.; those of residual networks are torchvision's.
PUBLISHED = {
    "lenet": (DeepLeNet, {}, CIFAR, 130_160, 214_310),
    "alexnet": (AlexNet, {}, IMAGENET, 57_044_810, 61_100_840),
    "vgg11": (ImageNetVGG, {"depth": 11}, CIFAR, 128_807_306, 132_863_336),
    "vgg13": (ImageNetVGG, {"depth": 13}, CIFAR, 128_991_818, 133_047_848),
    "vgg16": (ImageNetVGG, {"depth": 16}, CIFAR, 134_301_514, 138_357_544),
    "vgg19": (ImageNetVGG, {"depth": 19}, IMAGENET, 139_611_210, 143_667_240),
    "vgg11bn": (ImageNetVGG, {"depth": 11, "batch_norm": True}, CIFAR, 128_812_810, 132_868_840),
    "vgg13bn": (ImageNetVGG, {"depth": 13, "batch_norm": True}, CIFAR, 128_997_706, 133_053_736),
    "vgg16bn": (ImageNetVGG, {"depth": 16, "batch_norm": True}, CIFAR, 134_309_962, 138_365_992),
    "vgg19bn": (ImageNetVGG, {"depth": 19, "batch_norm": True}, CIFAR, 139_622_218, 143_678_248),
    "vgg19_orig": (ImageNetVGG, {"depth": 19, "initialisation": "normal"}, CIFAR, 139_611_210, 143_667_240),
    "mlp": (BottleneckMLP, {}, CIFAR, 37_809_162, None),
    "mlp_bn": (BottleneckMLP, {"batch_norm": True}, CIFAR, 37_841_930, None),
    "lenet, grey": (DeepLeNet, {}, GREY, 130_052, None),
    "fcn of Zhang et al.": (MLP, {"widths": (256, 256, 256)}, GREY, 200_960 + 2 * 65_792 + 2_570, None),
    "resnet18": (ResNet18, {"classifier_bias": True}, IMAGENET, None, 11_689_512),
    "resnet34": (ResNet34, {"classifier_bias": True}, IMAGENET, None, 21_797_672),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_of_parameters(name):
    make, options, image, of_ten, of_thousand = PUBLISHED[name]
    for num_classes, number in ((10, of_ten), (1000, of_thousand)):
        if number is not None:
            network = make(num_classes, **options)
            shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *image)))["params"]
            assert trees.num_parameters(shapes) == number
            assert axes.units(network.unit_axes(), shapes)


def pooled(x, size):
    """Adaptive average pooling window by window, in float64."""
    y = np.zeros((len(x), size, size, x.shape[-1]))
    height, width = x.shape[1:3]
    for i in range(size):
        for j in range(size):
            rows = slice(int(np.floor(i * height / size)), int(np.ceil((i + 1) * height / size)))
            columns = slice(int(np.floor(j * width / size)), int(np.ceil((j + 1) * width / size)))
            y[:, i, j] = x[:, rows, columns].mean((1, 2))
    return y


def test_adaptive_average_pooling_has_the_windows_of_pytorch():
    # by hand: 4 pixels in 3 windows are [0, 2), [1, 3), [2, 4), and 5 in 3 are [0, 2), [1, 4), [3, 5)
    x = np.array([[1, 2, 4, 8], [0, 0, 0, 0], [0, 0, 0, 0], [16, 0, 0, 4]], np.float32)[None, :, :, None]
    found = layers.adaptive_average_pool(jnp.asarray(x), 3)[0, :, :, 0]
    np.testing.assert_allclose(found, [[0.75, 1.5, 3.0], [0, 0, 0], [4.0, 0, 1.0]], rtol=1e-6)
    row = jnp.asarray([3.0, 6, 9, 12, 30])[None, None, :, None]
    expected = np.broadcast_to([4.5, 9.0, 21.0], (3, 3))
    np.testing.assert_allclose(layers.adaptive_average_pool(row, 3)[0, :, :, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("shape, size", [((2, 1, 1, 3), 7), ((2, 7, 7, 3), 7), ((1, 13, 9, 2), 6), ((1, 3, 16, 2), 5)])
def test_adaptive_average_pooling_is_that_of_numpy(shape, size):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = layers.adaptive_average_pool(jnp.asarray(x), size)
    np.testing.assert_allclose(found, pooled(x, size), rtol=1e-5, atol=1e-6)


def max_pooled(x, size):
    return windows(x, min(size, *x.shape[1:3]), 2).max((4, 5))


def hidden_layers(x, params):
    for name in ("Dense_0", "Dense_1"):
        x = relu(dense(x.reshape(len(x), -1), params[name]))
    return dense(x, params["Dense_2"])


def alexnet(x, params, stats_of):
    for i, (stride, pad) in enumerate([(4, 2), (1, 2), (1, 1), (1, 1), (1, 1)]):
        x = relu(convolution(x, params[f"Conv_{i}"], stride, pad))
        x = max_pooled(x, 3) if i in (0, 1, 4) else x
    return hidden_layers(pooled(x, 6), params)


def vgg(x, params, stats_of):
    index = 0
    for number in (1, 1, 2, 2, 2):
        for _ in range(number):
            x = relu(stats_of(convolution(x, params[f"Conv_{index}"]), params[f"BatchNorm_{index}"]))
            index += 1
        x = max_pooled(x, 2)
    return hidden_layers(pooled(x, 7), params)


def deep_lenet(x, params, stats_of):
    for i in range(6):
        x = relu(convolution(x, params[f"Conv_{i}"]))
        x = max_pooled(x, 2) if i % 2 else x
    return hidden_layers(pooled(x, 3), params)


def bottleneck_mlp(x, params, stats_of):
    flat = dense(x.reshape(len(x), -1), params["Dense_0"])
    x = relu(stats_of(flat, params["BatchNorm_0"]))
    for block in (1, 2):
        x = dense(dense(x, params[f"Dense_{2 * block - 1}"]), params[f"Dense_{2 * block}"])
        x = relu(stats_of(x, params[f"BatchNorm_{block}"]))
    return dense(x, params["Dense_5"])


NETWORKS = {
    "alexnet": (AlexNet(5, 2, 6, dropout=0.0), (99, 99, 2), alexnet),
    "vgg": (ImageNetVGG(5, 11, True, width=2, hidden=6, dropout=0.0), (32, 32, 2), vgg),
    "deep_lenet": (DeepLeNet(5, dropout=0.0), (32, 32, 3), deep_lenet),
    "bottleneck_mlp": (BottleneckMLP(5, 6, 3, 2, True, dropout=0.0), (4, 4, 2), bottleneck_mlp),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_passes_are_those_of_numpy(name, getkey):
    network, image, by_hand = NETWORKS[name]
    params, images = drawn(network, image)["params"], jax.random.normal(getkey(), (3, *image))
    of_batch = lambda x, tree: normalised(x[:, None, None], tree)[:, 0, 0] if x.ndim == 2 else normalised(x, tree)
    expected = by_hand(np.asarray(images, np.float64), params, of_batch)
    run = jax.jit(lambda p: network.apply({"params": p}, images, train=True, mutable=["batch_stats"])[0])
    np.testing.assert_allclose(run(params), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "network, image, zero",
    [  # what is 0 where dropout leaves nothing of what it is applied to
        (AlexNet(5, 2, 6, dropout=1 - 1e-7), (40, 40, 1), ("c4", "h0")),
        (ImageNetVGG(5, 11, width=2, hidden=6, dropout=1 - 1e-7), (8, 8, 1), ("h0", "h1")),
        (DeepLeNet(5, dropout=1 - 1e-7), (8, 8, 1), ("h0", "h1")),
        (BottleneckMLP(5, 6, 3, 1, dropout=1 - 1e-7), (4, 4, 1), ("h0", "h1")),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "init") else "",
)
def test_where_dropout_is(network, image, zero, getkey):
    params, images = drawn(network, image)["params"], jnp.ones((2, *image))
    options = {"train": True, "mutable": ["intermediates"], "rngs": {"dropout": getkey()}}
    kept = jax.jit(lambda p: network.apply({"params": p}, images, **options)[1])(params)["intermediates"]
    units = [unit for unit in kept if unit not in ("features", *zero)]
    assert all(not np.any(kept[unit][0]) for unit in zero)
    assert units and all(np.any(kept[unit][0]) for unit in units)


LAWS = {  # of initial values [20, 30, 40] of a kernel: deviation, bound of a uniform one
    "FAN_OUT_NORMAL": (np.sqrt(2 / (20 * 40)), None),
    "SMALL_NORMAL": (0.01, None),
    "FAN_AVERAGE_UNIFORM": (None, np.sqrt(12 / (20 * (30 + 40)))),
    "TORCH_UNIFORM": (None, (20 * 30) ** -0.5),
}


@pytest.mark.parametrize("name", LAWS)
def test_laws_of_initial_values(name, getkey):
    deviation, bound = LAWS[name]
    values = np.ravel(getattr(layers, name)(getkey(), (20, 30, 40), jnp.float32))
    test = (values / deviation, "norm") if bound is None else (values / bound, "uniform", (-1, 2))
    assert stats.kstest(*test).pvalue > 1e-3
    if name == "TORCH_UNIFORM":
        biases = np.ravel(layers.uniform_bias(20 * 30)(getkey(), (20, 30, 40)))
        assert stats.kstest(biases / bound, "uniform", (-1, 2)).pvalue > 1e-3


NAMES = {name: getattr(layers, name) for name in LAWS}
EACH = [  # network, channels, initial values of the first convolution, other convolutions and dense layers
    (DeepLeNet(10), 1, ["FAN_AVERAGE_UNIFORM"] * 3),
    (ImageNetVGG(10, 11), 1, ["FAN_OUT_NORMAL", "FAN_OUT_NORMAL", "SMALL_NORMAL"]),
    (ImageNetVGG(10, 11, initialisation="normal"), 1, ["SMALL_NORMAL"] * 3),
    (AlexNet(10), 3, ["TORCH_UNIFORM"] * 3),
    (AlexNet(10), 1, ["FAN_OUT_NORMAL", "TORCH_UNIFORM", "TORCH_UNIFORM"]),
    (BottleneckMLP(10), 3, [None, None, "FAN_OUT_NORMAL"]),
]


@pytest.mark.parametrize("network, channels, expected", EACH, ids=lambda value: getattr(value, "name", ""))
def test_how_layers_start(network, channels, expected):
    found, biases = {}, {}

    def note(next_method, args, keywords, context):
        module = context.module
        if isinstance(module, nn.Conv | nn.Dense):
            name = next((name for name in NAMES if module.kernel_init is NAMES[name]), "another")
            kind = 0 if module.name == "Conv_0" else 1 if isinstance(module, nn.Conv) else 2
            found.setdefault(kind, set()).add(name)
            biases.setdefault(name, set()).add(module.bias_init is nn.initializers.zeros_init())
        return next_method(*args, **keywords)

    with nn.intercept_methods(note):
        params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, channels)))["params"]
    assert found == {kind: {name} for kind, name in enumerate(expected) if name}
    assert all("bias" in layer for name, layer in params.items() if "Batch" not in name)
    assert {name for name, zeros in biases.items() if zeros == {False}} == {"TORCH_UNIFORM"} & biases.keys()


def test_another_initialisation_is_refused():
    with pytest.raises(ValueError, match="initialisation is 'xavier': it takes fan_out or normal"):
        jax.eval_shape(ImageNetVGG(10, initialisation="xavier").init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
