"""What makes a step cheaper or more exact and must not change what it means."""

import json
import re

import chex
import jax
import jax.numpy as jnp
import pytest
from test_configs import load

from subspaces_jax import checkpoints
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import build, train

FIELDS = dict(network="mlp_16", num_epochs=1, augmentation="shift1")


def loss_and_gradient(config):
    """The jaxpr of an objective's gradient, and its value on eight zero images."""
    made = build.experiment(config)
    params = made.model.init(jax.random.key(0), 1)["params"]
    point = jax.tree.map(lambda leaf: leaf[0], params)
    batch = {"images": jnp.zeros((8, 64), jnp.uint8), "labels": jnp.zeros(8, jnp.int32)}
    keys = jax.random.split(jax.random.key(1), 8)
    mean = lambda point: jnp.mean(made.model.objective({"params": point, "batch_stats": {}}, batch, keys)[0])
    return str(jax.make_jaxpr(jax.grad(mean))(point)), jax.jit(jax.value_and_grad(mean))(point)


@pytest.fixture(scope="module")
def usual():
    return loss_and_gradient(load("line_digits", **FIELDS))


@pytest.mark.parametrize("what", ["all", "all_but_products"])
def test_what_is_computed_again_is_the_same(what, usual):
    program, values = loss_and_gradient(load("line_digits", **FIELDS, rematerialise=what))
    assert "checkpoint" in program or "remat" in program
    assert "checkpoint" not in usual[0] and "remat" not in usual[0]
    assert program.count("dot_general") == usual[0].count("dot_general") + (
        1 if what == "all" else 0
    )  # of the hidden layer
    chex.assert_trees_all_close(values, usual[1], rtol=1e-6)


@pytest.mark.parametrize("precision", ["high", "highest"])
def test_every_product_has_the_precision_of_the_config(precision, usual):
    program, _ = loss_and_gradient(load("line_digits", **FIELDS, matmul_precision=precision))
    products = program.count("dot_general[")
    assert products >= 5 and program.count(f"Precision.{precision.upper()}, Precision.{precision.upper()}") == products
    assert "Precision" not in usual[0]


def test_every_convolution_and_its_gradient_has_the_precision_of_the_config():
    """Kernels of one pixel and of more, strides, an image that is larger than its gradient; as lowered for each."""
    network = "cifar_resnet(depth=8, width=4)"
    made = build.experiment(load("line_digits", **FIELDS | {"network": network}, matmul_precision="highest"))
    variables = jax.eval_shape(lambda key: made.model.init(key, 1), jax.random.key(0))
    params, stats = made.model.shapes, variables["batch_stats"]
    batch = {"images": jnp.zeros((8, 64), jnp.uint8), "labels": jnp.zeros(8, jnp.int32)}
    keys = jax.random.split(jax.random.key(1), 8)
    mean = lambda point, stats: jnp.mean(made.model.objective({"params": point, "batch_stats": stats}, batch, keys)[0])
    traced = jax.jit(jax.grad(mean)).trace(params, stats)
    for platform in ("cpu", "cuda", "tpu"):
        lowered = traced.lower(lowering_platforms=(platform,)).as_text()
        products = re.findall(r"stablehlo\.(?:convolution|dot_general)\(?.*", lowered)
        assert len(products) >= 25, platform
        assert not [line for line in products if line.count("HIGHEST") != 2], platform


def test_flat_leaves_are_those_of_a_tpu_with_many_steps_a_dispatch_and_train_alike(tmp_path):
    made = build.experiment(load("line_digits", **FIELDS))
    assert made.programs.in_flat_leaves("tpu") and not made.programs.in_flat_leaves("tpu", many_steps=False)
    assert not made.programs.in_flat_leaves("cpu") and not made.programs.in_flat_leaves("cuda")
    config = load("line_digits", **FIELDS, checkpoint_every=0)
    for leaves in ("shaped", "flat"):
        train.run(config | {"leaves": leaves}, tmp_path / leaves)
    both = [checkpoints.restore(tmp_path / name).params for name in ("shaped", "flat")]
    chex.assert_trees_all_close(*both, rtol=1e-4, atol=1e-5)
    deep = FIELDS | {"network": "deep_residual(depth=3, width=4)", "optimizer": "p_variation_sgd(p=2)"}
    by_layers = load("line_digits", **deep, leaves="flat")
    with pytest.raises(ConfigError, match="leaves is flat, and the optimizer .* set shaped"):
        train.run(by_layers, tmp_path / "by_layers")
    assert not build.experiment(by_layers | {"leaves": "auto"}).programs.in_flat_leaves("tpu")


def test_chosen_steps_are_profiled_and_the_run_is_the_same(tmp_path):
    config = load("line_digits", **FIELDS, checkpoint_every=0)
    train.run(config, tmp_path / "plain")
    train.run(config | {"profile_steps": "3,5"}, tmp_path / "profiled")
    (trace,) = (tmp_path / "profiled" / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000 and not (tmp_path / "plain" / "profile").exists()
    both = [checkpoints.restore(tmp_path / name).params for name in ("plain", "profiled")]
    chex.assert_trees_all_equal(*both)
    rows = [json.loads(line)["step"] for line in (tmp_path / "profiled" / "metrics.jsonl").read_text().splitlines()]
    assert rows == [3, 5, 11]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_parts": 3}, "batch_size is 128, .* in 3 parts .*choose a multiple of 3"),
        ({"profile_steps": "5,3"}, "profile_steps is '5,3'.*two steps"),
        ({"profile_steps": "5"}, "profile_steps is '5'"),
        ({"matmul_precision": "most"}, "one of default, high, highest"),
        ({"rematerialise": "some"}, "one of none, all, all_but_products"),
    ],
)
def test_what_cannot_be_is_refused(fields, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train.run(load("line_digits", **FIELDS, num_devices=1) | fields, tmp_path)
