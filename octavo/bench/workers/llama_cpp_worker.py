"""llama.cpp as a party, through llama-cpp-python's low-level calls.

    PYTHON octavo/bench/workers/llama_cpp_worker.py FILE.gguf THREADS

Runs in the interpreter that has llama_cpp, which need not know octavo: numpy comes with llama_cpp, and `protocol` lies
beside this file. Batches, threads and attention are as `llama-bench` has them; every metric gets a context of its size.
"""

import ctypes
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from octavo.bench.workers.protocol import serve
else:  # run by its path, whose folder is then the first place to look
    from protocol import serve

CHUNK = 512  # tokens a batch; octavo.bench.metrics has the same
IDS_SEED = 0  # octavo.bench.measure has the same
WARM_STEPS = 2  # octavo.bench.metrics has the same
_LOG_ERROR = 4  # ggml.h: GGML_LOG_LEVEL_ERROR
KEY_VALUE_BYTES = 2.0  # fp16, the default


class LlamaCpp:
    """A loaded GGUF file, and the context of the size that was asked for last."""

    def __init__(self, path: str, threads: int) -> None:
        import llama_cpp

        self._lib: Any = llama_cpp.llama_cpp
        # the callback must outlive the library's use of it; what llama.cpp logs is shown if the process fails
        self._log = self._lib.llama_log_callback(lambda level, text, _: _log_problem(level, text))
        self._lib.llama_log_set(self._log, ctypes.c_void_p(0))
        self._lib.llama_backend_init()
        self._threads = threads
        self._model = self._lib.llama_model_load_from_file(path.encode(), self._lib.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"{path}: llama.cpp cannot load this file")
        self._vocab_size = self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(self._model))
        self._context: Any = None
        self._size = (0, 0)  # of the context: tokens a sequence, sequences
        self._depth = 0  # tokens that its sequences hold between measurements
        self.about = {
            "version": f"llama-cpp-python {llama_cpp.__version__}",
            "weight_bytes": self._lib.llama_model_size(self._model) / self._lib.llama_model_n_params(self._model),
            "key_value_bytes": KEY_VALUE_BYTES,
        }

    def measure(self, kind: str, count: int, depth: int, steps: int) -> dict[str, Any]:
        """Seconds and tokens of one metric. Raises RuntimeError where llama.cpp refuses."""
        sequences = count if kind == "decode" else 1
        held = depth + (WARM_STEPS + steps if kind == "decode" else count)
        context = self._context_for(held, sequences)
        self._go_to_depth(context, depth, sequences)
        if kind == "prefill":
            seconds = self._prefill(context, self._ids(count, 1)[:, 0].tolist(), depth)
            return {"seconds": seconds, "tokens": count}
        seconds = self._decode(context, self._ids(WARM_STEPS + steps, count).tolist(), depth)
        return {"seconds": seconds, "tokens": count * steps}

    def _prefill(self, context: Any, ids: list[int], start: int) -> float:
        began = time.perf_counter()
        for first in range(0, len(ids), CHUNK):
            part = ids[first : first + CHUNK]
            positions = range(start + first, start + first + len(part))
            last = first + len(part) == len(ids)
            self._step(context, part, list(positions), [0] * len(part), [False] * (len(part) - 1) + [last])
        self._lib.llama_synchronize(context)
        return time.perf_counter() - began

    def _decode(self, context: Any, ids: list[list[int]], start: int) -> float:
        began = 0.0
        for step, tokens in enumerate(ids):
            if step == WARM_STEPS:
                began = time.perf_counter()
            count = len(tokens)
            self._step(context, tokens, [start + step] * count, list(range(count)), [True] * count)
            self._lib.llama_get_logits(context)  # waits for them
        return time.perf_counter() - began

    def _step(
        self, context: Any, ids: list[int], positions: list[int], sequences: list[int], wanted: list[bool]
    ) -> None:
        batch = self._lib.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for row, (token, position, sequence, logits) in enumerate(
                zip(ids, positions, sequences, wanted, strict=True)
            ):
                batch.token[row], batch.pos[row], batch.logits[row] = token, position, logits
                batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
            status = self._lib.llama_decode(context, batch)
        finally:
            self._lib.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")

    def _go_to_depth(self, context: Any, depth: int, sequences: int) -> None:
        """Leave just `depth` tokens in each sequence. llama.cpp has to compute them, once a context; then they are
        copied to the other sequences, and what came after them is cut off after each measurement."""
        memory = self._lib.llama_get_memory(context)
        if self._depth != depth:
            self._lib.llama_memory_clear(memory, False)
            if depth:
                self._prefill(context, self._ids(depth, 1)[:, 0].tolist(), 0)
            for sequence in range(1, sequences if depth else 0):
                self._lib.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
            self._depth = depth
        for sequence in range(sequences):
            if not self._lib.llama_memory_seq_rm(memory, sequence, depth, -1):
                self._depth = -1
                raise RuntimeError(f"llama.cpp cannot go back to depth {depth}: this model's states do not allow it")

    def _context_for(self, tokens: int, sequences: int) -> Any:
        """A context with room for `tokens` tokens in each of `sequences` sequences, each with memory of its own: the
        last one where it has the right size, as in the rounds of one metric."""
        size = -(-tokens // 256) * 256, sequences
        if self._context is None or self._size != size:
            if self._context is not None:
                self._lib.llama_free(self._context)
            params = self._lib.llama_context_default_params()
            params.n_ctx = size[0] * sequences
            params.n_batch = params.n_ubatch = CHUNK
            params.n_seq_max = sequences
            params.n_threads = params.n_threads_batch = self._threads
            params.kv_unified = False  # sequences that shared cells would read what lies before them once for all
            params.no_perf = True
            self._context, self._size = self._lib.llama_init_from_model(self._model, params), size
            if not self._context:
                raise RuntimeError(f"llama.cpp cannot make a context of {sequences} sequences of {tokens} tokens")
            self._depth = 0
        return self._context

    def _ids(self, count: int, width: int) -> Any:
        import numpy

        return numpy.random.default_rng(IDS_SEED).integers(0, self._vocab_size, (count, width))


def _log_problem(level: int, text: bytes) -> None:
    if level == _LOG_ERROR:
        sys.stderr.write(text.decode(errors="replace"))


def main(path: str, threads: str) -> int:
    """Load, run each kind of step once, then answer."""

    def load() -> tuple[dict[str, Any], Any]:
        model = LlamaCpp(path, int(threads))
        model.measure("prefill", CHUNK, 0, 1)
        model.measure("decode", 1, 0, 1)
        return model.about, lambda request: model.measure(
            request["kind"], request["count"], request["depth"], request["steps"]
        )

    return serve(load)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
