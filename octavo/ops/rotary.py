"""Rotary position embedding (Su et al. 2021), rotate-half layout, full or partial width.

Pairs are (i, i + dim/2) inside the first `dim` entries of a head; the rest of the head passes through.
"""

import math

import torch
from torch import Tensor

from octavo.config import RopeConfig


def inverse_frequencies(rope: RopeConfig, device: torch.device | str | None = None) -> Tensor:
    """Angular speed of each pair, fp32 [dim/2]: theta^(-2i/dim), then the config's scaling.

    "linear" divides every frequency by `factor`. "llama3" (Llama 3.1 report, section 3.4 and its released code)
    keeps wavelengths under original/high_freq_factor, divides those over original/low_freq_factor, and
    interpolates between.
    """
    frequencies = 1.0 / (rope.theta ** (torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim))
    scaling = rope.scaling
    if scaling is not None and scaling["rope_type"] == "linear":
        frequencies = frequencies / scaling["factor"]
    elif scaling is not None:
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0)
        frequencies = (1 - smooth) * frequencies / scaling["factor"] + smooth * frequencies
    return frequencies.to(device)


def rotary_table(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of position * frequency, each fp32 [N, dim/2].

    positions: integer [N]; frequencies: fp32 [dim/2]. Plain fp32, as in training: at position 4 million the fastest
    pairs are off by about a tenth of a radian, and a more precise table would not be what the weights have learnt.
    """
    angles = positions.to(torch.float32)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first 2 * cos.shape[-1] entries of each head, in fp32 whatever x's dtype.

    x: [N, heads, D]; cos, sin: fp32 [N, dim/2]. Returns x's shape and dtype.
    """
    half = cos.shape[-1]
    cos, sin = cos[:, None, :], sin[:, None, :]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    rotated = first * cos - second * sin, second * cos + first * sin
    return torch.cat((*(part.to(x.dtype) for part in rotated), rest), dim=-1)
