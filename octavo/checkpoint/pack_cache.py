"""Packs of models, kept under $OCTAVO_HOME/packs and made when they are missing, outdated or damaged.

A pack is found by what its source looks like from outside: names, sizes and times of its files, and the headers of
those that hold weights. So a warm start reads no weights but the pack's, and imports no torch.
"""

import glob
import hashlib
from pathlib import Path

from octavo.checkpoint.hub import download, is_hub_name
from octavo.checkpoint.json_files import read_json
from octavo.checkpoint.pack import VERSION, DamagedPack, Pack, checked_note, write_pack
from octavo.config import Bits, FormBits, form_name, home, quantization_bits
from octavo.errors import UserError
from octavo.native.library import library
from octavo.progress import Progress, silent

DEFAULT_BITS: FormBits = 8  # for weights that are not quantised yet
_WEIGHTS = (".safetensors", ".gguf")
_DESCRIBING = (".json", ".jinja", ".model", ".txt")  # a model card or a checksum more makes no other model
_LONGEST_HEADER = 100 << 20  # bytes: safetensors' own limit
_LONGEST_NAME = 60  # of a model's own name, characters
_GGUF_START = 1 << 20  # bytes of a GGUF file that are looked at: most of its metadata


def open_pack(model: str | Path, bits: FormBits | None = None, progress: Progress = silent) -> Pack:
    """The pack of a model folder, GGUF file or hub name; bits None means those it is stored in, else 8.

    Raises UserError when the model cannot be read, or is quantised to other bits; NativeUnavailable without a CPU core.
    """
    path = locate(model)
    bits = _bits(path, bits)
    place = path.resolve()
    name = place.name.removesuffix(".gguf")[:_LONGEST_NAME]
    stem = f"{name}-{_digest(str(place))[:8]}-{form_name(bits)}-x{library().lanes}"
    pack = home() / "packs" / f"{stem}-{identity(path)[:16]}.pack"
    try:
        return Pack(pack)
    except DamagedPack:  # or not made yet
        _make(path, bits, pack, progress)
    opened = Pack(pack)
    for outdated in pack.parent.glob(f"{glob.escape(stem)}-*.pack"):
        if outdated != pack:
            outdated.unlink(missing_ok=True)
            checked_note(outdated).unlink(missing_ok=True)
    return opened


def _make(path: Path, bits: FormBits, pack: Path, progress: Progress) -> None:
    from octavo.checkpoint.source import open_source

    write_pack(open_source(path), bits, pack, progress)


def locate(model: str | Path) -> Path:
    """The folder or file behind a path or hub name. Raises UserError, as `open_source` does, where there is none."""
    path = Path(model).expanduser()
    if path.exists():
        return path
    if is_hub_name(str(model)):
        return download(str(model))
    from octavo.checkpoint.source import open_source  # it knows what to say

    open_source(model)
    raise UserError(f"{model}: is neither a folder nor a file")


def identity(path: Path) -> str:
    """A digest of what tells one state of a model folder or file from another, without reading its weights."""
    relevant = (*_WEIGHTS, *_DESCRIBING)
    files = sorted(file for file in path.iterdir() if file.suffix in relevant) if path.is_dir() else [path]
    digest = hashlib.sha256(f"{VERSION}".encode())
    for file in files:
        try:
            status, header = file.stat(), _header(file)
        except OSError as error:
            raise UserError(
                f"{file}: cannot be read ({error.strerror}); check what it is and its permissions"
            ) from None
        # the time of the last change of any kind, too: a copy may bring the old time of its contents with it
        told = (file.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest.update("\0".join(map(str, told)).encode() + header)
    return digest.hexdigest()


def _header(file: Path) -> bytes:
    """What a file begins with: its description for weights; its length and time say enough of any other."""
    if file.suffix not in _WEIGHTS:
        return b""
    with open(file, "rb") as opened:
        if file.suffix == ".gguf":
            return opened.read(_GGUF_START)
        length = int.from_bytes(opened.read(8), "little")
        return opened.read(min(length, _LONGEST_HEADER))


def stored_bits(path: Path) -> Bits | None:
    """Bits of a folder that octavo quantised, None of any other model. Raises UserError for a damaged config.json."""
    config = path / "config.json"
    if not config.is_file():
        return None
    hf = read_json(config)
    try:
        return quantization_bits(hf) if isinstance(hf, dict) else None
    except UserError as error:
        raise UserError(f"{config}: {error}") from None


def _bits(path: Path, wanted: FormBits | None) -> FormBits:
    stored = stored_bits(path)
    if stored is not None and wanted not in (None, stored):
        raise UserError(
            f"{path}: is quantised to int{stored}, and {form_name(wanted)} would round its weights again: "
            f"take the checkpoint that it was made from, or leave --quant out"
        )
    return wanted or stored or DEFAULT_BITS


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
