"""Every example once, statistics of a point, and all points of a path from one compilation."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subspaces_jax import evaluation, geometry, metrics, parallel, tasks
from subspaces_jax.data import batches
from subspaces_jax.errors import NonFiniteOutputError
from subspaces_jax.geometry import Bezier, Line, Simplex


class Normed(nn.Module):
    """BatchNorm before and after a layer, with different decays, so that refreshing must know none of them."""

    decay: float = 0.7

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=self.decay)(x)
        return nn.BatchNorm(use_running_average=not train, momentum=0.99)(nn.Dense(3)(x))


@jax.jit
def drawn(of_images, of_labels, of_network):
    images = 3 + 2 * jax.random.normal(of_images, (103, 5))
    labels = jax.random.randint(of_labels, (103,), 0, 3)
    return images, labels, geometry.init_stack(Normed(), of_network, 2, images[:1])


@pytest.fixture
def task(getkey):
    """A line of small networks on 103 examples of 5 numbers."""
    return drawn(getkey(), getkey(), getkey())


@jax.jit
def apply(variables, images):
    return Normed().apply(variables, images)


def apply_train(variables, images, key):
    outputs, updated = Normed().apply(variables, images, train=True, mutable=["batch_stats"])
    return outputs, updated["batch_stats"]


@jax.jit
def point(variables, t=0.3):
    return variables | {"params": geometry.contract(variables["params"], Line().coordinates(t))}


@pytest.mark.parametrize("batch_size", [1, 32, 103, 500])
def test_predictions_and_scores_do_not_depend_on_batches(task, batch_size):
    images, labels, variables = task
    network = point(variables)
    logits = evaluation.predict(apply, network, images, batch_size)
    assert logits.shape == (103, 3)
    np.testing.assert_allclose(logits, apply(network, images), rtol=1e-5, atol=1e-6)
    scores = evaluation.score(apply, network, images, labels, batch_size)
    expected = jax.jit(metrics.summary)(jax.nn.softmax(apply(network, images)), labels)
    for name, value in expected.items():
        np.testing.assert_allclose(scores[name], value, rtol=1e-5)


def test_order_of_examples_does_not_matter(task):
    images, labels, variables = task
    order = np.random.default_rng(0).permutation(103)
    scores = evaluation.score(apply, point(variables), images, labels, 32)
    shuffled = evaluation.score(apply, point(variables), images[order], labels[order], 32)
    np.testing.assert_allclose(list(scores.values()), list(shuffled.values()), rtol=1e-5)


def by_hand(params, batches_of_images):
    """Mean over batches of each batch's mean and biased variance, of both BatchNorm layers, in NumPy."""
    sums = []
    for x in batches_of_images:
        first, second = (params[f"BatchNorm_{i}"] for i in (0, 1))
        h = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * first["scale"] + first["bias"]
        y = h @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
        assert second["scale"].shape == (3,)
        sums.append([x.mean(0), x.var(0), y.mean(0), y.var(0)])
    means = [np.mean(values, axis=0) for values in zip(*sums)]
    return {"BatchNorm_0": {"mean": means[0], "var": means[1]}, "BatchNorm_1": {"mean": means[2], "var": means[3]}}


def assert_stats(found, expected):
    for layer, values in expected.items():
        for name, value in values.items():
            np.testing.assert_allclose(found[layer][name], value, rtol=2e-4, atol=2e-5, err_msg=f"{layer}/{name}")


def test_refreshed_statistics_of_one_batch_are_its_mean_and_variance(task):
    images, _, variables = task
    network = jax.tree.map(np.asarray, point(variables))
    found = evaluation.refresh_batch_stats(apply_train, network, images, jax.random.key(0), batch_size=500)
    assert_stats(found, by_hand(network["params"], [np.asarray(images)]))


def test_refreshed_statistics_are_the_mean_over_batches(task):
    images, _, variables = task
    network, key = jax.tree.map(np.asarray, point(variables)), jax.random.key(5)
    found = evaluation.refresh_batch_stats(apply_train, network, images, key, batch_size=20)
    order = np.asarray(jax.random.permutation(key, 103))
    rows = order[batches.full_batches(103, 20)]  # 6 batches of 20, the last with 17 from the beginning
    assert_stats(found, by_hand(network["params"], [np.asarray(images)[row] for row in rows]))


