"""Every network through shared properties, and the architecture's own numbers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_layers import drawn

from subspaces_jax import geometry, trees
from subspaces_jax.networks import (
    MLP,
    VGG,
    AlexNet,
    Autoencoder,
    BottleneckMLP,
    CifarResNet,
    CifarWideResNet,
    ConvFC,
    DeepLeNet,
    ImageNetResNet,
    ImageNetVGG,
    LeNet,
    PreResNet,
    ResNet50,
    TinyImageNetResNet18,
    TinyImageNetResNet50,
    VisionTransformer,
    WideResNet50,
    axes,
    families,
    layers,
)

NETWORKS = {  # network, images it takes, number of parameters
    "mlp": (MLP(10, (32, 16)), (8, 8, 1), 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10),
    "mlp_no_bias": (MLP(10, (6,), bias=False, initialisation="uniform"), (8, 8, 1), 64 * 6 + 6 * 10),
    "conv_fc": (ConvFC(10, (3, 4), (5,)), (8, 8, 1), 78 + 304 + 25 + 60),
    "conv_fc_no_bias": (ConvFC(10, (4,), (), bias=False), (8, 8, 1), 100 + 36 * 10),
    "vgg_11": (VGG(10, 11, True, width=4, hidden=6, dropout=0.3), (8, 8, 1), None),
    "imagenet_vgg_11": (ImageNetVGG(10, 11, True, width=2, hidden=6), (8, 8, 1), None),
    "alexnet": (AlexNet(10, 2, 6), (20, 20, 1), None),
    "deep_lenet": (DeepLeNet(10), (8, 8, 1), 130_160 - 9 * 2 * 6),
    "bottleneck_mlp": (BottleneckMLP(10, 6, 3, 2, batch_norm=True), (8, 8, 1), None),
    "pre_resnet_11": (PreResNet(10, 11, 2, bottleneck=True), (8, 8, 1), None),
    "cifar_wide_resnet_10": (CifarWideResNet(10, 10, 2, 0.3, width=2), (8, 8, 1), None),
    "autoencoder": (Autoencoder(1024, 2, 3, "kaiming_normal"), (32, 32, 1), None),
    "lenet": (LeNet(10), (28, 28, 1), 156 + 2_416 + 120 * (16 * 7 * 7 + 1) + 84 * 121 + 10 * 85),
    "lenet8": (LeNet(10), (8, 8, 1), None),
    "cifar_resnet_8_4": (CifarResNet(10, 8, 4), (8, 8, 1), None),
    "cifar_resnet_20": (CifarResNet(10, 20), (32, 32, 3), 272_464),
    "cifar_resnet_32": (CifarResNet(10, 32), (32, 32, 3), 466_896),
    "cifar_resnet_56": (CifarResNet(10, 56), (32, 32, 3), 855_760),
    "cifar_resnet_8_4_dropout": (CifarResNet(10, 8, 4, dropout=0.3), (8, 8, 1), None),
    "basic": (ImageNetResNet(10, (1, 2, 1, 1), small_images=True, width=4), (16, 16, 3), None),
    "bottleneck": (ImageNetResNet(10, (1, 2, 1, 1), bottleneck=True, inner_factor=2, width=2), (64, 64, 3), None),
    "vision_transformer": (VisionTransformer(10, 4, 16, 2, 2), (8, 8, 1), None),
    "tiny_imagenet_resnet_18": (TinyImageNetResNet18(200), (64, 64, 3), 11_271_232),
    "tiny_imagenet_resnet_50": (TinyImageNetResNet50(200), (64, 64, 3), 23_909_952),
    "resnet_50": (ResNet50(1000), (224, 224, 3), 25_556_032),
    "wide_resnet_50_2": (WideResNet50(1000), (224, 224, 3), 68_882_240),
}
BIG = (
    "cifar_resnet_32",
    "cifar_resnet_56",
    "tiny_imagenet_resnet_18",
    "tiny_imagenet_resnet_50",
    "resnet_50",
    "wide_resnet_50_2",
)
SMALL = [name for name in NETWORKS if name not in BIG]


@functools.cache
def shapes(name):
    """Of a network's variables, traced once."""
    network, image, _ = NETWORKS[name]
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *image)))


def initialised(name, getkey, batch=6):
    network, image, _ = NETWORKS[name]
    images = jax.random.normal(getkey(), (batch, *image))
    return network, drawn(network, image), images


