"""The CPU runner: quantised weights through the native core. Bitwise deterministic; imports no torch."""

import ctypes
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from octavo.checkpoint.pack import Pack, PlannedMatrix, plan
from octavo.config import ModelConfig
from octavo.engine.draw import Draw
from octavo.engine.runner import PAGE_TOKENS, StateAges, StepBatch, StepResult, bytes_of_one, check_data, check_number
from octavo.native.cores import cores
from octavo.native.library import Batch, Layer, Library, Matrix, Memory, Model, library

KeyValues = Literal["float32", "int8"]
INNER_NORM_EPS = 1e-6  # of lightning layers, whatever the config says (models/lightning.py)
_DTYPES: dict[str, type[np.generic]] = {"float32": np.float32, "int8": np.int8}
_GIVEN = ("ids", "cu_seqlens", "positions", "page_table", "state_slots", "logit_rows", "hidden_rows")
_WIDTH = 16  # values are padded to a multiple of it


class NativeRunner:
    """`Runner` on a pack. The same request gives the same bits alone, in any batch, in any chunking, on any number of
    threads. Steps from several threads take turns.

    Where the pack does not fit into memory, the system is asked for experts before they are used (paging.cpp).

    Keys and values are int8 with a scale for each token and head, quantised before anything reads them, or fp32; their
    pages lie as native/src/octavo.h says. States: fp32 [lightning layer][slot][H][D][D].
    """

    def __init__(
        self, pack: Pack, num_pages: int, num_slots: int = 1, threads: int | None = None, kv: KeyValues = "int8"
    ) -> None:
        self.pack, self.config, self.num_pages = pack, pack.config, num_pages
        self.num_slots = num_slots if self.config.lightning_layers else 0
        if self.config.lightning_layers and num_slots < 1:
            raise ValueError(f"num_slots is {num_slots}: a model with lightning layers needs at least one")
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}: it must be above 0")
        if kv not in _DTYPES:
            raise ValueError(f"kv is {kv!r}: choose one of {', '.join(_DTYPES)}")
        if pack.lanes != library().lanes:
            raise ValueError(f"the pack has {pack.lanes} lanes, the kernels in use {library().lanes}: open it again")
        self.threads = threads or cores()
        self._ages = StateAges(self.num_slots)
        self._memory, self._arrays = _memory(self.config, num_pages, self.num_slots, kv)
        self._paged = [array for name, array in self._arrays.items() if name != "states"]
        self._states: NDArray[np.float32] = self._arrays["states"]
        self.page_bytes = sum(bytes_of_one(array.itemsize, array.shape) for array in self._paged)
        self.state_bytes = bytes_of_one(self._states.itemsize, self._states.shape)
        self._model, self._layers = _model(pack)
        self._library = library()
        self._handle = self._library.open(self._model, self._memory, self.threads)
        self._stepping = threading.Lock()
        # not at exit, when another thread may still be in a step; nor in a forked child, which has none of the threads
        weakref.finalize(self, _close, self._library, self._handle, os.getpid()).atexit = False

    @property
    def key_value_bytes(self) -> float:
        """Bytes that a number of a key or value takes, its share of a scale included."""
        return 4.0 if "key_scales" not in self._arrays else 1 + 4 / self.config.head_dim

    def step(self, batch: StepBatch) -> StepResult:
        """Run the batch; see `Runner.step`. Raises ValueError for a batch that contradicts itself or its slots."""
        config = self.config
        batch.check(self.num_pages, config.vocab_size, self.num_slots, config.sliding_window)
        flat, addresses = _laid_end_to_end(batch)
        outputs: dict[str, NDArray[Any]] = {
            "logits": np.empty((len(batch.logit_rows), config.vocab_size), np.float32),
            "hidden": np.empty((len(batch.hidden_rows), config.hidden_size), np.float32),
            "expert_counts": np.zeros((config.num_layers, config.num_experts), np.int64),
        }
        given = Batch(
            rows=len(batch.ids),
            sequences=len(batch.cu_seqlens) - 1,
            table_width=batch.page_table.shape[1],
            num_logit_rows=len(batch.logit_rows),
            num_hidden_rows=len(batch.hidden_rows),
            **addresses,
            **{name: array.ctypes.data for name, array in outputs.items()},
        )
        with self._stepping, self._ages.moving(batch):
            self._library.step(self._handle, given)
        del flat  # `given` holds addresses in it
        return StepResult(**outputs)

    def draw(self, logits: NDArray[np.float32], draws: Sequence[Draw]) -> list[int]:
        """See `Runner.draw`."""
        with self._stepping:
            return self._library.draw_rows(self._handle, logits, draws)

    def copy_page(self, source: int, target: int) -> None:
        """See `Runner.copy_page`."""
        for page in (source, target):
            check_number("page", page, self.num_pages)
        with self._stepping:
            for memory in self._paged:
                memory[:, target] = memory[:, source]

    def read_page(self, page: int) -> NDArray[np.uint8]:
        """See `Runner.read_page`."""
        check_number("page", page, self.num_pages)
        with self._stepping:
            return np.concatenate([memory[:, page].reshape(-1).view(np.uint8) for memory in self._paged])

    def write_page(self, page: int, data: NDArray[np.uint8]) -> None:
        """See `Runner.write_page`."""
        check_number("page", page, self.num_pages)
        check_data("data", data, np.uint8, (self.page_bytes,))
        rest = np.ascontiguousarray(data)
        with self._stepping:
            for memory in self._paged:
                own, rest = np.split(rest, [memory[:, page].nbytes])
                memory[:, page] = own.view(memory.dtype).reshape(memory[:, page].shape)

    def read_states(self, slot: int) -> NDArray[np.float32]:
        """See `Runner.read_states`."""
        check_number("slot", slot, self.num_slots)
        with self._stepping:
            self._ages.require(slot)
            return self._states[:, slot].copy()

    def write_states(self, slot: int, states: NDArray[np.float32], tokens: int) -> None:
        """See `Runner.write_states`."""
        check_number("slot", slot, self.num_slots)
        check_data("states", states, np.float32, self._states[:, slot].shape)
        with self._stepping, self._ages.filling(slot, tokens):
            self._states[:, slot] = states

    def fill_synthetic(self, page_table_row: NDArray[np.int64], tokens: int, state_slot: int) -> None:
        """Fill a sequence's memory with noise; see `TorchRunner.fill_synthetic`."""
        pages = page_table_row[: -(-tokens // PAGE_TOKENS)]
        if len(pages) * PAGE_TOKENS < tokens:
            raise ValueError(f"{len(page_table_row)} pages cannot hold {tokens} tokens")
        random = np.random.default_rng(0)
        for name, memory in self._arrays.items():
            if name == "states":
                if self.num_slots:
                    states = random.standard_normal(memory[:, state_slot].shape, np.float32)
                    self.write_states(state_slot, states, tokens)
            elif memory.dtype == np.int8:
                memory[:, pages] = random.integers(-127, 128, memory[:, :1].shape, np.int8)
            elif name.endswith("scales"):
                memory[:, pages] = 1 / 64  # of values with a standard deviation of about 1
            else:
                memory[:, pages] = random.standard_normal(memory[:, :1].shape, np.float32)


def _laid_end_to_end(batch: StepBatch) -> tuple[NDArray[np.int64], dict[str, int]]:
    """A batch's arrays in one, and the address of each: asking numpy for one takes microseconds."""
    flat = np.concatenate([getattr(batch, name).ravel() for name in _GIVEN])
    addresses, at = {}, flat.ctypes.data
    for name in _GIVEN:
        addresses[name] = at
        at += getattr(batch, name).nbytes
    return flat, addresses


def _close(core: Library, handle: int, owner: int) -> None:
    if os.getpid() == owner:
        core.close(handle)


def _memory(config: ModelConfig, pages: int, slots: int, kv: KeyValues) -> tuple[Memory, dict[str, NDArray[Any]]]:
    """Keys, values and states, and the arrays that hold them; the system gives a page's memory at its first use."""
    dtype = _DTYPES[kv]
    per_head = (len(config.softmax_layers), pages, config.num_kv_heads)
    width = -(-config.head_dim // _WIDTH) * _WIDTH
    held: dict[str, NDArray[Any]] = {
        "keys": np.empty((*per_head, config.head_dim, PAGE_TOKENS), dtype),
        "values": np.empty((*per_head, PAGE_TOKENS, width), dtype),
        "states": np.empty((len(config.lightning_layers), slots, config.num_heads, config.head_dim, config.head_dim),
                           np.float32),
    }  # fmt: skip
    if kv == "int8":
        held |= {name: np.empty((*per_head, PAGE_TOKENS), np.float32) for name in ("key_scales", "value_scales")}
    pointers = {name: array.ctypes.data for name, array in held.items()}
    return Memory(pages=pages, slots=slots, **pointers), held


def _model(pack: Pack) -> tuple[Model, Any]:
    """The core's view of a pack, and its array of layers, which must live until the core has copied it."""
    config, planned = pack.config, dict(plan(pack.config))
    layers = (Layer * config.num_layers)(*(_layer(pack, planned, layer) for layer in range(config.num_layers)))
    embed = _matrix(pack, "embed", planned)
    model = Model(
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        shared_intermediate=config.shared_intermediate_size if config.has_experts else 0,
        vocab=config.vocab_size,
        layers=config.num_layers,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        experts=config.num_experts,
        top_k=config.top_k,
        rotary_dim=config.rope.dim,
        window=config.sliding_window or 0,
        advise=not pack.fits_memory,
        norm_eps=config.norm_eps,
        inner_norm_eps=INNER_NORM_EPS,
        layer=ctypes.cast(layers, ctypes.POINTER(Layer)),
        final_norm=pack.tensor("final_norm").ctypes.data,
        frequencies=pack.tensor("frequencies").ctypes.data,
        embed=embed,
        head=embed if config.tie_embeddings else _matrix(pack, "head", planned),
    )
    return model, layers


def _layer(pack: Pack, planned: dict[str, PlannedMatrix], layer: int) -> Layer:
    config, spec = pack.config, pack.config.layers[layer]
    softmax = spec.attention == "softmax"
    alone = config.softmax_layers if softmax else config.lightning_layers
    attention = config.residual.softmax if softmax else config.residual.lightning
    floats = ("attention_norm", "mlp_norm", "router", "decays", "inner_norm", "shared_gate")
    matrices = ("attention_in", "attention_out", "gate_up", "down", "shared_gate_up", "shared_down")
    return Layer(
        lightning=not softmax,
        experts=spec.mlp == "experts",
        store=alone.index(layer),
        post_norm=config.residual.post_norm,
        attention_alpha=attention[0],
        attention_beta=attention[1],
        mlp_alpha=config.residual.mlp[0],
        mlp_beta=config.residual.mlp[1],
        **{name: pack.tensor(f"{layer}.{name}").ctypes.data for name in floats if f"{layer}.{name}" in pack},
        **{name: _matrix(pack, f"{layer}.{name}", planned) for name in matrices if f"{layer}.{name}" in planned},
    )


def _matrix(pack: Pack, name: str, planned: dict[str, PlannedMatrix]) -> Matrix:
    matrix = planned[name]
    return Matrix(pack.tensor(name).ctypes.data, matrix.rows, matrix.cols, matrix.bits(pack.bits), matrix.count)
