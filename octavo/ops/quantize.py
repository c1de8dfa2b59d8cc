"""Weights in 4 or 8 bits and activations in 8: the plain definition that the native kernels must equal.

Both are cut into groups of 32 along the input dimension K, the last one maybe shorter. A weight is an integer times
its group's fp16 scale. Below, G = ceil(K / 32) is the number of groups in a row.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.config.quantization import GROUP as GROUP
from octavo.config.quantization import Bits as Bits

LARGEST_SCALE = 65504.0  # of finite fp16 numbers
_SMALLEST_SCALE = 2.0**-24
_LIMITS = {4: (-8, 7), 8: (-127, 127)}
_CHUNK = 2**16  # weights at a time: what an inner cache holds
_TINY_ACTIVATION = 1e-36  # 127 / amax leaves fp32 just below it

# On which step of the grid the value of largest magnitude is put first, before the scale is fitted: -8 is where Q4_0
# has it, beyond -8 and 7 it is clipped. The whole numbers from 1 to 7 and -8 find any grid that the weights lie on.
_STEPS = (-8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, -7.0, -7.33, -7.67, -8.33, -8.67, -9.0, -9.5, -10.0,
          6.33, 6.67, 7.33, 7.67, 8.0, 8.5, 9.0)  # fmt: skip


@dataclass(frozen=True)
class Quantized:
    """A weight [..., N, K] in `bits` bits.

    qweight: int8 [..., N, K], in -127..127; or uint8 [..., N, ceil(K / 2)], two 4-bit numbers a byte, an even column
    in the low nibble and the next one in the high nibble, which hold q + 8 for q in -8..7 (an odd K leaves one nibble,
    which holds 8). scales: fp16 [..., N, G], finite, of either sign; 0 for a group of zeros.
    """

    qweight: Tensor
    scales: Tensor
    bits: Bits


def quantize(weight: Tensor, bits: Bits) -> Quantized:
    """weight [..., N, K] of any float dtype, rounded to `bits` bits; computed in fp32, a few rows at a time.

    8 bits: the scale is fp16(largest magnitude / 127), and values are rounded with that scale. 4 bits: the scale of
    least squared error among some twenty starts, each refined by a least-squares fit; so no group is further from the
    weights than under Q4_0, and weights that lie on such a grid come back bit for bit.
    Raises ValueError for a weight that is not finite or too large for fp16 scales.
    """
    if weight.ndim < 2 or bits not in _LIMITS:
        raise ValueError(f"{bits} bits of a weight of shape {list(weight.shape)}: 4 or 8 bits, at least 2 dimensions")
    *outer, columns = weight.shape
    rows, groups = weight.reshape(-1, columns), -(-columns // GROUP)
    width, dtype = (columns, torch.int8) if bits == 8 else (-(-columns // 2), torch.uint8)
    qweight = torch.empty(rows.shape[0], width, dtype=dtype)
    scales = torch.empty(rows.shape[0], groups, dtype=torch.float16)
    step = max(1, _CHUNK // max(1, columns))
    for start in range(0, rows.shape[0], step):
        part = F.pad(rows[start : start + step].float(), (0, groups * GROUP - columns))
        # [32, groups]: sums over a group then run along whole rows
        values = part.view(-1, GROUP).T.contiguous()
        scale = _scales_of(values, bits)
        q = _rounded(values, scale, bits).T.reshape(-1, groups * GROUP)
        qweight[start : start + step] = q[:, :columns].to(torch.int8) if bits == 8 else _pack(q, width)
        scales[start : start + step] = scale.view(-1, groups).to(torch.float16)
    return Quantized(qweight.view(*outer, width), scales.view(*outer, groups), bits)


def dequantize(quantized: Quantized, columns: int) -> Tensor:
    """The fp32 weight [..., N, K] that `quantized` stands for, exactly; `columns` is K."""
    values, scales = integers(quantized, columns).float(), quantized.scales.float()[..., None]
    full = columns // GROUP
    values[..., : full * GROUP].unflatten(-1, (full, GROUP)).mul_(scales[..., :full, :])
    if columns % GROUP:
        values[..., full * GROUP :].mul_(scales[..., full, :])
    return values


def integers(quantized: Quantized, columns: int) -> Tensor:
    """The integers of a quantised weight without their scales: int8 [..., N, K]; `columns` is K."""
    if quantized.bits == 8:
        return quantized.qweight
    nibbles = torch.stack((quantized.qweight & 15, quantized.qweight >> 4), -1).flatten(-2)
    return nibbles[..., :columns].to(torch.int8) - 8


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [N, K] as int8 [N, 32 G], padded with zeros, and fp32 scales [N, G].

    For each row and group, in fp32: amax = max |x|, scale = amax / 127, inverse = 127 / amax, and
    q = round(x * inverse), halves to even. A group with amax below 1e-36 has scale and q 0; a group with a NaN or an
    infinity has scale NaN and q 0, so that the outputs it reaches are NaN.
    """
    padded = F.pad(x.float(), (0, -x.shape[-1] % GROUP))
    groups = padded.unflatten(-1, (-1, GROUP))
    amax = groups.abs().amax(-1)
    finite, zero = amax.isfinite(), amax < _TINY_ACTIVATION
    inverse = torch.where(zero, 0.0, 127.0 / amax)
    scales = torch.where(finite, torch.where(zero, 0.0, amax / 127.0), torch.nan)
    q = torch.where(finite[..., None], groups * inverse[..., None], 0.0).round()
    return q.flatten(-2).to(torch.int8), scales


