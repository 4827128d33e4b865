"""The study of power laws on series that were logged, and what reads them."""

import types

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.proto.tensor_pb2 import TensorProto
from tensorboardX.record_writer import RecordWriter

from configs import analyze as config_of
from subspaces_jax import records
from subspaces_jax.errors import ConfigError, RunDirectoryError
from subspaces_jax.experiments import analyze, plot
from subspaces_jax.experiments.studies import power_law

STEPS = np.arange(1, 101)
LAW = 7.1e-5 / (STEPS + 1.0) ** 0.61


def logged(folder, values, resume_from=0, every=1):
    """A run directory with rows and events of these values."""
    folder.mkdir(exist_ok=True)
    with records.Metrics(folder, resume_from) as metrics:
        for step, value in enumerate(values, start=1 + resume_from):
            metrics.write(every * step, {"gradient_norm": float(value), "loss": 1.0})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return logged(tmp_path_factory.mktemp("run"), LAW)


def test_rows_and_events_hold_the_same_series(run):
    steps, values = records.read_series(run, "gradient_norm")
    np.testing.assert_array_equal(steps, STEPS)
    np.testing.assert_array_equal(values, LAW)
    (file,) = (run / records.EVENTS).iterdir()
    for source in (file, run / records.EVENTS):
        steps, values = records.read_series(source, "gradient_norm")
        np.testing.assert_array_equal(steps, STEPS)
        np.testing.assert_allclose(values, LAW, rtol=1e-7)


def test_of_a_step_that_was_done_again_the_last_counts(tmp_path):
    folder = logged(logged(tmp_path, LAW[:6]), 2 * LAW[4:8], resume_from=4)
    (folder / records.METRICS).unlink()
    files = sorted((folder / records.EVENTS).iterdir())
    assert len(files) == 2
    steps, values = records.read_series(folder, "gradient_norm")
    np.testing.assert_array_equal(steps, STEPS[:8])
    np.testing.assert_allclose(values, np.append(LAW[:4], 2 * LAW[4:8]), rtol=1e-7)


def test_events_of_other_writers_are_read(tmp_path):
    """TensorFlow 2 writes scalars as tensors, by their bytes or as numbers; what is no scalar is passed over."""
    writer = RecordWriter(str(tmp_path / "events.out.tfevents.1.host"))
    tensors = [
        TensorProto(dtype=1, tensor_content=np.float32(0.5).tobytes()),
        TensorProto(dtype=1, float_val=[0.25]),
        TensorProto(dtype=2, tensor_content=np.float64(0.125).tobytes()),
        TensorProto(dtype=7, string_val=[b"text"]),
        TensorProto(dtype=1, tensor_content=np.zeros(3, np.float32).tobytes()),
    ]
    for step, tensor in enumerate(tensors):
        writer.write(
            Event(step=step, summary=Summary(value=[Summary.Value(tag="x", tensor=tensor)])).SerializeToString()
        )
    writer.close()
    steps, values = records.read_series(tmp_path, "x")
    assert steps.tolist() == [0, 1, 2] and values.tolist() == [0.5, 0.25, 0.125]


def test_what_a_kill_cut_short_is_left_out_and_damage_is_named(run, tmp_path):
    (file,) = (run / records.EVENTS).iterdir()
    content = file.read_bytes()
    cut = tmp_path / "cut.tfevents"
    cut.write_bytes(content[:-150])
    steps, _ = records.read_series(cut, "gradient_norm")
    assert 90 < len(steps) < 100
    cut.write_bytes(b"\1" + content[1:])
    with pytest.raises(RunDirectoryError, match="is no file of TensorBoard events, or is damaged at byte 0"):
        records.read_series(cut, "gradient_norm")
    with pytest.raises(
        RunDirectoryError, match="has no series 'omega': name one of those that it has \\(gradient_norm, "
    ):
        records.read_series(run, "omega")
    with pytest.raises(RunDirectoryError, match="missing cannot be read: No such file"):
        records.read_series(tmp_path / "missing", "omega")


def settings(runs, **fields):
    config = {"analysis": "power_law", "runs": ",".join(map(str, runs))} | fields
    return types.SimpleNamespace(**analyze.complete(config))


def test_the_study_finds_the_planted_laws_of_runs_of_other_lengths(run, tmp_path):
    noisy = 6e-9 / (STEPS[:60] + 1.0) ** 0.9 * (1 + 0.02 * np.random.default_rng(0).normal(size=60))
    noisy[7] = np.nan
    short = logged(tmp_path / "short", noisy)
    config = config_of.get_config("power_law").to_dict() | {"runs": f"{run},{short}"}
    facts = analyze.run(config, tmp_path / "study")
    first, second = facts["fits"]
    np.testing.assert_allclose([first["scale"], first["exponent"], first["shift"]], [7.1e-5, 0.61, 1.0], rtol=1e-6)
    assert abs(second["exponent"] - 0.9) < 4 * second["exponent_error"] and second["r_squared"] > 0.99
    low, high = second["interval"]["exponent"]
    assert low < second["exponent"] < high and (first["num_points"], second["num_points"]) == (100, 59)
    arrays, _ = records.load_results(tmp_path / "study", "power_law")
    np.testing.assert_allclose(arrays["law"][0], LAW, rtol=1e-6)
    assert arrays["values"].shape == (2, 100) and np.isnan(arrays["values"][1, 60:]).all()
    assert not arrays["kept"][1, 7]
    text = analyze.table(facts)
    assert "7.1e-05" in text and "0.61" in text and text.endswith("(1 starts of at most 300 steps)")
    drawn = plot.run(None, tmp_path / "study")["figures"]
    assert {path.rpartition("/")[2] for path in drawn} == {"power_law.pdf", "power_law.png"}
    (figure,) = power_law.figures(arrays, facts).values()
    (axis,) = figure.axes
    labels = [line.get_label() for line in axis.lines]
    assert facts["names"] == [run.name, "short"] and facts["title"] == f"gradient_norm of {run.name}, short"
    assert r"$7.10 \times 10^{-5}\,(t + 1)^{-0.61}$" in labels and axis.get_xscale() == axis.get_yscale() == "log"


def test_filters_and_units_of_time(run):
    arrays, facts = power_law.run(settings([run], window=5, period=2, scaling=0.1))
    assert facts["fits"][0]["num_points"] == 30 and not arrays["kept"][0, 1::2].any()
    np.testing.assert_allclose(arrays["t"][0], 0.1 * STEPS)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"window": 2}, "cannot be filtered: window is 0, for all points, or from 3 to their number 100, got 2"),
        ({"period": 1}, "cannot be filtered: period is 0, for all points, or at least 2, got 1"),
        ({"series": "loss", "window": 5}, "'loss' cannot be filtered: the series is constant"),
    ],
)
def test_filters_that_leave_nothing_are_named(run, fields, message):
    with pytest.raises(ConfigError, match=message) as caught:
        power_law.run(settings([run], **fields))
    assert "\n" not in str(caught.value)


def test_a_study_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="config.runs names no run"):
        power_law.run(settings([]))
    with pytest.raises(ConfigError, match="config.scaling is 0.0: it takes float, units of t a step"):
        settings(["a"], scaling=0.0)
