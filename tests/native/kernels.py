"""The core's table of kernels (native/src/kernels.h) through ctypes, one small checked function for each kernel.

Arrays that a kernel reads or writes are copied to the very end of a page that is followed by one without access: a
kernel that goes past an array ends the process instead of passing its test.
"""

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import CFUNCTYPE, POINTER, c_bool, c_char_p, c_double, c_float, c_int, c_int64, c_void_p
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.native.library import GROUP, UNIT, NativeUnavailable, library
from octavo.ops.quantize import Quantized

PAGE = 32  # tokens


def isas() -> list[Any]:
    """Every instruction set of this machine, as parameters of a test; one that is skipped where there is no core."""
    try:
        return list(library().isas)
    except NativeUnavailable as error:
        return [pytest.param("none", marks=pytest.mark.skip(reason=str(error)))]


@contextmanager
def using(isa: str) -> Iterator[None]:
    """Use the kernels of an instruction set for a while."""
    before = library().isa
    library().use_isa(isa)
    try:
        yield
    finally:
        library().use_isa(before)


class _Activations(ctypes.Structure):
    _fields_ = [("q", c_void_p), ("scale", c_void_p), ("sum", c_void_p), ("groups", c_int64),
                ("exact", c_void_p)]  # fmt: skip


class _KvPage(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("keys", "values", "key_scales", "value_scales", "later_keys",
                                            "later_values")]  # fmt: skip


class _Softmax(ctypes.Structure):
    _fields_ = [("largest", c_float), ("sum", c_float), ("values", c_void_p)]


_MATMUL = CFUNCTYPE(None, c_void_p, POINTER(_Activations), c_void_p, c_int64, c_void_p, c_int64)
_ATTEND = CFUNCTYPE(None, POINTER(_KvPage), c_int, c_int, c_void_p, c_int, c_int64, POINTER(_Softmax))


class _Kernels(ctypes.Structure):
    _fields_ = [
        ("name", c_char_p),
        ("lanes", c_int),
        ("supported", CFUNCTYPE(c_bool)),
        ("matmul4", _MATMUL),
        ("matmul8", _MATMUL),
        ("matmul16", _MATMUL),
        ("unpack_row", CFUNCTYPE(None, c_void_p, c_int, c_int64, c_int64, c_void_p)),
        ("quantise", CFUNCTYPE(None, c_void_p, c_int64, POINTER(_Activations), c_int64)),
        ("norm", CFUNCTYPE(None, c_void_p, c_void_p, c_float, c_int64, c_void_p)),
        ("dot", CFUNCTYPE(c_float, c_void_p, c_void_p, c_int64)),
        ("swiglu", CFUNCTYPE(None, c_void_p, c_void_p, c_int64, c_void_p)),
        ("silu", CFUNCTYPE(None, c_void_p, c_int64)),
        ("sigmoid_gate", CFUNCTYPE(None, c_void_p, c_void_p, c_int64)),
        ("softmax", CFUNCTYPE(None, c_void_p, c_int64)),
        ("attend", _ATTEND),
        ("attend8", _ATTEND),
        ("merge", CFUNCTYPE(None, POINTER(_Softmax), c_int64, POINTER(_Softmax))),
        ("lightning", CFUNCTYPE(None, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_float, c_int64, c_void_p,
                                c_void_p, c_int64)),
        ("most_of", CFUNCTYPE(c_float, c_void_p, c_int64)),
        ("weigh", CFUNCTYPE(None, c_void_p, c_int64, c_float, c_float, c_void_p)),
        ("weigh_all", CFUNCTYPE(c_double, c_void_p, c_int64, c_float, c_float)),
        ("within", CFUNCTYPE(c_int64, c_void_p, c_int64, c_float, c_float, c_float, c_void_p)),
    ]  # fmt: skip


def _table() -> _Kernels:
    c, size = library()._c, c_int64()
    c.octavo_kernels.restype, c.octavo_kernels.argtypes = POINTER(_Kernels), [POINTER(c_int64)]
    table = c.octavo_kernels(size).contents
    assert size.value == ctypes.sizeof(_Kernels), "native/src/kernels.h has changed, and not this table"
    assert table.name.decode() == library().isa
    return table


