"""The PyTorch peers: weights in both layouts, and where PyTorch is, the same numbers from the same weights."""

import importlib.util
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_configs import load

from launch.peers import layouts
from subspaces_jax import records
from subspaces_jax.analysis import lpips
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import analyze, build, runs, train
from subspaces_jax.experiments.benchmarks import curves
from subspaces_jax.networks import CifarResNet

NETWORK = CifarResNet(num_classes=3, depth=8, width=8)  # below 8, oneDNN errs in gradients of strided 1x1 kernels
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")


@pytest.fixture(scope="module")
def ends():
    """Variables of two networks, of random numbers throughout."""
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    rng = np.random.default_rng(0)
    positive = lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    normal = lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32)
    make = lambda path, leaf: (positive if path[-1].key in ("scale", "var") else normal)(leaf)
    return [jax.tree_util.tree_map_with_path(make, shapes) for _ in range(2)]


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (8, 8, 8, 1)).astype(np.uint8), rng.integers(0, 3, 8).astype(np.int32)


def test_weights_go_to_pytorch_and_back(ends):
    params, stats = ends[0]["params"], ends[0]["batch_stats"]
    state = layouts.to_torch(params, stats)
    back = layouts.to_flax(state)
    assert jax.tree.structure(back) == jax.tree.structure((params, stats))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(back), jax.tree.leaves((params, stats))))
    assert sum(leaf.size for leaf in state.values()) == sum(leaf.size for leaf in jax.tree.leaves(ends[0]))
    assert layouts.to_flax(layouts.to_torch(params))[1] == {}


def test_weights_have_pytorchs_names_and_axes(ends):
    state, block = layouts.to_torch(ends[0]["params"], ends[0]["batch_stats"]), ends[0]["params"]["BasicBlock_1"]
    assert state["4.branch.0.weight"][3, 1, 2, 0] == block["Conv_0"]["kernel"][2, 0, 1, 3]
    assert state["4.branch.3.weight"].shape == (16, 16, 3, 3) and state["4.shortcut.0.weight"].shape == (16, 8, 1, 1)
    np.testing.assert_array_equal(state["4.branch.4.bias"], block["BatchNorm_1"]["bias"])
    np.testing.assert_array_equal(state["1.running_var"], ends[0]["batch_stats"]["BatchNorm_0"]["var"])
    assert state["7.weight"].shape == (3, 32, 1, 1) and not any("3.shortcut" in name for name in state)


def test_weights_of_another_network_are_refused(ends):
    with pytest.raises(ValueError, match="no CifarResNet's, look at BatchNorm_0"):
        layouts.to_torch({"Dense_0": {"kernel": np.zeros((2, 2))}})
    with pytest.raises(ValueError, match="look at Dense_0"):
        layouts.to_torch(ends[0]["params"] | {"Dense_0": {"kernel": np.zeros((2, 2))}})


@needs_torch
@pytest.mark.parametrize("train", [False, True])
def test_the_peers_network_gives_what_ours_does(ends, batch, train):
    import torch

    from launch.peers import residual

    inputs = batch[0].astype(np.float32) / 255
    ours = NETWORK.apply(ends[0], inputs, train, mutable=["batch_stats"])[0]
    peer = residual.resnet(8, 8, 1, 3).train(train)
    state = {name: torch.tensor(leaf) for name, leaf in layouts.to_torch(**ends[0]).items()}
    missing, unexpected = peer.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    theirs = peer(torch.tensor(inputs).permute(0, 3, 1, 2)).detach().numpy()
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5)


