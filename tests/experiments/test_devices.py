"""Runs of every kind have the same numbers on one device and on four, in one process and in two."""

import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys

import chex
import matrix
import numpy as np
import pytest
from test_runs import ROOT, rows
from test_streams import folder as imagenet_folder

from subspaces_jax import checkpoints, records
from subspaces_jax.data import catalogue
from subspaces_jax.experiments import evaluate, train

imagenet = imagenet_folder
LAYOUTS = {"four devices": None, "two processes of one": 1, "two processes of two": 2}


@pytest.fixture(scope="module")
def ran(tmp_path_factory, imagenet):
    """(layout) -> the folder of all runs on it; each layout is run once."""
    root, done = tmp_path_factory.mktemp("devices"), {}

    def on(layout):
        if layout not in done:
            done[layout] = root / layout.replace(" ", "_")
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(catalogue.DATASETS, "imagenet2012", catalogue.DATASETS["imagenet2012"])
                if LAYOUTS.get(layout):
                    in_two_processes(done[layout], imagenet, LAYOUTS[layout])
                else:
                    matrix.run_all(done[layout], str(imagenet), {"one device": 1, "four devices": 4}[layout])
        return done[layout]

    return on


def in_two_processes(folder, imagenet, devices):
    flags = re.sub(r"(device_count=)\d+", rf"\g<1>{devices}", os.environ["XLA_FLAGS"])
    environment = os.environ | {"XLA_FLAGS": flags}
    program, port = pathlib.Path(matrix.__file__), 20_000 + (os.getpid() + 7 * devices) % 20_000
    processes = [
        subprocess.Popen(
            [sys.executable, program, folder, imagenet, f"localhost:{port}", "2", str(i)],
            cwd=ROOT,
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=570)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs


@pytest.mark.parametrize("name", matrix.RUNS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_numbers_are_those_of_one_device(layout, name, ran):
    one, several = (ran(where) / name for where in ("one device", layout))
    for first, second in zip(rows(one), rows(several), strict=True):
        assert first.keys() == second.keys()
        for column in first:
            tolerance = (
                dict(rtol=2e-3, atol=1e-4) if column.startswith(("ece", "test_ece")) else dict(rtol=1e-3, atol=1e-5)
            )
            np.testing.assert_allclose(first[column], second[column], err_msg=column, **tolerance)
    chex.assert_trees_all_close(*(checkpoints.restore(of).params for of in (one, several)), rtol=1e-3, atol=1e-4)
    arrays, facts = zip(*(records.load_results(of, evaluate.RESULTS) for of in (one, several)))
    np.testing.assert_allclose(arrays[0]["logits"], arrays[1]["logits"], rtol=2e-3, atol=2e-3)
    np.testing.assert_array_equal(arrays[0]["labels"], arrays[1]["labels"])
    for score in ("nll", "brier"):
        np.testing.assert_allclose(facts[0]["scores"][score], facts[1]["scores"][score], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["line", "members", "stream"])
def test_a_checkpoint_of_two_processes_goes_on_on_four_devices(name, ran, imagenet, tmp_path, monkeypatch):
    """All but the last epoch by two processes, the rest here; and evaluated here it is what they evaluated."""
    source = ran("two processes of two") / name
    shutil.copytree(source, tmp_path / name)
    small = dict(image_shape=(matrix.SIZE, matrix.SIZE, 3))

    monkeypatch.setitem(
        catalogue.DATASETS, "imagenet2012", dataclasses.replace(catalogue.DATASETS["imagenet2012"], **small)
    )
    facts = evaluate.run(None, tmp_path / name)
    stored = records.load_facts(source, evaluate.RESULTS)
    np.testing.assert_allclose(facts["scores"]["nll"], stored["scores"]["nll"], rtol=1e-3)
    if name == "stream":
        last = checkpoints.steps(tmp_path / name)[-1]
        shutil.rmtree(tmp_path / name / "checkpoints" / str(last))
        config = records.read_config(tmp_path / name)
        assert train.run(config, tmp_path / name)["resumed_from"] == last // 2
        both = (checkpoints.restore(of).params for of in (source, tmp_path / name))
        chex.assert_trees_all_close(*both, rtol=1e-3, atol=1e-4)