def test_refreshed_statistics_do_not_depend_on_the_old_ones(task):
    images, _, variables = task
    network = point(variables)
    other = network | {"batch_stats": jax.tree.map(lambda leaf: leaf + 7.0, network["batch_stats"])}
    refresh = lambda v: evaluation.refresh_batch_stats(apply_train, v, images, jax.random.key(0), 50)
    first, second = refresh(network), refresh(other)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second)):
        np.testing.assert_array_equal(a, b)


class Outside(nn.Module):
    """One BatchNorm called twice, one that is frozen, and spectral normalisation, with vectors in batch_stats."""

    @nn.compact
    def __call__(self, x, train=False):
        shared = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="shared")
        x = shared(3 * shared(x) + 5)
        x = nn.BatchNorm(use_running_average=True, name="frozen")(x)
        return nn.SpectralNorm(nn.Dense(3, name="dense"), name="spectral")(x, update_stats=train)


def test_what_else_is_in_batch_stats_is_kept_or_goes_on_as_in_training(getkey):
    images, batch_size = np.asarray(3 + 2 * jax.random.normal(getkey(), (60, 5))), 20
    variables = Outside().init(getkey(), images)
    variables["batch_stats"]["frozen"] = {"mean": jnp.full(5, 0.5), "var": jnp.full(5, 2.0)}

    def apply_train(variables, images, key):
        outputs, updated = Outside().apply(variables, images, train=True, mutable=["batch_stats"])
        return outputs, updated["batch_stats"]

    key = jax.random.key(1)
    found = evaluation.refresh_batch_stats(apply_train, variables, images, key, batch_size)
    streamed = evaluation.refresh_batch_stats(
        apply_train, variables, lambda: [(images[i : i + 20], None, None) for i in (0, 20, 40)], key
    )
    orders = np.asarray(jax.random.permutation(key, 60)).reshape(3, 20), np.arange(60).reshape(3, 20)
    for stats, order in zip((found, streamed), orders):
        both = []
        for x in images[order]:
            y = 3 * (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) + 5
            both.append([(x.mean(0) + y.mean(0)) / 2, (x.var(0) + y.var(0)) / 2])
        mean, var = np.mean(both, axis=0)
        assert_stats(stats, {"shared": {"mean": mean, "var": var}, "frozen": {"mean": 0.5, "var": 2.0}})
        kernel = np.asarray(variables["params"]["dense"]["kernel"])
        (sigma,) = [leaf for path, leaf in jax.tree.leaves_with_path(stats) if "sigma" in str(path)]
        u = np.asarray([leaf for p, leaf in jax.tree.leaves_with_path(variables["batch_stats"]) if "/u" in str(p)][0])
        for _ in range(3):  # a step of the power iteration a batch
            v = u @ kernel.T / np.linalg.norm(u @ kernel.T)
            u = v @ kernel / np.linalg.norm(v @ kernel)
        np.testing.assert_allclose(sigma, (v @ kernel @ u.T)[0, 0], rtol=1e-4)


def test_a_stream_refreshes_every_point_by_what_it_has_traced_for_the_first(task):
    images, _, variables = task
    traced = []

    def counted(*given):
        traced.append(1)
        return apply_train(*given)

    stream = lambda: iter([(images[:20],), (images[20:40],)])
    refreshed = lambda t: evaluation.refresh_batch_stats(counted, point(variables, t), stream, jax.random.key(1))
    first, num = refreshed(0.3), len(traced)
    second = refreshed(0.9)
    assert len(traced) == num > 0
    assert float(jnp.abs(first["BatchNorm_1"]["var"] - second["BatchNorm_1"]["var"]).max()) > 1e-3


def test_a_stream_whose_batches_are_filled_up_refreshes_nothing(task):
    images, labels, variables = task
    full, padded = np.ones(20, bool), np.arange(20) < 3
    stream = lambda: iter([(images[:20], labels[:20], full), (images[20:40], labels[20:40], padded)])
    with pytest.raises(ValueError, match="batch 2 of the stream is filled up"):
        evaluation.refresh_batch_stats(apply_train, point(variables), stream, jax.random.key(1))


def test_networks_without_statistics_have_none_to_refresh(task):
    images, _, variables = task
    assert evaluation.refresh_batch_stats(apply_train, {"params": {}}, images, jax.random.key(0)) == {}


