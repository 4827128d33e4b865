"""Resets: which layers of a trained network can go back to other values, their initial ones for example.

A reset is a point of the stack (trained network, others): one-hot coordinates, those of another row in the layers that
are reset and of the trained network everywhere else. `contract` and `evaluation.along` take such points as they are.

Reference: Zhang, Bengio and Singer, Are All Layers Created Equal?, 2019, arXiv:1902.01996, section 2: a layer is
critical where a reset costs accuracy, robust where it does not. Nothing is trained again.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from subspaces_jax import trees
from subspaces_jax.geometry import contract
from subspaces_jax.tasks import Task

PyTree = Any
KINDS = ("convolutions", "dense", "kernels", "norms", "blocks", "stages")


def layer_names(params: PyTree) -> list[str]:
    """The modules that own parameters, "BasicBlock_0/Conv_1", in the order of jax.tree.leaves."""
    return list(dict.fromkeys(name.rpartition("/")[0] for name in trees.leaf_names(params) if "/" in name))


def parts(
    text: str, params: PyTree, layers: Sequence[str] | None = None, stages: Mapping[str, int] = {}
) -> dict[str, tuple[str, ...]]:
    """What is reset together, by name, from words separated by commas.

    Args:
        text: of each word either a kind or layers joined by +, which are reset jointly. Kinds: convolutions (without
            those of 1x1), dense, kernels (both), norms (layers with a scale), each layer alone; blocks, every module
            of the network that holds others; stages, all layers of a stage together.
        params: a parameter tree, of one network.
        layers: its layers in the order of the forward pass; by default that of the tree.
        stages: {layer: stage}, for `stages`.

    Returns:
        {name: layers}, in order.

    Raises:
        ValueError: a word that is neither a kind nor layers of the network, or a kind of which the network has none.
    """
    layers = layer_names(params) if layers is None else list(layers)
    leaves, found = trees.leaf_names(params), {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        named = [name.strip() for name in word.split("+")]
        if word in KINDS:
            of_word = _of_kind(word, layers, {name: leaf.shape for name, leaf in leaves.items()}, stages)
        elif unknown := [name for name in named if name not in layers]:
            raise ValueError(
                f"{unknown[0]!r} is no layer of the network: it has {', '.join(layers)}; and kinds {', '.join(KINDS)}"
            )
        else:
            of_word = {word: tuple(named)}
        if not of_word:
            raise ValueError(f"the network has no {word} to reset: it has {', '.join(layers)}")
        found |= of_word
    if not found:
        raise ValueError(f"nothing to reset in {text!r}: write {', '.join(KINDS)}, or layers joined by +")
    return found


def resets(params: PyTree, parts: Mapping[str, Sequence[str]], num_rows: int) -> PyTree:
    """One-hot coordinates of the trained network and of every reset, one [K] a module, for a stack of K = `num_rows`.

    Point 0 is the trained network, row 0; point 1 + (k - 1) G + g has row k in the layers of part g, row 0 elsewhere.

    Args:
        params: a parameter tree; only its names are read.
        parts: {name: layers}, G of them, see the function of that name.
        num_rows: K, at least 2.

    Returns:
        A prefix tree of `params`, leaves [1 + (K - 1) G, K].

    Raises:
        ValueError: fewer than 2 rows.
    """
    if num_rows < 2:
        raise ValueError(f"resets take a stack of the trained network and at least one other, got {num_rows} rows")
    one_hot = np.eye(num_rows, dtype=np.float32)

    def rows_of(layer: str) -> jax.Array:
        hit = [layer in of_part for of_part in parts.values()]
        return jnp.asarray(one_hot[[0, *(k if is_hit else 0 for k in range(1, num_rows) for is_hit in hit)]])

    def build(node: PyTree, name: str) -> PyTree:
        inner = {key: f"{name}/{key}" if name else key for key in node if isinstance(node[key], Mapping)}
        if not inner:
            return rows_of(name)
        found = {key: build(node[key], inner[key]) if key in inner else rows_of(name) for key in node}
        return found if type(node) is dict else type(node)(found)  # a FrozenDict where that is one

    return build(params, "")


def relative_drop(trained: Any, reset: Any) -> np.ndarray:
    """(trained - reset) / trained of accuracies, which broadcast: 0 for a robust layer, near 1 at chance of many
    classes, below 0 where a reset helps; NaN for a trained accuracy of 0."""
    trained, reset = np.asarray(trained, np.float64), np.asarray(reset, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(trained == 0, np.nan, (trained - reset) / trained)


class Together(NamedTuple):
    """What `evaluation.along` takes to score V points in one pass, with networks and tasks mapped over V.

    Attributes:
        points: leaves [T, V, K].
        params_at, apply, apply_train, task: in the place of those of one network.
        num: of points before the last ones were repeated to fill the last V.
    """

    points: PyTree
    params_at: Callable
    apply: Callable
    apply_train: Callable | None
    task: Task
    num: int

    def of(self, values: np.ndarray) -> np.ndarray:
        """[T, V, ...], what a measure gave -> [num, ...]."""
        return np.reshape(values, (-1, *np.shape(values)[2:]))[: self.num]


def together(points: PyTree, size: int, apply: Callable, apply_train: Callable | None, task: Task) -> Together:
    """`size` points a pass: on accelerators small networks are too little work one by one; on CPU it is slower.

    Args:
        points: leaves [T', K].
        size: V, at least 1.
        apply, apply_train: of one network, see `evaluation`; apply_train may be None.
        task: of the network.
    """
    num = jax.tree.leaves(points)[0].shape[0]
    size = min(size, num)
    rows = np.minimum(np.arange(-(-num // size) * size), num - 1).reshape(-1, size)
    chunked = jax.tree.map(lambda leaf: leaf[rows], points)
    of_many = None if apply_train is None else _train_of_many(apply_train)
    return Together(chunked, _at_many, _of_many(apply), of_many, _task_of_many(task), num)


def _at_many(tree: PyTree, points: PyTree) -> PyTree:
    return jax.vmap(contract, in_axes=(None, 0))(tree, points)


@lru_cache
def _of_many(apply: Callable) -> Callable:
    """(variables [V, ...], images [B, ...]) -> outputs [B, V, ...]."""
    return jax.vmap(apply, in_axes=(0, None), out_axes=1)


@lru_cache
def _train_of_many(apply_train: Callable) -> Callable:
    return jax.vmap(apply_train, in_axes=(0, None, None))


@lru_cache
def _task_of_many(task: Task) -> Task:
    """The task with scores [V] of outputs [B, V, ...]."""
    scores = jax.vmap(task.scores, in_axes=(1, None, None))
    return task._replace(scores=scores, read=jax.vmap(task.read))


def _of_kind(
    kind: str, layers: Sequence[str], shapes: Mapping[str, tuple[int, ...]], stages: Mapping[str, int]
) -> dict[str, tuple[str, ...]]:
    """The parts of a kind, in order."""
    if kind in ("blocks", "stages"):
        groups: dict[str, list[str]] = {}
        for layer in layers:
            name = layer.partition("/")[0] if "/" in layer else None
            name = name if kind == "blocks" else f"stage {stages[layer]}" if layer in stages else None
            if name is not None:
                groups.setdefault(name, []).append(layer)
        return {name: tuple(of) for name, of in groups.items()}
    return {layer: (layer,) for layer in layers if _is_of_kind(kind, layer, shapes)}


def _is_of_kind(kind: str, layer: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    kernel = shapes.get(f"{layer}/kernel", ())
    is_convolution = len(kernel) == 4 and tuple(kernel[:2]) != (1, 1)
    is_dense = len(kernel) == 2
    return {
        "convolutions": is_convolution,
        "dense": is_dense,
        "kernels": is_convolution or is_dense,
        "norms": f"{layer}/scale" in shapes,
    }[kind]
