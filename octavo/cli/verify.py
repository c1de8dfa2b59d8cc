"""octavo verify: is a model folder whole and unchanged?"""

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli.terminal import Json, report
from octavo.errors import UsageError
from octavo.progress import progress_bar


def run(model: Annotated[Path, typer.Argument(help="A model folder with SHA256SUMS.")], as_json: Json = False) -> None:
    """Check every file of MODEL against its SHA256SUMS, and its tensors against its config.json or params.json.

    Example: octavo verify ./SmolLM2-8x135M-Instruct
    """
    from octavo.checkpoint.checksums import check_sums
    from octavo.checkpoint.source import open_folder

    if model.is_file():
        raise UsageError(f"{model}: is a file; verify takes a model folder with SHA256SUMS")
    open_folder(model)
    with progress_bar() as progress:
        files = check_sums(model, progress)
    report(f"{model}: {files} files unchanged, all tensors present", {"model": str(model), "files": files}, as_json)
