"""The packed form of a model: what the CPU core reads in place, mapped from a file. Made per machine, from any source.

A file holds tensors one after the other, each on a 64-byte border, then a JSON header, its length and its CRC-32C
(8 bytes each, little endian) and a magic number. The header has the config, the tokenizer's files and, for each tensor,
where it lies and its CRC-32C. Matrices lie as native/src/pack.h says, for one number of lanes; everything else is fp32.

Importing this module, and reading a pack, imports no torch.
"""

import base64
import contextlib
import json
import mmap
import os
import struct
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from octavo.checkpoint.names import matrix_bits
from octavo.config import FORMS, FormBits, LayerSpec, ModelConfig, ResidualConfig, RopeConfig, form_name
from octavo.errors import UserError
from octavo.native.cores import cores
from octavo.native.library import UNIT, library
from octavo.native.memory import usable_memory
from octavo.progress import Progress, silent

if TYPE_CHECKING:
    from octavo.checkpoint.source import Source

VERSION = 3  # of what a pack holds: raise it with native/src/pack.h, ops/quantize.py and `plan`
_MAGIC = b"octavo-p"
_TRAILER = struct.Struct("<QQ8s")  # length and CRC of the header, magic
_ALIGNMENT = 64
_PARTIAL, _DAY = ".partial-", 24 * 3600


class DamagedPack(Exception):
    """A pack that is cut short, altered, or of another version; to be made again."""


@dataclass(frozen=True)
class Part:
    """A canonical tensor's place in a packed matrix: every `step`-th unit of 32 rows, from `first` on."""

    name: str
    first: int = 0
    step: int = 1


@dataclass(frozen=True)
class PlannedMatrix:
    """A matrix of the pack: `count` of [rows, cols], end to end, put together from parts."""

    rows: int
    cols: int
    parts: tuple[Part, ...]
    count: int = 1

    def bits(self, model: FormBits) -> FormBits:
        """Bits of its weights in a model of `model` bits."""
        return matrix_bits(self.parts[0].name, model)


def plan(config: ModelConfig) -> Iterator[tuple[str, PlannedMatrix]]:
    """The matrices of a model's pack by name; those of layer i are called `i.what`."""
    yield "embed", PlannedMatrix(config.vocab_size, config.hidden_size, (Part("model.embed_tokens.weight"),))
    for layer, spec in enumerate(config.layers):
        yield from _attention_matrices(config, spec, layer)
        yield from _feed_forward_matrices(config, spec, layer)
    if not config.tie_embeddings:
        yield "head", PlannedMatrix(config.vocab_size, config.hidden_size, (Part("lm_head.weight"),))


def _attention_matrices(config: ModelConfig, spec: LayerSpec, layer: int) -> Iterator[tuple[str, PlannedMatrix]]:
    hidden, query, key = config.hidden_size, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    softmax = spec.attention == "softmax"
    if softmax:
        inputs, out = {"q_proj": query, "k_proj": key, "v_proj": key}, "o_proj"
    else:
        inputs, out = {"qkv_proj": 3 * query, "output_gate": query}, "out_proj"
    prefix, parts, units = f"model.layers.{layer}.self_attn.", [], 0
    for name, rows in inputs.items():
        parts.append(Part(f"{prefix}{name}.weight", units))
        units += _units(rows)
    yield f"{layer}.attention_in", PlannedMatrix(units * UNIT, hidden, tuple(parts))
    yield f"{layer}.attention_out", PlannedMatrix(hidden, query, (Part(f"{prefix}{out}.weight"),))


def _feed_forward_matrices(config: ModelConfig, spec: LayerSpec, layer: int) -> Iterator[tuple[str, PlannedMatrix]]:
    prefix, hidden = f"model.layers.{layer}.", config.hidden_size
    if spec.mlp == "dense":
        names = [{part: f"{prefix}mlp.{part}_proj.weight" for part in ("gate", "up", "down")}]
    else:
        experts = range(config.num_experts)
        letters = {"gate": "w1", "up": "w3", "down": "w2"}
        names = [
            {part: f"{prefix}block_sparse_moe.experts.{e}.{w}.weight" for part, w in letters.items()} for e in experts
        ]
    yield from _swiglu_matrices(f"{layer}.", names, hidden, config.intermediate_size)
    if spec.mlp == "experts" and config.shared_intermediate_size:
        shared = [{part: f"{prefix}shared_mlp.{part}_proj.weight" for part in ("gate", "up", "down")}]
        yield from _swiglu_matrices(f"{layer}.shared_", shared, hidden, config.shared_intermediate_size)


