"""Runs that are killed, damaged, doubled or poisoned lose nothing and say what happened."""

import gc
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest
from test_configs import SMALL, load

from subspaces_jax import checkpoints, records
from subspaces_jax.data import sources
from subspaces_jax.errors import CheckpointError, ConfigError, NonFiniteLossError, RunDirectoryError
from subspaces_jax.experiments import evaluate, plot, train

ROOT = pathlib.Path(__file__).parents[2]
FIELDS = dict(num_epochs=4, num_devices=1, network="mlp_16", batch_size=64, log_every=5, checkpoint_every=1)


@pytest.fixture
def config():
    return load("line_digits", **FIELDS)


def rows(workdir):
    """Rows of metrics without what depends on the clock."""
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in records.read_metrics(workdir)]


def assert_same_run(a, b):
    first, second = checkpoints.restore(a), checkpoints.restore(b)
    assert first.step == second.step
    chex.assert_trees_all_equal(first.params, second.params)
    chex.assert_trees_all_equal(first.batch_stats, second.batch_stats)
    assert rows(a) == rows(b)


def launch(name, *flags, wait=True):
    command = [sys.executable, "-m", f"launch.{name}", *map(str, flags)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if wait:
        process.out, process.err = process.communicate(timeout=180)
    return process


def flags(workdir, **fields):
    options = [f"--config.{name}={value}" for name, value in (FIELDS | fields).items()]
    return ["--config=configs/line_digits.py:tiny", f"--workdir={workdir}", *options]


# Orbax leaves tasks of a closed event loop behind where it meets damage
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def damage():
    """Cuts every array of a checkpoint short."""

    def damage(folder):
        for path in folder.rglob("*"):
            if path.is_file() and path.parent.name == "d":
                path.write_bytes(path.read_bytes()[:20])

    yield damage
    gc.collect()  # so that what Orbax leaves goes with the tests of this file


class Interrupted(Exception):
    pass


def interrupt_at(monkeypatch, step):
    """Ends the process's work in the middle, as a kill between two rows would."""
    write = records.Metrics.write

    def failing(self, at, row):
        write(self, at, row)
        if at >= step:
            raise Interrupted

    monkeypatch.setattr(records.Metrics, "write", failing)


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bits(config, tmp_path, monkeypatch):
    config |= {"network": SMALL, "num_epochs": 3}
    train.run(config, tmp_path / "whole")
    with monkeypatch.context() as context, pytest.raises(Interrupted):
        interrupt_at(context, 30)  # after the first checkpoint at 22, with rows beyond it
        train.run(config, tmp_path / "parts")
    assert rows(tmp_path / "parts")[-1]["step"] == 30
    assert train.run(config, tmp_path / "parts")["resumed_from"] == 22
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_killed_by_the_system_goes_on_and_ends_with_the_same_bits(config, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    fields = dict(num_epochs=24)
    process = launch("train", *flags(killed, **fields), wait=False)
    checkpoint = killed / "checkpoints" / "66"
    deadline = time.time() + 120
    while not checkpoint.exists() and time.time() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    again = launch("train", *flags(killed, **fields))
    assert again.returncode == 0, again.err
    train.run(load("line_digits", **FIELDS | fields), whole)
    assert_same_run(whole, killed)
    assert "pair acc %" in again.out and (killed / "figures" / "profile.pdf").exists()
    finished = launch("evaluate", f"--workdir={killed}")
    assert finished.returncode == 0 and finished.out.strip() in again.out


def test_a_finished_run_is_left_as_it_is(config, tmp_path):
    train.run(config, tmp_path)
    before = rows(tmp_path)
    assert train.run(config, tmp_path)["resumed_from"] == 88
    assert rows(tmp_path) == before


def test_a_damaged_checkpoint_is_set_aside_and_training_goes_on_from_the_one_before(config, tmp_path, caplog, damage):
    train.run(config, tmp_path / "whole")
    train.run(config, tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "88")
    with caplog.at_level("WARNING"):
        assert checkpoints.restore(tmp_path / "run").step == 66
        assert train.run(config, tmp_path / "run")["resumed_from"] == 66
    assert "checkpoint 88 is damaged" in caplog.text
    assert (tmp_path / "run" / "damaged").exists()
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_half_written_checkpoint_is_not_seen(config, tmp_path):
    train.run(config, tmp_path)
    (tmp_path / "checkpoints" / "88").rename(tmp_path / "checkpoints" / "88.orbax-checkpoint-tmp")
    assert checkpoints.restore(tmp_path).step == 66


def test_nothing_readable_is_one_clear_error(config, tmp_path, damage):
    train.run(config, tmp_path)
    for folder in (tmp_path / "checkpoints").iterdir():
        damage(folder)
    for attempt in (lambda: checkpoints.restore(tmp_path), lambda: train.run(config, tmp_path)):
        with pytest.raises(CheckpointError, match="checkpoint 88 is damaged .* checkpoint 66 is damaged") as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_architecture_is_refused_with_the_leaves_that_differ(config, tmp_path):
    train.run(config, tmp_path)
    with pytest.raises(ConfigError, match="config.network is 'mlp_8' but .* was trained with 'mlp_16'"):
        evaluate.run(config | {"network": "mlp_8"}, tmp_path)
    header = json.loads((tmp_path / "config.json").read_text())
    for network, message in (
        ("mlp_8", r"checkpoint 88 .* another architecture.*Dense_0/bias \(2, 16\) instead of \(2, 8\)"),
        ("lenet", r"- Conv_0/kernel"),
    ):
        header["config"]["network"] = network
        (tmp_path / "config.json").write_text(json.dumps(header))
        with pytest.raises(CheckpointError, match=message):
            evaluate.run(None, tmp_path)


def test_an_evaluation_is_of_the_run_and_its_config(config, tmp_path):
    """Fields of the evaluation may differ; another checkpoint's results do not take the place of the last one's."""
    train.run(config | {"keep_every": 2}, tmp_path)  # and checkpoint_every is 1
    last = evaluate.run(None, tmp_path)
    other = evaluate.run(config | {"keep_every": 2, "num_points": 3, "eval_batch_size": 100}, tmp_path, step=44)
    assert (other["step"], last["step"], last["num_steps"]) == (44, 88, 88) and len(other["scores"]["nll"]) == 3
    assert records.load_results(tmp_path, "points")[1]["scores"] == last["scores"]
    assert records.load_results(tmp_path, "points_44")[1]["scores"] == other["scores"] != last["scores"]
    with pytest.raises(ConfigError, match=r"config.seed is 9 but .* was trained with 0: an evaluation may change only"):
        evaluate.run(config | {"keep_every": 2, "seed": 9}, tmp_path)


def test_checkpoints_are_kept_whether_or_not_they_are_due(config, tmp_path):
    train.run(config | {"checkpoint_every": 3, "keep_every": 2, "keep_steps": "5,70"}, tmp_path)
    assert [checkpoints.restore(tmp_path, step).step for step in (5, 44, 70, 88)] == [5, 44, 70, 88]
    with pytest.raises(CheckpointError, match=r"there are \[5, 44, 70, 88\]"):
        checkpoints.restore(tmp_path, 22)
    with pytest.raises(ConfigError, match="config.keep_steps has 89, and the run has steps 0 to 88"):
        train.run(config | {"keep_steps": "89"}, tmp_path / "refused")


def test_a_workdir_of_another_config_is_refused(config, tmp_path):
    train.run(config, tmp_path)
    with pytest.raises(RunDirectoryError, match=r"another config \(seed = 0 there, 1 here\): name another workdir"):
        train.run(config | {"seed": 1}, tmp_path)


def test_a_workdir_in_use_is_refused(config, tmp_path):
    with records.locked(tmp_path):
        with pytest.raises(RunDirectoryError, match="in use by a live run"):
            train.run(config, tmp_path)
    train.run(config, tmp_path)


def test_missing_things_are_named(config, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoints in .*nowhere"):
        checkpoints.restore(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(RunDirectoryError, match="is no run directory"):
        evaluate.run(None, tmp_path)
    train.run(config, tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3 .* there are \[66, 88\]"):
        checkpoints.restore(tmp_path, step=3)
    with pytest.raises(RunDirectoryError, match="no results 'points' .* python -m launch.evaluate"):
        plot.run(None, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="is a file"):
        train.run(config, tmp_path / "file")


def test_a_loss_that_is_not_finite_ends_the_run_and_spoils_no_checkpoint(config, tmp_path):
    config |= {"learning_rate": 1e30, "warmup_epochs": 0, "schedule": "piecewise"}
    with pytest.raises(
        NonFiniteLossError, match="the loss is not finite at step .* of 88 .*: lower learning_rate"
    ) as caught:
        train.run(config, tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="no finished checkpoint"):
        checkpoints.restore(tmp_path)


def test_kept_checkpoints_stay(config, tmp_path):
    train.run(config | {"num_epochs": 5, "keep_every": 2}, tmp_path)
    assert {int(path.name) for path in (tmp_path / "checkpoints").iterdir()} == {44, 88, 110}
    assert checkpoints.restore(tmp_path, step=44).step == 44


def test_runs_restore_as_one_stack(config, tmp_path):
    for seed in (0, 1):
        train.run(config | {"seed": seed, "subspace": "none", "beta": 0.0, "num_epochs": 1}, tmp_path / str(seed))
    both = checkpoints.restore_stack([tmp_path / "0", tmp_path / "1"])
    for seed in (0, 1):
        single = checkpoints.restore(tmp_path / str(seed)).params
        chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[seed : seed + 1], both.params), single)
    train.run(config | {"network": "mlp_8", "num_epochs": 1}, tmp_path / "other")
    with pytest.raises(CheckpointError, match="cannot be stacked"):
        checkpoints.restore_stack([tmp_path / "0", tmp_path / "other"])
    with pytest.raises(CheckpointError, match="no run directories"):
        checkpoints.restore_stack([])


def test_rows_cut_short_by_a_kill_are_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    assert [row["step"] for row in records.read_metrics(tmp_path)] == [1, 2]
    with records.Metrics(tmp_path, resume_from=1) as metrics:
        metrics.write(2, {"loss": 0.5})
    assert records.read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 0.5}]


def test_results_are_written_whole_and_read_back(tmp_path):
    records.save_results(tmp_path, "x", {"a": np.arange(3)}, {"b": 1})
    arrays, facts = records.load_results(tmp_path, "x")
    np.testing.assert_array_equal(arrays["a"], np.arange(3))
    assert facts == {"b": 1} and sorted(os.listdir(tmp_path / "results")) == ["x.json", "x.npz"]


@pytest.mark.parametrize("content", ["{}", '{"config": 3}'])
def test_results_without_what_all_have_are_damaged_to_who_draws_them(content, tmp_path):
    shutil.copytree(pathlib.Path(__file__).parent / "stored_run", tmp_path / "run")
    (tmp_path / "run" / "results" / "points.json").write_text(content)
    with pytest.raises(records.DamagedError, match="results 'points' in .* are damaged.*: make the results again"):
        plot.run(None, tmp_path / "run")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--config.learning_rat=0.1"],
            "error: config field 'learning_rat', which is unknown: did you mean learning_rate",
        ),
        (["--config.num_epochs=2.5"], "error: flag --config.num_epochs=2.5: invalid literal for int"),
        (["--config.learning_rate=abc"], "error: flag --config.learning_rate=abc: could not convert"),
        (["--config.dataset=cifar10"], "error: cifar10 is not prepared in"),
        (["--config.learning_rate=1e30", "--config.warmup_epochs=0"], "error: the loss is not finite at step"),
        (["learning_rate=3"], "error: argument 'learning_rate=3' is no flag"),
    ],
)
def test_the_command_line_says_it_in_one_line(arguments, message, tmp_path):
    process = launch("train", *flags(tmp_path / "run"), *arguments)
    last = process.err.strip().splitlines()[-1]
    assert process.returncode == 2 and last.startswith(message), process.err
    assert "Traceback" not in process.err


