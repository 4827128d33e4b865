"""Endpoints that stay, outside of the state that steps take: the numbers of a mask on the optimizer's updates."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from test_step import EPOCH, WHOLE, ConvNet, as_data, assert_same, objective_of, start, train
from test_step import digits as random_digits

from subspaces_jax import geometry, parallel
from subspaces_jax.networks import MLP
from subspaces_jax.training import still
from subspaces_jax.training.dispatch import Form, make_advance
from subspaces_jax.training.state import State
from subspaces_jax.training.step import make_step

digits = random_digits
ENDS = (0, 2)


def momentum(state):
    """Of the endpoints [K, ...], as optax.sgd keeps it."""
    (found,) = optax.tree.get_all_with_path(state.opt_state, "trace")
    return found[1]


@pytest.mark.parametrize(
    "options",
    [
        dict(point_decay=1e-3, devices=4),
        dict(form=Form(flat=True, still=ENDS)),
        dict(form=Form(flat=True, still=ENDS), network=lambda: MLP(10, (60, 40))),  # rows filled up with zeros
        dict(num_samples=3, over_samples="vmap", layerwise=True),
        dict(num_samples=2, over_samples="scan", own_coordinates=True, devices=2),
        dict(num_samples=2, over_samples="unroll", num_parts=3),
    ],
)
def test_training_is_that_of_masked_updates(digits, options):
    space, form = geometry.Bezier(3), options.pop("form", Form(still=ENDS))
    masked = train(space, digits, frozen=ENDS, **options)
    found = train(space, digits, form=form, **options)
    assert_same(masked, found)
    before, _ = start(space, options.get("network", ConvNet)())
    for k in range(3):
        row = lambda tree: jax.tree.map(lambda leaf: leaf[k], tree)
        if k in ENDS:
            chex.assert_trees_all_equal(row(found[1].params), row(before.params))
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(row(momentum(found[1]))))
        else:
            chex.assert_trees_all_close(row(momentum(found[1])), row(momentum(masked[1])), rtol=1e-3, atol=1e-5)
            assert np.any(row(found[1].params)["Dense_0"]["kernel"] != row(before.params)["Dense_0"]["kernel"])


def test_the_loop_carries_the_free_endpoints_alone(digits):
    """Within the loop of a dispatch neither weights nor momentum of the ends are carried on, or written."""
    network, space = ConvNet(), geometry.Bezier(3)
    state, optimizer = start(space, network)
    split = PartitionSpec(None, None, parallel.AXIS)
    args = (state, as_data(digits), jnp.zeros((EPOCH, 1, 24), jnp.int32), 2)

    def carried(form):
        """Numbers of stacks of the first kernel that the loop over steps holds, by their endpoints."""
        step = make_step(objective_of(network), space, optimizer, still=form.still)
        mapped = parallel.pmapped(make_advance(step, form=form), parallel.device_mesh(1), (WHOLE, WHOLE, split, WHOLE))
        loops = re.findall(r"= \((.*)\) while\(", mapped.lower(*args).compile().as_text())
        loop = max(loops, key=len)
        return [len(re.findall(rf"f32\[{num},3,3,1,3\]", loop)) for num in (1, 3)]

    assert carried(Form()) == [0, 2]  # weights and momentum of three
    assert carried(Form(still=ENDS)) in ([2, 1], [2, 2])  # of one; the stack is read, once for each end at most


@pytest.mark.parametrize("members", [(), (2,)])
def test_what_is_taken_out_is_put_back(members, getkey):
    draw = lambda *shape: jax.random.normal(getkey(), (*members, *shape))
    params = {"a": draw(4, 3, 2), "b": draw(4, 5)}
    kept = (optax.TraceState(jax.tree.map(jnp.ones_like, params)), {"a": draw(), "b": draw(7)}, draw(4))
    whole = State(jnp.zeros(members, jnp.int32), params, {}, kept, getkey())
    free = still.free_part(whole, (1, 3))
    axis = len(members)
    of_rows = lambda tree, rows: jax.tree.map(lambda leaf: np.take(leaf, rows, axis=axis), tree)
    chex.assert_trees_all_equal(free.params, of_rows(params, [0, 2]))
    chex.assert_trees_all_equal(free.opt_state[0].trace, of_rows(kept[0].trace, [0, 2]))
    chex.assert_trees_all_equal(free.opt_state[1:], kept[1:])  # of another form than the stack
    later = jax.tree.map(lambda leaf: leaf + 1, free._replace(key=None))._replace(key=whole.key)
    back = still.put_back(later, whole, (1, 3))
    for tree, first in ((back.params, params), (back.opt_state[0].trace, kept[0].trace)):
        chex.assert_trees_all_equal(of_rows(tree, [1, 3]), of_rows(first, [1, 3]))
        chex.assert_trees_all_equal(of_rows(tree, [0, 2]), jax.tree.map(lambda x: x + 1, of_rows(first, [0, 2])))
    chex.assert_trees_all_equal(back.opt_state[1:], jax.tree.map(lambda x: x + 1, kept[1:]))
    assert np.all(back.step == 1)


def test_a_point_and_its_gradient_are_those_of_the_whole_stack(small_stack):
    stack, weights = small_stack(3), jnp.array([0.2, -0.5, 1.3])
    free = jax.tree.map(lambda leaf: leaf[jnp.array([1])], stack)
    of_free = lambda free: still.point(free, weights, ENDS, stack)
    chex.assert_trees_all_close(of_free(free), geometry.contract(stack, weights), rtol=1e-5, atol=1e-6)
    total = lambda tree: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(tree))
    found = jax.grad(lambda free: total(of_free(free)))(free)
    expected = jax.grad(lambda stack: total(geometry.contract(stack, weights)))(stack)
    chex.assert_trees_all_close(found, jax.tree.map(lambda leaf: leaf[1:2], expected), rtol=1e-4, atol=1e-5)
    for k in range(3):
        end = still.point(free, jnp.eye(3)[k], ENDS, stack)
        chex.assert_trees_all_equal(end, geometry.unstack(stack)[k])


def test_a_penalty_needs_all_endpoints():
    with pytest.raises(ValueError, match="the penalty is of all endpoints, got beta=1.0"):
        make_step(None, geometry.Bezier(3), None, beta=1.0, still=ENDS)
