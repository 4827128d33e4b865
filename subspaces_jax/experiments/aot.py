"""The programs of an experiment on shapes alone, ahead of time: for devices that need not be here, without data.

Shapes come from `data.catalogue`; what is compiled is one step, not the loop of many that training dispatches, whose
body XLA counts once, whatever its trip count.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from subspaces_jax import batch_stats, geometry, parallel
from subspaces_jax.experiments.build import Experiment
from subspaces_jax.experiments.build.steps import of_members, split_indices
from subspaces_jax.training import flat
from subspaces_jax.training.dispatch import Form, in_form


class Program(NamedTuple):
    """Attributes:
    function: jitted.
    args: shapes with their shardings.
    beside: bytes a device that are held beside what the program says.
    """

    function: Any
    args: tuple[Any, ...]
    beside: int = 0


def programs(made: Experiment, mesh: Mesh) -> dict[str, Program]:
    """All programs of an experiment for the devices of a mesh, by name."""
    found = {"step": training_step(made, mesh)} | evaluation_passes(made, mesh)
    return found if made.data.streams else found | {"data set": reading(made, mesh)}


def training_step(made: Experiment, mesh: Mesh) -> Program:
    """One step of an experiment, on a batch that lies on the devices, in the form in which training takes it."""
    state, platform, num_members = made.programs.state_shapes, parallel.platform(mesh), made.num_members
    step, form = (
        made.programs.step(state.params, platform),
        made.programs.form(platform, many_steps=not made.data.streams),
    )
    shapes, whole_state = flat.shapes_of(state) if form.flat else None, state
    state, stack = jax.eval_shape(lambda state: in_form(state, form)[::2], state)
    whole, members = PartitionSpec(), of_members(num_members)
    split = PartitionSpec(*split_indices(num_members)[1:])  # [(M,) S, b]
    specs = (members, whole, split, members)
    one = lambda state, data, indices, stack: step(state, data, indices, shapes, stack)
    compiled = parallel.pmapped(one, mesh, specs, (members, members), donate_argnums=(0,))
    size, samples = made.batch_size, made.num_samples
    indices = jax.ShapeDtypeStruct((*[num_members] * len(members), samples, size // samples), jnp.int32)
    args = (state, data(made, size), indices, stack)
    beside = 0 if form == Form() else _bytes(whole_state) - (0 if form.flat else _bytes(stack))
    return Program(compiled, tuple(map(laid_out(mesh), args, specs)), beside // mesh.shape[parallel.MEMBERS])


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def evaluation_passes(made: Experiment, mesh: Mesh) -> dict[str, Program]:
    """A batch of each pass over data at one point, split over all devices: contraction, and the network on it."""
    model, mesh = made.model, parallel.for_batches(mesh, made.eval_batch_size)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), made.num_rows))
    stats, num_rows = variables.get("batch_stats", {}), geometry.num_endpoints(variables["params"])

    def at_point(stack, coordinates, stats):
        return {"params": geometry.contract(stack, coordinates), "batch_stats": stats}

    def refresh(stack, coordinates, stats, key, images):
        images = parallel.constrained(images, mesh)
        variables = at_point(stack, coordinates, stats)
        found = batch_stats.of_batch(model.apply_train, variables, stats, images, key)
        return parallel.constrained(found, mesh, whole=True)

    def predict(stack, coordinates, stats, images):
        images = parallel.constrained(images, mesh)
        return parallel.constrained(model.apply(at_point(stack, coordinates, stats), images), mesh)

    whole, placed = PartitionSpec(), laid_out(mesh)
    coordinates = jax.ShapeDtypeStruct((num_rows,), jnp.float32)
    point = tuple(placed(tree, whole) for tree in (variables["params"], coordinates, stats))
    key = placed(jax.eval_shape(lambda: jax.random.key(0)), whole)
    images = placed(_images(made, made.eval_batch_size), PartitionSpec(parallel.AXIS))
    found = {"predict": Program(jax.jit(predict), (*point, images))}
    if jax.tree.leaves(stats):
        found = {"refresh": Program(jax.jit(refresh), (*point, key, images))} | found
    return found


def reading(made: Experiment, mesh: Mesh) -> Program:
    """A batch taken from a data set that each device holds whole, as training holds it: each image flat."""
    images, split = flat_data(made, made.data.num_examples)["images"], PartitionSpec(parallel.AXIS)
    indices = jax.ShapeDtypeStruct((made.batch_size,), jnp.int32)
    taken = parallel.pmapped(lambda images, rows: jnp.take(images, rows, axis=0), mesh, (PartitionSpec(), split), split)
    placed = laid_out(mesh)
    return Program(taken, (placed(images, PartitionSpec()), placed(indices, split)))


def laid_out(mesh: Mesh) -> Callable[[Any, PartitionSpec], Any]:
    """(tree of shapes, spec) -> the same with their sharding."""

    def with_sharding(tree, spec):
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)

    return with_sharding


def data(made: Experiment, num: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of `num` examples."""
    return {"images": _images(made, num), "labels": jax.ShapeDtypeStruct((num,), jnp.int32)}


def flat_data(made: Experiment, num: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Likewise, each image flat, as they lie where the whole data set does."""
    images = _images(made, num)
    flat = jax.ShapeDtypeStruct((num, math.prod(images.shape[1:])), images.dtype)
    return data(made, num) | {"images": flat}


def in_memory(made: Experiment, mesh: Mesh) -> Program:
    """What training dispatches where each device holds the data set: a loop over steps, which take their batches."""
    state, whole, members = made.programs.state_shapes, PartitionSpec(), of_members(made.num_members)
    steps, size = made.plan.steps_per_epoch, made.batch_size // made.num_samples
    shape = (steps, *[made.num_members] * len(members), made.num_samples, size)
    data = flat_data(made, made.data.num_examples)
    args = (state, data, jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct((), jnp.int32))
    specs = (members, whole, split_indices(made.num_members), whole)
    return Program(made.programs.advance(state.params, mesh), tuple(map(laid_out(mesh), args, specs)))


def streamed(made: Experiment, mesh: Mesh) -> Program:
    """What training dispatches where data stream: a step on the batch that it is given."""
    state, members = made.programs.state_shapes, of_members(made.num_members)
    rows = (*[made.num_members] * len(members), made.batch_size)
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((*rows, *leaf.shape[1:]), leaf.dtype), data(made, made.batch_size)
    )
    args, specs = (state, batch), (members, PartitionSpec(*members, parallel.AXIS))
    return Program(made.programs.advance_on_batch(state.params, mesh), tuple(map(laid_out(mesh), args, specs)))


def _images(made: Experiment, num: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((num, *made.data.info.image_shape), jnp.dtype(made.data.info.input_dtype))
