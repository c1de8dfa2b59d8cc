"""The compiled library through ctypes: the structures of src/octavo.h, and functions that check before they call.

ctypes lets go of the GIL for the length of each call.
"""

import ctypes
import math
import os
import struct
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_uint32, c_void_p
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from octavo.errors import UserError
from octavo.native.build import LIBRARY, REMEDY, is_current

GROUP = 32  # weights, or activations, that share a scale
UNIT = 32  # rows of a packed matrix that lie together
_FAILURES = {1: "out of memory", 2: "threads cannot be started, or kernels are not to be had here"}


class NativeUnavailable(RuntimeError):
    """There is no usable CPU core; the message says in one line what is missing."""


class Matrix(ctypes.Structure):
    """OctMatrix: a packed matrix, or `count` of one shape end to end."""

    _fields_ = [("data", c_void_p), ("rows", c_int64), ("cols", c_int64), ("bits", c_int32), ("count", c_int32)]


class Layer(ctypes.Structure):
    """OctLayer; floats are given by their address."""

    _fields_ = [
        *((name, c_int32) for name in ("lightning", "experts", "store", "post_norm")),
        *((name, c_float) for name in ("attention_alpha", "attention_beta", "mlp_alpha", "mlp_beta")),
        *((name, c_void_p) for name in ("attention_norm", "mlp_norm", "router", "decays", "inner_norm", "shared_gate")),
        *((name, Matrix) for name in ("attention_in", "attention_out", "gate_up", "down")),
        *((name, Matrix) for name in ("shared_gate_up", "shared_down")),
    ]


class Model(ctypes.Structure):
    """OctModel."""

    _fields_ = [
        *((name, c_int32) for name in ("hidden", "intermediate", "shared_intermediate", "vocab", "layers", "heads")),
        *((name, c_int32) for name in ("kv_heads", "head_dim", "experts", "top_k", "rotary_dim", "window")),
        ("advise", c_int32),
        *((name, c_float) for name in ("norm_eps", "inner_norm_eps")),
        ("layer", POINTER(Layer)),
        *((name, c_void_p) for name in ("final_norm", "frequencies")),
        *((name, Matrix) for name in ("embed", "head")),
    ]


class Memory(ctypes.Structure):
    """OctMemory: keys, values and states."""

    _fields_ = [
        *((name, c_void_p) for name in ("keys", "values", "key_scales", "value_scales", "states")),
        *((name, c_int64) for name in ("pages", "slots")),
    ]


class Batch(ctypes.Structure):
    """OctBatch."""

    _fields_ = [
        *((name, c_int64) for name in ("rows", "sequences", "table_width")),
        *((name, c_void_p) for name in ("ids", "cu_seqlens", "positions", "page_table", "state_slots")),
        *((name, c_int64) for name in ("num_logit_rows", "num_hidden_rows")),
        *((name, c_void_p) for name in ("logit_rows", "hidden_rows", "logits", "hidden", "expert_counts")),
    ]


DRAW = struct.Struct("qqdddd")  # OctDraw: row, top_k, temperature, top_p, min_p, drawn


