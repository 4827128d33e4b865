"""A field of a config as an attribute of what the config is built into."""

from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class Configured(Generic[Value]):
    """The field of the attribute's own name, or of another."""

    def __init__(self, field: str = ""):
        self._field = field

    def __set_name__(self, owner: type, name: str) -> None:
        self._field = self._field or name

    def __get__(self, made: Any, owner: type) -> Value:
        return made.config[self._field]