def _swiglu_matrices(
    prefix: str, experts: list[dict[str, str]], hidden: int, inner: int
) -> Iterator[tuple[str, PlannedMatrix]]:
    """Units of gate and up rows take turns, so that one task makes both and multiplies them."""
    wide, tall = _units(inner), _units(hidden)
    turns = [
        Part(names[half], expert * 2 * wide + turn, 2)
        for expert, names in enumerate(experts)
        for turn, half in enumerate(("gate", "up"))
    ]
    downs = [Part(names["down"], expert * tall) for expert, names in enumerate(experts)]
    yield f"{prefix}gate_up", PlannedMatrix(2 * wide * UNIT, hidden, tuple(turns), len(experts))
    yield f"{prefix}down", PlannedMatrix(hidden, inner, tuple(downs), len(experts))


def _units(rows: int) -> int:
    return -(-rows // UNIT)


def float_sizes(config: ModelConfig) -> Iterator[tuple[str, int]]:
    """Names of the fp32 tensors of a model's pack and how many numbers they have."""
    hidden = config.hidden_size
    yield "final_norm", hidden
    yield "frequencies", config.rope.dim // 2
    for layer, spec in enumerate(config.layers):
        yield f"{layer}.attention_norm", hidden
        yield f"{layer}.mlp_norm", hidden
        if spec.attention == "lightning":
            yield f"{layer}.decays", config.num_heads
            yield f"{layer}.inner_norm", config.num_heads * config.head_dim
        if spec.mlp == "experts":
            yield f"{layer}.router", config.num_experts * hidden
            if config.shared_intermediate_size:
                yield f"{layer}.shared_gate", hidden


class Pack:
    """A pack mapped read-only; `tensor` gives views into the file."""

    def __init__(self, path: Path) -> None:
        """Raises DamagedPack unless it is whole, unaltered and made for this library's lanes, UserError when the file
        cannot be opened. All of it is read for that; if it is larger than memory, only the first time."""
        self.path = path
        try:
            with open(path, "rb") as file:
                self._status = os.fstat(file.fileno())  # of this very file: another process may put a new one there
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._bytes = np.frombuffer(self._map, np.uint8)
            header = self._header()
            self.lanes: int = header["lanes"]
            if (header["version"], self.lanes) != (VERSION, library().lanes):
                raise ValueError("made by another version or for other kernels")
            self.config = config_from(header["config"])
            self.bits: FormBits = header["bits"]
            self.label: str = header["label"]
            self.side_files = {name: base64.b64decode(text) for name, text in header["side_files"].items()}
            self._tensors: Mapping[str, dict[str, Any]] = header["tensors"]
            self._check_sizes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise DamagedPack(f"{path}: is not there") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions, or remove it") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedPack(f"{path}: {error}") from None
        memory = usable_memory()
        self.fits_memory = memory is None or self.nbytes <= memory
        if self.fits_memory:
            self._verify()
        else:
            self._verify_once()

    def tensor(self, name: str) -> NDArray[Any]:
        """A tensor's memory: uint8 of a packed matrix, fp32 [..] of any other."""
        entry = self._tensors[name]
        found = self._bytes[entry["offset"] : entry["offset"] + entry["bytes"]]
        return found if "shape" not in entry else found.view(np.float32).reshape(entry["shape"])

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry["bytes"] for entry in self._tensors.values())

    def _header(self) -> dict[str, Any]:
        end = len(self._bytes) - _TRAILER.size
        if end < 0:
            raise ValueError("is cut short")
        length, crc, magic = _TRAILER.unpack(self._bytes[end:].tobytes())
        if magic != _MAGIC or length > end:
            raise ValueError("is not a whole pack")
        text = self._bytes[end - length : end]
        if library().crc32c(text) != crc:
            raise ValueError("its header is not what was written")
        header: dict[str, Any] = json.loads(text.tobytes())
        return header

    def _check_sizes(self) -> None:
        """Raise ValueError for a tensor of another size than the config implies: kernels would read past its end."""
        if self.bits not in FORMS.values():
            raise ValueError(f"bits is {self.bits}")
        expected = {
            name: library().packed_bytes(matrix.count * _units(matrix.rows) * UNIT, matrix.cols, matrix.bits(self.bits))
            for name, matrix in plan(self.config)
        }
        expected |= {name: 4 * count for name, count in float_sizes(self.config)}
        for name, size in expected.items():
            entry = self._tensors[name]
            whole = 0 <= entry["offset"] <= len(self._bytes) - size and entry["offset"] % _ALIGNMENT == 0
            if entry["bytes"] != size or not whole:
                raise ValueError(f"{name} has not the size or place that its shape implies")

    def _verify_once(self) -> None:
        """`_verify`, unless a file beside the pack says that it was found good, and it has not been written since."""
        status, note = self._status, checked_note(self.path)
        # the time of the last change of any kind, too: a copy may bring the old time of its contents with it
        told = f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n".encode()
        with contextlib.suppress(OSError):
            if note.read_bytes() == told:
                return
        self._verify()
        with contextlib.suppress(OSError):  # it is then read again the next time
            note.write_bytes(told)

    def _verify(self) -> None:
        def whole(entry: dict[str, Any]) -> bool:
            data = self._bytes[entry["offset"] : entry["offset"] + entry["bytes"]]
            return len(data) == entry["bytes"] and library().crc32c(data) == entry["crc"]

        with ThreadPoolExecutor(cores()) as workers:
            for name, good in zip(self._tensors, workers.map(whole, self._tensors.values()), strict=True):
                if not good:
                    raise DamagedPack(f"{self.path}: {name} is not what was written")


