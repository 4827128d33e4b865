"""The step against plain Flax and Optax, and against itself on several devices, samples and layouts."""

import math
import re
from functools import cache, partial, reduce

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from subspaces_jax import geometry, parallel, rngs, tasks
from subspaces_jax.data import augmentation
from subspaces_jax.networks import MLP
from subspaces_jax.networks.layers import Conv
from subspaces_jax.training import objective, optimizers
from subspaces_jax.training.dispatch import Form, joined, make_advance, row_of
from subspaces_jax.training.state import init_state
from subspaces_jax.training.step import FORMS, feature_similarity, make_step

RATE, MOMENTUM, DECAY = 0.05, 0.9, 1e-3
EPOCH = 6  # steps
WHOLE = PartitionSpec()
TASK = tasks.classification()


@pytest.fixture(scope="module")
def digits():
    """96 random "images" and labels: what the step computes does not depend on what they show."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (96, 8, 8, 1)).astype(np.uint8), rng.integers(0, 10, 96).astype(np.int32)


def pixels(images):
    return images.astype(jnp.float32) / 255 - 0.5


def train_mode(network, variables, inputs, keys):
    with objective.dropout_by_example(keys):
        outputs, updated = network.apply(
            variables, inputs, train=True, mutable=["batch_stats"], rngs={"dropout": keys[0]}
        )
    return outputs, updated.get("batch_stats", {}), ()


def objective_of(network, forward=train_mode, augment=None, **options):
    """What a step on digits minimises."""
    return objective.supervised(
        partial(forward, network), TASK, normalise=pixels, floats=pixels, augment=augment, **options
    )


def as_data(digits):
    return dict(zip(("images", "labels"), map(jnp.asarray, digits)))


class ConvNet(nn.Module):
    """Every kind of layer that the step has to carry, and quick to compile."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        x = Conv(4, (3, 3), strides=2)(nn.relu(Conv(3, (3, 3))(x)))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=self.axis_name)(x)
        return nn.Dense(10)(nn.relu(x).mean((1, 2)))


@cache
def initial(network, num_endpoints):
    """The first weights and statistics of a stack as a function of the key, compiled once."""
    return jax.jit(lambda key: geometry.init_stack(network, key, num_endpoints, jnp.zeros((1, 8, 8, 1))))


def start(space, network=None, frozen=()):
    network = network or ConvNet()
    optimizer = optimizers.sgd(lambda step: RATE, MOMENTUM, DECAY)
    if frozen:
        optimizer = optax.chain(optimizer, optimizers.freeze_endpoints(frozen, space.num_endpoints))
    variables = initial(network, space.num_endpoints)(jax.random.key(1))
    return init_state(variables, optimizer, jax.random.key(2)), optimizer


def train(space, data, *, num_steps=4, devices=1, network=None, axis_name=None, num_samples=1, batch=24,
          form=Form(), frozen=(), **options):  # fmt: skip
    """The metrics after each of `num_steps` steps, and the last state; `frozen` endpoints are masked by the optimizer,
    those of the form are not in the state."""
    network, make_apply = network or ConvNet, options.pop("make_apply", train_mode)
    state, optimizer = start(space, network(), frozen)
    if options.pop("layerwise", False):
        space = geometry.layerwise(space, state.params)
    of_batch = objective_of(network(axis_name) if axis_name else network(), make_apply, options.pop("augment", None))
    step = make_step(of_batch, space, optimizer, num_samples=num_samples, still=form.still, **options)
    mesh = parallel.device_mesh(devices)
    split = PartitionSpec(None, None, parallel.AXIS)
    steps = make_advance(step, form=form)
    advance = parallel.pmapped(steps, mesh, (WHOLE, WHOLE, split, WHOLE), donate_argnums=(0,))
    state = parallel.replicate(state, mesh)
    indices = jnp.asarray(rows(batch)).reshape(EPOCH, num_samples, batch // num_samples)
    metrics = []
    for _ in range(num_steps):
        state, report = advance(state, as_data(data), indices, 1)
        metrics.append(row_of(jax.device_get(report), TASK.read))
    return metrics, jax.device_get(state._replace(key=jax.random.key_data(state.key)))


def rows(batch):
    return np.random.default_rng(3).integers(0, 96, (EPOCH, batch)).astype(np.int32)


def assert_same(a, b, rtol=1e-5, atol=2e-6):
    """Metrics and states equal up to float32 rounding."""
    for one, other in zip(a[0], b[0]):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=rtol, atol=atol, err_msg=name)
    chex.assert_trees_all_close(a[1].params, b[1].params, rtol=1e-4, atol=1e-4)