@needs_torch
def test_the_peer_trains_a_curve_as_the_formulas_say(ends, batch):
    """Three steps against the gradient of the bend in JAX, momentum and decay by hand; no step of ours in it."""
    from launch.peers import residual

    (images, labels), ts, rates = batch, (0.3, 0.8, 0.5), (0.1, 0.05, 0.2)
    first, last = (end["params"] for end in ends)
    recipe = residual.Recipe(rates, 8, (0.25,), (0.5,), momentum=0.8, decay=0.01)
    theirs, milliseconds = residual.train_curve((first, last), images, labels, recipe, ts)

    def loss_of(bend, t):
        mix = lambda a, b, c: (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
        point = jax.tree.map(mix, first, bend, last)
        variables = {"params": point, "batch_stats": ends[0]["batch_stats"]}
        logits = NETWORK.apply(variables, (images / 255.0 - 0.25) / 0.5, True, mutable=["batch_stats"])[0]
        nll = -jnp.mean(nn.log_softmax(logits)[jnp.arange(8), labels])
        return nll + 0.005 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(point))

    gradient = jax.jit(jax.grad(loss_of))
    bend = jax.tree.map(lambda a, b: (a + b) / 2, first, last)
    velocity = jax.tree.map(jnp.zeros_like, bend)
    for t, rate in zip(ts, rates):
        velocity = jax.tree.map(lambda v, g: 0.8 * v + g, velocity, gradient(bend, t))
        bend = jax.tree.map(lambda w, v: w - rate * v, bend, velocity)
    moved = optax.tree.norm(jax.tree.map(lambda w, a, b: w - (a + b) / 2, bend, first, last))
    apart = optax.tree.norm(jax.tree.map(jnp.subtract, bend, theirs))
    assert milliseconds > 0 and apart < 1e-3 * moved


@needs_torch
def test_the_peers_lpips_is_ours(batch):
    from launch.peers import features

    weights, pair = curves.random_weights(), np.random.default_rng(2).random((2, 2, 40, 40, 3), np.float32)
    np.testing.assert_allclose(
        features.distance(weights, *pair)(), lpips.distance(weights, *jnp.asarray(pair)), rtol=1e-4
    )


@needs_torch
def test_the_peer_says_what_it_does_not_train():
    from launch import peer

    config = dict(dataset="fashion_mnist", network="cifar_resnet_8_8", schedule="plateau", augmentation="flip")
    config |= dict(subspace="bezier(3)", beta=0.0, frozen_endpoints="ends", decay="point", initial="a,b")
    config |= dict(num_train_examples=64, batch_size=16, num_epochs=4, warmup_epochs=0, learning_rate=0.1)
    recipe = peer.recipe_of(build.experiment(config, without_data=True))
    np.testing.assert_allclose(recipe.rates[::4], [0.1, 0.1, 0.1 * (1 - 0.99 * 0.25 / 0.4), 0.001], rtol=1e-5)
    assert len(recipe.rates) == 16 and recipe.flip and recipe.batch_size == 16
    others = [("subspace", "chain(3)"), ("decay", "endpoints"), ("initial", "a")]
    for field, value in [*others, ("network", "mlp_8"), ("network", "cifar_resnet_8_4")]:
        with pytest.raises(ConfigError, match=re.escape(f"config.{field} is {value!r}")):
            peer.recipe_of(build.experiment(config | {field: value}, without_data=True))


@needs_torch
def test_the_peers_curve_is_scored_as_the_runs_own(tmp_path):
    """The highest along t of the study of a curve, whatever fields such studies have."""
    from launch import peer

    fields = dict(network="mlp_8", num_epochs=1, subspace="bezier(3)", beta=0.0, num_points=3, num_train_examples=256)
    train.run(load("line_digits", **fields), tmp_path / "curve")
    study = {"analysis": "curve", "runs": str(tmp_path / "curve"), "num_points": 3, "segment": False}
    analyze.run(study, tmp_path / "study")
    arrays, _ = records.load_results(tmp_path / "study", "curve")
    run = runs.open_run(tmp_path / "curve")
    highest = peer._highest(run, runs.networks(run, "knots"))
    assert highest == {name: pytest.approx(arrays[f"{name}_max"]) for name in peer.SHOWN}
