"""GGUF files written here with gguf.GGUFWriter and read back: names, row order, experts, formats, and every damage."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from octavo.checkpoint.gguf import GGUFFile
from octavo.errors import UserError

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, WIDTH, VOCAB, EXPERTS = 2, 192, 6, 3, 16, 256, 37, 5
EXPECTED = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCAB, "hidden_size": HIDDEN,
    "intermediate_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "hidden_act": "silu", "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None, "tie_word_embeddings": True,
    "bos_token_id": None, "eos_token_id": 2, "pad_token_id": None, "torch_dtype": "float32",
}  # fmt: skip
Tensors = dict[str, np.ndarray]


def metadata(experts: int = 0, **changes: Any) -> dict[str, Any]:
    """The keys of a small model; None in `changes` leaves a key out."""
    keys: dict[str, Any] = {
        "general.architecture": "llama", "llama.block_count": LAYERS, "llama.context_length": 512,
        "llama.embedding_length": HIDDEN, "llama.feed_forward_length": WIDTH, "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS, "llama.attention.key_length": HEAD_DIM,
        "llama.rope.dimension_count": HEAD_DIM, "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.eos_token_id": 2,
    }  # fmt: skip
    if experts:
        keys |= {"llama.expert_count": experts, "llama.expert_used_count": 2}
    return {key: value for key, value in (keys | changes).items() if value is not None}


def model(experts: int = 0, tied: bool = True) -> Tensors:
    """Random weights under Hugging Face's names."""
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        place = f"model.layers.{layer}."
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            shapes[f"{place}self_attn.{name}_proj.weight"] = (heads * HEAD_DIM, HIDDEN)
        shapes[f"{place}self_attn.o_proj.weight"] = (HIDDEN, HEADS * HEAD_DIM)
        shapes |= {f"{place}{norm}_layernorm.weight": (HIDDEN,) for norm in ("input", "post_attention")}
        up, down = (WIDTH, HIDDEN), (HIDDEN, WIDTH)
        if experts:
            shapes[f"{place}block_sparse_moe.gate.weight"] = (experts, HIDDEN)
        else:
            shapes |= {f"{place}mlp.{name}_proj.weight": up for name in ("gate", "up")}
            shapes[f"{place}mlp.down_proj.weight"] = down
        for expert in range(experts):
            parts = {"w1": up, "w2": down, "w3": up}.items()
            shapes |= {f"{place}block_sparse_moe.experts.{expert}.{part}.weight": shape for part, shape in parts}
    if not tied:
        shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    random_values = np.random.default_rng(0)
    return {name: random_values.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of query and key rows, row by row: rotary pairs side by side instead of half a head apart."""
    stored, half = np.empty_like(rows), HEAD_DIM // 2
    for head in range(heads):
        for pair in range(half):
            first = head * HEAD_DIM
            stored[first + 2 * pair] = rows[first + pair]
            stored[first + 2 * pair + 1] = rows[first + pair + half]
    return stored


def stored_form(tensors: Tensors, merged: bool = True) -> Tensors:
    """The same weights as llama.cpp's converter writes them."""
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
        "block_sparse_moe.gate": "ffn_gate_inp",
    }  # fmt: skip
    out: Tensors = {}
    for name, values in tensors.items():
        name = name.removesuffix(".weight")
        if ".experts." in name:
            _, _, layer, _, _, expert, part = name.split(".")
            new = f"blk.{layer}.{ {'w1': 'ffn_gate', 'w3': 'ffn_up', 'w2': 'ffn_down'}[part] }"
            out[f"{new}_exps.{expert}" if merged else f"{new}.{expert}.weight"] = values
        elif name.startswith("model.layers."):
            _, _, layer, rest = name.split(".", 3)
            heads = {"self_attn.q_proj": HEADS, "self_attn.k_proj": KV_HEADS}.get(rest)
            out[f"blk.{layer}.{names[rest]}.weight"] = permuted(values, heads) if heads else values
        else:
            out[f"{names[name]}.weight"] = values
    if merged:
        for group in sorted({name.rpartition(".")[0] for name in out if "_exps." in name}):
            out[f"{group}.weight"] = np.stack([out.pop(f"{group}.{expert}") for expert in range(EXPERTS)])
    return out


