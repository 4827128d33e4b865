"""Points of a run as plain files of Flax."""

import pathlib

import numpy as np
import pytest
from flax import serialization

from subspaces_jax import checkpoints
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import export

STORED = pathlib.Path(__file__).parent / "stored_run"  # a line of mlp_8 on digits


def test_points_and_endpoints_are_plain_trees_of_flax(tmp_path):
    stack = checkpoints.restore(STORED).params
    (middle,) = export.run(STORED, tmp_path / "new" / "middle.msgpack", t=0.25)
    found = serialization.msgpack_restore(middle.read_bytes())
    assert found["batch_stats"] == {}
    for layer in ("Dense_0", "Dense_1"):
        for name, leaf in stack[layer].items():
            np.testing.assert_allclose(found["params"][layer][name], 0.75 * leaf[0] + 0.25 * leaf[1], rtol=1e-6)
    ends = export.run(STORED, tmp_path / "end.msgpack", step=11)
    assert [path.name for path in ends] == ["end_0.msgpack", "end_1.msgpack"]
    second = serialization.msgpack_restore(ends[1].read_bytes())["params"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(second, checkpoints.restore(STORED, 11).params["Dense_0"]["kernel"][1])


@pytest.mark.parametrize("out, t, message", [("x.msgpack", 1.5, r"t is 1.5 .* in \[0, 1\]"), ("x.npz", None, "any")])
def test_what_cannot_be_exported_is_named(tmp_path, out, t, message):
    with pytest.raises(ConfigError, match=message):
        export.run(STORED, tmp_path / out, t=t)
    assert not list(tmp_path.iterdir())
