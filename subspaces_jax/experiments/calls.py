"""What the fields that choose may name: tables of calls, and of words.

A call is written as in Python, `name(option=value)`, and its options are the arguments of the entry, see `choices`.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp

from subspaces_jax import geometry, tasks
from subspaces_jax.data import augmentation, subsets
from subspaces_jax.experiments.schema import LARGEST, SEEDS
from subspaces_jax.training import optimizers, regularity, schedules

SUBSPACES: dict[str, Callable[..., Any]] = {
    "none": lambda: geometry.Simplex(1),
    "line": geometry.Line,
    "bezier": geometry.Bezier,
    "chain": geometry.Chain,
    "simplex": lambda num_endpoints=3: geometry.Simplex(num_endpoints),
}
AUGMENTATIONS: dict[str, Callable[..., tuple[Callable, ...]]] = {
    "none": lambda: (),
    "flip": lambda: (augmentation.random_flip,),
    "crop": lambda padding=4: (partial(augmentation.random_crop, padding=_whole("padding", padding)),),
    "shift1": lambda: AUGMENTATIONS["crop"](1),
    "crop_flip": lambda: (*AUGMENTATIONS["crop"](), *AUGMENTATIONS["flip"]()),
}
NORMALISATIONS: dict[str, Callable[..., tuple[tuple[float, ...], tuple[float, ...]] | None]] = {  # -> (mean, std)
    "dataset": lambda: None,
    "none": lambda: ((), ()),
    "given": lambda mean, std: (_numbers("mean", mean), _numbers("std", std)),
}
STATISTICS: dict[str, Callable[..., Any]] = {"none": lambda: None, "p_variation": regularity.variations}
CLASSES: dict[str, Callable[..., Callable[[int], Any] | None]] = {  # -> (number of classes) -> those that are used
    "all": lambda: None,
    "first": lambda num: partial(subsets.first_classes, num=_whole("num", num)),
    "drawn": lambda num, seed=0: partial(subsets.drawn_classes, num=_whole("num", num), seed=_seed(seed)),
}
HOLDOUTS: dict[str, Callable[..., Callable[[Any], Any] | None]] = {  # -> (labels) -> rows to train on, and held out
    "none": lambda: None,
    "last": lambda fraction=0.1: lambda labels: subsets.last(len(labels), fraction),
    "drawn": lambda fraction=0.1, seed=0: lambda labels: subsets.last(len(labels), fraction, _seed(seed)),
    "stratified": lambda fraction=0.1, seed=0: lambda labels: subsets.stratified(labels, fraction, _seed(seed)),
}
STOPS: dict[str, Callable[..., int | None]] = {  # -> epochs within which a plateau ends training
    "never": lambda: None,
    "plateau": lambda within=0: _whole("within", within) or LARGEST,
}
SPLITS = ("test", "validation", "train")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
PRECISIONS = ("default", "high", "highest")
REMATERIALISED = ("none", "all", "all_but_products")
LEAVES = ("auto", "flat", "shaped")
OVER_SAMPLES = ("auto", "vmap", "scan", "unroll")
CALLS: dict[str, tuple[Mapping[str, Callable[..., Any]], tuple[str, ...]]] = {  # field -> table, what the program gives
    "subspace": (SUBSPACES, ()),
    "task": (tasks.TASKS, ()),
    "optimizer": (
        optimizers.OPTIMIZERS,
        ("schedule", "weight_decay", "weight_path", "activation", "steps_per_epoch"),
    ),
    "schedule": (schedules.POLICIES, ("peak", "num_epochs", "warmup")),
    "augmentation": (AUGMENTATIONS, ()),
    "normalisation": (NORMALISATIONS, ()),
    "statistics": (STATISTICS, ("weight_path",)),
    "classes": (CLASSES, ()),
    "validation": (HOLDOUTS, ()),
    "stop": (STOPS, ()),
}


def _whole(name: str, value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} is a whole number from 0 up, got {value!r}")
    return value


def _seed(value: Any) -> int:
    if _whole("seed", value) >= SEEDS:
        raise ValueError(f"seed is below 2^32, got {value}")
    return value


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    values = values if isinstance(values, tuple) else (values,)
    if not values or not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        raise ValueError(f"{name} is a number or a tuple of them, got {values!r}")
    if name == "std" and min(values) <= 0:
        raise ValueError(f"std is positive, got {values!r}")
    return tuple(float(value) for value in values)
