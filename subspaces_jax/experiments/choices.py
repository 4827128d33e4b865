"""Choices as calls: a field that chooses holds a call as text, and options of the choice are those of the call.

    deep_residual(depth=256, alpha=0.5, init=ntrunc)      crop(padding=4)|flip      bezier(4)      digits

A bare name is a call without arguments. Arguments are literals only: numbers, True, False, None, quoted strings, lists
and tuples of them; a bare word is a string. One splitter, `split`, knows parentheses and quotes: lists of runs, the
variants of a config and the fields of a sweep all use it.
"""

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from subspaces_jax.errors import ConfigError, did_you_mean

OPENING, CLOSING, QUOTES = "([{", ")]}", "'\""
TYPES: dict[type, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}
Table = Mapping[str, Callable[..., Any]]


RANDOM = "random"  # in the place of a run directory: a network of random weights


class Source(NamedTuple):
    """A run directory and a step of it, None for the last."""

    folder: str
    step: int | None = None


class Call(NamedTuple):
    """A name with literal arguments, by place and by name."""

    name: str
    args: tuple = ()
    options: tuple[tuple[str, Any], ...] = ()


def split(text: str, separator: str = ",") -> list[str]:
    """The parts of `text` between separators that stand outside parentheses and quotes, stripped, without empty ones.

    >>> split("a, bezier(4, t=(0, 1)),")
    ['a', 'bezier(4, t=(0, 1))']

    Raises:
        ConfigError: a parenthesis or a quote is not closed.
    """
    parts, depth, quote, start = [], 0, "", 0
    for i, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in QUOTES:
            quote = letter
        elif letter in OPENING:
            depth += 1
        elif letter in CLOSING:
            depth -= 1
        elif not depth and (letter == separator or separator == " " and letter.isspace()):
            parts.append(text[start:i])
            start = i + 1
        if depth < 0:
            break
    if depth or quote:
        raise ConfigError(f"{text!r} has a parenthesis or a quote that is not closed")
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def parse(text: str) -> list[Call]:
    """The calls of "a(1)|b(c=2)", one after another.

    Raises:
        ConfigError: text that is no call, or an argument that is no literal.
    """
    calls = [_parse_one(part) for part in split(text, "|")]
    if not calls:
        raise ConfigError("an empty text is no choice")
    return calls


def source(text: str) -> Source:
    """ "runs/a@200" as its folder and step."""
    folder, at, step = text.rpartition("@")
    return Source(folder, int(step)) if at and step.isdigit() else Source(text)


def check(field: str, text: str, table: Table, given: Iterable[str] = (), pipeline: bool = False) -> None:
    """Refuses, before anything is made, a call whose name or arguments the table's constructors do not take.

    Args:
        field: of the config, for the message.
        text: one call, or several with | between them where it is a `pipeline`.
        table: name -> constructor.
        given: arguments that are passed by the program, and so are no options of the call.
    """
    for call in _parsed(field, text, pipeline):
        _bound(field, call, _constructor(field, call, table), set(given))


def make(field: str, text: str, table: Table, given: Mapping[str, Any] = {}, usual: Mapping[str, Any] = {}) -> Any:
    """What one call makes.

    Args:
        field, text, table: as in `check`.
        given: arguments that the program passes; each constructor gets those that it has.
        usual: likewise, where the call does not set them.

    Raises:
        ConfigError: an unknown name or argument, a literal of another type, or what the constructor refuses.
    """
    (call,) = _parsed(field, text, pipeline=False)
    return _made(field, call, table, given, usual)


def make_all(field: str, text: str, table: Table) -> tuple[Any, ...]:
    """What each call of a pipeline "a|b(c=1)" makes."""
    return tuple(_made(field, call, table, {}, {}) for call in _parsed(field, text, pipeline=True))


def options(field: str, text: str, table: Table, usual: Mapping[str, Any] = {}) -> dict[str, Any]:
    """The options of one call by name: those that it sets, and of `usual` those that its constructor has."""
    (call,) = _parsed(field, text, pipeline=False)
    constructor = _constructor(field, call, table)
    taken = {name: value for name, value in usual.items() if name in _parameters(constructor)}
    return taken | _bound(field, call, constructor, set())