@pytest.mark.parametrize("name", [name for name in NETWORKS if NETWORKS[name][2]])
def test_number_of_parameters(name):
    assert trees.num_parameters(shapes(name)["params"]) == NETWORKS[name][2]


@pytest.mark.parametrize("name", NETWORKS)
def test_axis_table_names_every_parameter(name):
    network, params = NETWORKS[name][0], shapes(name)["params"]
    assert axes.units(network.unit_axes(), params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


@functools.cache
def forward(name):
    """Of three images, traced once: names of the modules with parameters in the order of their calls, what is sown."""
    network, image, _ = NETWORKS[name]
    owners = {leaf.rpartition("/")[0] for leaf in trees.leaf_names(shapes(name)["params"])} - {""}
    called = []

    def note(next_method, args, keywords, context):
        if context.method_name == "__call__" and "/".join(context.module.path) in owners:
            called.append("/".join(context.module.path))
        return next_method(*args, **keywords)

    run = lambda v, x: network.apply(v, x, mutable=["intermediates"])[1]["intermediates"]
    with nn.intercept_methods(note):
        kept = jax.eval_shape(run, shapes(name), jnp.zeros((3, *image)))
    return called, kept


@pytest.mark.parametrize("name", NETWORKS)
def test_axis_table_is_in_the_order_of_the_calls(name):
    table, (called, _) = NETWORKS[name][0].unit_axes(), forward(name)
    assert axes.layers(table) == called
    assert [kernel.rpartition("/")[0] for kernel in axes.kernels(table)] == [
        layer for layer in called if f"{layer}/kernel" in table
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_unit_is_sown_with_its_last_axis(name):
    table, (_, kept) = NETWORKS[name][0].unit_axes(), forward(name)
    found, sizes = axes.sown(kept, table), axes.units(table, shapes(name)["params"])
    assert found.keys() == sizes.keys()
    assert all((value.shape[0], value.shape[-1]) == (3, sizes[unit]) for unit in found for value in found[unit])


@pytest.mark.parametrize("name", SMALL)
def test_what_is_sown_is_what_the_layers_take(name, getkey):
    network, variables, images = initialised(name, getkey, batch=2)
    table, taken = network.unit_axes(), {}

    def note(next_method, args, keywords, context):
        if context.method_name == "__call__" and args:
            taken["/".join(context.module.path)] = args[0]
        return next_method(*args, **keywords)

    def run(variables):
        with nn.intercept_methods(note):
            _, kept = network.apply(variables, images, mutable=["intermediates"])
        found = axes.inputs(kept["intermediates"], table)
        return found, {layer: taken[layer] for layer in found}

    found, expected = jax.jit(run)(variables)
    with_kernel = [leaf.rpartition("/")[0] for leaf in table if leaf.endswith("kernel")]
    assert set(found) == set(with_kernel[1:])  # the first layer takes the images
    for layer in found:
        np.testing.assert_array_equal(found[layer], expected[layer], err_msg=layer)


@pytest.mark.parametrize("name", SMALL)
def test_convolutions_have_gradients_that_are_fast_on_cpu(name):
    network, image, _ = NETWORKS[name]
    found = []

    def note(next_method, args, keywords, context):
        if isinstance(context.module, nn.Conv):
            found.append(context.module.conv_general_dilated)
        return next_method(*args, **keywords)

    with nn.intercept_methods(note):
        params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *image)))["params"]
    assert len(found) == sum(leaf.ndim == 4 for leaf in jax.tree.leaves(params))
    assert all(function is layers.convolution for function in found)


def cycle(num):
    """A random order that leaves none in its place."""
    around = np.random.default_rng(1).permutation(num)
    order = np.empty(num, int)
    order[around] = np.roll(around, 1)
    return order


def permuted(params, table, orders):
    """The parameters with the units of some axes in another order, {axis: order}."""

    def permute(name, leaf):
        for dimension, axis in enumerate(table[name]):
            order = orders.get(axis and axis.removeprefix(axes.FLATTENED))
            if order is None:
                continue
            if axis.startswith(axes.FLATTENED):  # channels come last in a flattened map
                order = (np.arange(0, leaf.shape[dimension], len(order))[:, None] + order[None]).ravel()
            leaf = jnp.take(leaf, order, axis=dimension)
        return leaf

    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, map(permute, trees.leaf_names(params), leaves))


