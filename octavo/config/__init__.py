"""What a model and a request are: the dataclasses every room reads, config.json in and out, params.json in."""

from octavo.config.hf import from_hf, to_hf
from octavo.config.home import home
from octavo.config.model import LayerSpec, ModelConfig, ResidualConfig, RopeConfig
from octavo.config.params import from_params
from octavo.config.sampling import SamplingParams

__all__ = [
    "LayerSpec",
    "ModelConfig",
    "ResidualConfig",
    "RopeConfig",
    "SamplingParams",
    "from_hf",
    "from_params",
    "home",
    "to_hf",
]