def checked_note(pack: Path) -> Path:
    """The file that says of a pack larger than memory that its checksums were compared."""
    return pack.with_suffix(".checked")


def write_pack(source: "Source", bits: FormBits, path: Path, progress: Progress = silent) -> None:
    """Round the matrices of `source` to `bits` bits and write its pack, whole or not at all; many processes may.

    16 bits: bf16. One matrix is in memory at a time. Raises UserError when the source is damaged or the disk fills.
    """
    staged = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent)
        descriptor, staged = tempfile.mkstemp(prefix=f".{path.name}{_PARTIAL}", dir=path.parent)
        with open(descriptor, "wb") as file:
            _write(file, source, bits, progress)
        os.chmod(staged, 0o644)  # mkstemp's is for its owner only
        os.replace(staged, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free space, or set OCTAVO_HOME to another disk"
        ) from None
    finally:
        if staged is not None:
            Path(staged).unlink(missing_ok=True)


def _remove_abandoned(folder: Path) -> None:
    """What builds left that were killed: files that nobody has written to for a day."""
    for partial in folder.glob(f".*{_PARTIAL}*"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > _DAY:
                partial.unlink()


def _write(file: BinaryIO, source: "Source", bits: FormBits, progress: Progress) -> None:
    from octavo.checkpoint.pack_tensors import float_tensors, packed_matrix

    config, tensors, offset = source.config, {}, 0

    def put(name: str, data: NDArray[Any], **more: Any) -> None:
        nonlocal offset
        file.write(bytes(-offset % _ALIGNMENT))
        offset += -offset % _ALIGNMENT
        flat = data.reshape(-1).view(np.uint8)
        file.write(flat.data)
        tensors[name] = {"offset": offset, "bytes": flat.nbytes, "crc": library().crc32c(flat), **more}
        offset += flat.nbytes

    matrices = dict(plan(config))
    for done, (name, matrix) in enumerate(matrices.items(), start=1):
        put(name, packed_matrix(source, matrix, bits))
        progress(f"packing {form_name(bits)}", done, len(matrices))
    for name, values in float_tensors(source):
        put(name, values, shape=list(values.shape))
    header = {
        "version": VERSION,
        "lanes": library().lanes,
        "bits": bits,
        "label": source.label,
        "config": asdict(config),
        "side_files": {name: base64.b64encode(data).decode() for name, data in source.side_files().items()},
        "tensors": tensors,
    }
    text = json.dumps(header).encode()
    crc = library().crc32c(np.frombuffer(text, np.uint8))
    file.write(text + _TRAILER.pack(len(text), crc, _MAGIC))


def config_from(values: Mapping[str, Any]) -> ModelConfig:
    """The ModelConfig that `dataclasses.asdict` and JSON made these values of."""
    residual: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values["residual"].items()}
    eos = values["eos_token_id"]
    parts = {
        "layers": tuple(LayerSpec(**layer) for layer in values["layers"]),
        "rope": RopeConfig(**values["rope"]),
        "residual": ResidualConfig(**residual),
        "eos_token_id": tuple(eos) if isinstance(eos, list) else eos,
    }
    return ModelConfig(**{**values, **parts})
