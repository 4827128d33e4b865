"""Random streams, parameter trees and the architecture of the package itself."""

import ast
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import subspaces_jax
from subspaces_jax import rngs, trees

PACKAGE = pathlib.Path(__file__).parents[1] / "subspaces_jax"


def rooms():
    """The rooms in their order, as the package's docstring has them: a module imports only from rooms before its own,
    and within its own."""
    floors = re.search(r"before its own:\n\n(.*)", subspaces_jax.__doc__, re.DOTALL)[1]
    names = re.sub(r"^ *\d ", "", floors, flags=re.MULTILINE).split()
    above = names.index("experiments:")
    return [*names[:above], *(f"experiments.{name}" for name in names[above + 1 :])]


ROOMS = rooms()
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")


def name_of(path):
    """The module of a file of the package, "experiments.build.data"."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module):
    """The place of a module's room in the list, None for the package itself and its bare folders."""
    found = [i for i, room in enumerate(ROOMS) if module == room or module.startswith(f"{room}.")]
    return found[0] if found else None


def imports(path):
    """What a file imports, relative imports resolved: modules of the package, as of `name_of`, and other names."""
    own, others = set(), set()
    package = ["subspaces_jax", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base += node.module.split(".") if node.module else []
            names = [".".join([*base, alias.name]) for alias in node.names]
        own |= {name.removeprefix("subspaces_jax.") for name in names if name.startswith("subspaces_jax.")}
        others |= {name for name in names if name.split(".")[0] != "subspaces_jax"}
    return own, others


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_rooms_before_its_own(path):
    own, others = imports(path)
    room = room_of(name_of(path))
    assert room is not None or name_of(path) == "experiments", "every module has a room in the list"
    for module in own:
        found = room_of(module)
        assert found is not None, f"{name_of(path)} imports {module}, which is no room"
        assert found <= room, f"{name_of(path)} imports {module}, which comes after it"
    assert not {name for name in others if name.split(".")[0] in ("tensorflow", "torch", "ml_collections")}


def test_the_test_of_imports_sees_relative_ones(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "x.py"
    file.write_text("from . import stream\nfrom .. import records\nfrom ..training.step import make_step\nimport a.b\n")
    assert imports(file) == ({"data.stream", "records", "training.step.make_step"}, {"a.b"})


def test_a_config_is_read_in_build_alone():
    """Below `build` there are named arguments only: no other module of experiments subscripts a config."""
    for path in (PACKAGE / "experiments").rglob("*.py"):
        if path.parent.name == "build" or path.stem in ("schema", "fields", "choices"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name | ast.Attribute):
                name = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
                assert name != "config" or not isinstance(node.slice, ast.Constant), (path, node.lineno)


def test_every_folder_with_modules_is_a_package():
    """Else the reference that pdoc makes leaves it out."""
    assert all((path.parent / "__init__.py").exists() for path in FILES)


def test_importing_everything_has_no_side_effect_and_needs_no_tensorflow():
    # imported when they are needed: builders are TFDS classes, and tensorboardX behind events imports torch where it is
    files = [path for path in FILES if path.parent.name != "builders" and path.stem != "events"]
    modules = [".".join(("subspaces_jax", *p.relative_to(PACKAGE).with_suffix("").parts)) for p in files]
    program = (
        "import importlib, sys, jax\n"
        f"for name in {modules}: importlib.import_module(name.removesuffix('.__init__'))\n"
        "assert not jax._src.xla_bridge._backends, 'importing started a backend'\n"
        "assert not {'tensorflow', 'torch', 'tensorflow_datasets'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


HEAVY = ("flax.nnx", "matplotlib", "scipy", "sklearn", "grain", "safetensors", "ott", "tensorboardX", "tensorflow")
HEAVY += ("tensorflow_datasets", "torch", "pandas", "IPython")


@pytest.mark.parametrize(
    "modules", ["launch.train, launch.evaluate", "subspaces_jax.checkpoints, subspaces_jax.geometry"]
)
def test_what_is_heavy_is_imported_where_it_is_needed(modules):
    """A command begins, and says what is wrong with its config, without what it needs later or not at all."""
    program = f"import sys, {modules}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_streams_are_the_same_in_processes_with_different_hash_seeds():
    program = (
        "import jax; from subspaces_jax import rngs;"
        "print(jax.random.key_data(rngs.stream(jax.random.key(3), 'coordinates')).tolist())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu"}, capture_output=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1 and b"[" in outputs.pop()


def test_streams_of_different_names_differ():
    key = jax.random.key(0)
    draws = {float(jax.random.uniform(rngs.stream(key, name))) for name in ("init", "order", "coordinates", "pair")}
    assert len(draws) == 4


def test_leaf_names_and_selection(small_stack):
    stacked = small_stack(2)
    assert list(trees.leaf_names(stacked))[:2] == ["Dense_0/bias", "Dense_0/kernel"]
    assert [leaf.shape for leaf in trees.select(stacked, trees.is_kernel)] == [(2, 3, 5), (2, 5, 2)]
    assert trees.num_parameters(stacked) == 2 * (15 + 5 + 5 + 10 + 2)


def test_a_mismatch_is_described_in_one_line():
    a = {"x": np.zeros(2), "y": np.zeros((2, 3))}
    assert trees.describe_mismatch(a, a) is None
    assert trees.describe_mismatch({"x": np.zeros(3), "z": np.zeros(1)}, a) == (
        "- y (2, 3), + z (1,), x (3,) instead of (2,)"
    )
    many = trees.describe_mismatch({}, {f"p{i}": jnp.zeros(1) for i in range(9)})
    assert many.endswith("and 5 more") and "\n" not in many
