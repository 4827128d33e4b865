"""Files of weights, figures and tables where the disk is full or the process is stopped: the old one stays, or none."""

import errno
import os

import numpy as np
import pytest
from matplotlib.figure import Figure

from subspaces_jax import state_dicts, writing
from subspaces_jax.networks import weight_files
from subspaces_jax.plots import style, tables


def params(value):
    kernel = np.full((2, 2), value, np.float32)
    blocks = {"kernel": np.full((3, 2, 2), value, np.float32)}
    return {"blocks": blocks, "delta": np.float32(1), "readin": {"kernel": kernel}, "readout": {"kernel": kernel}}


def figure(value):
    drawn = Figure()
    drawn.subplots().plot([0.0, value])
    return drawn


def table(value):
    return tables.Table([tables.Row("a", 1, [(value, 0.0)])], (("x", 1),))


WRITERS = {
    "weights.npz": lambda path, value: weight_files.save(path, params(value)),
    "weights.pth": lambda path, value: weight_files.save(path, params(value)),
    "state.safetensors": lambda path, value: state_dicts.save(path, {"a": np.full(3, value)}),
    "figure.png": lambda path, value: style.save(figure(value), path.parent, "figure"),
    "table.csv": lambda path, value: tables.write(table(value), path.parent, "table"),
    "text": lambda path, value: writing.write_text(path, f"{value}"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_not_written_to_its_end_leaves_the_old_file_or_none(name, tmp_path, monkeypatch):
    if name.endswith((".pth", ".safetensors")):
        pytest.importorskip({"weights.pth": "torch", "state.safetensors": "safetensors"}[name])

    def fail(*args):
        raise error

    path = tmp_path / name
    for call, error in (("fsync", OSError(errno.ENOSPC, "No space left on device")), ("replace", KeyboardInterrupt())):
        monkeypatch.setattr(os, call, fail)
        with pytest.raises(type(error)):
            WRITERS[name](path, 1.0)
        assert not list(tmp_path.iterdir())
        monkeypatch.undo()
    WRITERS[name](path, 1.0)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", fail)
    error = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        WRITERS[name](path, 2.0)
    assert path.read_bytes() == before and not [left for left in tmp_path.iterdir() if left.name.startswith(".")]
    monkeypatch.undo()
    WRITERS[name](path, 2.0)
    assert path.read_bytes() != before