class Library:
    """The functions of the compiled core. Arrays are checked here: nothing past this class looks at a shape again."""

    def __init__(self, path: Path) -> None:
        try:
            self._c = ctypes.CDLL(str(path))
        except OSError as error:
            raise NativeUnavailable(f"{path}: cannot be loaded ({error})") from None
        self._declare()
        sizes = (c_int64 * 6)()
        self._c.octavo_sizes(sizes)
        known = [ctypes.sizeof(kind) for kind in (Matrix, Layer, Model, Memory, Batch)]
        if list(sizes) != [*known, DRAW.size]:
            raise NativeUnavailable(f"{path}: was built from other sources; run `python -m octavo.native.build`")

    def _declare(self) -> None:
        c = self._c
        c.octavo_packed_bytes.restype, c.octavo_packed_bytes.argtypes = c_int64, [c_int64, c_int64, c_int32]
        c.octavo_pack.restype = None
        c.octavo_pack.argtypes = [c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int32, c_int64, c_int64]
        c.octavo_crc32c.restype, c.octavo_crc32c.argtypes = c_uint32, [c_void_p, c_int64, c_uint32]
        c.octavo_read_bandwidth.restype = c_double
        c.octavo_read_bandwidth.argtypes = [c_void_p, c_int64, c_int32]
        c.octavo_weight_sum.restype, c.octavo_weight_sum.argtypes = c_double, [c_void_p, c_int64, c_float]
        c.octavo_draw.restype = c_int32
        c.octavo_draw.argtypes = [c_void_p, c_int64, c_float, c_double, c_int64, c_double, c_double, c_double]
        c.octavo_open.argtypes = [POINTER(Model), POINTER(Memory), c_int32, POINTER(c_void_p)]
        c.octavo_step.argtypes = [c_void_p, POINTER(Batch)]
        c.octavo_draw_rows.restype = None
        c.octavo_draw_rows.argtypes = [c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_void_p]
        c.octavo_close.restype, c.octavo_close.argtypes = None, [c_void_p]
        for name in ("octavo_isa", "octavo_isas", "octavo_source_hash"):
            getattr(c, name).restype = c_char_p
        c.octavo_use_isa.argtypes = [c_char_p]
        c.octavo_lanes.restype = c_int32

    @property
    def isa(self) -> str:
        """The instruction set in use: portable, avx2 or avx512."""
        return str(self._c.octavo_isa().decode())

    @property
    def isas(self) -> tuple[str, ...]:
        """Those this machine can run, best first."""
        return tuple(self._c.octavo_isas().decode().split(","))

    @property
    def lanes(self) -> int:
        """Rows that a packed matrix interleaves for the instruction set in use."""
        return int(self._c.octavo_lanes())

    def use_isa(self, name: str) -> None:
        """Use other kernels from now on, for what is packed and opened from now on. Raises ValueError."""
        if self._c.octavo_use_isa(name.encode()):
            raise ValueError(f"instruction set {name!r}: this machine has {', '.join(self.isas)}")

    def packed_bytes(self, rows: int, cols: int, bits: int) -> int:
        """Size of a packed matrix [rows, cols]."""
        return int(self._c.octavo_packed_bytes(rows, cols, bits))

    def pack(
        self,
        packed: NDArray[np.uint8],
        weights: NDArray[np.uint8] | NDArray[np.int8] | NDArray[np.uint16],
        scales: NDArray[np.float16] | None,
        cols: int,
        first: int = 0,
        step: int = 1,
    ) -> None:
        """Interleave rows (quantised ones as in ops/quantize.py) into every `step`-th unit of `packed`, from unit
        `first` on.

        weights: int8 [N, K] or, two to a byte, uint8 [N, ceil(K / 2)], with scales fp16 [N, ceil(K / 32)]; or uint16
        [N, K], the bits of bf16, without; packed: uint8, whole units. Raises ValueError for shapes or dtypes that do
        not fit together.
        """
        bits = {"int8": 8, "uint8": 4, "uint16": 16}.get(weights.dtype.name)
        rows = len(weights)
        if bits is None or weights.shape != (rows, -(-cols // 2) if bits == 4 else cols):
            raise ValueError(f"weights are {weights.dtype} {list(weights.shape)} for {cols} columns")
        if (scales is None) != (bits == 16):
            raise ValueError(f"weights of {bits} bits have {'no' if bits == 16 else 'their'} scales")
        if scales is not None and (scales.dtype != np.float16 or scales.shape != (rows, -(-cols // GROUP))):
            raise ValueError(f"scales are {scales.dtype} {list(scales.shape)} for {rows} rows of {cols} columns")
        units = -(-rows // UNIT)
        needed = self.packed_bytes((first + (units - 1) * step + 1) * UNIT, cols, bits) if rows else 0
        if packed.dtype != np.uint8 or packed.nbytes < needed or first < 0 or step < 1:
            raise ValueError(f"packed holds {packed.nbytes} bytes, {needed} are needed")
        _contiguous(packed, weights, *(() if scales is None else (scales,)))
        if not packed.flags.writeable:
            raise ValueError("packed is read-only")
        scales_at = None if scales is None else scales.ctypes.data
        self._c.octavo_pack(packed.ctypes.data, weights.ctypes.data, scales_at, rows, cols, bits, first, step)

    def crc32c(self, data: NDArray[np.uint8], crc: int = 0) -> int:
        """CRC-32C of bytes, going on from `crc`."""
        _contiguous(data)
        return int(self._c.octavo_crc32c(data.ctypes.data, data.nbytes, crc))

    def read_bandwidth(self, data: NDArray[np.uint8], threads: int) -> float:
        """Bytes a second that `threads` threads together read of `data`, the best of five passes."""
        _contiguous(data)
        return float(self._c.octavo_read_bandwidth(data.ctypes.data, data.nbytes, threads))

    def weight_sum(self, logits: NDArray[np.float32], largest: float) -> float:
        """The sum of e^(logit - largest), right to some 1e-7 of itself.

        logits: fp32 [vocab]; largest: the largest of them, finite. Raises ValueError for another dtype or shape.
        """
        return float(self._c.octavo_weight_sum(_row(logits), len(logits), largest))

    def draw(
        self,
        logits: NDArray[np.float32],
        largest: float,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        drawn: float,
    ) -> int:
        """The id on which `drawn`, from 0 to below 1, falls among the candidates, as in engine/draw.py.

        logits: fp32 [vocab], no NaN; largest: the largest of them, finite; temperature above 0. Raises ValueError for
        arrays and numbers that are none of that where it shows, and MemoryError.
        """
        at = _row(logits)
        if not (0.0 <= drawn < 1.0 and temperature > 0.0 and top_k >= 0 and math.isfinite(largest)):
            raise ValueError(f"drawn {drawn}, temperature {temperature}, top_k {top_k}, largest {largest}")
        token = int(self._c.octavo_draw(at, len(logits), largest, temperature, top_k, top_p, min_p, drawn))
        if token == -1:
            raise ValueError(f"no logit is {largest} or a finite number below it")
        self._check(token == -2)
        return token

    def open(self, model: Model, memory: Memory, threads: int) -> int:
        """A runner's handle, for `step` and `close`. What the structures point to must outlive it."""
        handle = c_void_p()
        self._check(self._c.octavo_open(model, memory, threads, handle))
        assert handle.value is not None
        return handle.value

    def step(self, handle: int, batch: Batch) -> None:
        """One step of a runner. Raises MemoryError; the batch must have been checked."""
        self._check(self._c.octavo_step(handle, batch))

    def draw_rows(
        self, handle: int, logits: NDArray[np.float32], draws: Sequence[tuple[int, int, float, float, float, float]]
    ) -> list[int]:
        """Tokens for `draws` (fields of DRAW) from rows of logits [rows, vocab], on the runner's threads; -1 where a
        row's logits are not numbers, -2 where there was no memory. Not beside a step.

        Raises ValueError for arrays that are something else; the settings must have been checked.
        """
        if logits.dtype != np.float32 or logits.ndim != 2 or not 0 < logits.shape[1] < 2**31:
            raise ValueError(f"logits are {logits.dtype} {list(logits.shape)}: they must be fp32 and of two dimensions")
        if not all(0 <= draw[0] < len(logits) for draw in draws):
            raise ValueError(f"draws ask for rows {[draw[0] for draw in draws]} of {len(logits)}")
        _contiguous(logits)
        tokens = np.empty(len(draws), np.int32)
        packed = b"".join(DRAW.pack(*draw) for draw in draws)
        self._c.octavo_draw_rows(handle, logits.ctypes.data, logits.shape[1], packed, len(draws), tokens.ctypes.data)
        return tokens.tolist()

    def close(self, handle: int) -> None:
        """End a runner and its threads."""
        self._c.octavo_close(handle)

    @staticmethod
    def _check(status: int) -> None:
        if status:
            raise (MemoryError if status == 1 else RuntimeError)(f"the CPU core: {_FAILURES[status]}")


def _row(logits: NDArray[np.float32]) -> int:
    """Where the logits of a row lie."""
    if logits.dtype != np.float32 or logits.ndim != 1 or not 0 < len(logits) < 2**31:
        raise ValueError(f"logits are {logits.dtype} {list(logits.shape)}: they must be fp32 and of one dimension")
    _contiguous(logits)
    return logits.ctypes.data


def _contiguous(*arrays: NDArray[np.generic]) -> None:
    for array in arrays:
        if not array.flags.c_contiguous:
            raise ValueError("arrays must be contiguous")


@cache
def library() -> Library:
    """The compiled core that was installed with octavo.

    Raises NativeUnavailable where there is none, UserError where OCTAVO_ISA asks for kernels that cannot run here.
    """
    if not LIBRARY.exists():
        raise NativeUnavailable(f"octavo's CPU core was not built: {REMEDY}")
    if not is_current(LIBRARY):
        raise NativeUnavailable(f"{LIBRARY}: was built from other sources; run `python -m octavo.native.build`")
    loaded = Library(LIBRARY)
    asked = os.environ.get("OCTAVO_ISA")
    if asked and asked not in loaded.isas:
        raise UserError(f"OCTAVO_ISA is {asked!r}; this machine has {', '.join(loaded.isas)}: choose one, or unset it")
    return loaded


@cache
def usable_library() -> Library | None:
    """`library()`, or None where there is none: for what numpy can do as well, only slower."""
    try:
        return library()
    except NativeUnavailable:
        return None
