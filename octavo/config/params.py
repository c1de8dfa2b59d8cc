"""params.json of mistral-inference's checkpoints ("consolidated" files) as a ModelConfig.

The fields and what they mean when left out are those of mistral-inference's `TransformerArgs`; `activation`,
`tied_embeddings` and `max_position_embeddings` came later and are as vLLM reads them. A field that is not known here is
refused, because these files announce everything that changes the maths (lora, vision_encoder, quantization, yarn, ...)
by a field of its own.
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal

from octavo.config.hf import MAX_LAYERS
from octavo.config.model import LayerSpec, ModelConfig, RopeConfig
from octavo.config.reader import Reader, require
from octavo.errors import UserError

_COUNTS = ("dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "vocab_size")
_LENGTHS = ("max_position_embeddings", "max_seq_len")
_READ = (*_COUNTS, *_LENGTHS, "norm_eps", "rope_theta", "moe", "sliding_window", "tied_embeddings")
_WITHOUT_EFFECT = ("max_batch_size", "dtype")  # what an engine reserves, what the files say themselves
_MUST_BE = {"model_type": "transformer", "activation": "silu"}
_MOE = ("num_experts", "num_experts_per_tok")
# No file of the first releases gives a length; this is what transformers' conversion scripts write into config.json.
_USUAL_LENGTH = 32768
# <s> and </s> of all of Mistral's tokenizers, and the defaults of transformers' config classes: no file gives them.
_BOS, _EOS = 1, 2


def from_params(params: Mapping[str, Any], where: str = "params.json") -> ModelConfig:
    """ModelConfig of a params.json: family "mixtral" where it has `moe`, else "mistral".

    `where` names the file in messages. Raises UserError for a field that is missing, unknown or of an impossible value.
    """
    try:
        return _from_params(params)
    except UserError as error:
        raise type(error)(f"{where}: {error}") from None


def _from_params(params: Mapping[str, Any]) -> ModelConfig:
    if not isinstance(params, Mapping):
        raise UserError(f"expected a JSON object, found {type(params).__name__}")
    values = {name: value for name, value in params.items() if value is not None}
    for name, only in _MUST_BE.items():
        require(values.get(name, only) == only, name, values.get(name), f"octavo computes only {only!r}")
    _refuse_unknown(values, (*_READ, *_WITHOUT_EFFECT, *_MUST_BE))
    missing = [name for name in (*_COUNTS, "norm_eps") if name not in values]
    if missing:
        raise UserError(f"the field {missing[0]!r} is missing")
    read = Reader(values)
    counts = {name: _count(read, name) for name in _COUNTS}
    require(counts["n_layers"] <= MAX_LAYERS, "n_layers", counts["n_layers"], f"it must be at most {MAX_LAYERS}")
    heads, head_dim, kv_heads = counts["n_heads"], counts["head_dim"], counts["n_kv_heads"]
    require(heads % kv_heads == 0, "n_kv_heads", kv_heads, f"it must divide n_heads ({heads})")
    require(head_dim % 2 == 0, "head_dim", head_dim, "it must be even, for rotary's pairs")
    experts, top_k = _experts(values)
    mlp: Literal["dense", "experts"] = "experts" if experts else "dense"
    window = _window(values)
    # mistral-inference's rule while it had windows: 7B-v0.1 (a window) means 1e4, Mixtral 1e6, and neither file says
    # so. transformers' scripts put 1e4 for all, which is wrong for a Mixtral.
    theta = read.positive("rope_theta") if "rope_theta" in values else 1e6 if window is None else 1e4
    return ModelConfig(
        family="mixtral" if experts else "mistral",
        vocab_size=counts["vocab_size"],
        hidden_size=counts["dim"],
        intermediate_size=counts["hidden_dim"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        layers=(LayerSpec(mlp=mlp),) * counts["n_layers"],
        rope=RopeConfig(theta=theta, dim=head_dim),
        max_positions=next((_count(read, name) for name in _LENGTHS if name in values), _USUAL_LENGTH),
        norm_eps=read.positive("norm_eps"),
        sliding_window=window,
        tie_embeddings=read.boolean("tied_embeddings", False),
        num_experts=experts,
        top_k=top_k,
        bos_token_id=_BOS,
        eos_token_id=_EOS,
    )


def _experts(values: Mapping[str, Any]) -> tuple[int, int]:
    """Experts a layer and how many a token gets; (0, 0) for a dense model."""
    moe = values.get("moe")
    if moe is None:
        return 0, 0
    require(isinstance(moe, Mapping), "moe", moe, f"expected an object with {' and '.join(_MOE)}")
    inside = {f"moe.{name}": value for name, value in moe.items() if value is not None}
    names = [f"moe.{name}" for name in _MOE]
    _refuse_unknown(inside, names)
    experts, top_k = (_count(Reader(inside), name) for name in names)
    require(top_k <= experts, names[1], top_k, f"it must be at most {names[0]} ({experts})")
    return experts, top_k


def _window(values: Mapping[str, Any]) -> int | None:
    window = values.get("sliding_window")
    if isinstance(window, str) and window.isdecimal():  # some files write it so, as transformers' scripts note
        window = int(window)
    if isinstance(window, list):
        raise UserError(f"sliding_window is {window!r}: octavo has one window for all layers")
    return None if window is None else _count(Reader({"sliding_window": window}), "sliding_window")


def _count(read: Reader, name: str) -> int:
    value = read.integer(name)
    require(value > 0, name, value, "it must be above 0")
    return value


def _refuse_unknown(values: Mapping[str, Any], known: Collection[str]) -> None:
    unknown = [name for name in values if name not in known]
    if unknown:
        name, value = unknown[0], str(values[unknown[0]])
        shown = value if len(value) <= 60 else f"{value[:60]}…"
        raise UserError(f"{name} is {shown}: octavo does not know this field, which may change what the model "
                        "computes; take a checkpoint without it")  # fmt: skip
