"""Data parallelism: the device mesh, the pmapped step, several processes.

`pmapped` is what `jax.pmap` is in current JAX, `jit` of `shard_map` over a mesh, called directly: the step sees
one device's share and uses `lax.pmean` over AXIS, and the state has no leading device axis. `check_vma=False` keeps
pmap's rules of differentiation, under which `pmean(grad(loss))` is the gradient of the mean loss.

Several processes watch one another: where one dies, collectives of the others wait for ever or fail with what is no
fault of theirs, and XLA's own service notices after minutes and aborts. Each process holds a connection to process 0,
which the system closes however a process ends; one that closes without a word of farewell tells of a death.
"""

import atexit
import contextlib
import math
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # whose client of the key-value store has no public name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from subspaces_jax.errors import ConfigError

PyTree = Any
AXIS, MEMBERS, COPIES = "batch", "members", "copies"
WATCH = "subspaces_jax/watch"  # key of the port and the password of process 0
SILENCE = 30  # seconds without an answer of the other machine's system after which a connection is lost
SETTLE, PATIENCE = (
    1.0,
    5.0,
)  # seconds that a failing process waits for news of others, and others for an error of theirs


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
    """`step` mapped over the devices of `mesh`, compiled once.

    Args:
        step: a function of one device's share of its arguments; it may use `lax.pmean(x, AXIS)`.
        mesh: from `device_mesh`.
        in_specs: one PartitionSpec an argument; `PartitionSpec()` for what every device holds whole.
        out_specs: likewise for the results.
        donate_argnums: arguments whose buffers the results may reuse.
    """
    mapped = jax.shard_map(step, mesh=mesh, in_specs=tuple(in_specs), out_specs=out_specs, check_vma=False)
    compiled = jax.jit(mapped, donate_argnums=tuple(donate_argnums))
    return compiled if jax.process_count() == 1 else lambda *args: settled(compiled(*args))


