"""Convert any Llama, Mistral or Mixtral that octavo reads into one GGUF file for llama.cpp, proven by reading it back.

convert_to_gguf(open_source("model"), Path("model.gguf"), "q4_0")
"""

import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.checkpoint.convert import display_name, require_equal
from octavo.checkpoint.gguf_names import LLAMA3, ROPE_FREQS, llama3_divisors, permuted_heads, tensor_names
from octavo.checkpoint.gguf_source import GGUFSource
from octavo.checkpoint.gguf_vocabulary import vocabulary_fields
from octavo.checkpoint.gguf_writer import StoredTensor, rewrite_fields, rounded, write_gguf
from octavo.checkpoint.load import load_tokenizer
from octavo.checkpoint.names import tensor_table
from octavo.checkpoint.proof import Proof, Rounded, compare
from octavo.checkpoint.source import Source
from octavo.checkpoint.writer import require_space, staged_file
from octavo.config import ModelConfig
from octavo.errors import UsageError, UserError
from octavo.progress import Progress, silent

logger = logging.getLogger(__name__)

FAMILIES = ("llama", "mistral", "mixtral")
TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7}  # by name, llama.cpp's general.file_type
DEFAULT_TYPE = "f16"
_HEADER_ROOM = 1 << 24  # bytes of metadata that the check of the disk allows for; Llama 3's vocabulary takes 8 MB
_PROBE = (
    "The quick fox's 12 jumps, 3456789 times;  they'd say it's  7:30, I'LL NOT.\n\n\tdef f(x):\n        return x\n"
    "naïve café Größe ½ ÀÉÎ 你好，世界！ кириллица עברית हिन्दी 한국어 🙂👍🏽  HTTPServer2024 // ... (end)   "
)
_PROBE_IDS = 512


def convert_to_gguf(source: Source, out: Path, kind: str = DEFAULT_TYPE, progress: Progress = silent) -> Proof:
    """Write `source` as the new GGUF file `out`, its matrices stored as `kind`; returns the proof of equality.

    kind is one of TYPES. Norms and routers are fp32; a matrix whose rows do not fill blocks of 32 is fp16. The proof
    compares logits with the source's own, its weights rounded as the file has them, and stands in the file's metadata
    (octavo.proof.*). Raises UsageError when `out` exists or the type is not known, UserError when the source is damaged
    or cannot be expressed, the disk fills or the proof fails; `out` then does not exist.
    """
    if kind not in TYPES:
        raise UsageError(f"--type is {kind!r}: choose one of {', '.join(TYPES)}")
    config = source.config
    _check_expressible(source)
    tensors = _plan(source, kind)
    fields = {**_model_fields(config, kind), **vocabulary_fields(source), **_origin(source)}
    if source.licence is not None:
        fields["general.license"] = source.licence
    with staged_file(out) as path:
        require_space(path.parent, sum(tensor.padded_nbytes for tensor in tensors) + _HEADER_ROOM)
        source.check(progress)
        write_gguf(path, fields | _proof_fields(None, kind), tensors, progress)
        written = GGUFSource(path)
        _check_config(source, written)
        _check_tokenizer(source, written)
        proof = _prove(source, written, kind, tensors, progress)
        require_equal(proof, source.label, kind, "--type")
        rewrite_fields(path, fields | _proof_fields(proof, kind), tensors)
    _give_notice(source, out, kind, tensors)
    return proof


def _check_expressible(source: Source) -> None:
    config = source.config
    if config.family not in FAMILIES:
        raise UserError(f"{source.label}: is a {config.family} model; octavo writes GGUF files of "
                        f"{', '.join(FAMILIES)} only: convert it into a folder")  # fmt: skip
    scaling = config.rope.scaling or {}
    if scaling.get("rope_type") == "llama3" and any(scaling[name] != value for name, value in LLAMA3.items()):
        raise UserError(f"{source.label}: rope_scaling is {dict(scaling)}; of llama3's parameters only the factor may "
                        f"differ from the released {LLAMA3}: a GGUF does not name them")  # fmt: skip


def _plan(source: Source, kind: str) -> list[StoredTensor]:
    """Every tensor of the file in its order. Raises UserError if one of the source's has no place in it."""
    config, table = source.config, tensor_table(source.config)
    names = tensor_names(config.num_layers, config.num_experts, config.tie_embeddings, lambda _: True)
    parts: dict[str, list[str]] = {}
    for canonical, stored, _, _ in names:
        parts.setdefault(stored, []).append(canonical)
    if left := table.keys() ^ {name for group in parts.values() for name in group}:
        raise UserError(f"{source.label}: tensor {min(left)} has no place in a GGUF of architecture llama")
    planned = _rope_tensors(config)
    for stored, group in parts.items():
        shape = table[group[0]].shape
        shape = (len(group), *shape) if "_exps." in stored else shape
        heads = permuted_heads(stored, config.num_heads, config.num_kv_heads)
        readers = tuple(partial(source.tensor, name) for name in group)
        planned.append(StoredTensor(stored, shape, _stored_kind(stored, shape, kind), readers, heads))
    return planned


