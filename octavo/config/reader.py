"""Typed look-ups in a JSON object, with messages that name field and value."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from octavo.errors import UserError

_MISSING = object()


def require(good: bool, name: str, value: object, remedy: str) -> None:
    """Raise UserError with the field's name, its value and what it should be, unless `good`."""
    if not good:
        raise UserError(f"{name} is {value!r}: {remedy}")


class Reader:
    """Typed look-ups in `values`; every method raises UserError for a value of the wrong kind."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def integer(self, name: str, default: object = _MISSING) -> int:
        """The integer under `name`; `default` where it is missing or null, an error without one."""
        value = self.values.get(name)
        value = default if value is None else value
        if value is _MISSING:
            raise UserError(f"the field {name!r} is missing")
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"{name} is {value!r}: expected an integer")
        return value

    def optional_integer(self, name: str) -> int | None:
        """The integer under `name`, or None."""
        return None if self.values.get(name) is None else self.integer(name)

    def number(self, name: str, default: float | None = None) -> float:
        """The number under `name`, as a float."""
        value = self.values.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise UserError(f"{name} is {value!r}: expected a number")
        return float(value)

    def finite(self, name: str, default: float) -> float:
        """The finite number under `name`; `default` where it is missing or null."""
        value = default if self.values.get(name) is None else self.number(name)
        require(isfinite(value), name, value, "it must be finite")
        return value

    def positive(self, name: str) -> float:
        """The finite number above 0 under `name`, as written."""
        if not 0 < self.number(name) < float("inf"):
            raise UserError(f"{name} is {self.values[name]!r}: it must be a number above 0")
        value: float = self.values[name]  # transformers wants the integers among them back as integers
        return value

    def boolean(self, name: str, default: bool) -> bool:
        """The boolean under `name`; `default` where it is missing or null."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise UserError(f"{name} is {value!r}: expected true or false")
        return default if value is None else value

    def token_id(self, name: str) -> int | None:
        """The token id under `name`; None where it is missing, null or negative."""
        value = self.optional_integer(name)
        return value if value is not None and value >= 0 else None