def takes(field: str, text: str, table: Table, name: str) -> bool:
    """Whether the constructor of one call has an argument of this name."""
    (call,) = _parsed(field, text, pipeline=False)
    return name in _parameters(_constructor(field, call, table))


def _parsed(field: str, text: str, pipeline: bool) -> list[Call]:
    try:
        calls = parse(text)
    except ConfigError as error:
        raise ConfigError(f"config.{field} is {text!r}: {error}") from None
    if len(calls) > 1 and not pipeline:
        raise ConfigError(f"config.{field} is {text!r}: it takes one call, and here are {len(calls)}")
    return calls


def _made(field, call, table, given, usual) -> Any:
    constructor = _constructor(field, call, table)
    taken = _parameters(constructor)
    bound = _bound(field, call, constructor, set(given))
    extra = {name: value for name, value in given.items() if name in taken}
    extra |= {name: value for name, value in usual.items() if name in taken and name not in bound}
    try:
        return constructor(**(extra | bound))
    except (TypeError, ValueError) as error:
        within = error.__traceback__ is not None and error.__traceback__.tb_next is not None
        if isinstance(error, TypeError) and within:
            raise  # of the constructor's own code: what it was called with is no reason
        raise ConfigError(f"config.{field} {_text(call)!r}: {' '.join(str(error).split())}") from error


def _constructor(field: str, call: Call, table: Table) -> Callable[..., Any]:
    if call.name not in table:
        raise ConfigError(f"config.{field} is {call.name!r}: it takes one of {', '.join(table)}; "
                          f"{did_you_mean(call.name, table)}")  # fmt: skip
    return table[call.name]


def _bound(field: str, call: Call, constructor: Callable[..., Any], given: set[str]) -> dict[str, Any]:
    """The arguments of a call by name."""
    options = {name: value for name, value in _parameters(constructor).items() if name not in given}
    text = f"config.{field} {_text(call)!r}"
    if len(call.args) > len(options):
        raise ConfigError(f"{text}: it takes at most {len(options)} arguments ({', '.join(options) or 'none'})")
    bound = dict(zip(options, call.args))
    for name, value in call.options:
        if name not in options:
            hint = did_you_mean(name, options) if options else "it takes none"
            raise ConfigError(f"{text}: its option {name!r} is unknown: {hint}")
        if name in bound:
            raise ConfigError(f"{text}: its option {name!r} is given twice")
        bound[name] = value
    for name, value in bound.items():
        wanted = TYPES.get(options[name].annotation)
        if wanted and type(value) not in wanted:
            raise ConfigError(f"{text}: its option {name} takes {options[name].annotation.__name__}, got {value!r}")
    return bound


def _parameters(constructor: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What a constructor can be told by name; of a Flax module its own attributes."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = inspect.signature(constructor).parameters
    of_flax = ("parent", "name") if isinstance(constructor, type) and hasattr(constructor, "apply") else ()
    return {name: item for name, item in found.items() if item.kind in kinds and name not in of_flax}


def _parse_one(text: str) -> Call:
    match = re.fullmatch(r"([\w.:/-]+)\s*(?:\((.*)\))?", text, flags=re.DOTALL)
    if match is None:
        raise ConfigError(f"{text!r} is no call: write name or name(option=value)")
    try:
        (statement,) = ast.parse(f"call({match.group(2) or ''})", mode="exec").body
        found = statement.value if isinstance(statement, ast.Expr) else None
        if not isinstance(found, ast.Call) or not isinstance(found.func, ast.Name):
            raise ValueError("a call of a call, or none")
        args = tuple(_literal(argument) for argument in found.args)
        options = tuple((argument.arg or "", _literal(argument.value)) for argument in found.keywords)
    except (SyntaxError, ValueError):
        raise ConfigError(f"{text!r} is no call of literals: write name(option=value, ...)") from None
    if not all(name for name, _ in options):
        raise ConfigError(f"{text!r} is no call of literals: write name(option=value, ...)")
    return Call(match.group(1), args, options)


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(_literal(item) for item in node.elts)
    value = ast.literal_eval(node)
    if not isinstance(value, (int, float, str, bool, type(None))):
        raise ValueError(f"{value!r} is no number, text, True, False or None")
    return value


def _text(call: Call) -> str:
    arguments = [*map(repr, call.args), *(f"{name}={value!r}" for name, value in call.options)]
    return f"{call.name}({', '.join(arguments)})" if arguments else call.name
