"""Paths against their definitions written out by hand in NumPy, and properties that every connector shares."""

import jax
import numpy as np
import pytest
from small_networks import made, planted

from subspaces_jax.analysis.paths import point_distances
from subspaces_jax.connecting import CONNECTORS, Features, connect, layer_inputs, permute
from subspaces_jax.connecting.features import rows
from subspaces_jax.evaluation import along
from subspaces_jax.networks import MLP, VGG, CifarResNet, ConvFC

RNG = np.random.default_rng(0)
DEEP, SHALLOW, CONV = MLP(3, (6, 5), bias=False), MLP(3, (7,)), ConvFC(2, (2, 3), (4,))
SHAPES = {DEEP: (8,), SHALLOW: (8,), CONV: (9, 9, 1)}
IMAGES = {network: RNG.normal(size=(60, *shape)).astype(np.float32) for network, shape in SHAPES.items()}
FEATURES = {network: Features(layer_inputs(network), IMAGES[network]) for network in SHAPES}


def pair(network):
    return made(network, SHAPES[network], 1), made(network, SHAPES[network], 2)


def path_of(name, network, **options):
    if not set(name.split("_")) & {"linear", "arc", "simultaneous", "hidden"} or "wa" in name or "butterfly" in name:
        options |= {} if name == "ot" else {"features": FEATURES[network]}
    return connect(name, *pair(network), network.unit_axes(), **options)


def flat(params):
    return np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(params)])


def equal(found, expected, atol=0.0):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0.0, atol=atol), found, expected)


CASES = [
    ("linear", DEEP, 1),
    ("arc", CONV, 1),
    ("one_hidden_layer", SHALLOW, 1),
    ("ot", SHALLOW, 1),
    ("arc_wa", SHALLOW, 2),
    ("ot_wa", SHALLOW, 2),
    ("arc_butterfly", DEEP, 2),
    ("linear_wa", DEEP, 3),
    ("ot_wa", DEEP, 3),
    ("ot_butterfly", CONV, 3),
    ("ot_wa", CONV, 4),
]


@pytest.mark.parametrize("name, network, num_pieces", CASES)
def test_a_path_is_exact_at_its_ends_continuous_between_and_the_same_when_jitted(name, network, num_pieces):
    (a, b), path = pair(network), path_of(name, network)
    assert path.num_pieces == num_pieces
    equal(path.params(0), a)
    equal(path.params(num_pieces), permute(b, network.unit_axes(), path.permutations))
    for piece, after in zip(path.pieces[:-1], path.pieces[1:]):
        equal(piece.end, after.start)
    near = 1e-5
    for joint in range(num_pieces):
        right = np.abs(flat(path.params(joint + near)) - flat(path.params(joint)))
        left = np.abs(flat(path.params(joint + 1 - near)) - flat(path.params(joint + 1)))
        assert max(right.max(), left.max()) < 2e-3
    ts = np.array([0.0, 0.3, num_pieces - 0.4, num_pieces])
    tree, points, params_at = path.at(ts)
    at = jax.jit(params_at)
    for t, point in zip(ts, points):
        equal(at(tree, point), path.params(t), atol=1e-5 if 0 < t < num_pieces else 0.0)


def test_a_path_is_evaluated_like_every_other():
    network, b = SHALLOW, pair(SHALLOW)[1]
    path, ts = path_of("ot_wa", network), np.array([0.0, 0.5, 1.0, 2.0])
    apply = lambda variables, images: network.apply(variables, images)
    labels = RNG.integers(0, 3, 60)
    found = along(*path.at(ts), apply=apply, images=IMAGES[network], labels=labels, batch_size=60, with_pairs=False)
    outputs = jax.jit(lambda params: network.apply({"params": params}, IMAGES[network]))
    for t, logits in zip(ts, found["logits"]):
        np.testing.assert_allclose(logits, outputs(path.params(t)), atol=1e-5)
    np.testing.assert_allclose(found["logits"][-1], outputs(b), atol=1e-5)  # b's units are in another order
    expected = np.linalg.norm(np.diff([flat(path.params(t)) for t in ts], axis=0), axis=1)
    np.testing.assert_allclose(point_distances(*path.at(ts))[1:], expected, rtol=1e-4)


