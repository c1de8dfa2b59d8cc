"""Tiny models for tests: configs of every family with awkward shapes, a tokenizer, and folders on disk."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from octavo.checkpoint.save import save
from octavo.config import LayerSpec, ModelConfig, ResidualConfig, RopeConfig
from octavo.models import Decoder

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEXTS = [
    "The capital of France is Paris.",
    "naïve café, 你好世界 🙂",
    "def f(x):\n    return x + 1\n",
    "system user assistant",
]


HYBRIDS = ("minimax", "minimax_text_01")
PATTERN = ("lightning", "lightning", "softmax", "lightning", "softmax")


def tiny_config(family: str = "mixtral", **changes: Any) -> ModelConfig:
    """6 heads on 3, head_dim apart from hidden / heads, 5 experts of which 3 are chosen, odd vocabulary.

    The MiniMax families rotate half a head, and every alpha and beta is another number; their weights are smaller,
    because post-norm amplifies rounding.
    """
    experts, hybrid = family == "mixtral" or family in HYBRIDS, family in HYBRIDS
    pattern = PATTERN if hybrid else ("softmax", "softmax")
    mlp = "experts" if experts else "dense"
    values: dict[str, Any] = {
        "family": family,
        "vocab_size": 331,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_heads": 6,
        "num_kv_heads": 3,
        "head_dim": 16 if family != "llama" else 8,
        "layers": tuple(LayerSpec(attention=attention, mlp=mlp) for attention in pattern),
        "max_positions": 512,
        "norm_eps": 1e-5,
        "num_experts": 5 if experts else 0,
        "top_k": 3 if experts else 0,
        "sliding_window": 7 if family == "mistral" else None,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "initializer_range": 0.1 if hybrid else 0.3,
    } | changes
    values.setdefault("rope", RopeConfig(theta=1e4, dim=values["head_dim"] // (2 if hybrid else 1)))
    if hybrid:
        values.setdefault(
            "residual", ResidualConfig(post_norm=True, lightning=(1.7, 0.9), softmax=(1.4, 1.1), mlp=(1.9, 0.8))
        )
    return ModelConfig(**values)


def tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE of at most 331 tokens that can spell anything; 0, 1, 2 are ChatML's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=331,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def tiny_tokenizer_files() -> dict[str, bytes]:
    """The tokenizer's files as a checkpoint carries them."""
    config = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE,
              "tokenizer_class": "PreTrainedTokenizerFast"}  # fmt: skip
    return {
        "tokenizer.json": tiny_tokenizer().to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }


def write_tiny_model(out: Path, family: str = "mixtral", seed: int = 0, **changes: Any) -> Decoder:
    """A random model folder with tokenizer; returns the decoder it was written from."""
    decoder = Decoder(tiny_config(family, **changes)).initialise(seed).eval()
    save(decoder, out, tiny_tokenizer_files())
    return decoder
