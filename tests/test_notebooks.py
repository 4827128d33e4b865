"""What every notebook keeps to, before it is run: pytest runs them all, see colabs/conftest.py."""

import pathlib

import nbformat
import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "colabs").glob("*.ipynb"))


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


def test_every_notebook_of_the_plan_is_there():
    names = {path.stem for path in NOTEBOOKS}
    assert names == {
        *("quickstart", "subspaces", "mode_connectivity", "autoencoders", "weight_regularity", "hyperplanes"),
        "crossing",
    }