def write(path: Path, keys: dict[str, Any], tensors: Tensors, kinds: dict[str, Kind] | None = None) -> Path:
    """A GGUF file; `kinds` gives some tensors a quantised type. uint8 tensors are written as they are."""
    writer = gguf.GGUFWriter(None, keys["general.architecture"])
    for key, value in keys.items():
        if key != "general.architecture":
            whole = type(value) is int
            writer.add_key_value(key, value, gguf.GGUFValueType.UINT32 if whole else gguf.GGUFValueType.get_type(value))
    for name, values in tensors.items():
        kind = (kinds or {}).get(name, Kind.F32)
        raw = values if values.dtype == np.uint8 else gguf.quantize(values, kind)
        writer.add_tensor(name, np.ascontiguousarray(raw), raw_dtype=None if kind in (Kind.F32, Kind.F16) else kind)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def assert_same(file: GGUFFile, expected: Tensors) -> None:
    """Names, shapes, values, and that every tensor is float32 with memory of its own."""
    assert file.shapes() == {name: values.shape for name, values in expected.items()}
    for name, values in expected.items():
        got = file.tensor(name)
        assert got.dtype == torch.float32 and got.is_contiguous()
        torch.testing.assert_close(got, torch.from_numpy(values), rtol=0, atol=0)
        got.zero_()
        assert torch.count_nonzero(file.tensor(name)) > 0


@pytest.mark.parametrize("tied", [True, False])
def test_dense(tmp_path: Path, tied: bool) -> None:
    tensors = model(tied=tied)
    file = GGUFFile(write(tmp_path / "m.gguf", metadata(), stored_form(tensors)))
    assert file.hf_config() == EXPECTED | {"tie_word_embeddings": tied}
    assert repr(file.hf_config()["rms_norm_eps"]) == "1e-05"
    assert_same(file, tensors)


@pytest.mark.parametrize("merged", [True, False])
def test_mixture(tmp_path: Path, merged: bool) -> None:
    tensors = model(EXPERTS)
    file = GGUFFile(write(tmp_path / "m.gguf", metadata(EXPERTS), stored_form(tensors, merged)))
    family = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "sliding_window": None}
    assert file.hf_config() == EXPECTED | family | {"num_local_experts": EXPERTS, "num_experts_per_tok": 2}
    assert_same(file, tensors)


@pytest.mark.parametrize("experts", [0, EXPERTS])
@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1])
def test_formats(tmp_path: Path, kind: Kind, experts: int) -> None:
    """Rows and experts are found inside the blocks: the same as quantising the original tensor by itself."""
    tensors = model(experts)
    stored = stored_form(tensors)
    file = GGUFFile(write(tmp_path / "m.gguf", metadata(experts), stored, dict.fromkeys(stored, kind)))
    assert_same(file, {name: gguf.dequantize(gguf.quantize(v, kind), kind) for name, v in tensors.items()})