def test_every_name_is_a_connector_and_those_of_the_code_are_the_same_paths():
    for name in ("PointFinderStepWiseInverseOT", "ot_wa"):
        assert np.all(flat(connect(name, *pair(DEEP), DEEP.unit_axes(), features=FEATURES[DEEP]).params(0.5)) != 0)
    a, b = (
        flat(connect(name, *pair(DEEP), DEEP.unit_axes(), features=FEATURES[DEEP]).params(1.3))
        for name in ("PointFinderStepWiseTransportation", "ot_butterfly")
    )
    np.testing.assert_array_equal(a, b)
    assert len(CONNECTORS) == 28


def hidden(params, images, layer):
    """Features of the bias-free network after a hidden layer, by NumPy."""
    x = images.astype(np.float64)
    for i in range(layer + 1):
        x = np.maximum(x @ np.asarray(params[f"Dense_{i}"]["kernel"], np.float64), 0.0)
    return x


def kernels(params):
    return [np.asarray(params[f"Dense_{i}"]["kernel"], np.float64) for i in range(3)]


def adjusted(kernel, before, taken):
    return np.linalg.pinv(taken, rcond=1e-7) @ before @ kernel


def test_the_butterfly_of_three_layers_by_hand():
    (a, b), images, t = pair(DEEP), IMAGES[DEEP], 0.3
    path = path_of("linear_butterfly", DEEP)
    (a0, a1, a2), (b0, b1, b2) = kernels(a), kernels(b)
    hat = adjusted(a1, hidden(a, images, 0), hidden(b, images, 0))
    first = [(1 - t) * a0 + t * b0, (1 - t) * a1 + t * hat, a2]
    second = [b0, (1 - t) * hat + t * b1, (1 - t) * a2 + t * b2]
    for found, expected in ((path.params(t), first), (path.params(1 + t), second)):
        for x, y in zip(kernels(found), expected):
            np.testing.assert_allclose(x, y, atol=1e-5)
    assert path.ranks == {"Dense_1": (6, 6)}


def test_the_arc_of_a_butterfly_turns_units_about_their_mean():
    (a, b), t = pair(DEEP), 0.3
    found = kernels(path_of("arc_butterfly", DEEP).params(t))
    c, s = np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)
    hat = adjusted(kernels(a)[1], hidden(a, IMAGES[DEEP], 0), hidden(b, IMAGES[DEEP], 0))
    for layer, axis, end in ((0, 1, kernels(b)[0]), (1, 0, hat)):  # columns of what is read, rows of what reads
        start = kernels(a)[layer]
        mean = np.mean(np.concatenate([start, end], axis), axis, keepdims=True)
        np.testing.assert_allclose(found[layer], mean + c * (start - mean) + s * (end - mean), atol=1e-5)


def test_weight_adjustment_of_three_layers_by_hand():
    (a, b), images, t = pair(DEEP), IMAGES[DEEP], 0.3
    path = path_of("linear_wa", DEEP, reference=True)
    (a0, a1, a2), (b0, b1, b2) = kernels(a), kernels(b)
    before = [hidden(a, images, layer) for layer in (0, 1)]
    hat1 = adjusted(a1, before[0], hidden(b, images, 0))
    hat2 = adjusted(a2, before[1], hidden(b, images, 1))
    first = (1 - t) * a0 + t * b0
    second = (1 - t) * hat1 + t * b1
    of_first, of_second = np.maximum(images @ first, 0), np.maximum(hidden(b, images, 0) @ second, 0)
    expected = {
        0.3: [first, adjusted(a1, before[0], of_first), a2],
        1.3: [b0, second, adjusted(a2, before[1], of_second)],
        2.3: [b0, b1, (1 - t) * hat2 + t * b2],
    }
    for at, layers in expected.items():
        for x, y in zip(kernels(path.params(at)), layers):
            np.testing.assert_allclose(x, y, atol=2e-4)
    continuous = path_of("linear_wa", DEEP)
    settled = adjusted(a2, before[1], np.maximum(hidden(b, images, 0) @ hat1, 0))
    np.testing.assert_allclose(kernels(continuous.params(0.3))[2], (1 - t) * a2 + t * settled, atol=2e-4)
    assert np.abs(kernels(path.params(1.0))[2] - kernels(path.params(1 - 1e-6))[2]).max() > 1e-2  # the jump


def with_ones(values):
    return np.concatenate([values, np.ones((len(values), 1))], axis=1)


