"""Where octavo keeps what it makes itself."""

import os
from pathlib import Path


def home() -> Path:
    """Where octavo keeps models it made itself: $OCTAVO_HOME, else `octavo` in the XDG data directory."""
    if own := os.environ.get("OCTAVO_HOME"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_DATA_HOME")
    return (Path(shared) if shared else Path.home() / ".local" / "share") / "octavo"
