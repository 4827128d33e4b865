"""Data parallelism: the device mesh, the pmapped step, several processes.

`pmapped` is what `jax.pmap` is in current JAX, `jit` of `shard_map` over a mesh, called directly: the step sees
one device's share and uses `lax.pmean` over AXIS, and the state has no leading device axis. `check_vma=False` keeps
pmap's rules of differentiation, under which `pmean(grad(loss))` is the gradient of the mean loss.
"""

import atexit
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from subspaces_jax.errors import ConfigError
from subspaces_jax.processes import PATIENCE, Place, Watch, detected, relay

PyTree = Any
AXIS, MEMBERS, COPIES = "batch", "members", "copies"
AUTO = "auto"  # in the place of a coordinator
SETTLE = 1.0  # seconds that a failing process waits for news of others


def device_mesh(
    num_devices: int | None = None, num_members: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh over the first `num_devices` devices of all processes (default: all), with axes MEMBERS and AXIS.

    `devices` may be others, descriptions of ones that are not here.

    Members, trainings that need not talk to one another, get as many groups of devices as divide both their number and
    that of the devices; each batch is split over a group. With one member AXIS has all devices.
    """
    devices = jax.devices() if devices is None else devices
    if num_devices is not None and not 1 <= num_devices <= len(devices):
        raise ConfigError(f"num_devices is {num_devices} but there are {len(devices)} devices ({devices[0].platform})")
    used = np.asarray(devices[:num_devices], dtype=object)
    groups = math.gcd(len(used), num_members)
    return Mesh(used.reshape(groups, -1), (MEMBERS, AXIS), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def pmapped(
    step: Callable[..., Any],
    mesh: Mesh,
    in_specs: Sequence[PartitionSpec],
    out_specs: Any = PartitionSpec(),
    donate_argnums: Sequence[int] = (),
) -> Callable[..., Any]:
    """`step` mapped over the devices of `mesh`, compiled once; what calls it again and again has it `waited_for`.

    Args:
        step: a function of one device's share of its arguments; it may use `lax.pmean(x, AXIS)`.
        mesh: from `device_mesh`.
        in_specs: one PartitionSpec an argument; `PartitionSpec()` for what every device holds whole.
        out_specs: likewise for the results.
        donate_argnums: arguments whose buffers the results may reuse.
    """
    mapped = jax.shard_map(step, mesh=mesh, in_specs=tuple(in_specs), out_specs=out_specs, check_vma=False)
    return jax.jit(mapped, donate_argnums=tuple(donate_argnums))


def waited_for(tree: PyTree) -> PyTree:
    """The tree, waited for where several devices are CPUs, virtual ones or of several processes: of two programs in
    flight there, each with collectives, one device may begin with the first and another with the second, and both wait
    for ever."""
    if jax.device_count() > 1 and jax.default_backend() == "cpu":
        jax.block_until_ready(tree)
    return tree


def replicate(tree: PyTree, mesh: Mesh, spec: PartitionSpec = PartitionSpec()) -> PyTree:
    """Every leaf on the devices of the mesh, whole unless `spec` splits it; each process passes the same values."""
    sharding = NamedSharding(mesh, spec)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: _replicate_leaf(leaf, sharding), tree)


def gathered(tree: PyTree, mesh: Mesh) -> PyTree:
    """Every leaf whole on each device, whatever it is split over, members of other processes included."""
    return jax.jit(_same, out_shardings=_whole(mesh))(tree)


def _same(tree: PyTree) -> PyTree:
    return tree  # a function made anew for each call would be traced anew


def platform(mesh: Mesh) -> str:
    """What the devices of a mesh are: "cpu", "gpu" or "tpu", whatever this host's own are."""
    return mesh.devices.flat[0].platform


def for_batches(mesh: Mesh, size: int) -> Mesh:
    """The devices of a mesh, in its order, for passes over batches of `size`, with axes AXIS and COPIES.

    All of them share a batch; where they do not divide it, as many groups of them as divide both do.
    """
    devices = mesh.devices.reshape(math.gcd(mesh.size, size), -1)
    return Mesh(devices, (AXIS, COPIES), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def constrained(tree: PyTree, mesh: Mesh, whole: bool = False) -> PyTree:
    """Inside `jit`: leaves [B, ...] split over the axis AXIS of a mesh of `for_batches`, or whole on each device."""
    sharding = NamedSharding(mesh, PartitionSpec() if whole else PartitionSpec(AXIS))
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), tree)


