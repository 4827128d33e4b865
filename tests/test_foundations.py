"""Random streams, parameter trees and the architecture of the package itself."""

import ast
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subspaces_jax import rngs, trees

PACKAGE = pathlib.Path(__file__).parents[1] / "subspaces_jax"
FLOORS = {  # rooms not named here are arrays only, on floor 0
    3: {"experiments"},
    2: {"training", "connecting", "analysis", "plots"},
    1: {"evaluation", "checkpoints", "parallel", "records", "events"},
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
GROUND = ["errors", "logs", "rngs", "trees", "losses", "metrics", "pvariation", "geometry", "networks", "data"]


def imports(path):
    """The rooms of the package that a file imports from, and every module name it imports."""
    rooms, modules = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        modules |= set(names)
        rooms |= {name.split(".")[1] for name in names if name.startswith("subspaces_jax.") and name.count(".")}
    return rooms, modules


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_floors_below_it(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    rooms, modules = imports(path)
    for room in rooms - {own}:
        below = FLOOR_OF.get(room, 0) < FLOOR_OF.get(own, 0)
        same_ground = FLOOR_OF.get(own, 0) == FLOOR_OF.get(room, 0) == 0 and GROUND.index(room) < GROUND.index(own)
        same_floor = own in FLOORS[1] and room in FLOORS[1]
        assert below or same_ground or same_floor, f"{own} imports {room}"
    assert not {name for name in modules if name.split(".")[0] in ("tensorflow", "torch", "ml_collections")}


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