def test_every_point_of_a_path_equals_a_score_of_its_own(task):
    images, labels, variables = task
    points, key = Line().grid(5), jax.random.key(3)
    found = evaluation.along(
        variables["params"],
        points,
        apply=apply,
        images=images,
        labels=labels,
        batch_stats=variables["batch_stats"],
        apply_train=apply_train,
        train_images=images,
        key=key,
        batch_size=40,
    )
    assert found["logits"].shape == (5, 103, 3)
    for t in range(5):
        network = variables | {"params": geometry.contract(variables["params"], points[t])}
        stats = evaluation.refresh_batch_stats(apply_train, network, images, key, 40)
        scores = evaluation.score(apply, network | {"batch_stats": stats}, images, labels, 40)
        for name, value in scores.items():
            np.testing.assert_allclose(found[name][t], value, rtol=1e-4, err_msg=name)


def test_pairs_are_ensembles_of_probabilities_of_mirrored_points(task):
    images, labels, variables = task
    found = evaluation.along(
        variables["params"],
        Bezier(2).grid(5),
        apply=apply,
        images=images,
        labels=labels,
        batch_stats=variables["batch_stats"],
    )
    probs = np.exp(found["logits"]) / np.exp(found["logits"]).sum(-1, keepdims=True)
    for t in range(5):
        mean = 0.5 * (probs[t] + probs[4 - t])
        np.testing.assert_allclose(found["pair_accuracy"][t], np.mean(mean.argmax(-1) == labels), rtol=1e-5)
        nll = -np.log(mean[np.arange(103), labels]).mean()
        np.testing.assert_allclose(found["pair_nll"][t], nll, rtol=1e-4)
        distance = 0.5 * np.abs(probs[t] - probs[4 - t]).sum(-1).mean()
        np.testing.assert_allclose(found["pair_total_variation"][t], distance, atol=1e-6)
        logit_mean = found["logits"][t] + found["logits"][4 - t]
        np.testing.assert_allclose(
            found["pair_logit_mean_accuracy"][t], np.mean(logit_mean.argmax(-1) == labels), rtol=1e-5
        )
    # the midpoint with itself is the midpoint
    assert found["pair_accuracy"][2] == found["accuracy"][2] and found["pair_disagreement"][2] == 0
    np.testing.assert_allclose(found["pair_nll"][2], found["nll"][2], rtol=1e-5)
    np.testing.assert_array_equal(found["pair_brier"], found["pair_brier"][::-1])


def test_features_of_mirrored_points_are_compared_example_by_example(task):
    images, labels, variables = task
    features = lambda variables, images: apply(variables, images)[..., None]
    found = evaluation.along(
        variables["params"],
        Line().grid(4),
        apply=apply,
        images=images,
        labels=labels,
        batch_stats=variables["batch_stats"],
        batch_size=32,
        features=features,
    )
    for t in range(4):
        a, b = found["logits"][t].astype(np.float64), found["logits"][3 - t].astype(np.float64)
        cosines = np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        np.testing.assert_allclose(found["pair_feature_cosine"][t], cosines.mean(), rtol=1e-4)
        np.testing.assert_allclose(found["pair_feature_cosine_squared"][t], (cosines**2).mean(), rtol=1e-4)


def test_features_that_are_all_zero_have_cosine_zero(task):
    images, _, variables = task
    point = {"params": geometry.contract(variables["params"], Line().midpoint), "batch_stats": variables["batch_stats"]}
    nothing = lambda variables, images: jnp.zeros((images.shape[0], 3))
    assert evaluation.feature_cosine(nothing, point, point, images) == (0.0, 0.0)


def test_a_path_may_be_any_function_of_the_point(task):
    images, labels, variables = task
    shifted = lambda stack, t: jax.tree.map(lambda leaf: leaf[0] + t * (leaf[1] - leaf[0]), stack)
    options = dict(apply=apply, images=images, labels=labels, batch_stats=variables["batch_stats"], with_pairs=False)
    by_function = evaluation.along(variables["params"], jnp.linspace(0.0, 1.0, 4), params_at=shifted, **options)
    by_coordinates = evaluation.along(variables["params"], Line().grid(4), **options)
    np.testing.assert_allclose(by_function["logits"], by_coordinates["logits"], rtol=1e-4, atol=1e-5)
    assert "pair_accuracy" not in by_function


def test_one_compilation_serves_all_points(task):
    images, labels, variables = task
    traces = []

    def counting(variables, images):
        traces.append(1)
        return Normed().apply(variables, images)

    evaluation.along(
        variables["params"],
        Line().grid(9),
        apply=counting,
        images=images,
        labels=labels,
        batch_stats=variables["batch_stats"],
    )
    assert len(traces) == 1