def test_a_bias_is_fitted_with_its_kernel_as_the_weight_of_a_column_of_ones():
    (a, b), images = pair(SHALLOW), IMAGES[SHALLOW]
    path = path_of("linear_wa", SHALLOW, bias=True)
    layers = lambda p: [np.concatenate([p[name]["kernel"], p[name]["bias"][None]]) for name in ("Dense_0", "Dense_1")]
    hidden = lambda layer: with_ones(np.maximum(with_ones(images) @ layer, 0))
    (a0, a1), (b0, b1) = layers(a), layers(b)
    reproduced = lambda layer: np.linalg.lstsq(hidden(layer), hidden(a0) @ a1)[0]
    first, second = layers(path.params(0.3)), layers(path.params(1.4))
    moved = 0.7 * a0 + 0.3 * b0
    np.testing.assert_allclose(first[0], moved, atol=1e-5)
    np.testing.assert_allclose(first[1], reproduced(moved), atol=1e-4)
    np.testing.assert_allclose(second[1], 0.6 * reproduced(b0) + 0.4 * b1, atol=1e-4)
    assert np.abs(first[1][-1] - a1[-1]).max() > 0.05  # without it the bias stays
    np.testing.assert_array_equal(path_of("linear_wa", SHALLOW).params(0.3)["Dense_1"]["bias"], a["Dense_1"]["bias"])
    assert path.ranks["Dense_1"][1] == 8


@pytest.mark.parametrize("name", ["ot_wa", "ot_butterfly"])
def test_with_biases_fitted_paths_of_deep_networks_are_exact_and_continuous(name):
    network = MLP(3, (6, 5))
    (a, b), table = (made(network, (8,), seed) for seed in (1, 2)), network.unit_axes()
    path = connect(name, a, b, table, features=Features(layer_inputs(network), IMAGES[DEEP]), bias=True)
    equal(path.params(0), a)
    equal(path.params(path.num_pieces), permute(b, table, path.permutations))
    for piece, after in zip(path.pieces[:-1], path.pieces[1:]):
        equal(piece.end, after.start)
    biases = [np.asarray(path.params(t)["Dense_1"]["bias"]) for t in (0.5, 1.0)]
    assert np.abs(biases[1] - a["Dense_1"]["bias"]).max() > 0.01
    np.testing.assert_allclose(path.params(1.0 - 1e-5)["Dense_1"]["bias"], biases[1], atol=2e-3)
    tree, points, params_at = path.at([0.5, 1.5])
    equal(jax.jit(params_at)(tree, points[0])["Dense_1"]["bias"], biases[0], atol=1e-5)


@pytest.mark.parametrize("name", ["ot", "ot_wa", "ot_butterfly"])
@pytest.mark.parametrize("network", [DEEP, SHALLOW, CONV], ids=["deep", "shallow", "conv"])
def test_a_permuted_copy_is_recovered_and_its_path_is_flat(name, network):
    a, table = pair(network)[0], network.unit_axes()
    copy, back = planted(a, table)
    options = {} if name == "ot" else {"features": FEATURES[network]}
    path = connect(name, a, copy, table, **options)
    for axis, order in back.items():
        np.testing.assert_array_equal(path.permutations[axis], order)
    outputs = jax.jit(lambda params: network.apply({"params": params}, IMAGES[network]))
    for t in np.linspace(0, path.num_pieces, 4):
        np.testing.assert_allclose(outputs(path.params(t)), outputs(a), atol=1e-4)
        if network is not CONV:  # whose features leave weights open: where they do, adjusted weights are 0
            np.testing.assert_allclose(flat(path.params(t)), flat(a), atol=2e-4)


def test_a_neuron_that_is_0_in_a_permuted_copy_fades_with_the_square_of_what_is_left_of_the_path():
    """Others are matched to themselves; what it reads and what reads it shrink by 1 - t, and a ReLU is homogeneous."""
    (a, _), table, zeroed, t = pair(SHALLOW), SHALLOW.unit_axes(), 2, 0.3
    kept = np.arange(7) != zeroed
    first, second = ({name: np.asarray(leaf) for name, leaf in a[layer].items()} for layer in ("Dense_0", "Dense_1"))
    copy, back = planted(
        {
            "Dense_0": {name: leaf * kept for name, leaf in first.items()},
            "Dense_1": second | {"kernel": second["kernel"] * kept[:, None]},
        },
        table,
    )
    path = connect("ot", a, copy, table)
    np.testing.assert_array_equal(path.permutations["h0"], back["h0"])
    hidden = np.maximum(IMAGES[SHALLOW] @ first["kernel"] + first["bias"], 0)
    faded = hidden * np.where(kept, 1.0, (1 - t) ** 2)
    found = SHALLOW.apply({"params": path.params(t)}, IMAGES[SHALLOW])
    np.testing.assert_allclose(found, faded @ second["kernel"] + second["bias"], atol=1e-5)
    assert np.abs(hidden[:, zeroed]).max() > 0.1


