"""Texts to be completed, embedded or counted: one or several, as strings or as token ids.

Looked at here rather than by pydantic, which writes an error for each wrong id: 1.7 GB for the two million that a body
may have.
"""

from typing import Annotated, Any

from pydantic import SkipValidation
from pydantic_core import PydanticCustomError

_EXPECTED = "expected a string, a list of strings or lists of token ids, none of them empty"
Texts = str | list[str] | list[int] | list[list[int]]  # as they are sent
Text = str | tuple[int, ...]
Checked = Annotated[tuple[Text, ...], SkipValidation]  # made by `as_texts`


def as_texts(given: Any, most: int) -> Any:
    """A string, a list of them, a list of ids, or a list of such lists, as a tuple of texts."""
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, list) or not given:
        raise PydanticCustomError("texts", _EXPECTED)
    if are_ids(given):
        return (tuple(given),)
    if not all(isinstance(item, str) or are_ids(item) for item in given):
        raise PydanticCustomError("texts", _EXPECTED)
    if len(given) > most:
        raise PydanticCustomError("texts", f"{len(given)} texts, more than the limit of {most}")
    return tuple(item if isinstance(item, str) else tuple(item) for item in given)


def are_ids(item: Any) -> bool:
    """Whether it is a list of what may be token ids, and not empty."""
    return (
        isinstance(item, list)
        and bool(item)
        and all(type(each) is int for each in item)
        and 0 <= min(item) <= max(item) < 2**31
    )
