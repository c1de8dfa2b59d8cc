"""Fill a decoder from a checkpoint, on any device and in any dtype."""

from pathlib import Path

import torch
from torch import nn

from octavo.checkpoint.names import tensor_table
from octavo.checkpoint.source import Source, open_source
from octavo.data.tokenizer import Tokenizer
from octavo.models.decoder import Decoder
from octavo.progress import Progress, silent


def load(
    model: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    progress: Progress = silent,
) -> tuple[Decoder, Tokenizer]:
    """Decoder (in eval mode) and tokenizer of a model folder, GGUF file or hub name.

    dtype defaults to fp32 on the CPU, where torch's bf16 matmul is 100 to 1000 times slower, and to bf16 on a GPU.
    Raises UserError when the checkpoint or its tokenizer cannot be used.
    """
    source = open_source(model)
    tokenizer = load_tokenizer(source)
    return load_decoder(source, device, dtype, progress), tokenizer


def load_tokenizer(source: Source) -> Tokenizer:
    """The tokenizer of a source, which also heeds the end tokens of its config. Raises UserError if it has none."""
    return Tokenizer.for_model(source.config, source.side_files(), source.label)


def load_decoder(
    source: Source,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    progress: Progress = silent,
) -> Decoder:
    """The decoder of a source, in eval mode; arguments as in `load`."""
    if dtype is None:
        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    with torch.device("meta"):
        decoder = Decoder(source.config)
    fill(decoder, source, "", device, dtype, progress)
    return decoder.eval()


@torch.no_grad()
def fill(
    module: nn.Module,
    source: Source,
    prefix: str,
    device: str | torch.device,
    dtype: torch.dtype,
    progress: Progress = silent,
) -> None:
    """Materialise a module built on the meta device with the source's tensors under `prefix`.

    The prefix is that of the module inside the decoder ("layers.3.", or "" for all of it). One tensor at a time is
    held beside the module itself. Tensors for parameters that the module does not have are left alone.
    """
    module.to(dtype)
    module.to_empty(device=device)
    entries = {name: e for name, e in tensor_table(source.config).items() if e.parameter.startswith(prefix)}
    unfilled = dict(module.named_parameters())
    targets = dict(unfilled)
    for done, (name, entry) in enumerate(entries.items(), start=1):
        parameter = entry.parameter.removeprefix(prefix)
        if parameter not in targets:
            continue
        targets[parameter][entry.index or ...].copy_(source.tensor(name))
        unfilled.pop(parameter, None)
        progress("loading weights", done, len(entries))
    assert not unfilled, f"parameters without a name in the table: {sorted(unfilled)}"
