"""What is trained on a data set, as differences from its base config: the part of a config's name after the colon.

--config=configs/cifar10.py:line_layerwise            one variant
--config=configs/fashion_mnist.py:line,noise_40,tiny  several, in any order, and the tiny form
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from configs import base

ONE_NETWORK = {"subspace": "none", "beta": 0.0}  # what a baseline is where no subspace is named beside it

BASELINES: dict[str, dict[str, Any]] = {
    "label_smoothing": {"label_smoothing": 0.1},
    "dropout": {"dropout": 0.2},
    "early_stopping": {"test_every": 4},  # the best epoch is read off the logs
}
VARIANTS: dict[str, dict[str, Any]] = {
    # one network, and what it is compared with
    "plain": ONE_NETWORK,
    "ensemble": ONE_NETWORK | {"num_members": 3},
    "swa_constant": ONE_NETWORK | {"schedule": "swa_constant", "capture": True, "num_cycles": 5},
    "swa_cyclic": ONE_NETWORK | {"schedule": "swa_cyclic", "capture": True, "num_cycles": 5},
    "snapshots": ONE_NETWORK | {"schedule": "snapshot_cyclic", "capture": True, "num_cycles": 3},
    **BASELINES,
    # subspaces
    "line": {"subspace": "line"},
    "line_layerwise": {"subspace": "line", "layerwise": True},
    "curve": {"subspace": "bezier"},
    "curve_layerwise": {"subspace": "bezier", "layerwise": True},
    **{f"simplex_{n}": {"subspace": "simplex", "num_endpoints": n, "num_points": 3} for n in range(2, 7)},
    **{
        f"simplex_{n}_layerwise": {"subspace": "simplex", "num_endpoints": n, "num_points": 3, "layerwise": True}
        for n in range(2, 7)
    },
    # how they are trained
    "no_beta": {"beta": 0.0},
    "samples_2": {"num_samples": 2},
    "samples_2_diverse": {"num_samples": 2, "feature_diversity": 1.0},
    # corrupted training data
    "noise_20": {"label_noise": 0.2},
    "noise_40": {"label_noise": 0.4},
    "pixel_shuffle": {"pixel_shuffle": True},
}


def choose(make: Callable[[], ConfigDict], form: str, usual: str) -> ConfigDict:
    """The config that `make` gives, changed by the variants named in `form`; `usual` where it names none.

    Raises:
        ValueError: a name that is neither a variant nor "tiny", or two that contradict each other.
    """
    names = base.words(form, (*VARIANTS, "tiny"))
    chosen = [name for name in names if name != "tiny"] or [usual]
    changes: dict[str, Any] = {}
    for name in chosen:
        if undone := [field for field, value in VARIANTS[name].items() if changes.get(field, value) != value]:
            raise ValueError(
                f"variant {name!r} sets {undone[0]} otherwise than those before it in {form!r}: choose one"
            )
        changes |= VARIANTS[name]
    if "subspace" not in changes and not BASELINES.keys().isdisjoint(chosen):
        changes |= ONE_NETWORK
    config = make()
    config.update(changes)
    config.variant = ",".join(chosen)
    return base.tiny(config) if "tiny" in names else config
