"""The watch over processes, one process of it played by hand."""

import contextlib
import socket
import threading

import pytest

from subspaces_jax import processes
from subspaces_jax.errors import ConfigError


class Store(dict):
    """Stands for the key-value store of jax.distributed."""

    def __init__(self):
        self.is_there = threading.Event()

    def key_value_set(self, key, value):
        self[key] = value
        self.is_there.set()


@pytest.fixture
def joined(monkeypatch):
    """(first words of process 1) -> the watch of process 0 of 2, the other end of its connection, lines of losses."""
    store, losses = Store(), []
    monkeypatch.setattr(processes, "_store", lambda: store)
    monkeypatch.setattr(processes, "PATIENCE", 0.0)
    opened, made = [], []

    def join(words):
        make = threading.Thread(target=lambda: made.append(processes.Watch("localhost", 2, 0, losses.append)))
        make.start()
        assert store.is_there.wait(10)
        port, password = store[processes.WATCH].split()
        link = socket.create_connection(("localhost", int(port)))
        opened.append(link)
        link.sendall(f"{password} 1\n{words}".encode())
        make.join(10)
        return made[0], link, losses

    yield join
    for link in opened:
        link.close()
    for watch in made:
        close(watch)


def close(watch):
    """The connections of a watch, which the system closes for a process that ends."""
    watch._over = True
    for link in watch._links.values():
        with contextlib.suppress(OSError):
            link.socket.shutdown(socket.SHUT_RDWR)
        link.socket.close()
        link.lines.close()


def finished(watch):
    thread = threading.Thread(target=watch.finish, daemon=True)
    thread.start()
    thread.join(10)
    return not thread.is_alive()


def test_a_farewell_in_one_piece_with_the_greeting_is_heard(joined):
    """As of a process that has nothing to do while process 0 is busy: what came with the password was lost, and process
    0 waited for ever."""
    watch, link, losses = joined("bye 1\n")
    assert finished(watch) and link.recv(100) == b"bye 0\n" and losses == []


def test_an_end_without_a_farewell_is_a_death(joined):
    watch, link, losses = joined("")
    lost = threading.Event()
    watch._on_loss = lambda line: (losses.append(line), lost.set())
    link.close()
    assert lost.wait(10) and losses[0].startswith("process 1 of 2 died or cannot be reached; start all processes again")


def test_a_failure_that_is_told_is_one_and_no_death(joined):
    watch, link, losses = joined("")
    lost = threading.Event()
    watch._on_loss = lambda line: (losses.append(line), lost.set())
    link.sendall(b"failed 1\n")
    link.close()
    assert lost.wait(10) and watch.has_losses
    assert len(losses) == 1 and losses[0].startswith("process 1 of 2 ended with an error; ")


def test_strangers_are_hung_up_on(monkeypatch):
    store, made = Store(), []
    monkeypatch.setattr(processes, "_store", lambda: store)
    make = threading.Thread(target=lambda: made.append(processes.Watch("localhost", 2, 0, print)))
    make.start()
    assert store.is_there.wait(10)
    port, password = store[processes.WATCH].split()
    with socket.create_connection(("localhost", int(port))) as stranger:
        stranger.sendall(b"hello 1\n")
        assert stranger.recv(10) == b"" and make.is_alive()
    with socket.create_connection(("localhost", int(port))) as link:
        link.sendall(f"{password} 1\nbye 1\n".encode())
        make.join(10)
        assert finished(made[0])
    close(made[0])


SLURM = {
    **{"SLURM_JOB_ID": "4097", "SLURM_STEP_NODELIST": "gpu[003-004,7]", "SLURM_NTASKS": "3", "SLURM_PROCID": "2"},
    **{"SLURM_LOCALID": "1", "SLURM_STEP_NUM_NODES": "2"},
}


@pytest.fixture
def alone(monkeypatch):
    """No cluster but SLURM is around, wherever the tests run."""
    for name in ("KUBERNETES_SERVICE_HOST", "OMPI_MCA_orte_hnp_uri", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def test_a_place_is_found_in_the_environment_of_slurm(alone, monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    place = processes.detected()
    assert place == processes.Place("gpu003:61441", 3, 2, [1])  # 65535 - 2^12 + 1 + 4097 mod 2^12
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "1234")
    assert processes.detected().coordinator == "gpu003:1234"
    monkeypatch.setenv("SLURM_NTASKS", "three")
    with pytest.raises(ConfigError, match="'auto': ValueError.*give host:port"):
        processes.detected()


def test_no_environment_of_a_cluster_is_said(alone):
    with pytest.raises(ConfigError, match="'auto' found no environment of SLURM"):
        processes.detected()
