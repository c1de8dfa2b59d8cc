"""Read a GGUF file of llama.cpp's `llama` architecture, dense or mixture, as a Hugging Face checkpoint.

    file = GGUFFile(Path("model.gguf"))
    file.hf_config()                                             # what its config.json would say
    file.tensor("model.layers.0.self_attn.q_proj.weight")        # float32, Hugging Face's row order

A file is: magic, version, two counts | key-value pairs | tensor table | tensor data. All before the data is parsed
here and not by `gguf.GGUFReader`, which takes 2.9 s for the 98,000 strings of SmolLM2's tokenizer (this: 0.2 s) and
believes every count it reads, so that one flipped bit keeps it busy for hours. Block formats are the gguf library's.
"""

import mmap
import struct
from collections.abc import Iterator
from functools import cached_property
from math import inf, isfinite, prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from octavo.checkpoint.gguf_names import LLAMA3, ROPE_FREQS, llama3_divisors, permuted_heads, stored_rows, tensor_names
from octavo.errors import UserError

# Metadata kinds of the format: struct codes of the fixed-size ones, then the two that carry a length.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
# Far above any real header (largest vocabulary: 0.3 M tokens), low enough that a damaged length costs no time.
_MAX_STRING, _MAX_ITEMS = 1 << 24, 1 << 22
_SMALLEST_PAIR, _SMALLEST_TENSOR = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8  # bytes in the header
_CHUNK = 1 << 22  # values dequantised at a time: what `tensor` needs beside its result

# Keys that change the maths (llama.cpp reads them for this architecture), and the values under which they do not.
_MUST_BE: dict[str, tuple[Any, ...]] = {
    "llama.attention.causal": (True,), "llama.attention.scale": (0.0,),
    "llama.expert_weights_scale": (0.0, 1.0), "llama.rope.scaling.attn_factor": (1.0,),
}  # fmt: skip
_AGAIN = "download or convert the model again"


class _Tensor(NamedTuple):
    """One row of the tensor table; `kind` is a gguf.GGMLQuantizationType, `offset` counts from the file's start."""

    name: str
    shape: tuple[int, ...]  # torch's order: the contiguous axis last
    kind: Any
    offset: int
    nbytes: int


class _Source(NamedTuple):
    """Where a canonical tensor lies: a stored tensor, which expert of it, and over how many heads it is permuted."""

    stored: _Tensor
    expert: int | None
    heads: int | None


