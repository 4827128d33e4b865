"""Flows of neurons against Gaussians of a known law, the arc in closed form and losses by NumPy."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp
from small_networks import made

from subspaces_jax.connecting import Criterion, connect, fit_flow, flows
from subspaces_jax.errors import ConfigError
from subspaces_jax.networks import MLP

NETWORK, INPUTS, CLASSES = MLP(2, (12,)), 2, 2
SIZE = INPUTS + 1 + CLASSES  # of a neuron
OPTIONS = dict(num_couplings=4, width=8)
MIX = np.eye(SIZE) + 0.5 * np.random.default_rng(9).normal(size=(SIZE, SIZE))
NETWORKS = [made(NETWORK, (INPUTS,), seed) for seed in (1, 2, 3)]


def gaussian(num, seed):
    return (np.random.default_rng(seed).normal(size=(num, SIZE)) @ MIX + 3.0).astype(np.float32)


def neurons(params):
    first, second = params["Dense_0"], params["Dense_1"]
    return np.concatenate([first["kernel"].T, np.asarray(first["bias"])[:, None], second["kernel"]], axis=1)


def arc(a, b, mean, t):
    return mean + np.cos(np.pi * t / 2) * (a - mean) + np.sin(np.pi * t / 2) * (b - mean)


@pytest.fixture(scope="module")
def fitted():
    pytest.importorskip("flowjax")
    return fit_flow(gaussian(2000, 0), num_epochs=30, learning_rate=1e-2, batch_size=200, **OPTIONS)


def test_without_flowjax_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "flowjax.flows", None)
    monkeypatch.setitem(sys.modules, "equinox", None)
    with pytest.raises(ConfigError, match=r"flow and bijection need flowjax: pip install -e '.\[flows\]'$"):
        connect("flow", *NETWORKS[:2], NETWORK.unit_axes(), width=7)


def test_what_cannot_be_connected_is_named_before_anything_is_fitted():
    a, b, _ = NETWORKS
    deep = made(MLP(2, (5, 5)), (INPUTS,))
    with pytest.raises(ValueError, match="latent is one of arc, linear, got 'arcs'"):
        connect("flow", a, b, NETWORK.unit_axes(), latent="arcs")
    with pytest.raises(ValueError, match="this network has 2"):
        connect("flow", deep, deep, MLP(2, (5, 5)).unit_axes())
    with pytest.raises(ValueError, match="another architecture"):
        connect("flow", a, b, NETWORK.unit_axes(), others=[deep])
    with pytest.raises(ValueError, match="pass criterion="):
        connect("bijection", a, b, NETWORK.unit_axes())
    with pytest.raises(ValueError, match="num_epochs is at least 0.* got -1, 512 and 0.001"):
        connect("flow", a, b, NETWORK.unit_axes(), num_epochs=-1)
    with pytest.raises(ValueError, match=r"n at least 10 and d at least 2, got \(9, 4\)"):
        fit_flow(np.zeros((9, 4)))
    with pytest.raises(ValueError, match="at least 1 coupling of at least 1 unit, got 0 of 3"):
        fit_flow(np.zeros((10, 4)), num_couplings=0, width=3)
    with pytest.raises(ValueError, match=r"neurons \[M, n, d\] of at least 2 networks, got shape \(1, 10, 4\)"):
        flows.fit_bijection(np.zeros((1, 10, 4)), None, None)


def test_gaussian_neurons_are_mapped_to_independent_normal_numbers(fitted):
    """With the law's own density by SciPy; standardised alone, the coordinates would stay correlated."""
    held_out = gaussian(2000, 1)
    latent = np.asarray(fitted.to_normal(held_out))
    error = lambda of: np.abs(np.cov(of, rowvar=False) - np.eye(SIZE)).max()
    assert error(latent) < 0.2 < 0.5 < error((held_out - held_out.mean(0)) / held_out.std(0))
    np.testing.assert_allclose(latent.mean(axis=0), 0.0, atol=0.15)
    covariance = MIX.T @ MIX
    law = stats.multivariate_normal(np.full(SIZE, 3.0), covariance)
    apart = stats.multivariate_normal(np.full(SIZE, 3.0), np.diag(np.diag(covariance)))
    lost = lambda log_prob: np.mean(law.logpdf(held_out) - np.asarray(log_prob(held_out)))
    assert lost(fitted.log_prob) < 0.2 < 0.5 < lost(apart.logpdf)
    np.testing.assert_allclose(fitted.from_normal(latent), held_out, atol=1e-4)