def _stored_kind(name: str, shape: tuple[int, ...], kind: str) -> Any:
    """The gguf.GGMLQuantizationType of a tensor: as llama.cpp has it, norms and routers stay F32."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) == 1 or ".ffn_gate_inp." in name:
        return GGMLQuantizationType.F32
    # as in our own int4, and as llama.cpp's own q4_0 files have them at more bits than the rest
    kind = "q8_0" if kind == "q4_0" and name in ("token_embd.weight", "output.weight") else kind
    wanted = GGMLQuantizationType[kind.upper()]
    return GGMLQuantizationType.F16 if shape[-1] % GGML_QUANT_SIZES[wanted][0] else wanted


def _rope_tensors(config: ModelConfig) -> list[StoredTensor]:
    """Llama 3.1's divisors of the rotary frequencies, where the config has such a scaling."""
    from gguf.constants import GGMLQuantizationType

    scaling = config.rope.scaling or {}
    if scaling.get("rope_type") != "llama3":
        return []
    divisors = llama3_divisors(config.head_dim, config.rope.theta, scaling["factor"], scaling)
    values = torch.from_numpy(divisors.astype(np.float32))
    return [StoredTensor(ROPE_FREQS, tuple(values.shape), GGMLQuantizationType.F32, (lambda: values,))]


def _model_fields(config: ModelConfig, kind: str) -> dict[str, Any]:
    """What llama.cpp reads of the model's shape, under the keys of `gguf.py`."""
    fields: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_positions,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "rope.dimension_count": config.rope.dim,
        "rope.freq_base": float(config.rope.theta),
    }
    scaling = config.rope.scaling or {}
    if scaling.get("rope_type") == "linear":
        fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])}
    if config.num_experts:
        fields |= {"expert_count": config.num_experts, "expert_used_count": config.top_k}
    if config.family == "mistral" or config.sliding_window is not None:
        fields["attention.sliding_window"] = config.sliding_window or 0  # 0 tells our reader that it is a Mistral
    general = {"general.architecture": "llama", "general.file_type": TYPES[kind], "general.quantization_version": 2}
    return general | {f"llama.{name}": value for name, value in fields.items()}


def _origin(source: Source) -> dict[str, Any]:
    name = display_name(source)
    return {"general.name": name, "octavo.made_by": "octavo convert", "octavo.parent": name}


def _proof_fields(proof: Proof | None, kind: str) -> dict[str, Any]:
    """The proof as metadata; before it is known, values that take as many bytes."""
    values = (proof or Proof(0, 0, nan, nan, nan)).as_dict()
    return {f"octavo.proof.{name}": value for name, value in values.items() if name != "rounded_to"} | {
        "octavo.proof.rounded_to": kind
    }


def _prove(source: Source, written: Source, kind: str, tensors: Iterable[StoredTensor], progress: Progress) -> Proof:
    kinds = {read.args[0]: tensor.kind for tensor in tensors for read in tensor.parts if isinstance(read, partial)}

    def rounding(name: str, values: Tensor) -> Tensor:
        return rounded(values, kinds[name])

    proof = compare(Rounded(source, rounding), written, progress=progress)
    return proof if kind == "f32" else replace(proof, rounded_to=kind)


def _check_config(source: Source, written: Source) -> None:
    """The file must say what the source's config says, but for training's settings; ids are checked below."""
    ours, theirs = source.config, written.config
    apart = ("router_aux_loss_coef", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")
    without = {name: getattr(ours, name) for name in apart}
    if replace(theirs, **without) != ours:
        different = [
            name for name in vars(ours) if name not in without and getattr(ours, name) != getattr(theirs, name)
        ]
        raise UserError(f"{source.label}: {different[0]} is {getattr(ours, different[0])!r}, but "
                        f"{getattr(theirs, different[0])!r} once written as GGUF; round it in config.json")  # fmt: skip


def _check_tokenizer(source: Source, written: Source) -> None:
    """Both must make the same ids of a text of many scripts and of the text of random ids, and know the same roles."""
    ours, theirs = load_tokenizer(source), load_tokenizer(written)
    random_ids = torch.randint(source.config.vocab_size, (_PROBE_IDS,), generator=torch.Generator().manual_seed(0))
    for text in (_PROBE, "a" + ours.decode(random_ids.tolist())):
        if ours.encode(text) != theirs.encode(text):
            raise UserError(f"{source.label}: its tokenizer cannot be written as GGUF: the result gives other ids "
                            "for some text; please report this")  # fmt: skip
    for role in ("bos_id", "pad_id", "eos_ids", "special_ids"):
        if getattr(ours, role) != getattr(theirs, role):
            found = f"{role} {getattr(ours, role)!r:.80} becomes {getattr(theirs, role)!r:.80}"
            raise UserError(f"{source.label}: its tokenizer cannot be written as GGUF: {found}; please report this")


def _give_notice(source: Source, out: Path, kind: str, tensors: Iterable[StoredTensor]) -> None:
    """Say what the file has that its reader may not expect."""
    window = source.config.sliding_window
    if window is not None:
        logger.warning("%s: llama.cpp ignores the sliding window of %d; it computes the same up to a context of that "
                       "many tokens", out, window)  # fmt: skip
    wide = [tensor.name for tensor in tensors if tensor.kind.name == "F16"]
    if wide and kind not in ("f16", "f32"):
        logger.warning("%s: the rows of %d tensors (%s, ...) do not fill blocks of 32, so they are stored as "
                       "f16, not %s", out, len(wide), wide[0], kind)  # fmt: skip