def settled(tree: PyTree) -> PyTree:
    """The tree, waited for where several processes compute on CPUs: of two programs in flight there, each with
    collectives, one device may begin with the first and another with the second, and both wait for ever."""
    if jax.process_count() > 1 and jax.default_backend() == "cpu":
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
    return jax.jit(lambda tree: tree, out_shardings=_whole(mesh))(tree)


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

        def rows(index: tuple[slice, ...]) -> np.ndarray:
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
    coordinator: str, num_processes: int, process_id: int, on_loss: Callable[[str], None] | None = None
) -> None:
    """Joins this process to others, before anything else touches a device. On CPU they talk through Gloo.

    From here on the death of one ends all, within a second (of a machine: SILENCE). A program calls `finish` at its
    end, or `failed` where it stops for an error.

    Args:
        coordinator: host:port of process 0.
        num_processes: how many there are.
        process_id: which of them this is, from 0.
        on_loss: called in a thread with one line when another process is gone, must end this one; by default prints
            it and ends with status 2.

    Raises:
        ConfigError: an argument is out of range, or the processes do not find one another.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 <= process_id < num_processes:
        raise ConfigError(
            f"coordinator {coordinator!r}, process {process_id} of {num_processes}: give host:port of process 0, and "
            "process_id from 0 to num_processes - 1"
        )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # which takes SIGTERM for itself
    try:
        jax.distributed.initialize(_relay(host, int(port)) if process_id else coordinator, num_processes, process_id)
        _WATCHES.append(_Watch(host, num_processes, process_id, on_loss or _end))
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


_WATCHES: list["_Watch"] = []  # of this process, none or one, as jax.distributed has one state


def _leave() -> None:
    """At exit of a program that has not said how it ends."""
    if _WATCHES:
        failed(is_known=False) if hasattr(sys, "last_value") else finish()


def _end(line: str) -> None:
    os.write(2, f"error: {line}\n".encode())
    os._exit(2)


class _Watch:
    """The connections of one process: of process 0 to all others, of the others to process 0, a thread for each.

    Lines that go over them: "bye i", process i has finished; "failed i", it ends for an error; "died i", it is gone.
    Process 0 passes on what it hears; its own "bye 0" says that all have finished.
    """

    def __init__(self, host: str, num_processes: int, process_id: int, on_loss: Callable[[str], None]):
        self.process_id, self._num, self._on_loss = process_id, num_processes, on_loss
        self._finished, self._changed, self._over = {process_id}, threading.Condition(), False
        self.has_losses = False
        self._links = _accepted(num_processes) if process_id == 0 else {0: _connected(host, process_id)}
        for peer, link in self._links.items():
            threading.Thread(target=self._listen, args=(peer, link), daemon=True).start()

    def finish(self) -> None:
        """Says farewell and waits for that of the others."""
        if self.process_id:
            self.send(f"bye {self.process_id}")
        expected = set(range(self._num)) if self.process_id == 0 else {0}
        with self._changed:
            self._changed.wait_for(lambda: expected <= self._finished)
            self._over = True
        if self.process_id == 0:
            self.send("bye 0")

    def send(self, line: str, but: int | None = None) -> None:
        """Sends a line to all that this process has a connection to."""
        for peer, link in self._links.items():
            if peer != but:
                with contextlib.suppress(OSError):  # of one that is gone, which its own thread sees
                    link.sendall(f"{line}\n".encode())

    def _listen(self, peer: int, link: socket.socket) -> None:
        was_told = False
        with contextlib.suppress(OSError):
            for line in link.makefile():
                word, who = line.split()
                if word == "bye":
                    with self._changed:
                        self._finished.add(int(who))
                        self._over = self._over or who == "0"
                        self._changed.notify_all()
                else:
                    was_told = True  # and an end of this connection is of the same cause
                    threading.Thread(target=self._lose, args=(word, int(who), peer), daemon=True).start()
        if not self._over and not was_told:
            self._lose("died", peer, peer)

    def _lose(self, word: str, who: int, told_by: int) -> None:
        self.has_losses = True
        if self.process_id == 0:
            self.send(f"{word} {who}", but=told_by)
        if word == "failed":
            time.sleep(PATIENCE)  # an error that all have is each one's own to tell
        what = "ended with an error" if word == "failed" else "died or cannot be reached"
        self._on_loss(
            f"process {who} of {self._num} {what}; start all processes again with the same command, training goes on "
            "from the last checkpoint"
        )


def _accepted(num_processes: int) -> dict[int, socket.socket]:
    """Process 0's connections by process; others than ours, which do not know the password, are hung up on."""
    dual = socket.has_dualstack_ipv6()
    server = socket.create_server(
        ("", 0), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual, backlog=num_processes
    )
    password, links = secrets.token_hex(), {}
    _store().key_value_set(WATCH, f"{server.getsockname()[1]} {password}")
    server.settimeout(SILENCE)
    while len(links) < num_processes - 1:
        link, _ = server.accept()
        link.settimeout(SILENCE)
        said, _, who = link.makefile().readline().strip().partition(" ")
        if secrets.compare_digest(said, password):
            links[int(who)] = _kept(link)
        else:
            link.close()
    server.close()
    return links


def _connected(host: str, process_id: int) -> socket.socket:
    port, password = _store().blocking_key_value_get(WATCH, SILENCE * 1000).split()
    link = socket.create_connection((host, int(port)), SILENCE)
    link.sendall(f"{password} {process_id}\n".encode())
    return _kept(link)


def _store() -> Any:
    return distributed.global_state.client


def _kept(link: socket.socket) -> socket.socket:
    """A connection that closes when the other machine is silent for SILENCE seconds; the systems answer, not Python."""
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in {"TCP_KEEPIDLE": SILENCE // 3, "TCP_KEEPINTVL": SILENCE // 6, "TCP_KEEPCNT": 4}.items():
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return link


def _relay(host: str, port: int) -> str:
    """An address of this machine whose connections go on to process 0, and stay open when that dies.

    XLA's client aborts the process, with a dump, as soon as its connection closes: sooner than Python could say why.
    """
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            near, _ = server.accept()
            try:
                far = socket.create_connection((host, port), SILENCE)
            except OSError:  # process 0 is not there yet: the client tries again
                near.close()
                continue
            far.settimeout(None)
            threading.Thread(target=_pump, args=(near, far, True), daemon=True).start()
            threading.Thread(target=_pump, args=(far, near, False), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return f"127.0.0.1:{server.getsockname()[1]}"


def _pump(source: socket.socket, sink: socket.socket, closes: bool) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    if closes:
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