def test_the_path_goes_straight_or_along_an_arc_in_the_flows_coordinates(fitted):
    a, b = gaussian(2, 2), gaussian(2, 3)
    straight, turned = fitted.method("linear"), fitted.method()
    for method in (straight, turned):
        np.testing.assert_array_equal(method(a, b, 0.0), a)
        np.testing.assert_array_equal(method(a, b, 1.0), b)
    np.testing.assert_allclose(straight(a, a, 0.3), a, atol=1e-4)  # with itself: constant
    latent_a, latent_b = (np.asarray(fitted.to_normal(of)) for of in (a, b))
    np.testing.assert_allclose(fitted.to_normal(turned(a, b, 0.3)), arc(latent_a, latent_b, 0.0, 0.3), atol=1e-3)
    assert hash(turned.at) == hash(fitted.method("arc").at) and turned.at == fitted.method("arc").at


def test_before_it_is_fitted_the_path_is_the_arc_about_the_mean_of_all_neurons():
    pytest.importorskip("flowjax")
    a, b, c = NETWORKS
    path, t = connect("flow", a, b, NETWORK.unit_axes(), others=[c], num_epochs=0, **OPTIONS), 0.3
    mean = np.mean(np.concatenate([neurons(params) for params in NETWORKS]), axis=0)
    found = path.params(t)
    np.testing.assert_allclose(neurons(found), arc(neurons(a), neurons(b), mean, t), atol=1e-5)
    biases = [params["Dense_1"]["bias"] for params in (a, b)]
    np.testing.assert_allclose(found["Dense_1"]["bias"], (1 - t) * biases[0] + t * biases[1], atol=1e-6)
    for end, params in ((0, a), (1, b)):
        np.testing.assert_array_equal(neurons(path.params(end)), neurons(params))


def test_a_bijection_lowers_the_loss_midway_below_that_of_the_arc():
    pytest.importorskip("flowjax")
    images = np.random.default_rng(0).normal(size=(64, INPUTS)).astype(np.float32)
    labels = np.argmax(images, axis=1)

    def cross_entropy(params, images, labels):
        logits = NETWORK.apply({"params": params}, images)
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - jnp.take_along_axis(logits, labels[:, None], 1)[:, 0])

    def by_hand(params):
        first, second = params["Dense_0"], params["Dense_1"]
        hidden = np.maximum(images @ np.asarray(first["kernel"]) + np.asarray(first["bias"]), 0)
        logits = hidden @ np.asarray(second["kernel"]) + np.asarray(second["bias"])
        return np.mean(logsumexp(logits, axis=1) - logits[np.arange(64), labels])

    halves = lambda size, seed: ((images[start : start + size], labels[start : start + size]) for start in (0, 32))
    a, b, c = NETWORKS
    begun, trained = (
        connect(
            "bijection", a, b, NETWORK.unit_axes(), others=[c], criterion=Criterion(cross_entropy, halves),
            num_epochs=num, batch_size=32, learning_rate=1e-2, **OPTIONS,
        )
        for num in (0, 60)
    )  # fmt: skip
    assert by_hand(trained.params(0.5)) < 0.7 * by_hand(begun.params(0.5))
    np.testing.assert_array_equal(neurons(trained.params(1.0)), neurons(b))
