"""The README's commands name files, fields and flags that exist, and its example runs."""

import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from configs import variants
from subspaces_jax.experiments import analyze, connect, fields
from subspaces_jax.experiments.studies import STUDIES, average

ROOT = pathlib.Path(__file__).parents[1]
KNOWN = fields.FIELDS | fields.SWEEP_FIELDS | analyze.FIELDS | connect.FIELDS
README = (ROOT / "README.md").read_text()
LAB_BOOK = (ROOT / "configs" / "README.md").read_text()
COMMANDS = [
    line.strip()
    for line in (README + LAB_BOOK).splitlines()
    if line.startswith("    ") and line.strip().startswith(("pip", "python"))
]


def test_the_first_screen_has_the_two_commands_and_no_other():
    first = README[: README.index("```python")]
    assert [line.strip() for line in first.splitlines() if line.startswith("    ")] == [
        "pip install -e . && python -m launch.train --config=configs/line_digits.py --workdir=runs/line_digits",
        "pip install -e '.[test]' && pytest",
    ]
    assert len(README.splitlines()) < 150 and "@@" not in README + LAB_BOOK  # no number is left to fill in


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_what_exists(command):
    for word in shlex.split(command):
        if word.startswith("launch."):
            assert (ROOT / f"{word.replace('.', '/')}.py").exists(), word
        if word.startswith("--config="):
            assert (ROOT / word.removeprefix("--config=").split(":")[0]).exists(), word
        if word.startswith("--config."):
            assert word.removeprefix("--config.").split("=")[0] in KNOWN, word


def test_files_that_are_named_exist():
    rooms = "configs|colabs|launch|tests|subspaces_jax|networks|geometry|training|data|analysis|experiments|plots"
    named = re.findall(rf"`((?:{rooms})/[\w/.]*|\w+\.py)(?::\w*)?`", README + LAB_BOOK)
    assert len(named) > 9
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "subspaces_jax" / name).exists(), name


def test_variants_that_are_named_exist():
    named = re.findall(r"`(?:configs/(?:cifar10|fashion_mnist)\.py)?:([\w,]+)`", README)
    assert len(named) > 9
    for variant in ",".join(named).split(","):
        assert variant in variants.VARIANTS or variant in average.AVERAGES or variant in STUDIES, variant


def test_the_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert example.count("\n") <= 14
    process = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=True, cwd=ROOT)
    assert process.stdout.startswith("0.0 (4, 10)\n0.5 (4, 10)\n1.0 (4, 10)\ncosine^2 of the ends:")
