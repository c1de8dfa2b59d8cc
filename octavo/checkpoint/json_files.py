"""JSON files of a checkpoint, read with messages for people. Imports no torch."""

import json
from pathlib import Path
from typing import Any

from octavo.errors import UserError


def read_json(path: Path) -> Any:
    """The JSON in a file. Raises UserError naming the file when it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path.parent}: {path.name} is missing; is this a model folder?") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check what it is and its permissions") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged JSON ({error}); download or convert it again") from None
