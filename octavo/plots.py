"""Pictures as PNG files: is there a place for one, and write it whole. matplotlib is the extra `plot`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.errors import UsageError, UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100


def check_plot(out: Path) -> None:
    """Raise UsageError for a name that is not a PNG's, UserError without matplotlib or a folder to write to."""
    if out.suffix.lower() != ".png":
        raise UsageError(f"--plot is {out}: the file's name must end in .png")
    if out.is_dir():
        raise UsageError(f"--plot is {out}: that is a folder; give the name of a file")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder; make it first")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"{out.parent}: cannot be written; choose another place")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install 'octavo[plot]'") from None


def write_png(figure: "Figure", out: Path) -> None:
    """Write a figure as the PNG `out`, which is replaced whole or not at all. Raises UserError where it cannot."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        figure.savefig(temporary, format="png", dpi=DPI)
        os.replace(temporary, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another place") from None
    finally:
        temporary.unlink(missing_ok=True)
