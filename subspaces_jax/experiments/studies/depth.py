"""What studies of weights as paths over depth share: their fields, and what these mean for a network."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from subspaces_jax import geometry
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import choices, runs
from subspaces_jax.experiments.build import Experiment
from subspaces_jax.experiments.runs import Run
from subspaces_jax.experiments.schema import Field, anything


def _numbers(text: str) -> list[float] | None:
    """Numbers separated by commas, None where one is none."""
    try:
        return [float(part) for part in choices.split(text)]
    except (ValueError, ConfigError):
        return None


def _exponents(text: str) -> bool:
    found = _numbers(text)
    return found is not None and bool(found) and all(math.isfinite(p) and p >= 1.0 for p in found)


def _beta(text: str) -> bool:
    found = _numbers(text)
    return not text or found is not None and len(found) == 1 and math.isfinite(found[0])


EXPONENTS = Field("1,1.5,2", _exponents, "p of the p-variations, at least 1, separated by commas")
FIELDS: dict[str, Field] = {
    "exponents": EXPONENTS,
    "beta": Field(
        "",
        _beta,
        "weights are scaled by L^beta: a number; empty for 1 - alpha of networks that have an alpha, and 0 of others",
    ),
    "layers": Field(
        "",
        anything,
        "patterns of the layers that make the path, which have one shape, as in Dense_[1-8] or */Conv_0, separated by "
        "commas; empty for every shape that several layers have",
    ),
}


class Network(NamedTuple):
    """One network of a run.

    Attributes:
        name: of its run and step, and which it is.
        params: its weights.
        experiment: of its own config, that of a member for example.
    """

    name: str
    params: Any
    experiment: Experiment


def networks(run: Run, step: int | None = None) -> list[Network]:
    """What one checkpoint of a run holds: its midpoint, or every member, each with its own config."""
    found, made = runs.networks(run, "midpoint", step), run.experiment
    members = made.members or [made] * len(found.names)
    return [Network(*of) for of in zip(found.names, geometry.unstack(found.stack), members)]


def exponents(settings: Any) -> tuple[float, ...]:
    """p of the p-variations."""
    return tuple(_numbers(settings.exponents) or ())


def layers(settings: Any) -> tuple[str, ...]:
    """Patterns of layers, none for all."""
    return tuple(choices.split(settings.layers))


def beta(settings: Any, made: Experiment) -> float:
    """Of the scale L^beta of a network."""
    if settings.beta:
        return float(settings.beta)
    alpha = getattr(made.model.network, "alpha", None)
    return 0.0 if alpha is None else 1.0 - alpha


def positions(text: str) -> tuple[tuple[int, int], ...] | None:
    """ "(0,0),(1,2)" as pairs, None where it is none."""
    try:
        matches = [re.fullmatch(r"\(\s*(\d+)\s*,\s*(\d+)\s*\)", part) for part in choices.split(text)]
    except ConfigError:
        return None
    pairs = tuple((int(match[1]), int(match[2])) for match in matches if match)
    return pairs if len(pairs) == len(matches) else None


@contextmanager
def of_network(name: str) -> Iterator[None]:
    """What an analysis refuses is an error of the config, of the network that is named."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None
