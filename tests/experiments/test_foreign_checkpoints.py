"""Flax checkpoints of other programs, written here as such programs write them; and runs that start from them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from flax.training.train_state import TrainState
from test_configs import SMALL, load

from subspaces_jax import checkpoints, geometry
from subspaces_jax.errors import CheckpointError
from subspaces_jax.experiments import runs, train

IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)


class Foreign(nn.Module):
    """What mlp_8 is, in another program."""

    @nn.compact
    def __call__(self, images):
        hidden = jax.nn.relu(nn.Dense(8)(images.reshape(len(images), -1)))
        return nn.Dense(10)(hidden)


@pytest.fixture(scope="module")
def state():
    params = Foreign().init(jax.random.key(7), IMAGES)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.25, params)  # biases that are not zero
    return TrainState.create(apply_fn=None, params=params, tx=optax.adam(1e-3)).replace(step=40)


def to_file(path, tree):
    path.write_bytes(serialization.to_bytes(tree))
    return path


def to_folder(path, tree, checkpointer=ocp.StandardCheckpointer):
    with checkpointer() as writer:
        writer.save(path, tree)
    return path


def to_manager(path, args, step=40):
    with ocp.CheckpointManager(path) as manager:
        manager.save(step, args=args)
    return path


def items(params):
    saved = dict(params=ocp.args.StandardSave(params), notes=ocp.args.JsonSave({"lr": 0.1}))
    return ocp.args.Composite(**saved)


def boxed(params):
    """As a module with partitioned kernels has them."""
    box = lambda layer: layer | {"kernel": nn.Partitioned(layer["kernel"], names=(None, "model"))}
    return {name: box(layer) for name, layer in params.items()}


WRITERS = {
    "params.msgpack": lambda path, state: to_file(path, state.params),
    "variables.msgpack": lambda path, state: to_file(path, {"params": state.params, "batch_stats": {}}),
    "state.msgpack": lambda path, state: to_file(path, state),
    "checkpoint_40": lambda path, state: to_file(path, {"model": {"params": {"params": state.params}}, "epoch": 3}),
    "standard": lambda path, state: to_folder(path, state),
    "tree": lambda path, state: to_folder(path, {"model": state, "name": "x"}, ocp.PyTreeCheckpointer),
    "manager": lambda path, state: to_manager(path, ocp.args.StandardSave(state)),
    "step": lambda path, state: to_manager(path, ocp.args.StandardSave({"state": {"params": state.params}})) / "40",
    "boxed": lambda path, state: to_folder(path, {"params": boxed(state.params)}),
    "boxed.msgpack": lambda path, state: to_file(path, {"state": {"params": boxed(state.params)}}),
    "items": lambda path, state: to_manager(path, items(state.params)) / "40",
}


@pytest.mark.parametrize("name", WRITERS)
def test_networks_of_other_programs_are_found(name, state, tmp_path):
    path = WRITERS[name](tmp_path / name, state)
    assert checkpoints.is_flax(path)
    shapes = jax.eval_shape(lambda: state.params)
    for like in (None, shapes):
        found = checkpoints.restore_flax(path, like=like)
        assert found["batch_stats"] == {} and jax.tree.structure(found["params"]) == jax.tree.structure(shapes)
        for leaf, expected in zip(jax.tree.leaves(found["params"]), jax.tree.leaves(state.params)):
            np.testing.assert_array_equal(leaf, expected)
            assert isinstance(leaf, np.ndarray) and leaf.dtype == np.float32


def test_a_line_between_networks_of_two_programs(state, tmp_path):
    other = Foreign().init(jax.random.key(8), IMAGES)["params"]
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), other)
    ends = [
        to_file(tmp_path / "a.msgpack", state),
        to_manager(tmp_path / "b", ocp.args.StandardSave({"params": halves})),
    ]
    config = load("line_digits", network="mlp_8", num_epochs=0, initial=f"{ends[0]},{ends[1]}@40")
    train.run(config, tmp_path / "line")
    network = runs.open_run(tmp_path / "line").experiment.model.network
    rows = geometry.unstack(checkpoints.restore(tmp_path / "line").params)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), halves)
    for row, params in zip(rows, (state.params, rounded), strict=True):
        assert {leaf.dtype for leaf in jax.tree.leaves(row)} == {np.dtype(np.float32)}
        expected = Foreign().apply({"params": params}, IMAGES)
        np.testing.assert_array_equal(network.apply({"params": row}, IMAGES.reshape(3, -1)), expected)


@pytest.mark.parametrize("with_stats", [True, False])
def test_statistics_come_along_and_are_the_fresh_ones_where_there_are_none(with_stats, tmp_path):
    config = load("line_digits", network=SMALL, subspace="none", beta=0.0, num_epochs=0)
    train.run(config, tmp_path / "fresh")
    fresh = checkpoints.restore(tmp_path / "fresh")
    moved = jax.tree.map(lambda leaf: leaf + 2.0, (geometry.unstack(fresh.params)[0], fresh.batch_stats))
    tree = {"params": moved[0], "step": 3} | ({"batch_stats": moved[1]} if with_stats else {})
    config |= {"initial": str(to_folder(tmp_path / "foreign", {"state": tree}))}
    train.run(config, tmp_path / "run")
    found = checkpoints.restore(tmp_path / "run")
    expected = moved[1] if with_stats else fresh.batch_stats
    assert jax.tree.leaves(expected)
    jax.tree.map(
        np.testing.assert_array_equal, (geometry.unstack(found.params)[0], found.batch_stats), (moved[0], expected)
    )


def wider(params):
    return params | {"Dense_1": {"kernel": np.zeros((8, 11)), "scale": np.zeros(11)}}


def changed(params, change):
    """With another kernel of the first layer."""
    first = dict(params["Dense_0"])
    return dict(params) | {"Dense_0": first | {"kernel": change(np.asarray(first["kernel"]))}}


def cut(path, num=None):
    path.write_bytes(path.read_bytes()[:num])
    return path


def without_arrays(path):
    for file in path.rglob("d/*"):
        file.write_bytes(file.read_bytes()[:10])
    return path


def without_names(path):
    (path / "_METADATA").unlink()
    return path


REFUSED = {
    "missing.msgpack": (
        lambda path, state: path,
        "there is no Flax checkpoint .*missing.msgpack: name a .msgpack file",
    ),
    "short.msgpack": (
        lambda path, state: cut(to_file(path, state), -50),
        "short.msgpack is half-written, it ends too e",
    ),
    "empty.msgpack": (lambda path, state: cut(to_file(path, state), 0), "empty.msgpack is half-written"),
    "text.msgpack": (lambda path, state: path.write_text("Hello") and path, "text.msgpack is no Flax checkpoint"),
    "list.msgpack": (lambda path, state: to_file(path, [1, 2]), "no tree of arrays as parameters"),
    "word.msgpack": (lambda path, state: to_file(path, {"params": {"a": "b"}}), "no tree of arrays as parameters"),
    "wide.msgpack": (
        lambda path, state: to_file(path, {"params": wider(state.params)}),
        r"wide.msgpack is of another architecture: - Dense_1/bias \(10,\), \+ Dense_1/scale \(11,\), "
        r"Dense_1/kernel \(8, 11\) instead of \(8, 10\)$",
    ),
    "wide": (
        lambda path, state: to_folder(path, wider(state.params)),
        r"wide is of another architecture: - Dense_1/bias",
    ),
    "complex.msgpack": (
        lambda path, state: to_file(path, {"params": changed(state.params, lambda leaf: leaf + 1j)}),
        "complex.msgpack has params/Dense_0/kernel of complex64: weights are real floating-point numbers",
    ),
    "whole.msgpack": (
        lambda path, state: to_file(path, {"params": changed(state.params, lambda leaf: leaf.astype(np.int8))}),
        "whole.msgpack has params/Dense_0/kernel of int8: weights are real",
    ),
    "nan.msgpack": (
        lambda path, state: to_file(path, {"params": changed(state.params, lambda leaf: leaf * np.nan)}),
        "nan.msgpack has params/Dense_0/kernel with values that are not finite",
    ),
    "x.orbax-checkpoint-tmp-3": (lambda path, state: path.mkdir() or path, "tmp-3 is half-written"),
    "torn": (
        lambda path, state: without_arrays(to_folder(path, state)),
        "torn cannot be read .*half-written or damaged",
    ),
    "nameless": (
        lambda path, state: without_names(to_folder(path, state)),
        "nameless is no Flax checkpoint: there is no",
    ),
    "words": (
        lambda path, state: to_folder(path, {"a": "b"}, ocp.PyTreeCheckpointer),
        "no tree of arrays as parameters",
    ),
    "one.msgpack@3": (
        lambda path, state: to_file(path, state),
        "one.msgpack is one checkpoint and has no steps: .* @3",
    ),
    "steps@3": (
        lambda path, state: to_manager(path, items(state.params)),
        r"no checkpoint of step 3 in .*: there are \[40",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_network_for_a_run_is_named_in_a_line(name, state, tmp_path):
    write, message = REFUSED[name]
    write(tmp_path / name.partition("@")[0], state)
    config = load("line_digits", network="mlp_8", subspace="none", beta=0.0, num_epochs=0, initial=str(tmp_path / name))
    with pytest.raises(CheckpointError, match=message) as error:
        train.run(config, tmp_path / "run")
    assert str(error.value).startswith("config.initial: ") and "\n" not in str(error.value)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_checkpoints_of_runs_are_read_as_runs(tmp_path):
    config = load("line_digits", network="mlp_8", num_epochs=0)
    train.run(config, tmp_path / "run")
    assert not checkpoints.is_flax(tmp_path / "run")
    with pytest.raises(
        CheckpointError, match="0 is a checkpoint of a run of this package: name the run, as in runs/a@"
    ):
        checkpoints.restore_flax(tmp_path / "run" / "checkpoints" / "0")