def test_a_simplex_is_evaluated_on_its_lattice(task, getkey):
    images, labels, _ = task
    variables = geometry.init_stack(Normed(), getkey(), 3, images[:1])
    found = evaluation.along(
        variables["params"],
        Simplex(3).grid(3),
        apply=apply,
        images=images,
        labels=labels,
        batch_stats=variables["batch_stats"],
        with_pairs=False,
    )
    assert found["accuracy"].shape == (6,)


@pytest.mark.parametrize("num_examples, batch_size", [(10, 3), (10, 10), (1, 4), (7, 7)])
def test_batches_hold_every_example(num_examples, batch_size):
    indices, mask = batches.every_example(num_examples, batch_size)
    np.testing.assert_array_equal(indices[mask], np.arange(num_examples))
    full = batches.full_batches(num_examples, batch_size)
    assert set(full.ravel()) == set(range(num_examples)) and full.shape[1] == min(batch_size, num_examples)


def test_an_epoch_visits_each_example_at_most_once_and_differs_from_the_next(getkey):
    key = getkey()
    first, second = (np.asarray(batches.epoch_indices(key, epoch, 103, 10)) for epoch in (0, 1))
    assert first.shape == (10, 10) and len(set(first.ravel())) == 100
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, batches.epoch_indices(key, 0, 103, 10))


@pytest.mark.parametrize("devices, batch_size", [(1, 32), (4, 32), (4, 30), (3, 32), (4, 103)])
def test_passes_have_the_numbers_of_one_device(task, devices, batch_size):
    """Whether or not the devices divide a batch: then groups of them share it. Streams are split alike."""
    images, labels, variables = task
    network, key = point(variables), jax.random.key(3)
    stream = lambda: ((images[i : i + 25], labels[i : i + 25], np.arange(25) < 25) for i in range(0, 100, 25))
    features = lambda variables, images: apply(variables, images)[..., None]
    found = []
    for mesh in (parallel.device_mesh(1), parallel.device_mesh(devices)):
        options = dict(batch_size=batch_size, mesh=mesh)
        stats = evaluation.refresh_batch_stats(apply_train, network, images, key, **options)
        streamed = evaluation.refresh_batch_stats(apply_train, network, stream, key, mesh=mesh)
        refreshed = network | {"batch_stats": stats}
        found.append(
            [
                jax.tree.leaves(stats),
                jax.tree.leaves(streamed),
                evaluation.predict(apply, refreshed, images, **options),
                evaluation.predict(apply, refreshed, stream, mesh=mesh),
                list(evaluation.score(apply, refreshed, images, labels, **options).values()),
                evaluation.feature_cosine(features, network, refreshed, images, **options),
            ]
        )
    for one, several in zip(*found):
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(several)):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)


def test_a_batch_is_split_over_all_devices(task):
    """Not computed whole on each: the compiled pass holds shares of it."""
    images, _, variables = task
    mesh = parallel.device_mesh(4)
    shares = []

    def counting(variables, images):
        jax.debug.inspect_array_sharding(images, callback=shares.append)
        return apply(variables, images)

    evaluation.predict(counting, point(variables), images, 32, mesh)
    (sharding,) = shares
    assert sharding.shard_shape((32, 5)) == (8, 5)


class Keeps(nn.Module):
    """BatchNorm that keeps all of its old statistics, or averages over an axis that only a step has."""

    momentum: float = 1.0
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        norm = nn.BatchNorm(use_running_average=not train, momentum=self.momentum, axis_name=self.axis_name)
        return norm(x)


@pytest.mark.parametrize("options", [dict(momentum=1.0), dict(momentum=0.0), dict(momentum=0.9, axis_name="batch")])
def test_statistics_are_those_of_batches_whatever_the_layer_does_with_its_own(task, options):
    images, _, _ = task
    module = Keeps(**options)
    variables = module.init(jax.random.key(0), images)

    def train_mode(variables, images, key):
        return module.apply(variables, images, train=True, mutable=["batch_stats"])

    found = evaluation.refresh_batch_stats(
        lambda *a: (0, train_mode(*a)[1]["batch_stats"]), variables, images, jax.random.key(0)
    )
    x = np.asarray(images)
    assert_stats(found, {"BatchNorm_0": {"mean": x.mean(0), "var": x.var(0)}})


