"""Resets of layers as points of a stack: which leaves change, what they cost, and many in one pass."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subspaces_jax import evaluation, geometry, parallel, tasks, trees
from subspaces_jax.analysis import reinitialisation

SHAPES = {
    "Conv_0": {"kernel": (3, 3, 1, 2), "bias": (2,)},
    "Block_0": {"Conv_0": {"kernel": (3, 3, 2, 2)}, "BatchNorm_0": {"scale": (2,), "bias": (2,)}},
    "Block_1": {"Conv_0": {"kernel": (1, 1, 2, 2)}},
    "Dense_0": {"kernel": (4, 5), "bias": (5,)},
    "positions": (3,),
}
LAYERS = ["Conv_0", "Block_0/Conv_0", "Block_0/BatchNorm_0", "Block_1/Conv_0", "Dense_0"]
STAGES = {"Conv_0": 0, "Block_0/Conv_0": 1, "Block_0/BatchNorm_0": 1, "Block_1/Conv_0": 1, "Dense_0": 2}


def params(seed):
    rng, is_shape = np.random.default_rng(seed), lambda node: isinstance(node, tuple)
    return jax.tree.map(lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32), SHAPES, is_leaf=is_shape)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("convolutions", {"Conv_0": ["Conv_0"], "Block_0/Conv_0": ["Block_0/Conv_0"]}),
        ("dense", {"Dense_0": ["Dense_0"]}),
        ("norms", {"Block_0/BatchNorm_0": ["Block_0/BatchNorm_0"]}),
        ("blocks", {"Block_0": LAYERS[1:3], "Block_1": LAYERS[3:4]}),
        ("stages", {"stage 0": LAYERS[:1], "stage 1": LAYERS[1:4], "stage 2": LAYERS[4:]}),
        ("dense, Conv_0+Dense_0", {"Dense_0": ["Dense_0"], "Conv_0+Dense_0": ["Conv_0", "Dense_0"]}),
    ],
)
def test_parts(text, expected):
    found = reinitialisation.parts(text, params(0), LAYERS, STAGES)
    assert {name: list(of) for name, of in found.items()} == expected


@pytest.mark.parametrize(
    "text, message",
    [
        ("Conv_7", "'Conv_7' is no layer of the network: it has Conv_0, .*kinds convolutions"),
        ("stages", "the network has no stages to reset"),
        (" , ", "nothing to reset"),
    ],
)
def test_what_cannot_be_reset_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        reinitialisation.parts(text, params(0), LAYERS)


def test_a_reset_changes_the_leaves_of_its_layers_and_no_other_bit():
    rows = [params(seed) for seed in range(3)]
    parts = reinitialisation.parts("convolutions,blocks,Conv_0+Dense_0", rows[0], LAYERS)
    stack, points = geometry.stack(rows), reinitialisation.resets(rows[0], parts, 3)
    assert {leaf.shape for leaf in jax.tree.leaves(points)} == {(1 + 2 * len(parts), 3)}
    contracted = jax.jit(jax.vmap(geometry.contract, in_axes=(None, 0)))(stack, points)
    wanted = [(0, ())] + [(k, layers) for k in (1, 2) for layers in parts.values()]
    for point, (k, layers) in zip(geometry.unstack(contracted), wanted, strict=True):
        for name, leaf in trees.leaf_names(point).items():
            row = k if name.rpartition("/")[0] in layers else 0
            np.testing.assert_array_equal(leaf, trees.leaf_names(rows[row])[name], err_msg=name)
    with pytest.raises(ValueError, match="got 1 rows"):
        reinitialisation.resets(rows[0], parts, 1)


def test_relative_drops():
    found = reinitialisation.relative_drop([[0.8], [0.0]], [[0.8, 0.2, 0.9], [0.0, 0.1, 0.2]])
    np.testing.assert_allclose(found, [[0, 0.75, -0.125], [np.nan] * 3])


def test_many_resets_in_one_pass_score_as_one_by_one():
    """Also where the last pass is not full, and with statistics that each reset refreshes for itself."""
    rng = np.random.default_rng(0)
    rows = [{"Dense_0": {"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)},
             "Dense_1": {"kernel": jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)}} for _ in range(3)]  # fmt: skip
    images, labels = rng.normal(size=(10, 3)).astype(np.float32), rng.normal(size=(10, 2)).astype(np.float32)

    def apply(variables, images):
        hidden = images @ variables["params"]["Dense_0"]["kernel"]
        return jnp.tanh(hidden - variables["batch_stats"]["mean"][None]) @ variables["params"]["Dense_1"]["kernel"]

    parts = reinitialisation.parts("dense", rows[0])
    stack, points = geometry.stack(rows), reinitialisation.resets(rows[0], parts, 3)
    stats, task = {"mean": jnp.asarray(rng.normal(size=4), jnp.float32)}, tasks.regression()
    data = dict(images=images, labels=labels, with_pairs=False, keep_outputs=False, batch_size=4,
                mesh=parallel.device_mesh(1))  # fmt: skip
    alone = evaluation.along(stack, points, apply=apply, task=task, batch_stats=stats, **data)
    many = reinitialisation.together(points, 3, apply, None, task)
    assert many.num == 5 and jax.tree.leaves(many.points)[0].shape == (2, 3, 3)
    wide = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (3, *leaf.shape)), stats)
    found = evaluation.along(
        stack, many.points, many.params_at, apply=many.apply, task=many.task, batch_stats=wide, **data
    )
    assert found.keys() == alone.keys()
    for name, values in alone.items():
        assert values.shape == (5,)
        np.testing.assert_allclose(many.of(found[name]), values, rtol=1e-5, err_msg=name)


def test_layers_of_a_frozen_dict_are_reset_too():
    params = {"Dense_0": {"kernel": jnp.ones((2, 2))}, "Dense_1": {"kernel": jnp.ones((2, 2))}}
    parts = {"a": ("Dense_0",), "b": ("Dense_1",)}
    found = (reinitialisation.resets(of, parts, 2) for of in (params, flax.core.freeze(params)))
    plain, frozen = ([np.asarray(leaf).tolist() for leaf in jax.tree.leaves(of)] for of in found)
    assert plain == frozen == [[[1, 0], [0, 1], [1, 0]], [[1, 0], [1, 0], [0, 1]]]


def test_resets_of_a_frozen_tree_contract_a_frozen_stack():
    stack = {"a": {"Conv_0": {"kernel": jnp.arange(4.0).reshape(2, 2)}}, "Dense_0": {"kernel": jnp.ones((2, 3))}}
    frozen = flax.core.freeze(stack)
    params = jax.tree.map(lambda leaf: leaf[0], frozen)
    points = reinitialisation.resets(params, {"Conv_0": ("a/Conv_0",)}, 2)
    reset = geometry.contract(frozen, jax.tree.map(lambda leaf: leaf[1], points))
    np.testing.assert_array_equal(reset["a"]["Conv_0"]["kernel"], [2, 3])
