"""What a field of a config may hold: its type, its range, and the text that stands for a value."""

import math
import shlex
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from subspaces_jax.errors import ConfigError, did_you_mean
from subspaces_jax.experiments import choices

Config = Mapping[str, Any]
LARGEST = 2**31 - 1  # of whole numbers: steps and indices are int32
SEEDS = 2**32  # what a PRNG key tells apart
RENAMED: dict[str, str] = {}  # fields of stored configs by their old names


class Field(NamedTuple):
    """What a config field may hold.

    Attributes:
        default: where a config lacks the field, a stored one from before it was added included: what keeps the old
            behaviour. Its type is the field's.
        accepts: whether a value of that type is in range.
        meaning: for messages and lists.
    """

    default: Any
    accepts: Callable[[Any], bool]
    meaning: str

    @property
    def type(self) -> type:
        return type(self.default)


def at_least(low: float, below: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: low <= value < below and (value <= LARGEST or type(value) is float or below < math.inf)


def anything(value: Any) -> bool:
    return True


def fraction(value: float) -> bool:
    return 0.0 <= value <= 1.0


def whole_numbers(value: str) -> bool:
    return all(part.isdigit() and int(part) <= LARGEST for part in choices.split(value))


def one_of(*names: str) -> Callable[[Any], bool]:
    return lambda value: value in names


def upgrade(config: Config) -> dict[str, Any]:
    """A stored config under today's names of its fields."""
    return {RENAMED.get(name, name): value for name, value in config.items()}


def checked(config: Config, fields: Mapping[str, Field]) -> dict[str, Any]:
    """The config as a plain dict, every field known, well-typed and in range; one that is left out has its default.

    Raises:
        ConfigError: names the field, what it got and what it takes.
    """
    config = dict(config)
    if extra := sorted(config.keys() - fields.keys()):
        raise ConfigError(unknown_field(extra[0], fields))
    config = {name: config.get(name, field.default) for name, field in fields.items()}
    for name, field in fields.items():
        value = config[name]
        if field.type is float and type(value) is int:
            config[name] = value = float(value)
        if field.type is tuple and type(value) is list:  # as JSON has it
            config[name] = value = tuple(value)
        if (
            type(value) is not field.type
            or isinstance(value, float)
            and not math.isfinite(value)
            or not field.accepts(value)
        ):
            raise ConfigError(f"config.{name} is {value!r}: it takes {field.type.__name__}, {field.meaning}")
    return config


def from_text(name: str, text: str, fields: Mapping[str, Field]) -> Any:
    """The value that `text` stands for in the field `name`.

    Raises:
        ConfigError: no such field, or text that is not of its type.
    """
    if name not in fields:
        raise ConfigError(unknown_field(name, fields))
    kind = fields[name].type
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        raise ConfigError(f"config.{name} is {text!r}: it takes {kind.__name__}, {fields[name].meaning}") from None


def key_values(text: str) -> dict[str, str]:
    """ "a=1 b=x" as {"a": "1", "b": "x"}; spaces within parentheses or quotes belong to the value."""
    try:
        pairs = [part.partition("=") for part in choices.split(text, " ")]
    except ConfigError as error:
        raise ConfigError(f"{text!r} is not name=value, separated by spaces ({error})") from None
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ConfigError(f"{wrong[0]!r} in {text!r} has no value: write name=value, separated by spaces")
    return {name: _unquoted(value) for name, _, value in pairs}


def unknown_field(name: str, fields: Mapping[str, Field]) -> str:
    """The message for a field that does not exist."""
    return f"config field {unknown(name, fields)}"


def unknown(name: str, known: Mapping[str, Any]) -> str:
    """The name, and what it may have meant."""
    return f"{name!r}, which is unknown: {did_you_mean(name, known)}"


def _unquoted(text: str) -> str:
    """Without the quotes around it, as a shell would read it; those of a call's own arguments stay."""
    return shlex.split(text)[0] if text[:1] in ("'", '"') else text
