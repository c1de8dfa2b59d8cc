"""The same weights as a GGUF file for llama.cpp, made once by `octavo convert` and kept."""

import subprocess
import sys
from pathlib import Path

from octavo.checkpoint.pack_cache import identity
from octavo.errors import UserError

GGUF_TYPES = {"int4": "q4_0", "int8": "q8_0", "bf16": "f16", "fp32": "f32"}  # of the same width as octavo's form


def cached_gguf(model: Path, quant: str, folder: Path) -> Path:
    """The GGUF file of `model` in `folder`, whose name carries its type and a digest of the model's state.

    Made if it is not there, by a process of its own. Raises UserError when the model has no GGUF form.
    """
    kind = GGUF_TYPES[quant]
    name = model.name if model.is_dir() else model.stem
    out = folder / f"{name}-{identity(model)[:12]}.{kind}.gguf"
    if out.is_file():
        return out
    folder.mkdir(parents=True, exist_ok=True)
    # a process: what the conversion takes of memory is given back before anything is measured
    verb = [
        sys.executable,
        "-c",
        "from octavo.cli import main; main()",
        "convert",
        str(model),
        str(out),
        "--type",
        kind,
    ]
    done = subprocess.run(verb, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode or not out.is_file():
        said = done.stderr.strip().splitlines()
        reason = said[-1] if said else f"exit status {done.returncode}"
        raise UserError(f"--peer llama.cpp: {model} cannot be written as GGUF ({reason}); give a file with --peer-file")
    return out
