"""Logits against transformers at toy size, fp32, through saved files in both directions."""

import json
from pathlib import Path

import pytest
import torch

from octavo.checkpoint.folder import FolderSource
from octavo.checkpoint.load import load_decoder
from octavo.checkpoint.save import save
from octavo.models import Decoder
from tests.compare import assert_same
from tests.tiny import tiny_config

transformers = pytest.importorskip("transformers")

# what transformers calls things, with every awkward shape: 6 heads on 3, 5 experts top-3, own head_dim, tied
BASE = {"vocab_size": 331, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 3, "max_position_embeddings": 512, "initializer_range": 0.3}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64, "rope_theta": 5e5}  # fmt: skip
CASES = {
    "llama": ("Llama", {}),
    "llama-tied-one-kv-head": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 1, "rms_norm_eps": 1e-3}),
    "llama-rope-llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-rope-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "mistral-window": ("Mistral", {"head_dim": 10, "sliding_window": 7}),
    "mistral-no-window": ("Mistral", {"head_dim": 16, "sliding_window": None}),
    "mixtral": ("Mixtral", {"head_dim": 16, "num_local_experts": 5, "num_experts_per_tok": 3}),
    "mixtral-tied-window": ("Mixtral", {"tie_word_embeddings": True, "sliding_window": 5, "num_local_experts": 8}),
    "mixtral-odd-width": ("Mixtral", {"intermediate_size": 37, "num_local_experts": 4, "num_experts_per_tok": 1}),
}
# Transformers' minimax rotates whole heads, so its files say nothing of rotary_dim. At an initializer_range of
# 0.3 five post-norm layers amplify rounding so much that fp32 is 2e-4 from fp64, theirs as well as ours.
MINIMAX = {"head_dim": 16, "num_hidden_layers": 5, "num_local_experts": 5, "num_experts_per_tok": 3, "block_size": 16,
           "layer_types": ["linear_attention"] * 2 + ["full_attention", "linear_attention", "full_attention"],
           "linear_attn_alpha_factor": 1.7, "linear_attn_beta_factor": 0.9, "full_attn_alpha_factor": 1.4,
           "full_attn_beta_factor": 1.1, "mlp_alpha_factor": 1.9, "mlp_beta_factor": 0.8,
           "initializer_range": 0.1}  # fmt: skip
CASES |= {
    "minimax": ("MiniMax", MINIMAX),
    "minimax-power-of-two": ("MiniMax", {**MINIMAX, "num_attention_heads": 8, "num_key_value_heads": 2}),
    "minimax-lightning-only": ("MiniMax", {**MINIMAX, "layer_types": ["linear_attention"] * 5}),
    "minimax-first-softmax": ("MiniMax", {**MINIMAX, "layer_types": ["full_attention"] + ["linear_attention"] * 4}),
}
TOKENS = torch.randint(331, (40,), generator=torch.Generator().manual_seed(3))


def theirs(case: str) -> torch.nn.Module:
    family, changes = CASES[case]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**BASE, **changes})
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


def their_logits(model: torch.nn.Module) -> torch.Tensor:
    model.set_experts_implementation("eager")  # their grouped path fails at odd widths
    with torch.no_grad():
        return model(TOKENS[None]).logits[0]


def our_logits(folder: Path) -> torch.Tensor:
    decoder = load_decoder(FolderSource(folder))
    with torch.no_grad():
        return decoder.logits(decoder(TOKENS).hidden)


@pytest.mark.parametrize("case", CASES)
def test_their_file_in_our_decoder(case, tmp_path) -> None:
    model = theirs(case)
    model.save_pretrained(tmp_path)
    assert_same(our_logits(tmp_path), their_logits(model))


@pytest.mark.parametrize("case", CASES)
def test_our_file_in_their_model(case, tmp_path) -> None:
    model = theirs(case)
    model.save_pretrained(tmp_path / "theirs")
    decoder = load_decoder(FolderSource(tmp_path / "theirs"))
    save(decoder, tmp_path / "ours")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    assert type(back) is type(model)
    assert_same(their_logits(back), their_logits(model))
    for name, weight in model.state_dict().items():
        if name.endswith("_decay"):
            continue  # tables of a block, whose size is ours in our file
        assert torch.equal(back.state_dict()[name], weight), name


def test_fused_names_are_read(tmp_path) -> None:
    """What `torch.save`-like dumps of a transformers v5 model hold: experts stacked, block_sparse_moe called mlp."""
    from safetensors.torch import save_file

    model = theirs("mixtral")
    state = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    assert "model.layers.0.mlp.experts.gate_up_proj" in state
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict(), default=str))
    assert_same(our_logits(tmp_path), their_logits(model))


@pytest.mark.parametrize("case", ["mistral-window", "mixtral", "mixtral-odd-width", "minimax"])
def test_gradients_agree(case, tmp_path) -> None:
    model = theirs(case)
    model.save_pretrained(tmp_path)
    decoder = load_decoder(FolderSource(tmp_path))
    decoder.logits(decoder(TOKENS).hidden).logsumexp(-1).sum().backward()
    model.set_experts_implementation("eager")
    model(TOKENS[None]).logits[0].logsumexp(-1).sum().backward()
    ours = {name: p.grad for name, p in decoder.named_parameters()}
    inner = {name: p.grad for name, p in model.named_parameters()}
    assert_same(ours["embed.weight"], inner["model.embed_tokens.weight"], rtol=1e-4, atol=1e-4)
    for name in (
        "attention.q_proj",
        "attention.qkv_proj",
        "attention.output_gate",
        "attention.norm",
        "mlp.experts.down",
    ):
        for layer in range(decoder.config.num_layers):
            mine = ours.get(f"layers.{layer}.{name}.weight", ours.get(f"layers.{layer}.{name}"))
            if mine is not None:
                their_name = name.replace("attention.", "self_attn.").replace("experts.down", "experts.down_proj")
                suffix = "" if "experts" in name else ".weight"
                assert_same(mine, inner[f"model.layers.{layer}.{their_name}{suffix}"], rtol=1e-4, atol=1e-4)


def test_our_random_model_in_theirs(tmp_path) -> None:
    decoder = Decoder(tiny_config("mixtral")).initialise(seed=5)
    save(decoder, tmp_path / "ours")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    with torch.no_grad():
        assert_same(decoder.logits(decoder(TOKENS).hidden), their_logits(back))
