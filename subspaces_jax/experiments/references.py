"""Which papers a run rests on: those that the docstrings of its choices cite, "Reference: author, title, year, ...".

A new choice is cited by its own docstring; nothing is listed twice.
"""

import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from subspaces_jax import geometry, losses
from subspaces_jax.connecting import CONNECTORS
from subspaces_jax.data import corruption
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import choices
from subspaces_jax.experiments.calls import CALLS
from subspaces_jax.experiments.schema import Config
from subspaces_jax.experiments.studies import STUDIES
from subspaces_jax.networks import families
from subspaces_jax.training import step

_CITED = re.compile(r"References?: (.+?)(?:\n\s*\n|\Z)", re.DOTALL)
_REMARK = re.compile(r"^[a-z].*? in (?=[A-Z])")  # "shortcuts as in He et al. ..."
_ARXIV = re.compile(r"arXiv:\d{4}\.\d{4,5}")
WHERE_SET: dict[str, Any] = {  # fields that are numbers or switches -> what they turn on
    "beta": geometry.cosine_penalty,
    "feature_diversity": step.feature_similarity,
    "label_smoothing": losses.cross_entropy,
    "label_noise": corruption.noisy_labels,
    "pixel_shuffle": corruption.pixel_shuffle,
}


def of(config: Config) -> list[str]:
    """The references of a training, an analysis or a path, each paper once, as "author, title, year, arXiv:...".

    Args:
        config: fields of it; choices that are not of this package cite nothing.
    """
    found: dict[str, str] = {}
    for thing in _used(config):
        for reference in cited(thing):
            paper = match[0] if (match := _ARXIV.search(reference)) else reference
            found[paper] = max(found.get(paper, ""), reference, key=len)  # with its title where one place gives it
    return sorted(found.values())


def text(config: Config) -> str:
    """The references as lines for a terminal, "" where there are none."""
    found = of(config)
    return "\n".join(["references:", *(f"  {reference}" for reference in found)]) if found else ""


def cited(thing: Any) -> list[str]:
    """What a docstring cites, without sections and remarks after an arXiv number."""
    parts = [part for block in _CITED.findall(inspect.getdoc(thing) or "") for part in block.split(";")]
    texts = [_REMARK.sub("", " ".join(part.split()).rstrip(".")) for part in parts]
    texts = [text for text in texts if re.search(r"\d{4}", text)]  # without a year it is a remark, and no paper
    return [text[: match.end()] if (match := _ARXIV.search(text)) else text for text in texts]


def _used(config: Config) -> Iterator[Any]:
    """The constructors, functions and modules that a config's fields choose."""
    if study := STUDIES.get(config.get("analysis", "")):
        yield study
    for chosen in _constructors(config.get("connector", ""), CONNECTORS):
        yield from (chosen, sys.modules[chosen.__module__])
    yield from map(_network, _names(config.get("network", "")))
    for field, (table, _) in CALLS.items():
        for chosen in _constructors(config.get(field, ""), table):
            yield chosen if inspect.getdoc(chosen) or field != "subspace" else _space(chosen())
    yield from (thing for field, thing in WHERE_SET.items() if config.get(field))


def _space(made: Any) -> Any:
    """The class of a subspace; of a single network nothing to cite."""
    return type(made) if made.num_endpoints > 1 else None


def _names(text: str) -> list[str]:
    try:
        return [call.name for call in choices.parse(text)] if text else []
    except ConfigError:  # an import path, package.module:Name
        return []


def _constructors(text: str, table: Any) -> list[Callable[..., Any]]:
    found = [table[name] for name in _names(text) if name in table]
    return [one.func if isinstance(one, functools.partial) else one for one in found]


def _network(name: str) -> Any:
    """The class of a network's family, by its name alone or with sizes, "cifar_resnet_20"; None of other ones."""
    return families.NETWORKS.get(name) or families.NETWORKS.get(re.sub(r"(_\d+)+$", "", name))
