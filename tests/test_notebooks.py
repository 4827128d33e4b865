"""What every notebook keeps to, before it is run: pytest runs them all, see colabs/conftest.py."""

import importlib.util
import pathlib
import re
import sys
import tomllib

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))
COLAB = "https://colab.research.google.com/"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_installs_shows_and_tells(path):
    cells = nbformat.read(path, 4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    assert "pip install" in code[0].source and "find_spec" in code[0].source
    assert "%matplotlib inline" in code[0].source  # without it a figure is shown as its name
    assert not any(line.lstrip().startswith(("def ", "class ")) for cell in code for line in cell.source.splitlines())
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert any("SUBSPACES_JAX_EPOCHS" in cell.source for cell in code)  # the one variable that makes it small


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_in_colab_and_knows_where_the_package_is(path):
    """Without an address in pyproject.toml the badge opens Colab itself, where the file is uploaded."""
    title, first, *_ = nbformat.read(path, 4).cells
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {}).get("Repository", "")
    place = f"github/{address.removeprefix('https://github.com/')}/blob/main/colabs/{path.name}" if address else ""
    assert f"[![Open in Colab]({COLAB}assets/colab-badge.svg)]({COLAB}{place})" in title.source
    assert re.search(r'^repository = "(.*?)"', first.source, re.MULTILINE)[1] == address


class Shell:
    """It notes the commands of a cell, and makes the folder that git would clone."""

    def __init__(self):
        self.names, self.commands = {"get_ipython": lambda: self}, []

    def system(self, command):
        self.commands.append(command.format(**self.names))
        if command.startswith("git clone"):
            (self.names["root"] / "colabs").mkdir(parents=True)

    def run_line_magic(self, name, line):
        assert (name, line) == ("matplotlib", "inline")


@pytest.fixture
def first_cell(monkeypatch):
    """(notebook, is the package installed?, its address) -> the commands of the first cell, run here."""

    def run(path, installed=False, repository=""):
        source = next(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
        code = TransformerManager().transform_cell(source).replace('repository = ""', f"repository = {repository!r}")
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: sys if installed else None)
        shell = Shell()
        exec(code, shell.names)
        return shell.commands

    return run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_installs_where_it_must(path, first_cell, tmp_path, monkeypatch):
    install = f"{sys.executable} -m pip install -q -e "
    monkeypatch.chdir(ROOT / "colabs")
    assert first_cell(path) == [f"{install}{ROOT}"] and pathlib.Path.cwd() == ROOT
    monkeypatch.chdir(tmp_path)
    assert first_cell(path, installed=True) == [] and pathlib.Path.cwd() == tmp_path
    with pytest.raises(SystemExit, match="set `repository` above to its address"):
        first_cell(path)
    there = tmp_path / "checkout"
    cloned = first_cell(path, repository="https://example.org/x")
    assert cloned == [f"git clone -q https://example.org/x {there}", f"{install}{there}"]
    assert pathlib.Path.cwd() == there
    assert first_cell(path, installed=True) == [] and pathlib.Path.cwd() == there  # the cell is run again


def test_every_notebook_of_the_plan_is_there():
    names = {path.stem for path in NOTEBOOKS}
    assert names == {
        *("quickstart", "subspaces", "mode_connectivity", "autoencoders", "weight_regularity", "hyperplanes"),
        "crossing",
    }