def test_one_endpoint_trains_like_plain_flax_and_optax(digits):
    """The oracle is the loop of the Flax manual: value_and_grad, tx.update, apply_updates."""
    images, labels = digits
    module = ConvNet()
    metrics, state = train(geometry.Simplex(1), digits, num_steps=5)
    (variables,) = geometry.unstack(initial(module, 1)(jax.random.key(1))["params"])
    stats = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["batch_stats"]
    tx = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE, momentum=MOMENTUM))
    opt_state = tx.init(variables)

    def loss(params, stats, x, y):
        logits, new = module.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new["batch_stats"]

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    for i in range(5):
        batch = rows(24)[i]
        (value, stats), grads = gradient(variables, stats, pixels(images[batch]), labels[batch])
        updates, opt_state = tx.update(grads, opt_state, variables)
        variables = optax.apply_updates(variables, updates)
        np.testing.assert_allclose(metrics[i]["loss"], value, rtol=1e-5)
    chex.assert_trees_all_close(geometry.unstack(state.params)[0], variables, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(state.batch_stats, stats, rtol=1e-4, atol=1e-6)


def test_a_line_whose_endpoints_move_as_the_chain_rule_says(digits):
    """One step of SGD without momentum by hand: endpoint k moves by -rate * c_k * gradient at the point."""
    images, labels = digits
    space = geometry.Line()
    _, after = train(space, digits, num_steps=1, network=lambda: MLP(10, (8,)))
    before, _ = start(space, MLP(10, (8,)))
    drawn = {}

    def spy(key, shape):
        drawn["c"] = geometry.Line().sample(key, shape)
        return drawn["c"]

    class Spy:
        num_endpoints, sample = 2, staticmethod(spy)

    step = make_step(objective_of(MLP(10, (8,))), Spy, optax.sgd(0.0))
    state = before._replace(opt_state=optax.sgd(0.0).init(before.params))
    mapped = jax.shard_map(
        lambda *args: (step(*args)[1], drawn["c"]),
        mesh=parallel.device_mesh(1),
        in_specs=(WHOLE,) * 3,
        out_specs=WHOLE,
        check_vma=False,
    )
    _, coordinates = jax.jit(mapped)(state, as_data(digits), jnp.asarray(rows(24)[:1]))
    c = np.asarray(coordinates)[0]
    point = jax.tree.map(lambda leaf: c[0] * leaf[0] + c[1] * leaf[1], before.params)
    x, y = pixels(images[rows(24)[0]]), labels[rows(24)[0]]
    loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(MLP(10, (8,)).apply({"params": p}, x), y).mean()
    grads = jax.jit(jax.grad(loss))(point)
    for k in range(2):
        expected = jax.tree.map(lambda w, g: w[k] - RATE * (c[k] * g + DECAY * w[k]), before.params, grads)
        chex.assert_trees_all_close(geometry.unstack(after.params)[k], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_samples", [2, 4])
@pytest.mark.parametrize("layerwise", [False, True])
def test_samples_by_all_forms_give_the_same_numbers(digits, num_samples, layerwise):
    options = dict(num_samples=num_samples, layerwise=layerwise, beta=1.0)
    vmapped, scanned, unrolled = (train(geometry.Simplex(3), digits, over_samples=how, **options) for how in FORMS)
    assert_same(vmapped, scanned)
    assert_same(vmapped, unrolled)


@pytest.mark.parametrize("diverse", [False, True])
def test_forms_are_what_they_say(digits, diverse):
    """By vmap there is one convolution of many kernels, by scan a loop within the loop over steps, unrolled neither."""
    programs = {}
    for how in FORMS:
        state, optimizer = start(geometry.Line())
        forward = with_features if diverse else train_mode
        step = make_step(
            objective_of(ConvNet(), forward), geometry.Line(), optimizer, num_samples=2, over_samples=how,
            feature_diversity=1.0 * diverse,
        )  # fmt: skip
        mapped = jax.shard_map(
            step, mesh=parallel.device_mesh(1), in_specs=(WHOLE,) * 3, out_specs=WHOLE, check_vma=False
        )
        lowered = jax.jit(mapped).lower(state, as_data(digits), jnp.zeros((2, 12), jnp.int32))
        programs[how] = lowered.as_text()
    loops = {how: text.count("stablehlo.while") for how, text in programs.items()}
    assert loops["vmap"] == loops["unroll"] < loops["scan"]
    grouped = {how: "feature_group_count = 2" in text for how, text in programs.items()}
    assert grouped["vmap"] and not grouped["unroll"] and not grouped["scan"]


def test_samples_of_one_point_without_batch_norm_are_one_batch(digits):
    """K = 1 draws the same point S times; without BatchNorm the mean over parts is the mean over the batch."""
    network = lambda: MLP(10, (8,))
    one = train(geometry.Simplex(1), digits, network=network)
    four = train(geometry.Simplex(1), digits, network=network, num_samples=4, over_samples="scan")
    assert_same(one, four)


@pytest.mark.parametrize("num_samples, over_samples", [(1, "scan"), (3, "scan"), (3, "vmap")])
def test_four_devices_give_the_losses_of_one(digits, num_samples, over_samples):
    """Shared coordinates, BatchNorm over all devices, crops that depend on an image's place in the whole batch."""
    crop = augmentation.compose(augmentation.random_crop, augmentation.random_flip)
    options = dict(num_samples=num_samples, over_samples=over_samples, beta=1.0, augment=crop, axis_name=parallel.AXIS)
    one = train(geometry.Line(), digits, devices=1, **options)
    four = train(geometry.Line(), digits, devices=4, **options)
    assert_same(one, four, rtol=1e-4)


def test_statistics_of_each_device_differ_from_those_of_all(digits):
    """The negative control of the test above: with per-device BatchNorm the losses do depend on the devices."""
    one = train(geometry.Line(), digits, devices=1, num_steps=2)[0]
    four = train(geometry.Line(), digits, devices=4, num_steps=2)[0]
    assert abs(one[0]["loss"] - four[0]["loss"]) > 1e-4


def test_devices_may_draw_their_own_points(digits):
    network = lambda: MLP(10, (8,))
    shared = train(geometry.Line(), digits, devices=4, network=network, num_steps=1)
    own = train(geometry.Line(), digits, devices=4, network=network, num_steps=1, own_coordinates=True)
    assert abs(shared[0][0]["loss"] - own[0][0]["loss"]) > 1e-6
    one = train(geometry.Line(), digits, devices=1, network=network, num_steps=1, own_coordinates=True)
    assert np.isfinite(one[0][0]["loss"])


def test_the_stack_moves_by_the_mean_of_what_each_device_found_at_its_own_point(digits):
    """Against the chain rule by hand, device by device, in one step of plain gradient descent."""
    network, space, size = MLP(10, (8,)), geometry.Simplex(3), 8
    batch = rows(4 * size)[0].reshape(4, size)
    state, _ = start(space, network)
    key = rngs.stream(jax.random.fold_in(state.key, 0), "coordinates")

    def loss(point, images, labels):
        logits = network.apply({"params": point}, pixels(images))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    sample, gradient = jax.jit(lambda key: space.sample(key, (1,))), jax.jit(jax.grad(loss))
    expected = jax.tree.map(np.zeros_like, state.params)
    for device, places in enumerate(batch):
        (coordinates,) = np.asarray(sample(jax.random.fold_in(key, device)))
        grads = gradient(geometry.contract(state.params, coordinates), *(part[places] for part in digits))
        rise = lambda total, g: total + np.tensordot(coordinates, g, axes=0) / 4
        expected = jax.tree.map(rise, expected, grads)
    step = make_step(objective_of(network), space, optax.sgd(RATE), own_coordinates=True)
    split = PartitionSpec(None, parallel.AXIS)
    mapped = parallel.pmapped(step, parallel.device_mesh(4), (WHOLE, WHOLE, split), (WHOLE, WHOLE))
    before = state._replace(opt_state=optax.sgd(RATE).init(state.params))
    after, _ = mapped(before, as_data(digits), jnp.asarray(batch).reshape(1, -1))
    moved = jax.tree.map(lambda a, b: (b - a) / RATE, after.params, state.params)
    chex.assert_trees_all_close(moved, expected, rtol=1e-4, atol=2e-6)


def test_devices_that_share_a_point_exchange_its_gradient_and_not_one_of_every_endpoint(digits):
    network, space = MLP(10, (8,)), geometry.Simplex(5)
    state, optimizer = start(space, network)
    split = PartitionSpec(None, parallel.AXIS)

    def exchanged(**options):
        """Numbers in all-reduces of the compiled step."""
        step = make_step(objective_of(network), space, optimizer, **options)
        mapped = parallel.pmapped(step, parallel.device_mesh(4), (WHOLE, WHOLE, split), (WHOLE, WHOLE))
        text = mapped.lower(state, as_data(digits), jnp.zeros((1, 24), jnp.int32)).compile().as_text()
        results = re.findall(r"= (.*) all-reduce(?:-start)?\(", text)
        shapes = [shape for result in results for shape in re.findall(r"f32\[([\d,]*)\]", result)]
        return sum(math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes)

    of_one = sum(leaf[0].size for leaf in jax.tree.leaves(state.params))
    assert of_one <= exchanged() < 1.1 * of_one
    assert 5 * of_one <= exchanged(own_coordinates=True) < 5.1 * of_one


def test_penalty_is_reported_and_pushes_endpoints_apart(digits):
    network = lambda: MLP(10, (8,))
    free = train(geometry.Line(), digits, network=network, num_steps=6)
    pushed = train(geometry.Line(), digits, network=network, num_steps=6, beta=50.0)
    before = start(geometry.Line(), network())[0]
    np.testing.assert_allclose(pushed[0][0]["penalty"], geometry.cosine_penalty(before.params, 0, 1), rtol=1e-5)
    assert geometry.cosine_penalty(pushed[1].params, 0, 1) < geometry.cosine_penalty(free[1].params, 0, 1)
    assert "penalty" not in free[0][0]


def with_features(network, variables, inputs, keys):
    """Outputs and features: what the last layer takes."""
    outputs, kept = network.apply(
        variables, inputs, train=True, mutable=["batch_stats", "intermediates"], capture_intermediates=True
    )
    return outputs, kept["batch_stats"], kept["intermediates"]["BatchNorm_0"]["__call__"][0]


def test_similar_features_of_far_points_are_penalised(digits):
    """By vmap and unrolled alike; and the term acts."""
    line, options = geometry.Line(), dict(num_samples=3, batch=24, make_apply=with_features, feature_diversity=5.0)
    by_vmap = train(line, digits, over_samples="vmap", **options)
    for how in ("scan", "unroll"):
        assert_same(by_vmap, train(line, digits, over_samples=how, **options), rtol=1e-4)
    assert all(0 < row["feature_similarity"] < 1 for row in by_vmap[0])
    without = train(line, digits, num_samples=3, batch=24)[1]
    assert np.abs(without.params["Dense_0"]["kernel"] - by_vmap[1].params["Dense_0"]["kernel"]).max() > 1e-5
    with pytest.raises(ValueError, match="feature_diversity compares two samples of a batch, got num_samples=1"):
        train(line, digits, make_apply=with_features, feature_diversity=1.0)


@pytest.mark.parametrize("layerwise", [False, True])
def test_feature_similarity_is_distance_times_squared_cosine(layerwise):
    rng = np.random.default_rng(2)
    features, t = rng.normal(size=(3, 4, 5)).astype(np.float32), np.array([0.1, 0.5, 0.8], np.float32)
    coordinates = np.stack([1 - t, t], axis=1)
    apart = 0.7
    if layerwise:
        other = np.array([0.2, 0.9, 0.3], np.float32)
        coordinates = {"a": coordinates, "b": np.stack([1 - other, other], axis=1)}
        apart = (0.7 + 0.1) / 2
    found = feature_similarity(jnp.asarray(features), jax.tree.map(jnp.asarray, coordinates), 0, 2)
    a, b = (features[n].ravel().astype(np.float64) for n in (0, 2))
    np.testing.assert_allclose(found, apart * (a @ b) ** 2 / (a @ a) / (b @ b), rtol=1e-5)


def test_decay_of_the_point_for_one_endpoint_is_decay_of_the_endpoint(digits):
    """For K = 1 the two objectives are one; the optimizer's own decay is taken away from both runs' difference."""
    network = lambda: MLP(10, (8,))
    by_point = train(geometry.Simplex(1), digits, network=network, point_decay=0.1)[1].params
    state, _ = start(geometry.Simplex(1), network())
    optimizer = optimizers.sgd(lambda step: RATE, MOMENTUM, DECAY + 0.1)
    step = make_step(objective_of(network()), geometry.Simplex(1), optimizer)
    state = state._replace(opt_state=optimizer.init(state.params))
    mapped = parallel.pmapped(make_advance(step), parallel.device_mesh(1), (WHOLE,) * 4)
    indices = jnp.asarray(rows(24))[:, None]
    state, _ = mapped(state, as_data(digits), indices, 4)
    chex.assert_trees_all_close(by_point, state.params, rtol=1e-4, atol=1e-6)


def test_many_steps_in_one_dispatch_are_the_steps_one_by_one_bit_for_bit(digits):
    state, optimizer = start(geometry.Line())
    state = parallel.replicate(state, parallel.device_mesh(1))
    step = make_step(objective_of(ConvNet()), geometry.Line(), optimizer)
    traces = chex.assert_max_traces(make_advance(step), n=1)
    advance = parallel.pmapped(traces, parallel.device_mesh(1), (WHOLE,) * 4)
    arrays = (as_data(digits), jnp.asarray(rows(24))[:, None])
    at_once, one_by_one = state, state
    at_once, report = advance(at_once, *arrays, 5)
    reports = []
    for _ in range(5):
        one_by_one, of_one = advance(one_by_one, *arrays, 1)
        reports.append(of_one)
    together, single = (row_of(jax.device_get(of), TASK.read) for of in (report, reduce(joined, reports)))
    assert together == pytest.approx(single, rel=1e-6) and together["accuracy"] > 0
    key_data = lambda s: s._replace(key=jax.random.key_data(s.key))
    chex.assert_trees_all_equal(key_data(at_once), key_data(one_by_one))
    assert advance._cache_size() == 1


def test_the_first_bad_step_is_named(digits):
    state, optimizer = start(geometry.Line())
    step = make_step(objective_of(ConvNet()), geometry.Line(), optimizer, beta=1.0)

    def breaks_at_two(state, *args):
        new, record = step(state, *args)
        loss = jnp.where(state.step >= 2, jnp.nan, record.means["loss"])
        return new, record._replace(means=record.means | {"loss": loss})

    advance = parallel.pmapped(make_advance(breaks_at_two), parallel.device_mesh(1), (WHOLE,) * 4)
    arrays = (as_data(digits), jnp.asarray(rows(24))[:, None])
    first, second = (advance(state, *arrays, n)[1] for n in (2, 5))
    assert {name: int(at) for name, at in first.bad.items()} == {"loss": -1, "penalty": -1}
    assert {name: int(at) for name, at in second.bad.items()} == {"loss": 3, "penalty": -1}  # counted from 1
    assert {name: int(at) for name, at in joined(first, second).bad.items()} == {"loss": 3, "penalty": -1}


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="one of vmap, scan, unroll, got 'map'"):
        make_step(None, geometry.Line(), optax.sgd(0.1), over_samples="map")


class Dropped(nn.Module):
    """Dropout twice in one scope, once of a shared layer."""

    @nn.compact
    def __call__(self, x, train=False):
        drop = nn.Dropout(0.4, deterministic=not train)
        return nn.Dense(10)(drop(nn.relu(nn.Dense(16)(drop(x.reshape(x.shape[0], -1))))))


def test_dropout_is_drawn_by_example_wherever_it_lies(digits):
    """Four devices drop what one does, masks of examples and of calls differ, and the mean is kept."""
    one = train(geometry.Line(), digits, devices=1, network=Dropped)
    four = train(geometry.Line(), digits, devices=4, network=Dropped)
    assert_same(one, four, rtol=1e-4)
    keys = jax.random.split(jax.random.key(0), 2000)
    layer = nn.Dropout(0.25, deterministic=False)
    with objective.dropout_by_example(keys):
        dropped = np.asarray(layer.apply({}, jnp.ones((2000, 8)), rngs={"dropout": keys[0]}))
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
    assert abs(dropped.mean() - 1.0) < 5 * np.sqrt(0.25 / 0.75 / dropped.size)
    assert len(np.unique(dropped, axis=0)) > 100
    with objective.dropout_by_example(keys[7:9]):
        of_two = layer.apply({}, jnp.ones((2, 8)), rngs={"dropout": keys[0]})
    np.testing.assert_array_equal(of_two, dropped[7:9])


def test_noise_is_added_to_normalised_inputs_and_targets_are_clean(digits):
    seen = {}

    def forward(variables, inputs, keys):
        seen["inputs"] = inputs
        return inputs, {}, ()

    task = tasks.reconstruction("mse")
    make = partial(objective.supervised, forward, task, normalise=lambda x: 2.0 * x, floats=lambda x: x)
    images = jnp.asarray(np.random.default_rng(0).random((400, 5, 5), np.float32))
    keys = jax.random.split(jax.random.key(1), 400)
    make()({}, {"images": images, "labels": ()}, keys)
    np.testing.assert_array_equal(seen["inputs"], 2.0 * images)
    loss, aux = make(noise=0.5)({}, {"images": images, "labels": ()}, keys)
    noise = np.asarray(seen["inputs"] - 2.0 * images)
    assert abs(noise.std() - 0.5) < 0.01 and abs(noise.mean()) < 0.02 and len(np.unique(noise[:, 0, 0])) == 400
    expected = np.mean((np.asarray(seen["inputs"]) - np.asarray(images)) ** 2, axis=(1, 2))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(aux.sums["mse"], expected.sum(), rtol=1e-5)


class WithoutStatistics(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(10)(nn.relu(nn.Dense(12)(x.reshape(x.shape[0], -1))))


@pytest.mark.parametrize("num_samples, over_samples", [(1, "scan"), (2, "vmap"), (2, "scan")])
def test_parts_of_a_batch_give_the_numbers_of_the_whole(digits, num_samples, over_samples):
    options = dict(network=WithoutStatistics, num_steps=2, num_samples=num_samples, over_samples=over_samples)
    whole, parts = (train(geometry.Line(), digits, num_parts=num, **options) for num in (1, 3))
    assert_same(whole, parts)


def test_statistics_of_parts_are_those_of_devices(digits):
    """BatchNorm sees a part of a batch in the one and a device's share of it in the other."""
    assert_same(*(train(geometry.Line(), digits, num_steps=2, **how) for how in ({"num_parts": 2}, {"devices": 2})))
