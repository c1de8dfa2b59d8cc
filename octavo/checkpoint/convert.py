"""Convert any checkpoint octavo reads into a Hugging Face folder; `write_model` is how every converter ends."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from octavo.checkpoint.card import model_card
from octavo.checkpoint.checksums import check_sums
from octavo.checkpoint.load import load_tokenizer
from octavo.checkpoint.names import tensor_table
from octavo.checkpoint.proof import Proof, compare
from octavo.checkpoint.quantized import STEM
from octavo.checkpoint.source import Source, open_folder
from octavo.checkpoint.writer import PlannedTensor, json_bytes, staged_folder, write_file, write_weights
from octavo.config import Bits, ModelConfig, quantization_fields, to_hf
from octavo.errors import UserError
from octavo.progress import Progress, silent

LINEAGE = "octavo.json"


def convert(source: Source, out: Path, dtype: torch.dtype | None = None, progress: Progress = silent) -> Proof:
    """Write `source` as the new folder `out` in Hugging Face's per-expert layout; returns the proof of equality.

    dtype None keeps the source's storage type (fp32 for GGUF). Raises UsageError when `out` exists, UserError
    when the source is damaged or has no tokenizer, the disk fills or the proof fails; `out` then does not exist.
    """
    load_tokenizer(source)
    return copy_model(source, out, dtype, progress)


def copy_model(source: Source, out: Path, dtype: torch.dtype | None = None, progress: Progress = silent) -> Proof:
    """`convert` for a source that need not have a tokenizer."""
    dtype = storage_dtype(source, dtype)
    planned = [
        PlannedTensor(name, entry.shape, partial(source.tensor, name))
        for name, entry in tensor_table(source.config).items()
    ]
    round_to = None if dtype == source.dtype else dtype

    def prove(child: Source) -> Proof:
        return compare(source, child, round_to=round_to, progress=progress)

    lineage = {"made_by": "octavo convert", "parent": display_name(source)}
    return write_model(out, source, source.config, planned, dtype, prove, lineage, progress)


def write_model(
    out: Path,
    parent: Source,
    config: ModelConfig,
    tensors: Sequence[PlannedTensor],
    dtype: torch.dtype,
    prove: Callable[[Source], Proof],
    lineage: Mapping[str, Any],
    progress: Progress,
    bits: Bits | None = None,
) -> Proof:
    """Write a model folder whole or not at all: weights, config, tokenizer, proof, card, checksums.

    `prove` gets the finished folder and says whether it computes what it should; its figures go into octavo.json
    with `lineage`. `bits`: `tensors` are a quantised model's, stored in fp32 where they have no type of their own.
    Raises UserError when the figures are out of bounds.
    """
    with staged_folder(out) as folder:
        parent.check(progress)
        write_weights(folder, tensors, dtype, progress, stem=STEM if bits else "model")
        hf = to_hf(config, str(dtype).removeprefix("torch.")) | (quantization_fields(bits) if bits else {})
        name = f"int{bits}" if bits else hf["torch_dtype"]
        files = {
            "config.json": json_bytes(hf),
            "generation_config.json": json_bytes(_generation_config(config)),
            **parent.side_files(),
        }
        for file_name, content in files.items():
            write_file(folder, file_name, content)
        written = open_folder(folder)
        if written.config != config:
            raise UserError(f"{parent.label}: its config cannot be written without a change; please report this")
        proof = prove(written)
        require_equal(proof, parent.label, name, "--dtype")
        record = {**lineage, "dtype": name, "proof": proof.as_dict()}
        write_file(folder, LINEAGE, json_bytes(record))
        write_file(folder, "README.md", model_card(out.name, config, record, parent.licence).encode())
        check_sums(folder, progress)
    return proof


def require_equal(proof: Proof, label: str, stored: str, option: str) -> None:
    """Raise UserError unless `proof` holds; `stored` is the type of the result, `option` is what chooses it."""
    if not isfinite(proof.largest_logit) or not isfinite(proof.max_difference):
        raise UserError(
            f"{label}: computes values that are not finite, here or stored as {stored}; nothing was written. "
            f"Check its weights, or store it in a wider {option}"
        )
    if not proof.holds:
        raise UserError(
            f"{label}: the result does not compute what its parent does (largest difference "
            f"{proof.max_difference:.2g}, bound {proof.max_bound:.0e}; RMS {proof.rms_difference:.2g}, bound "
            f"{proof.rms_bound:.0e}); nothing was written. Please report this"
        )


def storage_dtype(source: Source, wanted: torch.dtype | None) -> torch.dtype:
    """The dtype to store: the one asked for, else the source's own, with fp64 narrowed to fp32."""
    return wanted or (torch.float32 if source.dtype == torch.float64 else source.dtype)


def display_name(source: Source) -> str:
    """The source's name without the folders of this machine."""
    path = Path(source.label)
    return path.resolve().name if path.exists() else source.label


def _generation_config(config: ModelConfig) -> dict[str, Any]:
    eos = list(config.eos_token_ids)
    ids = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": config.pad_token_id,
    }
    return {name: value for name, value in ids.items() if value is not None}