def spread(tree: PyTree, mesh: Mesh) -> PyTree:
    """Leaves [b, ...] of the host, this process' share of a batch, as the whole batch over a mesh of `for_batches`.

    With one process the share is all of it; with P processes share p holds rows [p B / P, (p + 1) B / P).
    """
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))

    def place(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        shape = (leaf.shape[0] * jax.process_count(), *leaf.shape[1:])
        first = leaf.shape[0] * jax.process_index()

        def rows(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(shape[0])
            if start < first or stop > first + leaf.shape[0]:
                raise ConfigError(
                    f"a batch of {shape[0]} cannot be split over {mesh.size} devices of {jax.process_count()} "
                    "processes: make it a multiple of the number of devices (batch_size, eval_batch_size)"
                )
            return leaf[start - first : stop - first]

        return jax.make_array_from_callback(shape, sharding, rows)

    return jax.tree.map(place, tree)


def _whole(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def shard(tree: PyTree, mesh: Mesh, spec: PartitionSpec = PartitionSpec(AXIS)) -> PyTree:
    """Every leaf split as `spec` says, usually along its first axis; each process passes its own part of a batch."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree)


def _replicate_leaf(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
        return leaf
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _replicate_leaf(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return jax.make_array_from_process_local_data(sharding, np.asarray(leaf), np.shape(leaf))


def initialize(
    coordinator: str, num_processes: int = 1, process_id: int = 0, on_loss: Callable[[str], None] | None = None
) -> None:
    """Joins this process to others, before anything else touches a device. On CPU they talk through Gloo.

    From here on the death of one ends all, within a second (of a machine: half a minute). A program calls `finish` at
    its end, or `failed` where it stops for an error.

    Args:
        coordinator: host:port of process 0, or "auto": it and the numbers are found in the environment, see
            `processes.detected`.
        num_processes: how many there are.
        process_id: which of them this is, from 0.
        on_loss: called in a thread with one line when another process is gone, must end this one; by default prints
            it and ends with status 2.

    Raises:
        ConfigError: an argument is out of range, or the processes do not find one another.
    """
    place = detected() if coordinator == AUTO else Place(coordinator, num_processes, process_id)
    coordinator, num_processes, process_id, local_devices = place
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 <= process_id < num_processes:
        raise ConfigError(
            f"coordinator {coordinator!r}, process {process_id} of {num_processes}: give host:port of process 0, and "
            "process_id from 0 to num_processes - 1"
        )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # which takes SIGTERM for itself
    try:
        address = relay(host, int(port)) if process_id else coordinator
        jax.distributed.initialize(address, num_processes, process_id, local_devices)
        _WATCHES.append(Watch(host, num_processes, process_id, on_loss or _end))
    except (RuntimeError, ValueError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"process {process_id} of {num_processes} cannot join the others at {coordinator} ({reason}): start all "
            "with the same coordinator, whose port is free"
        ) from None
    atexit.register(_leave)


def finish() -> None:
    """Waits until all processes have finished; does nothing in a program of one."""
    for watch in _WATCHES:
        watch.finish()
    _WATCHES.clear()


def failed(is_known: bool = True) -> None:
    """Says that this process ends for an error, which ends the others soon; does nothing in a program of one process.

    Returns unless another one is to blame: one that died, or that had failed before where the error is not known to be
    this one's own.
    """
    for watch in _WATCHES:
        is_first = not watch.has_losses
        watch.send(f"failed {watch.process_id}")
        time.sleep(SETTLE if is_known or is_first else 2 * PATIENCE)  # the thread that watches ends the process
    _WATCHES.clear()


def from_main(text: str) -> str:
    """The text that the main process has, in every process; at most 64 bytes."""
    if jax.process_count() == 1:
        return text
    from jax.experimental import multihost_utils

    content = np.zeros(64, np.uint8)
    content[: len(text.encode())] = np.frombuffer(text.encode(), np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(content))).rstrip(b"\0").decode()


def is_main() -> bool:
    """Whether this process is the one that writes records."""
    return jax.process_index() == 0


_WATCHES: list[Watch] = []  # of this process, none or one, as jax.distributed has one state


def _leave() -> None:
    """At exit of a program that has not said how it ends."""
    if _WATCHES:
        failed(is_known=False) if hasattr(sys, "last_value") else finish()


def _end(line: str) -> None:
    os.write(2, f"error: {line}\n".encode())
    os._exit(2)