def test_a_permuted_vgg16_is_recovered_layer_by_layer():
    """One program gives what all of its layers take; what is small is not compiled."""
    network, images = VGG(2, 16, width=2, hidden=3), RNG.normal(size=(40, 8, 8, 1)).astype(np.float32)
    a = jax.tree.map(lambda leaf: leaf * (2.2 if leaf.ndim > 1 else 0.3), made(network, (8, 8, 1)))
    table, program = network.unit_axes(), jax.jit(layer_inputs(network))
    copy, back = planted(a, table)

    def inputs(params, batch):
        with jax.disable_jit(False):
            return program(params, batch)

    outputs = jax.jit(lambda params: network.apply({"params": params}, images))
    expected, features = outputs(a), Features(inputs, images)
    with jax.disable_jit():
        path = connect("ot_wa", a, copy, table, features=features)
        ends, middle = [path.params(t) for t in (0, 16)], path.params(7)
    assert path.num_pieces == 16
    for axis, order in back.items():
        np.testing.assert_array_equal(path.permutations[axis], order, err_msg=axis)
    for end in ends:
        equal(end, a)
    np.testing.assert_allclose(outputs(middle), expected, atol=0.01 * np.ptp(expected))
    assert np.ptp(expected, axis=0).min() > 0.01


def test_transport_moves_units_and_what_reads_them_together():
    """After the first piece the network is that of b below and of a, adjusted, above, whatever the order of units."""
    a, table = pair(DEEP)[0], DEEP.unit_axes()
    plain, moved = path_of("linear_butterfly", DEEP), path_of("ot_butterfly", DEEP)
    order = moved.permutations["h0"]
    assert not np.array_equal(order, np.arange(6))
    equal(moved.params(1), permute(plain.params(1), table, {"h0": order}), atol=1e-5)
    assert np.linalg.norm(flat(moved.params(1)) - flat(a)) < np.linalg.norm(flat(plain.params(1)) - flat(a))


def test_the_reference_goes_back_to_the_own_order_of_units_after_each_piece():
    table, path = DEEP.unit_axes(), path_of("ot_butterfly", DEEP, reference=True)
    end, start = path.pieces[0].end, path.pieces[1].start
    equal(start, path_of("linear_butterfly", DEEP).params(1), atol=1e-4)
    assert np.linalg.norm(flat(end) - flat(start)) > 0.1
    order = path_of("ot_butterfly", DEEP).permutations["h0"]
    equal(end, permute(start, table, {"h0": order}), atol=1e-5)


def test_the_reference_never_moves_the_bias_of_a_convolutional_networks_outputs():
    (a, b), ends = pair(CONV), {}
    for name, num in (("linear_butterfly", 3), ("linear_wa", 3)):
        path = path_of(name, CONV, reference=True)
        assert path.num_pieces == num
        ends[name] = path.params(num)
        np.testing.assert_array_equal(ends[name]["Dense_1"]["bias"], a["Dense_1"]["bias"])
        equal(ends[name]["Dense_0"], b["Dense_0"])
    equal(ends["linear_butterfly"]["Dense_1"]["kernel"], b["Dense_1"]["kernel"])
    assert np.abs(ends["linear_wa"]["Dense_1"]["kernel"] - b["Dense_1"]["kernel"]).max() > 0.1