@pytest.mark.parametrize("kind", [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_XS, Kind.IQ4_NL])
def test_k_quants(tmp_path: Path, kind: Kind) -> None:
    """The gguf library cannot write these, so random bytes stand for the weights."""
    stored, name = stored_form(model(EXPERTS)), "blk.1.ffn_down_exps.weight"
    shape = gguf.quant_shape_to_byte_shape(stored[name].shape, kind)
    stored[name] = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    file = GGUFFile(write(tmp_path / "m.gguf", metadata(EXPERTS), stored, {name: kind}))
    with np.errstate(all="ignore"):  # random scales overflow
        for expert in (0, EXPERTS - 1):
            got = file.tensor(f"model.layers.1.block_sparse_moe.experts.{expert}.w2.weight")
            np.testing.assert_array_equal(got, gguf.dequantize(stored[name][expert], kind))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"llama.attention.sliding_window": 128}, {"model_type": "mistral", "sliding_window": 128}),
        ({"llama.attention.sliding_window": 0}, {"model_type": "mistral", "sliding_window": None}),
        ({"llama.attention.key_length": None}, {"head_dim": HEAD_DIM}),  # not hidden / heads: the query's rows tell
        ({"llama.attention.key_length": None, "llama.rope.dimension_count": None}, {"head_dim": HEAD_DIM}),
        ({"llama.vocab_size": VOCAB}, {"vocab_size": VOCAB}),
        ({"llama.rope.freq_base": 500000.0, "tokenizer.ggml.bos_token_id": 0}, {"rope_theta": 5e5, "bos_token_id": 0}),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, {"rope_scaling": None}),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.5},
         {"rope_scaling": {"rope_type": "linear", "factor": 2.5}}),
        ({"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 2}, {"eos_token_id": [2, 5]}),
        ({"llama.rope.scale_linear": 4.0}, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    ],
)  # fmt: skip
def test_config(tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    file = GGUFFile(write(tmp_path / "m.gguf", metadata(**changes), stored_form(model())))
    assert {name: file.hf_config()[name] for name in expected} == expected


def test_config_means_the_same_to_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for experts, changes in ((0, {}), (0, {"llama.attention.sliding_window": 7}), (EXPERTS, {})):
        keys = metadata(experts, **changes, **{"llama.rope.scaling.factor": 4.0, "llama.rope.freq_base": 5e5})
        config = GGUFFile(write(tmp_path / "m.gguf", keys, stored_form(model(experts)))).hf_config()
        theirs = transformers.AutoConfig.for_model(**config)
        assert theirs.rope_parameters == {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}
        assert theirs.dtype == torch.float32
        for name in config.keys() - {"rope_scaling", "rope_theta", "torch_dtype"}:
            assert getattr(theirs, name) == config[name], name


def test_llama3_rope(tmp_path: Path) -> None:
    """The divisors come from transformers' own formula; anything else in their place is refused."""
    rope = pytest.importorskip("transformers.modeling_rope_utils")
    rotary = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 8192}  # fmt: skip
    config = pytest.importorskip("transformers").LlamaConfig(head_dim=HEAD_DIM, rope_parameters=rotary)
    scaled, _ = rope.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1 / 5e5 ** (torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    stored, keys = stored_form(model()), metadata(**{"llama.rope.freq_base": 5e5})
    stored["rope_freqs.weight"] = right = (plain / scaled).numpy()
    assert len(set(right.round(3))) > 2  # kept, on the ramp, divided
    found = GGUFFile(write(tmp_path / "m.gguf", keys, stored)).hf_config()["rope_scaling"]
    assert found == {name: value for name, value in config.rope_parameters.items() if name != "rope_theta"}
    for bad in (right * 1.001, right[:-1], *(np.full(8, value, np.float32) for value in (0, np.inf, np.nan))):
        file = GGUFFile(write(tmp_path / "m.gguf", keys, stored | {"rope_freqs.weight": bad}))
        with pytest.raises(UserError, match=r"rope_freqs\.weight"):
            file.hf_config()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama.rope.dimension_count": 8}, "dimension_count is 8"),
        ({"llama.attention.value_length": 8}, "value_length is 8"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, "scaling.type is 'yarn'"),
        ({"llama.rope.scaling.attn_factor": 1.2}, "attn_factor"),
        ({"llama.attention.scale": 0.5}, "attention.scale is 0.5"),
        ({"llama.attention.head_count": 0}, "head_count is 0"),
        ({"llama.attention.head_count": [6, 6]}, r"head_count is \[6, 6\]"),
        ({"llama.attention.head_count_kv": 4}, "head_count_kv is 4"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon is missing"),
        ({"llama.block_count": True}, "block_count is True"),
        ({"llama.block_count": 3}, "blk.2.attn_norm.weight is missing"),
        ({"llama.block_count": 4294967295}, "blk.2.attn_norm.weight is missing"),
        ({"llama.block_count": 1}, "blk.1.attn_k.weight' has no place"),
        ({"llama.feed_forward_length": 128}, r"blk.0.ffn_gate.weight is \(256, 192\)"),
        ({"llama.expert_count": 4294967295, "llama.expert_used_count": 2}, "ffn_gate_inp.weight is missing"),
        ({"llama.expert_count": 2, "llama.expert_used_count": 3}, "expert_used_count is 3"),
        ({"split.count": 3, "split.no": 0}, "one of 3 parts"),
        ({"general.architecture": "qwen2"}, "architecture 'qwen2'"),
    ],
)
def test_unsupported_metadata(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "m.gguf", metadata(**changes), stored_form(model()))
    with pytest.raises(UserError, match=message) as caught:
        GGUFFile(path).hf_config()
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"blk.0.attn_q.bias": np.zeros(HEADS * HEAD_DIM, np.float32)}), "blk.0.attn_q.bias"),
        (lambda t: t.update({"blk.0.attn_q_norm.weight": np.zeros(HEAD_DIM, np.float32)}), "attn_q_norm.weight"),
        (lambda t: t.pop("output_norm.weight"), "output_norm.weight is missing"),
        (lambda t: t.pop("token_embd.weight"), "vocab_size is missing"),
        (lambda t: t.update({"blk.1.attn_v.weight": t["blk.1.attn_v.weight"].T}), r"attn_v.weight is \(192, 48\)"),
    ],
)
def test_unsupported_tensors(tmp_path: Path, change: Callable[[Tensors], object], message: str) -> None:
    stored = stored_form(model())
    change(stored)
    with pytest.raises(UserError, match=message):
        GGUFFile(write(tmp_path / "m.gguf", metadata(), stored)).shapes()


