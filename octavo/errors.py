"""The two kinds of mistake a user can make; everything else is a bug and keeps its traceback.

A message names the file or field, the value found and the remedy, in one line. The command line prints
it without a traceback and exits with `exit_code`.
"""


class UserError(ValueError):
    """Something the user handed over cannot be used: a damaged file, a config we do not support."""

    exit_code = 1


class UsageError(UserError):
    """The request itself makes no sense: an impossible option or combination of options."""

    exit_code = 2
