"""A GGUF file as a `Source`."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from octavo.checkpoint.gguf import GGUFFile
from octavo.checkpoint.gguf_tokenizer import tokenizer_files
from octavo.checkpoint.names import tensor_table
from octavo.config import ModelConfig, from_hf
from octavo.errors import UserError
from octavo.progress import Progress, silent


class GGUFSource:
    """Dequantised to fp32, which is exact: bf16 would round the blocks' values. Shapes are checked at once."""

    dtype = torch.float32

    def __init__(self, path: Path) -> None:
        self.label = str(path)
        self._file = GGUFFile(path)
        self.config: ModelConfig = from_hf(self._file.hf_config(), self.label)
        found = self._file.shapes()
        for name, entry in tensor_table(self.config).items():
            if found.get(name) != entry.shape:
                raise UserError(f"{path}: {name} has shape {found.get(name)}, its metadata implies {entry.shape}")

    @property
    def licence(self) -> str | None:
        """The file's general.license."""
        licence = self._file.fields.get("general.license")
        return licence if isinstance(licence, str) else None

    def check(self, progress: Progress = silent) -> None:
        """A GGUF carries no checksums."""

    def tensor(self, name: str) -> Tensor:
        """One canonical tensor in fp32, with memory of its own."""
        return self._file.tensor(name)

    def side_files(self) -> Mapping[str, bytes]:
        """Tokenizer and chat template rebuilt from the file's metadata."""
        return self._side_files

    @cached_property
    def _side_files(self) -> Mapping[str, bytes]:
        return tokenizer_files(self._file)