def test_unsupported_format(tmp_path: Path) -> None:
    stored = stored_form(model())
    stored["blk.0.ffn_down.weight"] = np.zeros(gguf.quant_shape_to_byte_shape((HIDDEN, WIDTH), Kind.Q8_K), np.uint8)
    file = GGUFFile(write(tmp_path / "m.gguf", metadata(), stored, {"blk.0.ffn_down.weight": Kind.Q8_K}))
    with pytest.raises(UserError, match="blk.0.ffn_down.weight is Q8_K"):
        file.tensor("model.layers.0.mlp.down_proj.weight")


def read_everything(path: Path) -> None:
    file = GGUFFile(path)
    assert file.hf_config() and [file.tensor(name) for name in file.shapes()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """The bytes of a model with all kinds of metadata, and where its tensor data begins."""
    extra = {"tokenizer.ggml.tokens": ["<s>", "a", "你好"] * 9, "tokenizer.ggml.scores": [0.5] * 27, "a.flag": True,
             "llama.rope.freq_base": 1e6, "b.list": [1, 2, 3], "general.alignment": 64}  # fmt: skip
    path = tmp_path_factory.mktemp("whole") / "m.gguf"
    write(path, metadata(**extra), stored_form(model()))
    read_everything(path)
    return path.read_bytes(), gguf.GGUFReader(path).data_offset


def test_truncation(tmp_path: Path, whole: tuple[bytes, int]) -> None:
    content, data_offset = whole
    path = tmp_path / "cut.gguf"
    for length in [*range(0, data_offset, 3), *range(data_offset, len(content), len(content) // 40), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"cut\.gguf: "):
            GGUFFile(path)


@pytest.mark.parametrize("seed", range(4))
def test_damage(tmp_path: Path, whole: tuple[bytes, int], seed: int) -> None:
    """Random bytes in the header: a UserError of one line, or a file that can be read; never long, never another."""
    content, data_offset = whole
    path, choose, refused = tmp_path / "bad.gguf", random.Random(seed), 0
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(choose.choice((1, 1, 1, 4, 64))):
            damaged[choose.randrange(4, data_offset)] = choose.choice((0, 1, 0x7F, 0x80, 0xFF, choose.randrange(256)))
        path.write_bytes(damaged)
        started = time.monotonic()
        try:
            read_everything(path)
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
        assert time.monotonic() - started < 5
    assert refused > 50


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"PK\x03\x04" + bytes(60), "not a GGUF file"),
        (b"GGUF" + (1).to_bytes(4, "little") + bytes(60), "version 1"),
        (b"GGUF" + (3).to_bytes(4, "big") + bytes(60), "version 50331648"),
        (b"GGUF\3\0\0\0" + b"\xff" * 16 + bytes(60), "damaged"),
        (b"GGUF\3\0\0\0" + bytes(16), "architecture None"),
    ],
)
def test_not_a_model(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        GGUFFile(path)
    for other in (tmp_path, tmp_path / "absent.gguf"):
        with pytest.raises(UserError, match="cannot be read"):
            GGUFFile(other)


def test_overlapping_or_repeated(tmp_path: Path, whole: tuple[bytes, int]) -> None:
    content, path = whole[0], tmp_path / "m.gguf"
    for old, new in ((b"blk.0.attn_q.weight", b"blk.1.attn_q.weight"), (b"b.list", b"a.flag")):
        assert content.count(old) == 1
        path.write_bytes(content.replace(old, new))
        with pytest.raises(UserError, match="twice"):
            GGUFFile(path)
    entry = content.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16 + 4  # its offset into the data
    path.write_bytes(content[:entry] + bytes(8) + content[entry + 8 :])
    with pytest.raises(UserError, match="overlaps"):
        GGUFFile(path)


def test_memory_is_one_tensor(tmp_path: Path) -> None:
    """Pages of the file do not stay resident after their tensor was read."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs Linux's /proc")

    embedding = np.ones((1 << 16, HIDDEN), np.float32)  # 48 MiB
    file = GGUFFile(write(tmp_path / "m.gguf", metadata(), stored_form(model()) | {"token_embd.weight": embedding}))
    before = status.read_text()
    assert file.tensor("model.embed_tokens.weight").sum() == embedding.size
    resident = [int(text.partition("RssFile:")[2].split()[0]) for text in (before, status.read_text())]  # KiB
    assert resident[1] - resident[0] < 24 << 10


def assert_as_transformers(path: Path) -> None:
    """Names and tensors are those of transformers' own reader, bit for bit."""
    loading = pytest.importorskip("transformers.modeling_gguf_pytorch_utils")
    transformers, file = pytest.importorskip("transformers"), GGUFFile(path)
    with torch.device("meta"):
        skeleton = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**file.hf_config()))
    theirs = loading.load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=skeleton)["tensors"]
    assert file.shapes().keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(file.tensor(name), theirs[name], rtol=0, atol=0)


def test_as_transformers(tmp_path: Path) -> None:
    stored = stored_form(model())
    assert_as_transformers(write(tmp_path / "m.gguf", metadata(), stored, dict.fromkeys(stored, Kind.Q4_1)))


@pytest.mark.slow  # transformers needs 15 s for the file
def test_smollm2_as_transformers(smollm2_gguf: Path) -> None:
    assert_as_transformers(smollm2_gguf)


def test_smollm2_config(smollm2_gguf: Path) -> None:
    config = GGUFFile(smollm2_gguf).hf_config()
    known = {"vocab_size": 49152, "hidden_size": 576, "head_dim": 64, "rope_theta": 1e5, "rms_norm_eps": 1e-5}
    assert config | known == config
