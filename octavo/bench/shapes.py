"""Shapes to measure on with random weights, where no model of that size is at hand.

`mixtral-8x0.5b` is large enough that neither caches nor overheads decide, and small enough for a desk: 2.55 B
parameters, 0.77 B of them active; 1.4 GB as int4, 5.1 GB as stored (bf16).
"""

import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from octavo.checkpoint.names import tensor_table
from octavo.checkpoint.writer import PlannedTensor, json_bytes, staged_folder, write_file, write_weights
from octavo.config import LayerSpec, ModelConfig, RopeConfig, to_hf
from octavo.progress import Progress, silent

# Mixtral's proportions (feed-forward 3.5 times the width, 8 experts of which 2, grouped keys, its vocabulary), and
# widths that are multiples of 256, which llama.cpp's K-quants need.
SHAPES: Mapping[str, ModelConfig] = {
    "mixtral-8x0.5b": ModelConfig(
        family="mixtral",
        vocab_size=32000,
        hidden_size=1536,
        intermediate_size=5376,
        num_heads=12,
        num_kv_heads=4,
        head_dim=128,
        layers=(LayerSpec(mlp="experts"),) * 12,
        rope=RopeConfig(theta=1e6, dim=128),
        max_positions=32768,
        norm_eps=1e-5,
        num_experts=8,
        top_k=2,
        bos_token_id=1,
        eos_token_id=2,
    ),
}


def synthetic_folder(name: str, config: ModelConfig, parent: Path, progress: Progress = silent) -> Path:
    """`parent / name`, a model folder of this shape with random weights in bf16 and a tokenizer that can spell bytes;
    written, one tensor in memory, if it is not there. Raises UserError when the disk is full."""
    folder = parent / name
    if folder.is_dir():
        return folder
    planned = [
        PlannedTensor(tensor, entry.shape, partial(random_tensor, config, tensor, entry.shape))
        for tensor, entry in tensor_table(config).items()
    ]
    with staged_folder(folder) as staging:
        write_weights(staging, planned, torch.bfloat16, progress)
        write_file(staging, "config.json", json_bytes(to_hf(config, "bfloat16")))
        for file, content in _tokenizer_files().items():
            write_file(staging, file, content)
    return folder


def random_tensor(config: ModelConfig, name: str, shape: tuple[int, ...]) -> Tensor:
    """fp32 [*shape] from N(0, initializer_range), norms ones; the same for a name on every machine with this torch."""
    if len(shape) == 1:
        return torch.ones(shape)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.empty(shape).normal_(0.0, config.initializer_range, generator=generator)


def _tokenizer_files() -> dict[str, bytes]:
    """Bytes, one pair of them and three special tokens: enough for tools that refuse a model without a tokenizer, or
    one without merges (GGUF readers)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *alphabet, "th"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("t", "h")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
                "unk_token": "<unk>"}  # fmt: skip
    return {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": json_bytes(settings)}