def test_the_command_line_without_its_flags(tmp_path):
    process = launch("train", "--config=configs/nothing.py", f"--workdir={tmp_path}")
    assert process.returncode == 2 and "nothing.py" in process.err and "Traceback" not in process.err
    process = launch("evaluate")
    assert process.returncode == 2 and process.err.strip() == "error: --workdir is missing: see the README"


@pytest.mark.parametrize("most_bytes", [9_000, 40_000])  # met first by a checkpoint, or by the events
def test_a_full_disk_is_one_line_and_loses_nothing(most_bytes, config, tmp_path):
    """The limit on file sizes stands for a full disk: a write fails in the middle of the run."""
    sources.load("digits", "train")
    fields = dict(num_epochs=18, log_every=1)
    limited = "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    limited += (
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({most_bytes}, {most_bytes})); sys.argv[0] = 'launch/train.py';"
    )
    limited += "runpy.run_module('launch.train', run_name='__main__')"
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": ""}
    process = subprocess.run(
        [sys.executable, "-c", limited, *flags(tmp_path / "run", **fields)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    last = process.stderr.strip().splitlines()[-1]
    assert process.returncode == 2 and last.startswith("error: cannot write: [Errno 27] File too large"), process.stderr
    config |= fields
    assert train.run(config, tmp_path / "run")["resumed_from"] > 0 or most_bytes < 10_000
    train.run(config, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_two_processes_train_like_one(tmp_path):
    """Two real processes of one device each, found as under SLURM, BatchNorm over both, against one of one device."""
    fields = dict(network=SMALL, batch_norm="global", num_epochs=1, num_devices=0, batch_size=128)
    environment = os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=4", "device_count=1"),
        "PYTHONPATH": str(pathlib.Path(__file__).parent),
    }
    environment.pop("KUBERNETES_SERVICE_HOST", None)  # of a cluster that runs the tests
    environment |= {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1"}
    environment |= {"SLURM_NTASKS": "2", "JAX_COORDINATOR_PORT": str(20_000 + os.getpid() % 20_000)}
    command = [sys.executable, "-m", "launch.train", *flags(tmp_path / "two", **fields), "--coordinator=auto"]
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, env=environment | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    train.run(load("line_digits", **FIELDS | fields | {"num_devices": 1}), tmp_path / "one")
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-4)
    both = (checkpoints.restore(tmp_path / name).params for name in ("one", "two"))
    chex.assert_trees_all_close(*both, rtol=1e-3, atol=1e-4)
    assert json.loads((tmp_path / "two" / "results" / "points.json").read_text())["step"] == 11