def quantized_linear(x: Tensor, quantized: Quantized, columns: int) -> Tensor:
    """x [N, K] times the transpose of a quantised weight [O, K], with x in 8 bits: fp32 [N, O]. `columns` is K.

    The specification of the native kernels, for each output, over the groups g in ascending order and in fp32:

        acc = fma(dot_g, weight_scale_g * activation_scale_g, acc)

    dot_g is the exact dot product of the group's integers (below 2^20, so exact in fp32 too), the product of scales
    is rounded to fp32. Here the fma is computed in float64 and then rounded to fp32: the same but for a double
    rounding, which can change a last bit once in some 2^28 steps.
    """
    q, scales = quantize_activations(x)
    weight = F.pad(integers(quantized, columns).float(), (0, -columns % GROUP))
    acc = torch.zeros(x.shape[0], weight.shape[0])
    parts = zip(q.float().split(GROUP, -1), weight.split(GROUP, -1), scales.T, quantized.scales.float().T, strict=True)
    for rows, weights, row_scales, weight_scales in parts:
        dots = rows @ weights.T
        acc = (acc.double() + dots.double() * (row_scales[:, None] * weight_scales).double()).float()
    return acc


def _scales_of(values: Tensor, bits: Bits) -> Tensor:
    """Scales [groups] of values [32, groups]: fp32 holding fp16 numbers."""
    largest = values.gather(0, values.abs().argmax(0, keepdim=True))[0]
    limit = LARGEST_SCALE * -_LIMITS[bits][0]
    if not (largest.abs() <= limit).all():  # NaN, too, is not
        raise ValueError(f"a weight is not finite or above {limit:.0f}, which fp16 scales do not reach")
    return _search(values, largest) if bits == 4 else _scale_of_int8(largest.abs())


def _scale_of_int8(largest: Tensor) -> Tensor:
    scale = (largest / 127).half()
    # among fp16's subnormals the nearest scale may be so much too small that it would clip
    above = (scale.view(torch.int16) + 1).view(torch.float16)
    return torch.where(scale.float() * 127.5 < largest, above, scale).float()


def _search(values: Tensor, largest: Tensor) -> Tensor:
    """The scales [groups] of least squared error for 4 bits among the starts largest / step."""
    best, least = torch.zeros_like(largest), values.square().sum(0)
    for step in _STEPS:
        scale, error = _fit(values, largest / step)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    scale, error = _fit(values, best)
    return torch.where(error < least, scale, best)


def _fit(values: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Round with `scale`, then take the scale that suits these integers best: that one and its squared error."""
    q = _rounded(values, _to_fp16(scale), 4)
    fitted = _to_fp16((q * values).sum(0) / q.square().sum(0).clamp_min_(1))
    return fitted, q.mul_(fitted).sub_(values).square_().sum(0)


def _to_fp16(scale: Tensor) -> Tensor:
    """The nearest finite fp16 number that is not 0, as fp32."""
    near = scale.clamp(-LARGEST_SCALE, LARGEST_SCALE).half().float()
    return torch.where(near == 0, torch.full_like(scale, _SMALLEST_SCALE).copysign(scale), near)


def _rounded(values: Tensor, scale: Tensor, bits: Bits) -> Tensor:
    """values [32, groups] / scale [groups], rounded to integers (as fp32) within the limits; 0 where the scale is."""
    return values.div(torch.where(scale == 0, torch.inf, scale)).round_().clamp_(*_LIMITS[bits])


def _pack(q: Tensor, width: int) -> Tensor:
    """Integers [rows, 32 G] as nibbles q + 8, two a byte: uint8 [rows, width]."""
    nibbles = (q[:, : 2 * width] + 8).to(torch.uint8)
    return nibbles[:, 0::2] | nibbles[:, 1::2] << 4
