"""Points of a run as plain files of Flax."""

import pathlib

import numpy as np
import pytest
from flax import serialization
from test_configs import load

from subspaces_jax import checkpoints
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import build, evaluate, export, train

CAPTURED = dict(network="mlp_4", subspace="none", beta=0.0, num_epochs=3, capture=True, num_cycles=2, swa_start=0.5)

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


def test_a_point_with_batch_norm_scores_in_its_file_as_it_was_evaluated(tmp_path):
    config = load("line_digits", network="outside_module:Small", num_epochs=1, num_points=3, num_train_examples=500)
    train.run(config, tmp_path / "run")
    made = build.experiment(config)
    images, labels = made.data.test.images, made.data.test.labels

    def accuracy(file):
        variables = serialization.msgpack_restore(file.read_bytes())
        logits = made.model.network.apply(variables, made.model.inputs(images), train=False)
        return np.mean(np.argmax(logits, -1) == labels)

    evaluated = [evaluate.run({**config, "refresh": refresh}, tmp_path / "run")["scores"]["accuracy"]
                 for refresh in (True, False)]  # fmt: skip
    for refresh, expected in zip((True, False), evaluated):
        (file,) = export.run(tmp_path / "run", tmp_path / f"{refresh}.msgpack", t=0.5, refresh=refresh)
        assert accuracy(file) == pytest.approx(expected[1], abs=1e-6)
    ends = export.run(tmp_path / "run", tmp_path / "end.msgpack")
    assert [accuracy(file) for file in ends] == pytest.approx([evaluated[0][0], evaluated[0][2]], abs=1e-6)
    assert evaluated[0] != evaluated[1]


def test_the_mean_of_captures_is_written_as_it_is_evaluated(tmp_path):
    config = load("line_digits", **CAPTURED)
    train.run(config, tmp_path / "run")
    rows = [checkpoints.restore(tmp_path / "run", step).params["Dense_0"]["bias"][0] for step in (11, 33)]
    (mean,) = export.run(tmp_path / "run", tmp_path / "mean.msgpack", which="midpoint")
    found = serialization.msgpack_restore(mean.read_bytes())["params"]["Dense_0"]["bias"]
    np.testing.assert_allclose(found, np.mean(rows, axis=0), rtol=1e-5, atol=1e-7)
    with pytest.raises(ConfigError, match="or of one step, leave it out"):
        export.run(tmp_path / "run", tmp_path / "x.msgpack", which="captures", step=11)
    each = export.run(tmp_path / "run", tmp_path / "one.msgpack", which="captures")
    for file, row in zip(each, rows, strict=True):
        np.testing.assert_array_equal(
            serialization.msgpack_restore(file.read_bytes())["params"]["Dense_0"]["bias"], row
        )
    with pytest.raises(ConfigError, match="captured none"):
        export.run(STORED, tmp_path / "x.msgpack", which="captures")
    with pytest.raises(ConfigError, match="without it where t names a point"):
        export.run(STORED, tmp_path / "x.msgpack", t=0.5, which="midpoint")


@pytest.mark.parametrize("out, t, message", [("x.msgpack", 1.5, r"t is 1.5 .* in \[0, 1\]"), ("x.npz", None, "any")])
def test_what_cannot_be_exported_is_named(tmp_path, out, t, message):
    with pytest.raises(ConfigError, match=message):
        export.run(STORED, tmp_path / out, t=t)
    assert not list(tmp_path.iterdir())
