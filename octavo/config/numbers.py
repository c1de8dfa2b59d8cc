"""Whether the fields of a settings object are numbers, before anybody compares them or counts up to them."""

from collections.abc import Iterable
from numbers import Integral, Real

from octavo.errors import UsageError


def check_numbers(settings: object, whole: Iterable[str], real: Iterable[str] = ()) -> None:
    """Raise UsageError for a field that is not a whole, or not a real number; None will do where it is the default.

    numpy's numbers are numbers; strings and arrays are not. NaN is one: the checks of a range refuse it.
    """
    for names, kind, called in ((whole, Integral, "a whole number"), (real, Real, "a number")):
        for name in names:
            value = getattr(settings, name)
            if not isinstance(value, kind) and not (value is None and getattr(type(settings), name) is None):
                raise UsageError(f"{name} is {value!r:.200}: it must be {called}")
