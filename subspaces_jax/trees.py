"""Parameter trees: names of leaves, comparison of two trees, counting."""

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

PyTree = Any
MAX_DIFFERENCES = 4


def leaf_names(tree: PyTree) -> dict[str, Any]:
    """Leaves by name, "Dense_0/kernel" for {"Dense_0": {"kernel": leaf}}, in the order of jax.tree.leaves."""
    return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def select(tree: PyTree, predicate: Callable[[str], bool]) -> list[Any]:
    """The leaves whose name satisfies `predicate`, in the order of jax.tree.leaves."""
    return [leaf for name, leaf in leaf_names(tree).items() if predicate(name)]


def natural(name: str) -> list[Any]:
    """A key that sorts names by the numbers in them, "Conv_2" before "Conv_10"."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def is_kernel(name: str) -> bool:
    """Whether `name` is a weight matrix or a convolution kernel, by Flax's convention."""
    return name.rsplit("/", 1)[-1] == "kernel"


def num_parameters(tree: PyTree) -> int:
    """The number of scalars in a tree of arrays (or of anything with a shape)."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def alike(tree: PyTree, other: PyTree) -> PyTree:
    """The leaves of `tree` in the kinds of mappings of `other`, which has the same names: a dict for a FrozenDict."""
    return jax.tree.unflatten(jax.tree.structure(other), jax.tree.leaves(tree))


def describe_mismatch(found: PyTree, expected: PyTree) -> str | None:
    """How `found` differs from `expected` in names and shapes of leaves, in one line, or None where it does not.

    Leaves that are missing come as "- name (shape)", those that are too many as "+ name (shape)" and those of another
    shape as "name (shape instead of shape)".
    """
    have = {name: tuple(leaf.shape) for name, leaf in leaf_names(found).items()}
    want = {name: tuple(leaf.shape) for name, leaf in leaf_names(expected).items()}
    parts = [f"- {name} {want[name]}" for name in want if name not in have]
    parts += [f"+ {name} {have[name]}" for name in have if name not in want]
    parts += [
        f"{name} {have[name]} instead of {want[name]}" for name in want if name in have and have[name] != want[name]
    ]
    if not parts:
        return None
    more = f", and {len(parts) - MAX_DIFFERENCES} more" if len(parts) > MAX_DIFFERENCES else ""
    return ", ".join(parts[:MAX_DIFFERENCES]) + more


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
