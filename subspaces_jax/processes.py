"""How the processes of a run know of one another's end.

Where one dies, collectives of the others wait for ever or fail with what is no fault of theirs, and XLA's own service
notices after minutes and aborts. So each process holds a connection to process 0, which the system closes however a
process ends; one that closes without a word of farewell tells of a death.
"""

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TextIO

from subspaces_jax.errors import ConfigError

WATCH = "subspaces_jax/watch"  # key of the port and the password of process 0
SILENCE = 30  # seconds without an answer of the other machine's system after which a connection is lost
PATIENCE = 5.0  # seconds that a process waits for an error of its own when another has failed


class Place(NamedTuple):
    """Where a process stands among those of its run.

    Attributes:
        coordinator: host:port of process 0.
        num_processes: how many there are.
        process_id: which of them this is, from 0.
        local_devices: those of its host that are its own, None for all.
    """

    coordinator: str
    num_processes: int
    process_id: int
    local_devices: list[int] | None = None


def detected() -> Place:
    """This process' place, as its environment has it: of SLURM's srun, of a TPU pod, of Open MPI or of Kubernetes.

    Raises:
        ConfigError: there is no such environment, or it does not say enough.
    """
    from jax._src import clusters  # no public name, and one process needs none

    find = clusters.ClusterEnv.auto_detect_unset_distributed_params
    try:
        coordinator, num_processes, process_id, local = find(None, None, None, None, None, int(SILENCE))
    except Exception as error:  # of metadata servers that do not answer, or variables that are no numbers
        raise ConfigError(f"coordinator 'auto': {type(error).__name__}: {error}; give host:port of process 0") from None
    if coordinator is None or num_processes is None or process_id is None:
        raise ConfigError(
            "coordinator 'auto' found no environment of SLURM (srun), a TPU pod, Open MPI or Kubernetes: give host:port"
            " of process 0, num_processes and process_id"
        )
    return Place(coordinator, num_processes, process_id, None if local is None else list(local))


class Link(NamedTuple):
    """A connection and its one reader: what has come in one piece with a first line is not lost to the next."""

    socket: socket.socket
    lines: TextIO


class Watch:
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
                    link.socket.sendall(f"{line}\n".encode())

    def _listen(self, peer: int, link: Link) -> None:
        was_told = False
        with contextlib.suppress(OSError):
            for line in link.lines:
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


def _accepted(num_processes: int) -> dict[int, Link]:
    """Process 0's connections by process; others than ours, which do not know the password, are hung up on."""
    dual = socket.has_dualstack_ipv6()
    server = socket.create_server(
        ("", 0), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual, backlog=num_processes
    )
    password, links = secrets.token_hex(), {}
    _store().key_value_set(WATCH, f"{server.getsockname()[1]} {password}")
    server.settimeout(SILENCE)
    while len(links) < num_processes - 1:
        connection, _ = server.accept()
        connection.settimeout(SILENCE)
        link = Link(connection, connection.makefile())
        said, _, who = link.lines.readline().strip().partition(" ")
        if secrets.compare_digest(said, password):
            links[int(who)] = _kept(link)
        else:
            link.lines.close()  # which holds the connection open
            connection.close()
    server.close()
    return links


def _connected(host: str, process_id: int) -> Link:
    port, password = _store().blocking_key_value_get(WATCH, SILENCE * 1000).split()
    connection = socket.create_connection((host, int(port)), SILENCE)
    connection.sendall(f"{password} {process_id}\n".encode())
    return _kept(Link(connection, connection.makefile()))


def _store() -> Any:
    from jax._src import distributed  # likewise

    return distributed.global_state.client


def _kept(link: Link) -> Link:
    """A connection that closes when the other machine is silent for SILENCE seconds; the systems answer, not Python."""
    link.socket.settimeout(None)
    link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in {"TCP_KEEPIDLE": SILENCE // 3, "TCP_KEEPINTVL": SILENCE // 6, "TCP_KEEPCNT": 4}.items():
        if hasattr(socket, name):
            link.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return link


def relay(host: str, port: int) -> str:
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