@pytest.mark.parametrize("name", SMALL)
def test_permuting_the_units_of_an_axis_permutes_what_is_sown_of_it_and_nothing_else(name, getkey):
    network, variables, images = initialised(name, getkey, batch=3)
    network = network.clone(dropout=0.0) if hasattr(network, "dropout") else network
    table, params = network.unit_axes(), variables["params"]

    @jax.jit
    def run(params):  # in train mode, so that BatchNorm's statistics are those of the permuted maps
        kept = ["batch_stats", "intermediates"]
        logits, updated = network.apply({**variables, "params": params}, images, train=True, mutable=kept)
        return logits, axes.sown(updated["intermediates"], table)

    logits, values = run(params)
    sizes = axes.units(table, params)
    orders = {axis: cycle(n) for axis, n in sizes.items()}
    for each in [orders, *({axis: order} for axis, order in orders.items())]:
        found_logits, found = run(permuted(params, table, each))
        np.testing.assert_allclose(found_logits, logits, rtol=1e-3, atol=1e-4)
        for unit in values:
            for before, after in zip(values[unit], found[unit], strict=True):
                expected = np.take(np.asarray(before), each.get(unit, np.arange(sizes[unit])), axis=-1)
                np.testing.assert_allclose(after, expected, rtol=1e-3, atol=1e-3, err_msg=unit)
                if unit in each:
                    assert np.abs(after - before).max() > 1e-2


# Sums of |w|, of w_i cos(i) over each leaf's entries i, and of |logits|, in evaluation and in training, from key 5 and
# three images from key 6 (dropout 7): taken before activations were sown under the names of units, CPU, jax 0.10.2.
BEFORE = {
    "mlp": (428.4633565516906, -4.45209532284991, 17.963366, 17.963366),
    "lenet8": (1786.628420838917, 11.978375365718861, 7.1982783, 7.1982783),
    "cifar_resnet_8_4_dropout": (755.9114389057904, 28.299614995018906, 14.044887, 28.963427),
    "bottleneck": (3140.1563262325067, 57.18453561972122, 50.817850, 16.941615),
    "vision_transformer": (1201.5038682188888, -10.088281142416786, 19.551439, 19.551439),
}


@pytest.mark.parametrize("name", BEFORE)
def test_initial_values_and_outputs_are_those_of_before(name):
    network, image, _ = NETWORKS[name]
    variables = jax.jit(network.init)(jax.random.key(5), jnp.zeros((1, *image)))
    images = jax.random.normal(jax.random.key(6), (3, *image))
    options = {"mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(7)}}
    trained = jax.jit(lambda v: network.apply(v, images, train=True, **options)[0])(variables)
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(variables["params"])]
    found = (
        sum(np.abs(leaf).sum() for leaf in leaves),
        sum(leaf @ np.cos(np.arange(leaf.size)) for leaf in leaves),
        np.abs(jax.jit(network.apply)(variables, images)).sum(),
        np.abs(trained).sum(),
    )
    np.testing.assert_allclose(found, BEFORE[name], rtol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_logits_and_dtypes(name):
    network, image, _ = NETWORKS[name]
    variables, images = shapes(name), jnp.zeros((6, *image))
    outputs = jax.eval_shape(network.apply, variables, images)
    assert outputs.shape[0] == 6 and outputs.size == 6 * network.num_classes
    half = network.clone(dtype=jnp.bfloat16)
    train = lambda v, key: half.apply(v, images, train=True, mutable=["batch_stats"], rngs={"dropout": key})
    logits, updated = jax.eval_shape(train, variables, jax.random.key(0))
    assert logits.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(updated))


def test_resnet_starts_as_the_paper_says():
    network, image, _ = NETWORKS["cifar_resnet_20"]
    variables = jax.jit(network.init)(jax.random.key(3), jnp.zeros((1, *image)))
    kernels = trees.select(variables["params"], trees.is_kernel)
    assert len(kernels) == 22 and sum(kernel.size for kernel in kernels) == 270_896
    # E|v|^2 over all convolutions is twice the sum of their output channels
    squares = sum(float(jnp.sum(kernel**2)) for kernel in kernels)
    np.testing.assert_allclose(squares, 1_588, rtol=0.02)
    norms = {name: leaf for name, leaf in trees.leaf_names(variables["params"]).items() if "BatchNorm" in name}
    assert len(norms) == 42
    assert all(np.all(leaf == float(name.endswith("scale"))) for name, leaf in norms.items())
    assert "bias" not in {name.rsplit("/")[-1] for name in trees.leaf_names(variables["params"]) if "Conv" in name}


