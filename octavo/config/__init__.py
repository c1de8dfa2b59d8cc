"""What a model and a request are: the dataclasses every room reads, and config.json in and out."""

from octavo.config.hf import from_hf, to_hf
from octavo.config.home import home
from octavo.config.model import LayerSpec, ModelConfig, ResidualConfig, RopeConfig
from octavo.config.sampling import SamplingParams

__all__ = ["LayerSpec", "ModelConfig", "ResidualConfig", "RopeConfig", "SamplingParams", "from_hf", "home", "to_hf"]