def test_outputs_that_are_not_finite_end_an_evaluation_with_a_word(task):
    images, labels, variables = task
    kernel = variables["params"]["Dense_0"]["kernel"].at[1].set(3e38)  # what overflows for t > 0
    stack = variables["params"] | {"Dense_0": variables["params"]["Dense_0"] | {"kernel": kernel}}
    options = dict(apply=apply, images=images, labels=labels, batch_stats=variables["batch_stats"])
    with pytest.raises(NonFiniteOutputError, match="outputs of point 2 of 3 are not finite for 103 examples") as caught:
        evaluation.along(stack, Line().grid(3), **options)
    assert "\n" not in str(caught.value)
    found = evaluation.along(stack, Line().grid(3), finite=False, **options)
    assert np.isfinite(found["nll"][0]) and not np.isfinite(found["logits"][1:]).any()
    with pytest.raises(NonFiniteOutputError, match="outputs of the network are not finite for 103 examples"):
        evaluation.score(apply, point(variables | {"params": stack}), images, labels)
    of_one = images.at[7].set(jnp.inf)
    with pytest.raises(NonFiniteOutputError, match="for 1 examples"):
        evaluation.score(apply, point(variables), of_one, labels)


def test_measures_of_outputs_share_one_pass_and_those_of_parameters_need_none(task):
    images, labels, variables = task
    traces = []

    def counting(variables, images):
        traces.append(1)
        return apply(variables, images)

    squares = evaluation.Measure(
        lambda outputs, targets, mask: {"sum": jnp.sum(outputs**2 * mask[:, None]), "n": jnp.sum(mask)},
        lambda sums: {"power": sums["sum"] / sums["n"]},
    )
    of_params = {
        "norm": lambda params: jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))),
        "kernel": lambda params: {
            "mean": params["Dense_0"]["kernel"].mean(0),
            "max": params["Dense_0"]["kernel"].max(),
        },
    }
    found = evaluation.along(
        variables["params"], Line().grid(3), geometry.contract, (squares,), apply=counting, images=images,
        labels=labels, batch_stats=variables["batch_stats"], of_params=of_params, batch_size=20, with_pairs=False,
    )  # fmt: skip
    assert len(traces) == 1 and found["kernel/mean"].shape == (3, 3) and "pair_nll" not in found
    for t in range(3):
        params = jax.tree.map(np.asarray, geometry.contract(variables["params"], Line().grid(3)[t]))
        np.testing.assert_allclose(found["power"][t], (found["logits"][t] ** 2).sum() / 103, rtol=1e-4)
        norm = np.sqrt(sum((leaf.astype(np.float64) ** 2).sum() for leaf in jax.tree.leaves(params)))
        np.testing.assert_allclose(found["norm"][t], norm, rtol=1e-5)
        np.testing.assert_allclose(found["kernel/max"][t], params["Dense_0"]["kernel"].max(), rtol=1e-6)


def test_other_tasks_are_scored_along_a_path_and_in_pairs(task):
    images, _, variables = task
    targets = np.asarray(images[:, :3]) / 3
    regression = tasks.regression()
    found = evaluation.along(
        variables["params"], Line().grid(3), apply=apply, images=images, labels=jnp.asarray(targets), task=regression,
        targets=regression.targets, batch_stats=variables["batch_stats"],
    )  # fmt: skip
    outputs = found["outputs"].astype(np.float64)
    np.testing.assert_allclose(found["mse"], ((outputs - targets) ** 2).mean((1, 2)), rtol=1e-4)
    mean = 0.5 * (outputs[0] + outputs[2])
    np.testing.assert_allclose(found["pair_mae"][[0, 2]], np.abs(mean - targets).mean(), rtol=1e-4)
    apart = ((outputs[0] - outputs[2]) ** 2).mean()
    np.testing.assert_allclose(found["pair_squared_difference"], [apart, 0.0, apart], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "num_images, num_labels, message",
    [(22, 10, r"22 images and labels of shape \(10,\)"), (22, 30, r"labels of shape \(30,\)"), (0, 0, "no images")],
)
def test_labels_of_another_number_and_nothing_at_all_are_refused(num_images, num_labels, message, task):
    images, labels, variables = task
    with pytest.raises(ValueError, match=message):
        evaluation.score(apply, point(variables), images[:num_images], np.resize(labels, num_labels))


def test_statistics_of_a_frozen_dict_are_refreshed_too(task, getkey):
    images, _, variables = task
    key, frozen = getkey(), flax.core.freeze(point(variables))
    found = evaluation.refresh_batch_stats(apply_train, frozen, images, key, 32)
    jax.tree.map(
        np.testing.assert_array_equal,
        found,
        evaluation.refresh_batch_stats(apply_train, point(variables), images, key, 32),
    )
