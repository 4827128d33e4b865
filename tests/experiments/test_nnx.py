"""Networks written as NNX modules: trained, stacked and evaluated as Linen ones are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from test_configs import load

from subspaces_jax import checkpoints, geometry, trees
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import evaluate, train
from subspaces_jax.networks import families


class Net(nnx.Module):
    """A dense network with BatchNorm and dropout."""

    def __init__(self, num_classes, width=6, *, rngs):
        self.first = nnx.Linear(64, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(0.25, rngs=rngs)
        self.out = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, x):
        return self.out(self.drop(nnx.relu(self.norm(self.first(x.reshape(x.shape[0], -1))))))


class Needy(nnx.Module):
    def __init__(self, num_classes, depth, *, rngs):
        raise RuntimeError("no depth is deep enough")


@pytest.fixture(scope="module")
def network():
    return families.by_name("test_nnx:Net", 10)


@pytest.fixture(scope="module")
def variables(network):
    return network.init(jax.random.key(0), jnp.ones((2, 8, 8, 1)))


def merged(variables):
    """The NNX module itself with the values of a Linen tree, set by hand."""
    net = Net(10, rngs=nnx.Rngs(0))
    for layer, names in (("first", ("kernel", "bias")), ("out", ("kernel", "bias")), ("norm", ("scale", "bias"))):
        for name in names:
            getattr(getattr(net, layer), name)[...] = variables["params"][layer][name]
    for name in ("mean", "var"):
        getattr(net.norm, name)[...] = variables["batch_stats"]["norm"][name]
    return net


def test_it_has_its_own_names_and_gives_what_the_module_gives(network, variables):
    assert set(trees.leaf_names(variables["params"])) == {
        *("first/kernel", "first/bias", "norm/scale", "norm/bias", "out/kernel", "out/bias")
    }
    x = jax.random.normal(jax.random.key(1), (5, 8, 8, 1))
    net = merged(variables)
    net.eval()
    np.testing.assert_allclose(network.apply(variables, x), net(x), rtol=1e-5, atol=1e-6)


def test_training_draws_dropout_and_updates_statistics_with_the_right_gradient(network, variables):
    x = jax.random.normal(jax.random.key(1), (32, 8, 8, 1))
    labels = jnp.arange(32) % 10
    apply = lambda params, key: network.apply(
        variables | {"params": params}, x, train=True, mutable=["batch_stats"], rngs={"dropout": key}
    )
    outputs, updated = apply(variables["params"], jax.random.key(2))
    again, _ = apply(variables["params"], jax.random.key(3))
    assert not np.allclose(outputs, again)
    first = jax.tree.map(np.asarray, variables["params"]["first"])
    hidden = np.asarray(x).reshape(32, -1) @ first["kernel"] + first["bias"]
    np.testing.assert_allclose(updated["batch_stats"]["norm"]["mean"], 0.1 * hidden.mean(axis=0), rtol=1e-4, atol=1e-6)
    loss = lambda params: optax.softmax_cross_entropy_with_integer_labels(
        apply(params, jax.random.key(2))[0], labels
    ).mean()
    gradient = jax.jit(jax.grad(loss))(variables["params"])["out"]["bias"]
    expected = (jax.nn.softmax(outputs) - jax.nn.one_hot(labels, 10)).mean(axis=0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_a_line_of_them_trains_and_is_evaluated(tmp_path):
    config = load("line_digits", network="test_nnx:Net(width=32)", augmentation="none", num_epochs=12, num_points=3)
    last = train.run(config, tmp_path)
    assert checkpoints.restore(tmp_path).params["first"]["kernel"].shape == (2, 64, 32)
    scores = evaluate.run(None, tmp_path)["scores"]
    assert last["accuracy"] > 0.5 and min(scores["accuracy"]) > 0.5


def test_one_that_cannot_be_made_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="test_nnx:Needy.*fails in initialisation.*depth"):
        train.run(load("line_digits", network="test_nnx:Needy"), tmp_path)


STATES = {
    "variables": lambda net: nnx.split(net)[1],
    "arrays": lambda net: nnx.to_pure_dict(nnx.split(net)[1]),
    "within": lambda net: {"model": nnx.split(net)[1], "epoch": 3},
    "parameters": lambda net: nnx.state(net, nnx.Param),
}


@pytest.mark.parametrize("form", STATES)
def test_a_run_starts_from_what_an_nnx_program_saved(form, tmp_path):
    """Its outputs are those of the module, statistics included where they were saved."""
    net = Net(10, rngs=nnx.Rngs(3))
    net.norm.mean[...], net.norm.scale[...] = jnp.arange(6) / 3.0, jnp.linspace(0.5, 2, 6)
    net.out.bias[...] = jnp.arange(10) / 5.0
    with ocp.StandardCheckpointer() as writer:
        writer.save(tmp_path / "saved", STATES[form](net))
    config = load("line_digits", network="test_nnx:Net", subspace="none", beta=0.0, augmentation="none", num_epochs=0)
    train.run(config | {"initial": str(tmp_path / "saved")}, tmp_path / "run")
    found = checkpoints.restore(tmp_path / "run")
    (params,) = geometry.unstack(found.params)
    images = jax.random.normal(jax.random.key(0), (5, 8, 8, 1))
    outputs = families.by_name("test_nnx:Net", 10).apply({"params": params, "batch_stats": found.batch_stats}, images)
    if form == "parameters":
        net.norm.mean[...] = jnp.zeros(6)
    net.eval()
    np.testing.assert_allclose(outputs, net(images), rtol=1e-5, atol=1e-6)
