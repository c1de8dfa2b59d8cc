"""SHA256SUMS: the manifest beside the weights, in the format `sha256sum -c` reads."""

import hashlib
from pathlib import Path

from octavo.errors import UserError
from octavo.progress import Progress, silent

CHECKSUMS = "SHA256SUMS"
_MATTERS = (".safetensors", ".json", ".jinja", ".model")  # files that decide what a model computes


class HashedFile:
    """A new file that hashes what is written to it and leaves a line in SHA256SUMS when closed."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._digest = hashlib.sha256()

    def __enter__(self) -> "HashedFile":
        self._file = (self._folder / self._name).open("xb", buffering=0)
        return self

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`, all of it."""
        self._digest.update(data)
        rest = memoryview(data)
        while rest:  # an unbuffered write may take only part, near the end of a full disk
            rest = rest[self._file.write(rest) :]

    def __exit__(self, kind: object, *_: object) -> None:
        self._file.close()
        if kind is None:
            with (self._folder / CHECKSUMS).open("a") as sums:
                sums.write(f"{self._digest.hexdigest()}  {self._name}\n")


def check_sums(folder: Path, progress: Progress = silent) -> int:
    """Compare every file with the folder's SHA256SUMS; returns how many were checked.

    Raises UserError naming the first file that is missing, changed or, if a model could read it, unlisted, and when
    there are no checksums. The format is that of `sha256sum -c`.
    """
    sums = folder / CHECKSUMS
    if not sums.is_file():
        raise UserError(f"{folder}: has no {CHECKSUMS}, so there is nothing to check it against")
    listed = [line.split("  ", 1) for line in sums.read_text(errors="replace").splitlines()]
    if not listed or any(len(line) != 2 for line in listed):
        raise UserError(f"{sums}: damaged or empty; every line must be a checksum, two spaces and a name")
    names = {name for _, name in listed}
    for path in sorted(folder.iterdir()):
        if path.suffix in _MATTERS and path.name not in names:
            raise UserError(
                f"{path}: is not listed in {CHECKSUMS}; it was added or the list was cut: copy or convert again"
            )
    missing = [name for _, name in listed if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder / missing[0]}: is missing, though {CHECKSUMS} lists it; copy or convert it again")
    total, done = sum((folder / name).stat().st_size for _, name in listed), 0
    for expected, name in listed:
        digest = hashlib.sha256()
        with (folder / name).open("rb") as file:
            while block := file.read(2**24):
                digest.update(block)
                done += len(block)
                progress("checking files", done, total)
        if digest.hexdigest() != expected:
            raise UserError(f"{folder / name}: its SHA-256 is not the one in {CHECKSUMS}; the file was changed or "
                            "damaged: copy or convert it again")  # fmt: skip
    return len(listed)