# name: convolutions, BatchNorm layers, sum of the convolutions' output channels (specification of the subspace paper)
COUNTS = {
    "cifar_resnet_20": (22, 21, 794),
    "tiny_imagenet_resnet_18": (21, 20, 5_000),
    "resnet_50": (54, 53, 27_560),
    "wide_resnet_50_2": (54, 53, 35_112),
}


@pytest.mark.parametrize("name", COUNTS)
def test_layers_of_the_paper(name):
    leaves = trees.leaf_names(shapes(name)["params"])
    kernels = [leaf for leaf_name, leaf in leaves.items() if leaf_name.endswith("kernel")]
    norms = [leaf_name for leaf_name in leaves if leaf_name.endswith("scale")]
    assert (len(kernels), len(norms), sum(kernel.shape[-1] for kernel in kernels)) == COUNTS[name]
    assert not [leaf_name for leaf_name in leaves if leaf_name.endswith("bias") and "Conv" in leaf_name]


@pytest.mark.parametrize("name, num_endpoints", [("tiny_imagenet_resnet_18", 3), ("wide_resnet_50_2", 2)])
def test_a_stack_has_as_many_parameters_an_endpoint(name, num_endpoints):
    network, image, number = NETWORKS[name]
    init = lambda: geometry.init_stack(network, jax.random.key(0), num_endpoints, jnp.zeros((1, *image)))
    assert trees.num_parameters(jax.eval_shape(init)["params"]) == num_endpoints * number


@pytest.mark.parametrize(
    "name, shape",
    [("cifar_resnet_20", (8, 8, 64)), ("tiny_imagenet_resnet_18", (8, 8, 512)), ("resnet_50", (1, 1, 2048))],
)
def test_features_are_those_of_the_paper(name, shape):
    network, image, _ = NETWORKS[name]
    features = jax.eval_shape(
        lambda: network.init_with_output(
            jax.random.key(0), jnp.zeros((2, *image)), mutable=["params", "batch_stats", "intermediates"]
        )
    )[1]["intermediates"]["features"][0]
    assert features.shape == (2, *shape)


def test_features_are_taken_before_the_last_relu_and_cost_nothing_otherwise(getkey):
    network, variables, images = initialised("cifar_resnet_8_4", getkey)
    assert "intermediates" not in jax.eval_shape(network.init, getkey(), images)
    logits, kept = jax.jit(lambda x: network.apply(variables, x, mutable=["intermediates"]))(images)
    features = kept["intermediates"]["features"][0]
    assert float(features.min()) < 0
    pooled = jnp.mean(jnp.maximum(features, 0), axis=(1, 2))
    np.testing.assert_allclose(logits, pooled @ variables["params"]["Conv_1"]["kernel"][0, 0], rtol=1e-4, atol=1e-5)


def test_dropout_is_on_the_branch_in_training_alone(getkey):
    dropped, variables, images = initialised("cifar_resnet_8_4_dropout", getkey)
    plain = dropped.clone(dropout=0.0)
    np.testing.assert_array_equal(jax.jit(dropped.apply)(variables, images), jax.jit(plain.apply)(variables, images))

    def train(network, **rngs):
        return jax.jit(lambda rngs: network.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs))(
            rngs
        )

    (logits, updated), (others, other_updated) = train(dropped, dropout=getkey()), train(plain)  # plain needs no key
    assert np.any(logits != others)
    blocks, other_blocks = updated["batch_stats"], other_updated["batch_stats"]
    mean = lambda blocks, block, norm: np.asarray(blocks[block][norm]["mean"])
    # the first block's norms come before any dropout has acted
    first, second = ("BasicBlock_0", "BatchNorm_1"), ("BasicBlock_1", "BatchNorm_0")
    np.testing.assert_allclose(mean(blocks, *first), mean(other_blocks, *first), rtol=1e-5, atol=1e-6)
    assert np.abs(mean(blocks, *second) - mean(other_blocks, *second)).max() > 1e-3


def test_the_transformer_does_not_care_for_the_order_of_patches_but_for_their_positions(getkey):
    network, variables, images = initialised("vision_transformer", getkey)
    swapped = images[:, jnp.array([4, 5, 6, 7, 0, 1, 2, 3])]  # upper and lower row of patches
    params = variables["params"]
    moved = params | {"positions": params["positions"][:, jnp.array([2, 3, 0, 1])]}
    run = jax.jit(network.apply)
    logits = run(variables, images)
    np.testing.assert_allclose(run({"params": moved}, swapped), logits, rtol=1e-4, atol=1e-5)
    assert np.abs(run(variables, swapped) - logits).max() > 1e-4


