"""The forms of weights on the CPU core, and config.json's `quantization_config`, of which only octavo's is read."""

from collections.abc import Mapping
from typing import Any, Literal

from octavo.errors import UserError

Bits = Literal[4, 8]  # of a quantised weight
FormBits = Literal[4, 8, 16]  # of a weight on the CPU core, bf16 among them
FORMS: Mapping[str, FormBits] = {"int4": 4, "int8": 8, "bf16": 16}

GROUP = 32  # weights that share a scale, along the input dimension
METHOD, VERSION = "octavo", 2
EMBEDDING_BITS = 8  # of embedding and head, also where all other matrices have 4 (checkpoint/names.py)
_FIELD = "quantization_config"


def form_name(bits: FormBits) -> str:
    """The name, as in `--quant`, of weights in `bits` bits."""
    return next(name for name, known in FORMS.items() if known == bits)


def quantization_fields(bits: Bits) -> dict[str, Any]:
    """What the config.json of quantised weights says beside the model's shape.

    transformers (5.18) only warns of a quant_method that it does not know, and would then draw the weights at random.
    So they lie in files that it does not look for, and `transformers_weights`, where it expects a file's name, makes
    it fail with the reason.
    """
    told = {
        "quant_method": METHOD,
        "bits": bits,
        "embedding_bits": EMBEDDING_BITS,
        "group_size": GROUP,
        "version": VERSION,
    }
    return {_FIELD: told, "transformers_weights": f"none: the quant_method is {METHOD}, which only octavo reads"}


def quantization_bits(hf: Mapping[str, Any]) -> Bits | None:
    """Bits of the weights that a config.json describes, None where they are not quantised.

    Raises UserError for another method or version, and for bits and groups there are none of.
    """
    told = hf.get(_FIELD)
    if told is None:
        return None
    if not isinstance(told, Mapping):
        raise UserError(f"{_FIELD} is {told!r}: expected an object or null")
    method = told.get("quant_method")
    if method != METHOD:
        raise UserError(
            f"{_FIELD}.quant_method is {method!r}, which octavo does not read: take the checkpoint that it was made "
            "from and quantise that with `octavo convert --quant`"
        )
    known_values = {"version": (VERSION,), "group_size": (GROUP,), "bits": (4, 8), "embedding_bits": (EMBEDDING_BITS,)}
    for name, known in known_values.items():
        value = told.get(name)
        if type(value) is not int or value not in known:  # not isinstance: True is an int
            choices = " or ".join(map(str, known))
            raise UserError(f"{_FIELD}.{name} is {value!r}; this octavo reads {choices}: update it, or convert again")
    bits: Bits = told["bits"]
    return bits
