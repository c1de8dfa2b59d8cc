"""What models and requests are: the dataclasses every room reads, config.json in and out, and well-known models."""

from octavo.config.engine import EngineOptions
from octavo.config.hf import from_hf, to_hf
from octavo.config.home import home
from octavo.config.model import LayerSpec, ModelConfig, ResidualConfig, RopeConfig
from octavo.config.params import from_params
from octavo.config.presets import PRESETS, preset
from octavo.config.quantization import FORMS, Bits, FormBits, form_name, quantization_bits, quantization_fields
from octavo.config.sampling import Grammar, SamplingParams

__all__ = [
    "FORMS",
    "PRESETS",
    "Bits",
    "EngineOptions",
    "FormBits",
    "Grammar",
    "LayerSpec",
    "ModelConfig",
    "ResidualConfig",
    "RopeConfig",
    "SamplingParams",
    "form_name",
    "from_hf",
    "from_params",
    "home",
    "preset",
    "quantization_bits",
    "quantization_fields",
    "to_hf",
]
