"""The vision transformer against a NumPy forward pass, and a line of two of them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subspaces_jax import geometry, trees
from subspaces_jax.networks import VisionTransformer

NETWORK = VisionTransformer(5, patch=4, width=12, depth=2, num_heads=3)
erf = np.vectorize(math.erf)


def layer_norm(x, tree):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * tree["scale"] + tree["bias"]


def attention(x, tree):
    """Each head's softmax(q k^T / sqrt(d)) v, one example and head at a time."""
    project = lambda name: np.einsum("bpw,whd->bhpd", x, tree[name]["kernel"]) + tree[name]["bias"][None, :, None]
    queries, keys, values = map(project, ("query", "key", "value"))
    out = np.tile(tree["out"]["bias"], (*x.shape[:2], 1)).astype(np.float64)
    for example, head in np.ndindex(queries.shape[:2]):
        scores = queries[example, head] @ keys[example, head].T / math.sqrt(queries.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out[example] += weights @ values[example, head] @ tree["out"]["kernel"][head]
    return out


def forward(params, images, patch, depth):
    """(logits, features), float64."""
    dense = lambda x, tree: x @ tree["kernel"] + tree["bias"]
    rows, columns = (size // patch for size in images.shape[1:3])
    corners = [(patch * i, patch * j) for i in range(rows) for j in range(columns)]
    patches = np.stack([images[:, i : i + patch, j : j + patch].reshape(len(images), -1) for i, j in corners], axis=1)
    kernel = params["Conv_0"]["kernel"]
    x = patches @ kernel.reshape(-1, kernel.shape[-1]) + params["Conv_0"]["bias"] + params["positions"]
    for i in range(depth):
        x = x + attention(layer_norm(x, params[f"LayerNorm_{2 * i}"]), params[f"attention_{i}"])
        hidden = dense(layer_norm(x, params[f"LayerNorm_{2 * i + 1}"]), params[f"up_{i}"])
        x = x + dense(hidden * (1 + erf(hidden / math.sqrt(2))) / 2, params[f"down_{i}"])
    features = layer_norm(x, params[f"LayerNorm_{2 * depth}"]).mean(1)
    return dense(features, params["classifier"]), features


@pytest.fixture
def images(getkey):
    return jax.random.normal(getkey(), (3, 8, 12, 2))


@pytest.fixture
def variables(getkey, images):
    return jax.jit(NETWORK.init)(getkey(), images)


def test_forward_pass_is_that_of_numpy(variables, images, getkey):
    params = jax.tree.map(lambda leaf: leaf + 0.2 * jax.random.normal(getkey(), leaf.shape), variables["params"])
    logits, kept = jax.jit(lambda p, x: NETWORK.apply({"params": p}, x, mutable=["intermediates"]))(params, images)
    as_numpy = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    expected, features = forward(as_numpy, np.asarray(images, np.float64), NETWORK.patch, NETWORK.depth)
    # Flax's GELU is the tanh form, which is within 5e-4 of the exact one
    np.testing.assert_allclose(logits, expected, atol=1e-2)
    np.testing.assert_allclose(kept["intermediates"]["features"][0], features, atol=1e-2)


def test_number_of_parameters(variables):
    width, patches = NETWORK.width, 6
    block = 4 * (width**2 + width) + 2 * (4 * width**2) + 5 * width + 2 * 2 * width
    embedding = NETWORK.patch**2 * 2 * width + width + patches * width
    head = 2 * width + width * 5 + 5
    assert trees.num_parameters(variables["params"]) == embedding + NETWORK.depth * block + head
    assert set(variables) == {"params"}  # no BatchNorm, so no statistics of a point


def test_dropout_acts_in_training_alone(variables, images, getkey):
    dropped = NETWORK.clone(dropout=0.5)
    run = jax.jit(dropped.apply, static_argnames="train")
    np.testing.assert_array_equal(run(variables, images), jax.jit(NETWORK.apply)(variables, images))
    first, second = (run(variables, images, train=True, rngs={"dropout": getkey()}) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3


def test_descending_from_random_points_of_a_line_lowers_its_loss(images, getkey):
    """A module that knows nothing of subspaces is trained as a line."""
    network = NETWORK.clone(depth=1)
    stack = jax.jit(lambda key: geometry.init_stack(network, key, 2, images)["params"])(getkey())
    line, targets = geometry.Line(), jax.nn.one_hot(jnp.arange(3), 5)

    def loss(stack, coordinates):
        logits = network.apply({"params": geometry.contract(stack, coordinates)}, images)
        return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1))

    @jax.jit
    def step(stack, coordinates):
        value, gradients = jax.value_and_grad(loss)(stack, coordinates)
        return jax.tree.map(lambda w, g: w - 0.1 * g, stack, gradients), value

    loss_at = lambda stack: np.array([step(stack, coordinates)[1] for coordinates in line.grid(5)])
    before = loss_at(stack)
    for _ in range(40):
        stack, _ = step(stack, line.sample(getkey()))
    assert np.all(loss_at(stack) < 0.5 * before)