@pytest.mark.parametrize(
    "options, message", [({"patch": 3}, "patches of 3 do not divide"), ({"num_heads": 5}, "5 heads do not")]
)
def test_the_transformer_refuses_sizes_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        VisionTransformer(10, **options).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


def test_every_family_has_names_that_it_takes():
    for name in (
        "mlp",
        "mlp_3_4",
        "lenet",
        "cifar_resnet_8_2",
        "conv_fc",
        "vgg_19",
        "pre_resnet_110",
        "pre_resnet_20_8",
        "cifar_wide_resnet_28_10",
        "autoencoder_16_32",
        "tiny_imagenet_resnet_50",
        "resnet_101",
        "resnet_34",
        "imagenet_vgg_19",
        "alexnet",
        "deep_lenet",
        "bottleneck_mlp",
        "bottleneck_mlp_8_4_2",
        "wide_resnet_50_2",
        "vision_transformer_4_64_4_4",
    ):
        assert isinstance(
            families.by_name(name, 10, dtype=jnp.float32, axis_name=None, dropout=0.0), families.nn.Module
        )
    network = families.by_name("vgg_16", 7, dtype=jnp.bfloat16, axis_name="batch", dropout=0.2)
    assert network == VGG(7, 16, dropout=0.2, dtype=jnp.bfloat16, axis_name="batch")
    network = families.by_name("cifar_resnet_14_3", 7, dtype=jnp.bfloat16, axis_name="batch", dropout=0.2)
    assert network == CifarResNet(7, 14, 3, 0.2, jnp.bfloat16, "batch")


@pytest.mark.parametrize(
    "name, message",
    [
        ("resnet_17", "write resnet_18"),
        ("cifar_resnt_20", "did you mean cifar_resnet"),
        ("lenet_5", "write lenet"),
        ("vgg_12", "write vgg_16 or vgg_19"),
        ("cifar_wide_resnet_28", "write cifar_wide_resnet_28_10"),
        ("mlp_0", "mlp_0"),
        ("nowhere.at_all:Net", "cannot be made .*nowhere"),
        ("json:loads", "cannot be made"),
    ],
)
def test_other_names_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        families.by_name(name, 10)


def test_dropout_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match="lenet.*has no dropout"):
        families.by_name("lenet", 10, dropout=0.1)


def test_resnet_is_fully_convolutional_in_size(getkey):
    network, variables, _ = initialised("cifar_resnet_8_4", getkey)
    assert jax.eval_shape(network.apply, variables, jnp.zeros((2, 28, 28, 1))).shape == (2, 10)


@pytest.mark.parametrize("depth", [7, 2, 21, 0])
def test_resnet_refuses_other_depths(depth):
    with pytest.raises(ValueError, match=f"depth of 6n \\+ 2 .* got {depth}"):
        CifarResNet(10, depth).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


@pytest.mark.parametrize(
    "table, message",
    [
        ({"a": ("h",)}, "differ in b"),
        ({"a": ("h",), "b": ("h",), "c": (None,)}, "differ in c"),
        ({"a": ("h",), "b": ("h", None)}, "axis h has 3 units elsewhere but 2 in b"),
        ({"a": ("h",), "b": (None,)}, r"b has shape \(2, 2\) but axes"),
        ({"a": ("h",), "b": (axes.FLATTENED + "h", None)}, "no whole number of positions"),
    ],
)
def test_a_wrong_axis_table_is_refused(table, message):
    with pytest.raises(ValueError, match=message):
        axes.units(table, {"a": np.zeros(3), "b": np.zeros((2, 2))})


def test_what_was_not_sown_is_named():
    table = {"Dense_0/kernel": (None, "h"), "Dense_1/kernel": ("h", "g"), "Dense_2/kernel": ("h", None)}
    with pytest.raises(ValueError, match="sown for the units g"):
        axes.sown({"h": (np.zeros((2, 3)),)}, table)
    with pytest.raises(ValueError, match="h is read by Dense_1, Dense_2 but was sown 1 times"):
        axes.inputs({"h": (np.zeros((2, 3)),), "g": (np.zeros((2, 3)),)}, table)