class Fenced:
    """A copy of an array with a page behind it that nobody may touch."""

    _libc = ctypes.CDLL(None, use_errno=True)

    def __init__(self, array: np.ndarray) -> None:
        size = -(-max(array.nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._map = mmap.mmap(-1, size + mmap.PAGESIZE)
        base = np.frombuffer(self._map, np.uint8)
        end = ctypes.c_void_p(base.ctypes.data + size)
        assert self._libc.mprotect(end, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        flat = base[size - array.nbytes : size].view(array.dtype)
        flat[:] = array.reshape(-1)
        self.array = flat.reshape(array.shape)
        self.at = self.array.ctypes.data


def quantise(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x fp32 [N, K]: q int8 [N, 32 G], scales fp32 [N, G], sums int32 [N, G]."""
    rows, cols = x.shape
    groups = -(-cols // GROUP)
    q, scale, total = (
        Fenced(np.full((rows, width), fill, dtype))
        for width, fill, dtype in ((groups * GROUP, 77, np.int8), (groups, np.nan, np.float32), (groups, -7, np.int32))
    )
    _quantise(x, _Activations(q.at, scale.at, total.at, groups, None))
    return tuple(torch.from_numpy(each.array.copy()) for each in (q, scale, total))


def exact(x: Tensor) -> Tensor:
    """x fp32 [N, K] as bf16 weights take it: [N, 32 G]."""
    groups = -(-x.shape[1] // GROUP)
    out = Fenced(np.full((len(x), groups * GROUP), np.nan, np.float32))
    _quantise(x, _Activations(None, None, None, groups, out.at))
    return torch.from_numpy(out.array.copy())


def _quantise(x: Tensor, out: _Activations) -> None:
    for row in range(len(x)):
        source = Fenced(x[row].numpy())
        _table().quantise(source.at, x.shape[1], out, row)


def packed(weight: Quantized | Tensor, cols: int) -> np.ndarray:
    """A matrix [O, K], quantised or bf16, as the kernels read it."""
    rows, bits = (len(weight), 16) if isinstance(weight, Tensor) else (len(weight.scales), weight.bits)
    out = np.full(library().packed_bytes(rows, cols, bits), 0x55, np.uint8)
    if isinstance(weight, Tensor):
        library().pack(out, weight.view(torch.int16).numpy().view(np.uint16), None, cols)
    else:
        library().pack(out, weight.qweight.numpy(), weight.scales.numpy(), cols)
    return out


def matmul(x: Tensor, weight: Quantized | Tensor, cols: int, picked: Sequence[int] | None = None) -> Tensor:
    """Rows of x [N, K] (those in `picked`, or all), quantised unless the weight is bf16, times it [O, K]: fp32
    [rows, O]."""
    outputs, groups = len(weight if isinstance(weight, Tensor) else weight.scales), -(-cols // GROUP)
    units, count = -(-outputs // UNIT), len(x) if picked is None else len(picked)
    if isinstance(weight, Tensor):
        held, kernel = [Fenced(exact(x).numpy())], _table().matmul16
        given = _Activations(None, None, None, groups, held[0].at)
    else:
        held = [Fenced(each.numpy()) for each in quantise(x)]
        kernel = _table().matmul4 if weight.bits == 4 else _table().matmul8
        given = _Activations(*(each.at for each in held), groups, None)
    rows = None if picked is None else Fenced(np.array(picked, np.int32))
    # each unit's weights by themselves, so that reading past one is caught too
    each_unit = np.split(packed(weight, cols), units)
    out = Fenced(np.full((count, units * UNIT), np.nan, np.float32))
    for unit, weights in enumerate(each_unit):
        fenced = Fenced(weights)
        kernel(fenced.at, given, rows and rows.at, count, out.at + unit * UNIT * 4, units * UNIT)
    return torch.from_numpy(out.array[:, :outputs].copy())


def unpacked(weight: Quantized | Tensor, cols: int) -> Tensor:
    """A matrix [O, K], quantised or bf16, packed, and each of its rows taken out again: fp32 [O, K]."""
    rows, bits = (len(weight), 16) if isinstance(weight, Tensor) else (len(weight.scales), weight.bits)
    lanes = library().lanes
    tiles = packed(weight, cols).reshape(-(-rows // UNIT) * UNIT // lanes, -1)
    out = []
    for row in range(rows):
        tile, into = Fenced(tiles[row // lanes]), Fenced(np.full(cols, np.nan, np.float32))
        _table().unpack_row(tile.at, bits, row % lanes, cols, into.at)
        out.append(torch.from_numpy(into.array.copy()))
    return torch.stack(out)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x, weight: [K]."""
    given, weights, out = Fenced(x.numpy()), Fenced(weight.numpy()), Fenced(np.full(len(x), np.nan, np.float32))
    _table().norm(given.at, weights.at, eps, len(x), out.at)
    return torch.from_numpy(out.array.copy())


def dot(a: Tensor, b: Tensor) -> float:
    """a, b: [K]."""
    first, second = Fenced(a.numpy()), Fenced(b.numpy())
    return float(_table().dot(first.at, second.at, len(a)))


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """gate, up: [K]."""
    first, second, out = Fenced(gate.numpy()), Fenced(up.numpy()), Fenced(np.full(len(gate), np.nan, np.float32))
    _table().swiglu(first.at, second.at, len(gate), out.at)
    return torch.from_numpy(out.array.copy())


def in_place(name: str, x: Tensor, *more: Tensor) -> Tensor:
    """silu or softmax of x [K], or sigmoid_gate of x by a gate [K]."""
    given, rest = Fenced(x.numpy()), [Fenced(each.numpy()) for each in more]
    getattr(_table(), name)(given.at, *(each.at for each in rest), len(x))
    return torch.from_numpy(given.array.copy())


class Softmaxes:
    """Running softmaxes of `count` queries over values of `head_dim`."""

    def __init__(self, count: int, head_dim: int) -> None:
        self.head_dim, width = head_dim, -(-head_dim // 16) * 16
        self._values = Fenced(np.zeros((count, width), np.float32))
        self._all = (_Softmax * count)(
            *((-np.inf, 0.0, self._values.at + i * self._values.array.strides[0]) for i in range(count))
        )

    def attend(
        self,
        queries: Tensor,
        keys: np.ndarray,
        values: np.ndarray,
        first: int,
        last: int,
        scales: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        """queries [count, D], already scaled; keys [D, PAGE], values [PAGE, padded D], scales [PAGE] each."""
        rows = [Fenced(row.numpy()) for row in queries]
        pointers = (c_void_p * len(rows))(*(row.at for row in rows))
        held = [Fenced(each) for each in (keys, values, *(scales or ()))]
        held += [None, None] * (not scales) + held[:2]
        page = _KvPage(*(each and each.at for each in held))
        kernel = _table().attend8 if scales else _table().attend
        kernel(page, first, last, pointers, len(rows), self.head_dim, self._all)

    def merge(self, later: "Softmaxes") -> None:
        """Join those over later keys to these."""
        for mine, theirs in zip(self._all, later._all, strict=True):
            _table().merge(theirs, self._values.array.shape[1], mine)

    def result(self) -> Tensor:
        """[count, D]."""
        sums = np.array([each.sum for each in self._all], np.float32)
        return torch.from_numpy(self._values.array[:, : self.head_dim] / sums[:, None])


def lightning(q: Tensor, k: Tensor, v: Tensor, decay: float, state: Tensor) -> tuple[Tensor, Tensor]:
    """q, k, v [N, D] as rows of [q | k | v | 3 more], state [D, D]: outputs [N, D] and the state after them."""
    count, width = q.shape
    rows = Fenced(torch.cat((q, k, v), 1).numpy())
    held, out = Fenced(state.numpy()), Fenced(np.full((count, width + 5), np.nan, np.float32))
    step = 4 * width
    _table().lightning(rows.at, rows.at + step, rows.at + 2 * step, 3 * width, count, decay, width, held.at,
                       out.at, width + 5)  # fmt: skip
    assert np.isnan(out.array[:, width:]).all()
    return torch.from_numpy(out.array[:, :width].copy()), torch.from_numpy(held.array.copy())


def weights(x: Tensor, top: float, inverse: float) -> tuple[Tensor, float]:
    """e^((x - top) * inverse) of x [K], and their sum by itself."""
    given, out = Fenced(x.numpy()), Fenced(np.full(len(x), np.nan, np.float32))
    _table().weigh(given.at, len(x), top, inverse, out.at)
    return torch.from_numpy(out.array.copy()), float(_table().weigh_all(given.at, len(x), top, inverse))


def most_of(x: Tensor) -> float:
    """The largest of x [K]."""
    given = Fenced(x.numpy())
    return float(_table().most_of(given.at, len(x)))


def within(x: Tensor, top: float, nearest: float, farthest: float) -> list[int]:
    """Numbers of those x [K] for which nearest < top - x <= farthest."""
    given, numbers = Fenced(x.numpy()), Fenced(np.full(len(x), -1, np.int32))
    found = _table().within(given.at, len(x), top, nearest, farthest, numbers.at)
    assert (numbers.array[found:] == -1).all()
    return numbers.array[:found].tolist()
