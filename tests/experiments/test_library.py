"""The package without its checkout: from a wheel, with fields that differ from the defaults; and every field read."""

import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from test_configs import load
from test_runs import ROOT

from subspaces_jax.experiments import build, evaluate, fields, sweep, train


def test_every_field_is_read(tmp_path, monkeypatch):
    """By `build`, from training to evaluation, or it would do nothing; a label is for people."""
    read = set()

    class Recorder(dict):
        def __getitem__(self, name):
            read.add(name)
            return super().__getitem__(name)

    check = build.check
    monkeypatch.setattr(build, "check", lambda config: Recorder(check(config)))
    config = load("line_digits", network="mlp_8", num_epochs=1, num_points=3, keep_every=1, decay="point")
    train.run(config, tmp_path / "line")
    evaluate.run(None, tmp_path / "line")
    with pytest.raises(Exception, match="not prepared"):
        train.run(load("imagenet", "line", num_devices=1, data_dir=str(tmp_path)), tmp_path / "stream")
    assert set(fields.FIELDS) - read == set()


def test_a_sweep_of_the_defaults_runs_through_the_library(tmp_path):
    """Without a config file; what variants set are calls, whose commas are their own."""
    common = "dataset=digits network=mlp_8 num_epochs=1 warmup_epochs=0 num_devices=1 num_points=3"
    config = {"variants": ("subspace=line", "subspace=bezier(3),beta=0.5"), "seeds": (0,), "fields": common}
    assert sweep.run(config, tmp_path) == {"finished": 0, "ran": 2}
    facts = sweep.gather(tmp_path)
    assert sorted(facts["family"]) == ["subspace=bezier(3),beta=0.5", "subspace=line"]
    assert facts["family"]["subspace=bezier(3),beta=0.5"][0]["config"]["beta"] == 0.5
    os.rename(tmp_path / "subspace=line_0", tmp_path / "renamed")
    assert sorted(sweep.gather(tmp_path)["family"]) == sorted(facts["family"])
    points = tmp_path / "renamed" / "results" / "points.json"
    points.write_text("")
    assert not sweep.is_finished(tmp_path / "renamed")


PROGRAM = """
import subspaces_jax, pathlib
from subspaces_jax.experiments import analyze, evaluate, plot, train
assert pathlib.Path(subspaces_jax.__file__).is_relative_to({folder!r}), subspaces_jax.__file__
assert subspaces_jax.__version__ == "0.1.0"
config = dict(dataset="digits", network="mlp(widths=(8,))", num_epochs=1, warmup_epochs=0, num_points=3)
last = train.run(config, "run")
facts = evaluate.run({{"num_points": 5}}, "run")
assert len(facts["scores"]["nll"]) == 5
analyze.run({{"runs": "run", "members": "endpoints"}}, "study")
print(len(plot.run(None, "run")["figures"]), len(plot.run(None, "study")["figures"]), last["step"])
"""


def test_the_library_works_from_a_wheel_in_another_folder(tmp_path, data_dir):
    source = tmp_path / "source"  # a build leaves files beside what it builds
    shutil.copytree(ROOT / "subspaces_jax", source / "subspaces_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    build_it = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    subprocess.run(build_it, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("subspaces_jax-*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as content:
        content.extractall(installed)
        names = content.namelist()
    assert "subspaces_jax/py.typed" in names and not [name for name in names if name.startswith(("tests", "launch"))]
    place = tmp_path / "elsewhere"
    place.mkdir()
    environment = os.environ | {"PYTHONPATH": str(installed), "TFDS_DATA_DIR": data_dir}
    program = PROGRAM.format(folder=str(installed))
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=place, env=environment, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.split()[-3:] == ["4", "2", str(1437 // 128)]
    assert np.all([(place / name / "config.json").exists() for name in ("run", "study")])