class GGUFFile:
    """An open GGUF file of architecture `llama`; `fields` holds its metadata as plain Python values by key.

    Raises UserError when the file is not a GGUF, is truncated or damaged, is one part of several, or holds another
    architecture. Metadata and names are checked by the method that needs them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise UserError(f"{path}: cannot be read ({error}); give the path of a GGUF file") from None
        self.fields, self._tensors = _read_header(path, self._data)
        self._release()
        architecture, parts = self.fields.get("general.architecture"), self.fields.get("split.count", 0)
        if architecture != "llama":
            raise self._error(f"architecture {_short(architecture)}; octavo reads 'llama' (Llama, Mistral, Mixtral)")
        if not isinstance(parts, int) or parts > 1:
            raise self._error(f"one of {_short(parts)} parts of a model; join them with llama-gguf-split --merge")

    def hf_config(self) -> dict[str, Any]:
        """The config.json that Hugging Face's Llama, Mistral or Mixtral would have; all tensors are checked too.

        Raises UserError naming the metadata key or tensor that is missing, damaged or beyond those three layouts.
        """
        _ = self._sources
        return dict(self._config)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Torch shape of every canonical tensor (Hugging Face's names, one tensor per expert). Raises as hf_config."""
        return {name: stored.shape[expert is not None :] for name, (stored, expert, _) in self._sources.items()}

    def tensor(self, name: str) -> torch.Tensor:
        """One canonical tensor as contiguous float32 with memory of its own, query and key rows un-permuted.

        Memory: the result and about 100 MB. Raises UserError for a block format that cannot be dequantised.
        """
        from gguf.quants import dequantize

        stored, expert, heads = self._sources[name]
        shape = stored.shape[expert is not None :]
        nbytes = stored.nbytes if expert is None else stored.nbytes // stored.shape[0]
        rows, columns = prod(shape[:-1]), shape[-1]
        raw = np.frombuffer(self._data, np.uint8, nbytes, stored.offset + nbytes * (expert or 0)).reshape(rows, -1)
        order = np.argsort(stored_rows(rows, heads))  # before dequantisation: rows are whole in every block format
        values = np.empty((rows, columns), np.float32)
        step = max(1, _CHUNK // columns)
        for start in range(0, rows, step):
            try:
                values[start : start + step] = dequantize(raw[order[start : start + step]], stored.kind)
            except NotImplementedError:
                kind = f"{stored.kind.name}, which cannot be dequantised"
                raise self._error(f"tensor {stored.name} is {kind}; take a file in F16, BF16, Q8_0 or Q4_K") from None
            self._release()
        return torch.from_numpy(values).reshape(shape)

    def token_id(self, role: str) -> int | None:
        """Id of a token by its role ("bos", "eos", "eot", "unknown", ...), None when the file names none."""
        key = f"tokenizer.ggml.{role}_token_id"
        return None if key not in self.fields else self._count(key, least=0)

    def _end_tokens(self) -> int | list[int] | None:
        """A chat model may end a turn (eot) or a message (eom) with other tokens than a text; all of them end it."""
        ids = [self.token_id(role) for role in ("eos", "eot", "eom")]
        distinct = list(dict.fromkeys(token for token in ids if token is not None))
        return distinct[0] if len(distinct) == 1 else distinct or None

    def _release(self) -> None:
        """Drop the file's pages from this process, or a model's worth of them stays resident beside its tensors."""
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            self._data.madvise(mmap.MADV_DONTNEED)

    @cached_property
    def _config(self) -> dict[str, Any]:
        for key, allowed in _MUST_BE.items():
            if self.fields.get(key, allowed[0]) not in allowed:
                raise self._unusable(key, f"only {allowed[-1]} gives the model that Hugging Face's Llama computes")
        hidden, heads = self._count("llama.embedding_length"), self._count("llama.attention.head_count")
        head_dim, theta = self._head_dim(hidden, heads), self._real("llama.rope.freq_base", 1e4)
        experts, window = self.fields.get("llama.expert_count", 0), self.fields.get("llama.attention.sliding_window")
        family = "Mixtral" if experts != 0 else "Llama" if window is None else "Mistral"
        kv_heads = self._count("llama.attention.head_count_kv", heads)
        if heads % kv_heads:
            raise self._unusable("llama.attention.head_count_kv", f"it must divide the {heads} query heads")
        config: dict[str, Any] = {
            "architectures": [f"{family}ForCausalLM"],
            "model_type": family.lower(),
            "vocab_size": self._count("llama.vocab_size", self._rows("token_embd.weight")),
            "hidden_size": hidden,
            "intermediate_size": self._count("llama.feed_forward_length"),
            "num_hidden_layers": self._count("llama.block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self._count("llama.context_length"),
            "rms_norm_eps": self._real("llama.attention.layer_norm_rms_epsilon"),
            "rope_theta": theta,
            "rope_scaling": self._rope_scaling(head_dim, theta),
            "tie_word_embeddings": "output.weight" not in self._tensors,
            "bos_token_id": self.token_id("bos"),
            "eos_token_id": self._end_tokens(),
            "pad_token_id": self.token_id("padding"),
            "torch_dtype": "float32",
        }
        if family != "Llama":  # null is said too: transformers' default for Mistral is 4096
            config["sliding_window"] = self._count("llama.attention.sliding_window") if window else None
        if family == "Mixtral":
            config["num_local_experts"] = total = self._count("llama.expert_count")
            config["num_experts_per_tok"] = used = self._count("llama.expert_used_count")
            if used > total:
                raise self._unusable("llama.expert_used_count", f"there are {total} experts")
        return config

    def _head_dim(self, hidden: int, heads: int) -> int:
        # Files of models whose head_dim is not hidden / heads (Mistral Nemo) may lack key_length: then the query tells.
        head_dim = self._count("llama.attention.key_length", (self._rows("blk.0.attn_q.weight") or hidden) // heads)
        if self._count("llama.rope.dimension_count", head_dim) != head_dim or head_dim % 2:
            why = f"Hugging Face's Llama rotates whole heads, of even width; these are {head_dim} wide"
            raise self._unusable("llama.rope.dimension_count", why)
        if self._count("llama.attention.value_length", head_dim) != head_dim:
            raise self._unusable("llama.attention.value_length", f"keys are {head_dim} wide, and so must values be")
        return head_dim

    def _rope_scaling(self, head_dim: int, theta: float) -> dict[str, Any] | None:
        """Hugging Face's rope_scaling: None, linear or llama3."""
        key, old_key = "llama.rope.scaling.factor", "llama.rope.scale_linear"
        factor = self._real(key, self._real(old_key, 1.0, least=0.0), least=0.0) or 1.0
        # as llama.cpp: a factor of 0 is 1, and one without a type is linear
        kind = self.fields.get("llama.rope.scaling.type", "none" if factor == 1 else "linear")
        if kind not in ("none", "linear"):
            raise self._unusable("llama.rope.scaling.type", "only none, linear and Llama 3.1's rope_freqs are known")
        linear = kind == "linear" and factor != 1
        if ROPE_FREQS not in self._tensors:
            return {"rope_type": "linear", "factor": factor} if linear else None
        if linear:
            raise self._unusable(key, f"linear scaling cannot be combined with the tensor {ROPE_FREQS}")
        return self._llama3_scaling(head_dim, theta)

    def _llama3_scaling(self, head_dim: int, theta: float) -> dict[str, Any] | None:
        """Llama 3.1's parameters from the divisors of the rotary frequencies that llama.cpp's converter wrote."""
        stored = self._tensors[ROPE_FREQS]
        if stored.shape != (head_dim // 2,) or stored.kind.name != "F32":
            raise self._error(f"tensor {ROPE_FREQS} is not a vector of {head_dim // 2} F32 numbers; {_AGAIN}")
        factors = np.frombuffer(self._data, "<f4", head_dim // 2, stored.offset).astype(np.float64)
        factor = _shortest(float(factors.max()))
        known = 1 <= factor < inf
        if not known or not np.allclose(llama3_divisors(head_dim, theta, factor, LLAMA3), factors, rtol=1e-4, atol=0):
            raise self._error(f"tensor {ROPE_FREQS} is not Llama 3.1's with factor {factor}: octavo knows no other")
        return {"rope_type": "llama3", "factor": factor, **LLAMA3} if factor != 1 else None

    @cached_property
    def _sources(self) -> dict[str, _Source]:
        """Every canonical tensor's place. Refuses a missing, misshapen or left-over tensor."""
        config, sources = self._config, dict[str, _Source]()
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        sizes = {"V": config["vocab_size"], "H": config["hidden_size"], "F": config["intermediate_size"],
                 "Q": heads * config["head_dim"], "K": kv_heads * config["head_dim"],
                 "E": config.get("num_local_experts", 0)}  # fmt: skip
        for name, stored_name, axes, expert in self._names():
            stored = self._tensors.get(stored_name)
            if stored is None:
                raise self._error(f"tensor {stored_name} is missing; {_AGAIN}")
            expected = tuple(sizes[axis] for axis in axes)
            if stored.shape != expected:
                raise self._error(f"tensor {stored_name} is {stored.shape}, the metadata says {expected}; {_AGAIN}")
            sources[name] = _Source(stored, expert, permuted_heads(stored_name, heads, kv_heads))
        used = {source.stored.name for source in sources.values()}
        for left_over in sorted(self._tensors.keys() - used - {ROPE_FREQS}):
            raise self._error(f"tensor {_short(left_over)} has no place in a Llama or Mixtral; take another model")
        return sources

    def _names(self) -> Iterator[tuple[str, str, str, int | None]]:
        config, tensors = self._config, self._tensors
        layers, experts = config["num_hidden_layers"], config.get("num_local_experts", 0)

        def stacked(block: str) -> bool:
            # before April 2024 llama.cpp kept each expert as a tensor of its own
            return f"{block}ffn_gate_exps.weight" in tensors

        return tensor_names(layers, experts, config["tie_word_embeddings"], stacked)

    def _rows(self, name: str) -> int | None:
        return self._tensors[name].shape[0] if name in self._tensors else None

    def _count(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`; without a default the key must be there."""
        value: Any = self.fields.get(key, default)
        if type(value) is not int or value < least:  # not isinstance: True is an int
            raise self._unusable(key, f"a whole number of at least {least} is needed")
        return value

    def _real(self, key: str, default: float | None = None, least: float = 1e-30) -> float:
        """A finite number of at least `least`, as the shortest decimal that is the same float32."""
        value: Any = self.fields.get(key, default)
        if type(value) not in (int, float) or not isfinite(value) or value < least:
            raise self._unusable(key, f"a finite number of at least {least} is needed")
        return _shortest(float(value))

    def _unusable(self, key: str, why: str) -> UserError:
        found = f"is {_short(self.fields[key])}" if key in self.fields else "is missing"
        return self._error(f"{key} {found}: {why}; {_AGAIN}, or take its Hugging Face checkpoint")

    def _error(self, problem: str) -> UserError:
        return UserError(f"{self.path}: {problem}")


class _Header:
    """A cursor over the mapped file. Every length is checked before it is believed."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.position = path, data, 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        start, self.position = self.position, self.position + count
        if self.position > len(self.data):
            raise self.damaged(f"its header runs past the end of the file, {len(self.data)} bytes")
        return self.data[start : self.position]

    def number(self, code: str) -> Any:
        """The next number, by its struct code."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        """The next string: its length in bytes, then UTF-8."""
        length = self.number("Q")
        if length > _MAX_STRING:
            raise self.damaged(f"its header has a string of {length} bytes")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise self.damaged("its header has a string that is not UTF-8") from None

    def value(self, kind: int) -> Any:
        """The next metadata value: a number, a string or a list of either."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.string()
        kind, count = (self.number("I"), self.number("Q")) if kind == ARRAY else (kind, 0)
        if count > _MAX_ITEMS or kind not in (*SCALARS, STRING):
            raise self.damaged(f"its header has a value of {count} parts of kind {kind}")
        if kind == STRING:
            return [self.string() for _ in range(count)]
        dtype = np.dtype("<" + SCALARS[kind])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """The next row of the tensor table: name, torch shape, kind, offset into the data."""
        name, dimensions = self.string(), self.number("I")
        shape = tuple(self.number("Q") for _ in range(min(dimensions, 5)))[::-1]
        if not 1 <= dimensions <= 4 or 0 in shape:
            raise self.damaged(f"tensor {_short(name)} has shape {list(shape)}")
        return name, shape, self.number("I"), self.number("Q")

    def damaged(self, what: str) -> UserError:
        """The error of a header that cannot be true."""
        return UserError(f"{self.path}: truncated or damaged: {what}; download it again")


def _read_header(path: Path, data: mmap.mmap) -> tuple[dict[str, Any], dict[str, _Tensor]]:
    """Metadata by key and tensors by name. Raises UserError unless every byte they promise is in the file."""
    header = _Header(path, data)
    magic, version = header.take(4), header.number("I")
    if magic != b"GGUF":
        raise UserError(f"{path}: not a GGUF file, it begins with {magic!r}; give the path of a GGUF file")
    if version not in (2, 3):
        raise UserError(f"{path}: GGUF version {version}; little-endian versions 2 and 3 are read: convert it again")
    tensor_count, pair_count = header.number("Q"), header.number("Q")
    if tensor_count * _SMALLEST_TENSOR + pair_count * _SMALLEST_PAIR > len(data):
        raise header.damaged(f"{tensor_count} tensors and {pair_count} metadata keys in {len(data)} bytes")
    fields: dict[str, Any] = {}
    for _ in range(pair_count):
        key, kind = header.string(), header.number("I")
        if key in fields:
            raise header.damaged(f"metadata key {_short(key)} appears twice")
        fields[key] = header.value(kind)
    table = [header.tensor() for _ in range(tensor_count)]
    alignment = fields.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise header.damaged(f"general.alignment is {_short(alignment)}, not a power of two")
    return fields, _place(header, table, -(-header.position // alignment) * alignment)


def _place(header: _Header, table: list[tuple[str, tuple[int, ...], int, int]], end: int) -> dict[str, _Tensor]:
    """The table with sizes and absolute offsets; the data begins at `end`. No tensor may overlap or leave the file."""
    from gguf.constants import GGML_QUANT_SIZES

    known = {int(kind): (kind, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    tensors, start = dict[str, _Tensor](), end
    for name, shape, number, offset in sorted(table, key=lambda row: row[3]):
        if number not in known:
            raise header.damaged(f"tensor {_short(name)} is of type {number}, unknown to this gguf library")
        kind, block, size = known[number]
        if name in tensors or shape[-1] % block or start + offset < end:
            raise header.damaged(f"tensor {_short(name)} is there twice, overlaps another or cuts a {kind.name} block")
        tensors[name] = _Tensor(name, shape, kind, start + offset, prod(shape) // block * size)
        end = start + offset + tensors[name].nbytes
    if tensors and end > len(header.data):
        raise header.damaged(f"its tensors end at byte {end}, the file at {len(header.data)}")
    return tensors


def _shortest(value: float) -> float:
    """The shortest decimal of a number kept as float32 (9.999999747e-06 is 1e-05); other numbers as they are."""
    narrow = np.float32(min(value, 3e38))
    return float(str(narrow)) if float(narrow) == value else value


def _short(value: object) -> str:
    """A value out of a file for a one-line message."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
