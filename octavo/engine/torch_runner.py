"""The reference runner: the PyTorch decoder over paged keys and values, on any device and in any dtype."""

import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo.engine.draw import Draw, draw_row
from octavo.engine.runner import PAGE_TOKENS, StateAges, StepBatch, StepResult, bytes_of_one, check_data, check_number
from octavo.models.decoder import Decoder
from octavo.models.moe import Routing
from octavo.models.packing import Packing


class TorchRunner:
    """`Runner` on a decoder.

    Keys and values: [softmax layer][page][PAGE_TOKENS][Hk][D] in the decoder's dtype. States:
    [lightning layer][slot][H][D][D] in fp32; a model without lightning layers has no slots whatever `num_slots` says.
    (A decoder in fp64, as tests have, has states in fp64: then `read_states` rounds, and all else here is exact.)
    Steps from several threads take turns.
    """

    def __init__(self, decoder: Decoder, num_pages: int, num_slots: int = 1) -> None:
        self.decoder, self.config, self.num_pages = decoder, decoder.config, num_pages
        self.num_slots = num_slots if self.config.lightning_layers else 0
        if self.config.lightning_layers and num_slots < 1:
            raise ValueError(f"num_slots is {num_slots}: a model with lightning layers needs at least one")
        weight = decoder.embed.weight
        self._device = weight.device
        shape = (
            len(self.config.softmax_layers),
            num_pages,
            PAGE_TOKENS,
            self.config.num_kv_heads,
            self.config.head_dim,
        )
        # empty: on the CPU the system hands out a page's memory only when it is first written
        self._keys = torch.empty(shape, dtype=weight.dtype, device=self._device)
        self._values = torch.empty_like(self._keys)
        heads, width = self.config.num_heads, self.config.head_dim
        self._states = torch.empty(
            (len(self.config.lightning_layers), self.num_slots, heads, width, width),
            dtype=torch.promote_types(weight.dtype, torch.float32),
            device=self._device,
        )
        self._ages = StateAges(self.num_slots)
        self._stepping = threading.Lock()
        self.page_bytes = 2 * bytes_of_one(self._keys.element_size(), self._keys.shape)
        self.state_bytes = bytes_of_one(self._states.element_size(), self._states.shape)

    @torch.inference_mode()
    def step(self, batch: StepBatch) -> StepResult:
        """Run the batch; see `Runner.step`. Raises ValueError for a batch that contradicts itself or its slots."""
        batch.check(self.num_pages, self.config.vocab_size, self.num_slots, self.config.sliding_window)
        with self._stepping, self._ages.moving(batch):
            return self._step(batch)

    def _step(self, batch: StepBatch) -> StepResult:
        lengths = np.diff(batch.cu_seqlens).tolist()
        cached = batch.positions[batch.cu_seqlens[:-1]].tolist()
        # keys behind the window of every row of a sequence are not even gathered: their pages may be gone
        window = self.config.sliding_window
        first_keys = [max(0, start - window + 1) if window else 0 for start in cached]
        packing = Packing.from_lengths(lengths, cached, self._device)
        seen = tuple(length - first for length, first in zip(packing.key_lengths, first_keys, strict=True))
        packing = replace(packing, key_lengths=seen)
        cache = _StepCache(self, batch, packing, first_keys)
        out = self.decoder(torch.from_numpy(batch.ids).to(self._device), packing, cache)
        logits = self.decoder.logits(out.hidden[torch.from_numpy(batch.logit_rows).to(self._device)])
        hidden = out.hidden[torch.from_numpy(batch.hidden_rows).to(self._device)].float()
        return StepResult(logits.float().cpu().numpy(), hidden.cpu().numpy(), self._expert_counts(out.routings))

    @torch.inference_mode()
    def draw(self, logits: NDArray[np.float32], draws: Sequence[Draw]) -> list[int]:
        """See `Runner.draw`."""
        return [draw_row(logits[how.row], how) for how in draws]

    def copy_page(self, source: int, target: int) -> None:
        """See `Runner.copy_page`."""
        for page in (source, target):
            check_number("page", page, self.num_pages)
        with self._stepping:
            for memory in (self._keys, self._values):
                memory[:, target] = memory[:, source]

    @torch.inference_mode()
    def read_page(self, page: int) -> NDArray[np.uint8]:
        """See `Runner.read_page`."""
        check_number("page", page, self.num_pages)
        with self._stepping:
            both = torch.stack([self._keys[:, page], self._values[:, page]])
            return both.flatten().view(torch.uint8).cpu().numpy()

    @torch.inference_mode()
    def write_page(self, page: int, data: NDArray[np.uint8]) -> None:
        """See `Runner.write_page`."""
        check_number("page", page, self.num_pages)
        check_data("data", data, np.uint8, (self.page_bytes,))
        both = torch.empty((2, *self._keys[:, page].shape), dtype=self._keys.dtype, device=self._device)
        both.flatten().view(torch.uint8).copy_(torch.from_numpy(data.copy()))
        with self._stepping:
            self._keys[:, page], self._values[:, page] = both

    @torch.inference_mode()
    def read_states(self, slot: int) -> NDArray[np.float32]:
        """See `Runner.read_states`."""
        check_number("slot", slot, self.num_slots)
        with self._stepping:
            self._ages.require(slot)
            return self._states[:, slot].to("cpu", torch.float32, copy=True).numpy()

    @torch.inference_mode()
    def write_states(self, slot: int, states: NDArray[np.float32], tokens: int) -> None:
        """See `Runner.write_states`."""
        check_number("slot", slot, self.num_slots)
        check_data("states", states, np.float32, tuple(self._states[:, slot].shape))
        with self._stepping, self._ages.filling(slot, tokens):
            self._states[:, slot] = torch.from_numpy(states.copy()).to(self._device)

    @torch.inference_mode()
    def fill_synthetic(self, page_table_row: NDArray[np.int64], tokens: int, state_slot: int) -> None:
        """Fill a sequence's memory with noise, as if `tokens` tokens had been computed: for timing a step at a depth.

        page_table_row: int64 [P], of which the pages of those tokens are written, all with the same 32 random rows;
        state_slot is not read where there are no lightning layers. Raises ValueError where the pages do not suffice.
        """
        pages = page_table_row[: -(-tokens // PAGE_TOKENS)]
        if len(pages) * PAGE_TOKENS < tokens:
            raise ValueError(f"{len(page_table_row)} pages cannot hold {tokens} tokens")
        index = torch.from_numpy(pages).to(self._device)
        for memory in (self._keys, self._values):
            memory[:, index] = torch.randn_like(memory[:, :1])
        if self.num_slots:
            with self._ages.filling(state_slot, tokens):
                self._states[:, state_slot].normal_()

    def _expert_counts(self, routings: tuple[Routing | None, ...]) -> NDArray[np.int64]:
        counts = torch.zeros(len(routings), self.config.num_experts, dtype=torch.int64, device=self._device)
        for row, routing in zip(counts, routings, strict=True):
            if routing is not None:
                row.copy_(routing.counts)
        return counts.cpu().numpy()


class _StepCache:
    """One step's view of the pages and slots: where its new rows go, which rows and states its sequences read.

    first_keys: of each sequence, the position of the first key that any of its rows sees; packing.key_lengths keys
    from there on are read.
    """

    def __init__(self, runner: TorchRunner, batch: StepBatch, packing: Packing, first_keys: list[int]) -> None:
        self._keys, self._values = runner._keys, runner._values
        config = runner.config
        self._row_of_layer = {
            layer: row
            for layers in (config.softmax_layers, config.lightning_layers)
            for row, layer in enumerate(layers)
        }
        self._states = runner._states
        self._slots = torch.from_numpy(batch.state_slots).to(runner._device)
        begins = batch.positions[batch.cu_seqlens[:-1]] == 0
        self._begins = torch.from_numpy(begins).to(runner._device)[:, None, None, None]
        tables = torch.from_numpy(batch.page_table).to(runner._device)
        seen = [
            torch.arange(first, first + length, device=runner._device)
            for first, length in zip(first_keys, packing.key_lengths, strict=True)
        ]
        slots = [
            table[tokens // PAGE_TOKENS] * PAGE_TOKENS + tokens % PAGE_TOKENS
            for table, tokens in zip(tables, seen, strict=True)
        ]
        self._read = torch.cat(slots)
        self._write = torch.cat([all_[-new:] for all_, new in zip(slots, packing.query_lengths, strict=True)])

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store this step's rows [Q, Hk, D]; return the rows that every sequence of the step sees, [K, Hk, D]."""
        outputs = []
        for pages, new in ((self._keys, keys), (self._values, values)):
            flat = pages[self._row_of_layer[layer]].flatten(0, 1)
            flat.index_copy_(0, self._write, new)
            outputs.append(flat[self._read])
        return outputs[0], outputs[1]

    def states(self, layer: int) -> Tensor:
        """The states [S, H, D, D] the step's sequences continue from."""
        return self._states[self._row_of_layer[layer]][self._slots].masked_fill(self._begins, 0.0)

    def store_states(self, layer: int, states: Tensor) -> None:
        """Keep the states [S, H, D, D] after the step."""
        self._states[self._row_of_layer[layer]].index_copy_(0, self._slots, states)
