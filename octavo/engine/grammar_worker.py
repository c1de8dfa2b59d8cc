"""The process in which a grammar is compiled for the first time. Run as a script; imports nothing of octavo.

llguidance bounds the work of most grammars, but not of all: a chain of references overflows its stack and ends the
process, and the intersection of a few dozen patterns takes minutes. So a grammar is tried here, under limits of time,
memory and stack, before `grammar.py` compiles it beside the model. One JSON object a line: first {"tokens", "eos",
"limits"}, answered by {}; then {"grammar"}, answered by {"bytes"} (what the compiled form and one mask hold) or by
{"error"}. The parent kills this process when an answer is late.
"""

import ctypes
import json
import resource
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import llguidance

T = TypeVar("T")
STACK_BYTES = 8 * 2**20  # the parent compiles on twice that
FORCED_CHARS = 512  # llguidance asks for all of a forced text before each of its tokens, and takes the first
UNKNOWN_BYTES = 256 * 2**10  # what a grammar is taken to hold where malloc cannot be asked


class ByteTokens:
    """What llguidance asks of a tokenizer: the bytes of every id, b"" for those that no text may use."""

    is_tokenizer_wrapper = True  # llguidance looks for this name
    bos_token_id: int | None = None

    def __init__(
        self, tokens: list[bytes], eos_ids: list[int], spell: Callable[[str], list[int]] | None = None
    ) -> None:
        """`spell` gives the usual ids of a text, and ids of other bytes where it cannot."""
        self.tokens, self.special_token_ids, self._spell = tokens, list[int](), spell
        self.eos_ids, self.eos_token_id = eos_ids, eos_ids[0] if eos_ids else None  # None: llguidance appends one
        self._ids = {token: index for index, token in enumerate(tokens) if token}
        self._lengths = sorted({len(token) for token in self._ids}, reverse=True)

    def __call__(self, text: str) -> list[int]:
        """Token ids of exactly the beginning of `text`; [] if there are none."""
        text = text[:FORCED_CHARS]
        data = text.encode()
        ids = [] if self._spell is None else self._spell(text)
        return ids if ids and b"".join(self.tokens[index] for index in ids) == data else self._greedy(data)

    def _greedy(self, data: bytes) -> list[int]:
        """The longest token that fits, again and again."""
        ids, at = list[int](), 0
        while at < len(data):
            token = next((data[at : at + size] for size in self._lengths if data[at : at + size] in self._ids), None)
            if token is None:
                return []
            ids.append(self._ids[token])
            at += len(token)
        return ids


def make_tokenizer(tokens: ByteTokens) -> "llguidance.LLTokenizer":
    """llguidance's form of a vocabulary (0.1 s for 50,000 tokens)."""
    eos = tokens.eos_ids
    return llguidance.LLTokenizer(tokens, eos_token=eos or None)  # type: ignore[arg-type]


class _MallocInfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
                 "keepcost")]  # fmt: skip


def allocated() -> int | None:
    """Bytes that malloc has given out, if it is glibc's; the parent allows only one arena."""
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return None
    ask.restype = _MallocInfo
    info = ask()
    return int(info.uordblks + info.hblkhd)


def answer(tokenizer: "llguidance.LLTokenizer", limits: "llguidance.LLParserLimits", grammar: str) -> dict[str, Any]:
    """Compile `grammar` and compute its first mask; whatever goes wrong becomes {"error"}."""
    before = allocated()
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        return {"error": matcher.get_error()}
    after = allocated()
    return {"bytes": UNKNOWN_BYTES if before is None or after is None else max(0, after - before)}


def on_big_stack(call: Callable[[], T], stack_bytes: int) -> T:
    """What `call()` returns, called on a thread with this much stack."""
    before = threading.stack_size(stack_bytes)
    try:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(call).result()
    finally:
        threading.stack_size(before)


def limit_memory(more_bytes: int) -> None:
    """Let this process have `more_bytes` of address space beside what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + STACK_BYTES + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(memory_bytes: int) -> None:
    """Answer requests until the parent closes the pipe."""
    start = json.loads(sys.stdin.readline())
    tokens = [bytes.fromhex(token) for token in start["tokens"].split(",")]
    tokenizer = make_tokenizer(ByteTokens(tokens, start["eos"]))
    limits = llguidance.LLParserLimits(**start["limits"])
    answer(tokenizer, limits, '{"grammars": [{"json_schema": {}}]}')  # what the first compilation sets up once
    limit_memory(memory_bytes)
    write({})
    for line in sys.stdin:
        write(on_big_stack(partial(answer, tokenizer, limits, json.loads(line)["grammar"]), STACK_BYTES))


def write(reply: dict[str, Any]) -> None:
    """One answer to the parent."""
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
