"""What every checkpoint looks like to the rest of octavo, whatever file it lies in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from octavo.config import PRESETS, ModelConfig
from octavo.errors import UserError
from octavo.progress import Progress, silent


class Source(Protocol):
    """A checkpoint as canonical tensors (see `names`), read one at a time."""

    @property
    def label(self) -> str:
        """What to call it in messages: its path or hub name."""
        ...

    @property
    def config(self) -> ModelConfig:
        """Its shape."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The type its weights are stored in, or should be: fp32 for GGUF, whose blocks bf16 would round."""
        ...

    @property
    def licence(self) -> str | None:
        """SPDX-like licence id the checkpoint states, if any."""
        ...

    def check(self, progress: Progress = silent) -> None:
        """Compare the files with their checksums where there are any; raises UserError on a difference."""
        ...

    def tensor(self, name: str) -> Tensor:
        """One canonical tensor, in the file's precision, with memory of its own."""
        ...

    def side_files(self) -> Mapping[str, bytes]:
        """Tokenizer, chat template and licence files to carry along, by file name."""
        ...


def open_source(spec: str | Path) -> Source:
    """The checkpoint behind a folder, a .gguf file or a hub name.

    Raises UserError when there is nothing of the kind, or when what is there cannot be used.
    """
    from octavo.checkpoint.gguf_source import GGUFSource
    from octavo.checkpoint.hub import download, is_hub_name

    path = Path(spec).expanduser()
    if path.is_dir():
        return open_folder(path)
    if path.is_file():
        return GGUFSource(path)
    if is_hub_name(str(spec)):
        return open_folder(download(str(spec)), label=str(spec))
    if spec in PRESETS:
        raise UserError(f"{spec}: is a preset, which has no weights; only `octavo inspect` takes it")
    raise UserError(f"{spec}: no such folder or file, and not a hub name (owner/name)")


def open_folder(path: Path, label: str | None = None) -> Source:
    """The checkpoint in a folder: Hugging Face's layout, quantised or not, or else Mistral's; `label` names it in
    messages. Raises UserError as `open_source`."""
    from octavo.checkpoint.consolidated import ConsolidatedSource, is_consolidated
    from octavo.checkpoint.folder import FolderSource
    from octavo.checkpoint.quantized import QuantizedFolder, is_quantized_folder

    if is_consolidated(path):
        return ConsolidatedSource(path, label)
    return QuantizedFolder(path, label) if is_quantized_folder(path) else FolderSource(path, label)
