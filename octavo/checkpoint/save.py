"""Save a decoder in memory as a Hugging Face folder."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from octavo.checkpoint.convert import copy_model
from octavo.checkpoint.names import tensor_table
from octavo.checkpoint.proof import Proof
from octavo.config import ModelConfig
from octavo.models.decoder import Decoder
from octavo.progress import Progress, silent


def save(
    decoder: Decoder,
    out: Path,
    side_files: Mapping[str, bytes] | None = None,
    dtype: torch.dtype | None = None,
    licence: str | None = None,
    progress: Progress = silent,
) -> Proof:
    """Write `decoder` as the new folder `out`, with the tokenizer files given; returns the proof of equality.

    dtype None keeps the decoder's. Raises UsageError when `out` exists, UserError when the disk fills or no Hugging
    Face family can express the decoder; `out` then does not exist.
    """
    return copy_model(DecoderSource(decoder, side_files or {}, licence), out, dtype, progress)


class DecoderSource:
    """A decoder as a `Source`: the table of names, read from our side."""

    label = "the decoder"

    def __init__(self, decoder: Decoder, side_files: Mapping[str, bytes], licence: str | None = None) -> None:
        self.config: ModelConfig = decoder.config
        self.licence, self._side_files = licence, side_files
        self._parameters = dict(decoder.named_parameters())
        self._table = tensor_table(self.config)

    @property
    def dtype(self) -> torch.dtype:
        """The decoder's dtype."""
        return self._parameters["embed.weight"].dtype

    def check(self, progress: Progress = silent) -> None:
        """Nothing to compare: memory has no checksums."""

    def tensor(self, name: str) -> Tensor:
        """One canonical tensor as a copy on the CPU."""
        entry = self._table[name]
        return self._parameters[entry.parameter].detach()[entry.index or ...].to("cpu", copy=True)

    def side_files(self) -> Mapping[str, bytes]:
        """The files given at construction."""
        return self._side_files