def test_a_convolution_is_adjusted_to_patches():
    (a, b), images, inputs = pair(CONV), IMAGES[CONV], jax.jit(layer_inputs(CONV))
    features = FEATURES[CONV]._replace(patches="all", batch_size=25)
    path = connect("linear_butterfly", a, b, CONV.unit_axes(), features=features)
    found = np.asarray(path.params(1)["Conv_1"]["kernel"], np.float64).reshape(50, 3)
    taken = [np.asarray(rows(inputs(params, images)["Conv_1"], (5, 5)), np.float64) for params in (a, b)]
    expected = np.linalg.pinv(taken[1], rcond=1e-6) @ taken[0] @ a["Conv_1"]["kernel"].reshape(50, 3)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_one_hidden_layer_is_connected_neuron_by_neuron():
    (a, b), t = pair(SHALLOW), 0.4
    whole = lambda p: np.concatenate(
        [p["Dense_0"]["kernel"].T, p["Dense_0"]["bias"][:, None], p["Dense_1"]["kernel"]], 1
    )
    mean = np.mean(np.concatenate([whole(a), whole(b)]), axis=0)
    c, s = np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)
    expected = mean + c * (whole(a) - mean) + s * (whole(b) - mean)
    found = jax.tree.map(np.asarray, path_of("one_hidden_layer", SHALLOW, interpolation="arc").params(t))
    np.testing.assert_allclose(whole(found), expected, atol=1e-5)
    bias = [p["Dense_1"]["bias"] for p in (a, b)]
    np.testing.assert_allclose(found["Dense_1"]["bias"], sum(bias) / 2 + (c - s) * (bias[0] - bias[1]) / 2, atol=1e-5)


def test_a_path_holds_each_array_once_and_paths_of_one_form_share_a_program():
    tree, _, params_at = path_of("linear_butterfly", CONV).at([0.5])
    held = [leaf for leaves in tree["values"].values() for leaf in leaves]
    assert len({id(leaf) for leaf in held}) == len(held)
    again = path_of("linear_butterfly", CONV).at([0.1, 2.0]).params_at
    assert again == params_at and hash(again) == hash(params_at)
    assert path_of("arc_butterfly", CONV).at([0.5]).params_at != params_at


def test_paths_follow_one_another():
    a, b, c = (made(SHALLOW, (8,), seed) for seed in range(3))
    path = connect("linear", a, b).then(connect("arc", b, c))
    assert path.num_pieces == 2
    equal(path.params(1), b)
    equal(path.params(2), c)
    np.testing.assert_array_equal(path.grid(3), [0, 1, 2])
    np.testing.assert_array_equal(path.around([0.0, 0.5, 1.0, 2.0], 1, 5), [0.0, 0.25, 0.5, 0.75, 1.0])
    np.testing.assert_array_equal(path.around([0.0, 0.5, 1.0, 2.0], 3, 3), [1.0, 1.5, 2.0])


def test_bad_input_is_named():
    (a, b), table = pair(DEEP), DEEP.unit_axes()
    with pytest.raises(ValueError, match="no connector 'butterflies': did you mean butterfly"):
        connect("butterflies", a, b, table)
    with pytest.raises(ValueError, match="butterfly needs the axis table"):
        connect("butterfly", a, b)
    with pytest.raises(ValueError, match="pass features="):
        connect("butterfly", a, b, table)
    with pytest.raises(ValueError, match="another architecture than network a: - Dense_0/bias"):
        connect("linear", pair(SHALLOW)[0], b)
    with pytest.raises(ValueError, match="differ in Dense_2/kernel"):
        connect("ot", a, b, {name: row for name, row in table.items() if "2" not in name})
    with pytest.raises(ValueError, match="this network has 2"):
        connect("one_hidden_layer", a, b, table)
    with pytest.raises(ValueError, match="bias=True fits biases, and no layer"):
        connect("wa", a, b, table, features=FEATURES[DEEP], bias=True)
    path = connect("linear", a, b)
    for t in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"t lies in \[0, 1\], the pieces of this path, got"):
            path.params(t)
    with pytest.raises(ValueError, match="got point 3 and 5"):
        path.around([0.0, 0.5, 1.0], 3, 5)
    with pytest.raises(ValueError, match="at least one t"):
        path.at([])
    residual = CifarResNet(2, 8, 2)
    params = made(residual, (8, 8, 1))
    with pytest.raises(ValueError, match="BasicBlock_1/Conv_2 reads s0 where a feed-forward network reads s1"):
        connect("butterfly", params, params, residual.unit_axes(), features=FEATURES[DEEP])
    normed = VGG(2, 11, batch_norm=True, width=1, hidden=2)
    params = made(normed, (8, 8, 1))
    with pytest.raises(ValueError, match="without BatchNorm, this one has BatchNorm_0/scale"):
        connect("wa", params, params, normed.unit_axes(), features=FEATURES[DEEP])
    with pytest.raises(ValueError, match="expected hidden units"):
        connect("butterfly", made(MLP(2, ()), (3,)), made(MLP(2, ()), (3,)), MLP(2, ()).unit_axes())
