"""Data parallelism: the device mesh, the pmapped step, several processes.

`pmapped` is what `jax.pmap` is in current JAX, `jit` of `shard_map` over a mesh, called directly: the step sees
one device's share and uses `lax.pmean` over AXIS, and the state has no leading device axis. `check_vma=False` keeps
pmap's rules of differentiation, under which `pmean(grad(loss))` is the gradient of the mean loss.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from subspaces_jax.errors import ConfigError

PyTree = Any
AXIS, MEMBERS = "batch", "members"


def device_mesh(num_devices: int | None = None, num_members: int = 1) -> Mesh:
    """A mesh over the first `num_devices` devices of all processes (default: all), with axes MEMBERS and AXIS.

    Members, trainings that need not talk to one another, get as many groups of devices as divide both their number and
    that of the devices; each batch is split over a group. With one member AXIS has all devices.
    """
    devices = jax.devices()
    if num_devices is not None and not 1 <= num_devices <= len(devices):
        raise ConfigError(f"num_devices is {num_devices} but there are {len(devices)} devices ({devices[0].platform})")
    used = np.asarray(devices[:num_devices])
    groups = math.gcd(len(used), num_members)
    return Mesh(used.reshape(groups, -1), (MEMBERS, AXIS), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def pmapped(
    step: Callable[..., Any],
    mesh: Mesh,
    in_specs: Sequence[PartitionSpec],
    out_specs: Any = PartitionSpec(),
    donate_argnums: Sequence[int] = (),
) -> Callable[..., Any]:
    """`step` mapped over the devices of `mesh`, compiled once.

    Args:
        step: a function of one device's share of its arguments; it may use `lax.pmean(x, AXIS)`.
        mesh: from `device_mesh`.
        in_specs: one PartitionSpec an argument; `PartitionSpec()` for what every device holds whole.
        out_specs: likewise for the results.
        donate_argnums: arguments whose buffers the results may reuse.
    """
    mapped = jax.shard_map(step, mesh=mesh, in_specs=tuple(in_specs), out_specs=out_specs, check_vma=False)
    return jax.jit(mapped, donate_argnums=tuple(donate_argnums))


def replicate(tree: PyTree, mesh: Mesh, spec: PartitionSpec = PartitionSpec()) -> PyTree:
    """Every leaf on the devices of the mesh, whole unless `spec` splits it; each process passes the same values."""
    sharding = NamedSharding(mesh, spec)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: _replicate_leaf(leaf, sharding), tree)


def shard(tree: PyTree, mesh: Mesh, spec: PartitionSpec = PartitionSpec(AXIS)) -> PyTree:
    """Every leaf split as `spec` says, usually along its first axis; each process passes its own part of a batch."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree)


def _replicate_leaf(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _replicate_leaf(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return jax.make_array_from_process_local_data(sharding, np.asarray(leaf), np.shape(leaf))


def initialize(coordinator: str, num_processes: int, process_id: int) -> None:
    """Joins this process to others, before anything else touches a device. On CPU they talk through Gloo."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, num_processes, process_id)


def is_main() -> bool:
    """Whether this process is the one that writes records."""
    return jax.process_index() == 0
