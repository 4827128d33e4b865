"""Steps on flat leaves: the numbers of shaped ones, and nothing shaped within the loop."""

import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec
from test_step import EPOCH, WHOLE, ConvNet, as_data, assert_same, objective_of, start, train
from test_step import digits as random_digits

from subspaces_jax import geometry, parallel
from subspaces_jax.networks import MLP
from subspaces_jax.training import flat
from subspaces_jax.training.dispatch import Form, make_advance
from subspaces_jax.training.state import State
from subspaces_jax.training.step import make_step

digits = random_digits


class Named(nn.Module):
    """Weights that are not called kernels, of which those of two axes count for the penalty."""

    features: int = 10

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), -1)
        w = self.param("w", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        return x @ w + self.param("b", nn.initializers.zeros, (self.features,))[None]


@pytest.mark.parametrize(
    "options",
    [
        dict(beta=5.0, point_decay=1e-3, devices=4),
        dict(beta=5.0, num_samples=3, over_samples="vmap", layerwise=True),
        dict(beta=5.0, num_samples=2, over_samples="unroll", network=lambda: Named(10)),
    ],
)
def test_flat_leaves_give_the_numbers_of_shaped_ones(digits, options):
    shaped = train(geometry.Simplex(3), digits, **options)
    flat = train(geometry.Simplex(3), digits, form=Form(flat=True), **options)
    assert_same(shaped, flat, rtol=1e-4)


def test_a_step_on_flat_leaves_holds_them_flat(digits):
    """Within the loop of a dispatch no array has the axes of a stack of kernels."""
    network, space = ConvNet(), geometry.Line()
    state, optimizer = start(space, network)
    step = make_step(objective_of(network), space, optimizer, beta=1.0)
    split = PartitionSpec(None, None, parallel.AXIS)
    args = (state, as_data(digits), jnp.zeros((EPOCH, 1, 24), jnp.int32), 2)

    def in_loop(in_flat_leaves):
        """The shapes that the loop over steps carries."""
        of_all = make_advance(step, form=Form(flat=in_flat_leaves))
        mapped = parallel.pmapped(of_all, parallel.device_mesh(1), (WHOLE, WHOLE, split, WHOLE))
        loops = re.findall(r"= \((.*)\) while\(", mapped.lower(*args).compile().as_text())
        return max(loops, key=len)

    assert "f32[2,3,3,3,4]" in in_loop(False)
    assert "f32[2,3,3,3,4]" not in in_loop(True) and "f32[2,108]" in in_loop(True)


def test_leaves_are_flat_behind_the_axes_that_are_kept():
    tree = {"kernel": jnp.arange(48.0).reshape(2, 3, 2, 4), "bias": jnp.ones((2, 4)), "count": jnp.int32(3)}
    made = flat.flattened(tree, 1)
    assert {name: leaf.shape for name, leaf in made.items()} == {"kernel": (2, 24), "bias": (2, 4), "count": ()}
    shapes = {"kernel": jnp.zeros((3, 2, 4)), "bias": jnp.zeros(4)}
    back = flat.shaped({name: made[name][1] for name in shapes}, shapes)
    assert jnp.array_equal(back["kernel"], tree["kernel"][1])


@pytest.mark.parametrize(
    "shape, thin",
    [
        ((3, 3, 16, 16), True), ((3, 3, 64, 64), True), ((512, 10), True), ((3, 64), True),
        ((3, 3, 64, 128), False), ((3, 3, 512, 512), False), ((784, 100), False), ((64,), False), ((), False),
    ],
)  # fmt: skip
def test_leaves_that_fill_their_tiles_stay_as_they_are(shape, thin):
    """Tiles of 8 x 128 of the last two axes: 16 x 16 fill an eighth of theirs, 784 x 100 three quarters."""
    assert flat.is_thin(shape) == thin
    leaf = jnp.zeros((2, *shape))
    made = flat.flattened(leaf, 1)
    assert made.size == leaf.size and made.ndim == (2 if thin else leaf.ndim)


@pytest.mark.parametrize("members", [(), (2,)])
@pytest.mark.parametrize(
    "num_rows, size, flat_shape",
    [
        (1, 9216, (9216,)),  # nothing to pad
        (2, 9216, (9216,)),
        (4, 9216, (9216,)),
        (3, 9216, (72, 128)),  # else padded to four rows
        (5, 9216, (72, 128)),  # to eight
        (5, 2304, (24, 128)),  # 768 zeros a row, 15,360 numbers instead of 18,432
        (5, 512, (512,)),  # 5 x 1,024 numbers are more than 8 x 512
        (7, 9216, (72, 128)),
        (8, 9216, (9216,)),
        (9, 9216, (72, 128)),
    ],
)
def test_rows_are_filled_up_where_their_number_would_be(num_rows, size, flat_shape, members, getkey):
    """By the tiles of a TPU: of 1, 2, 4 or 8 rows of a leaf [K, n], and of 8 rows of 128 numbers of one [K, m, 128]."""
    params = {"kernel": jax.random.normal(getkey(), (*members, num_rows, size // 16, 16)), "bias": jnp.ones(members)}
    state = State(jnp.zeros(members, jnp.int32), params, {}, (params,), getkey())
    made = flat.of_state(state)
    assert made.params["kernel"].shape == (*members, num_rows, *flat_shape)
    assert made.opt_state[0]["kernel"].shape == made.params["kernel"].shape
    rows = made.params["kernel"].reshape(*members, num_rows, -1)
    assert not jnp.any(rows[..., size:])
    chex.assert_trees_all_equal(flat.as_shaped(made, state)._replace(key=0), state._replace(key=0))
    if not members:
        of_one = flat.shaped(jax.tree.map(lambda leaf: leaf[0], {"kernel": made.params["kernel"]}), {
            "kernel": jax.ShapeDtypeStruct((size // 16, 16), jnp.float32)
        })  # fmt: skip
        assert jnp.array_equal(of_one["kernel"], params["kernel"][0])


@pytest.mark.parametrize("num_endpoints", [3, 5])
def test_what_fills_up_rows_stays_zero_and_changes_nothing(digits, num_endpoints):
    options = dict(beta=2.0, point_decay=1e-3, network=lambda: MLP(10, (60, 40)))
    shaped = train(geometry.Simplex(num_endpoints), digits, **options)
    found = train(geometry.Simplex(num_endpoints), digits, form=Form(flat=True), **options)
    assert_same(shaped, found, rtol=1e-4)
    state, _ = start(geometry.Simplex(num_endpoints), MLP(10, (60, 40)))
    assert flat.of_state(state).params["Dense_0"]["kernel"].shape == (num_endpoints, 32, 128)  # 64 x 60 numbers


def test_the_penalty_takes_the_weights_that_it_takes_of_shaped_leaves():
    named = {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}, "w": jnp.ones((4, 4))}
    takes = flat.weights(named)
    assert [name for name in ("Dense_0/kernel", "Dense_0/bias", "w") if takes(name)] == ["Dense_0/kernel"]
    takes = flat.weights({"w": jnp.ones((4, 4)), "b": jnp.ones(4)})
    assert takes("w") and not takes("b")
    assert flat.weights(None) is None
