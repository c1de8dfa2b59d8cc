"""Servers for the tests: a tiny random model behind a real socket, and a generator that does as the test says."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from octavo.config import SamplingParams
from octavo.data.tokenizer import Tokenizer
from octavo.engine.generate import Generator, Piece, Prompt
from octavo.models import Decoder
from octavo.serve.server import Server, create_app, listen
from tests.tiny import tiny_config, tiny_tokenizer_files

MODEL = "lab/tiny"  # a name with a slash, as hub names have
CONTEXT = 2048


def tiny_generator(folder: Path) -> Generator:
    """A random mixture of experts with room for CONTEXT tokens. `folder`: where its tokenizer's files may lie.

    The seed is one whose greedy answers find no end token, so that "long" is long.
    """
    for name, content in tiny_tokenizer_files().items():
        (folder / name).write_bytes(content)
    decoder = Decoder(tiny_config(max_positions=CONTEXT)).initialise(2).eval()
    return Generator.for_decoder(decoder, Tokenizer.from_folder(folder), CONTEXT)


class Puppet(Generator):
    """Gives the pieces it was made with, one each time `step` is called; counts the answers under way."""

    def __init__(self, *pieces: Piece | Exception, prompt_tokens: int = 5, pages: int = 10_000, slots: int = 0) -> None:
        config = SimpleNamespace(max_positions=pages * 32)
        runner = SimpleNamespace(num_pages=pages, num_slots=slots, config=config)
        super().__init__(runner, SimpleNamespace())  # type: ignore[arg-type]
        self._pieces, self._prompt_tokens = pieces, prompt_tokens
        self._steps = threading.Semaphore(0)
        self.may_encode = threading.Event()
        self.may_encode.set()
        self.under_way = self.most_under_way = 0
        self.encoding = False
        self.seen: list[SamplingParams] = []

    def step(self, count: int = 1) -> None:
        """Let `count` pieces out."""
        self._steps.release(count)

    def encode(self, prompt: Prompt) -> list[int]:
        self.encoding = True
        assert self.may_encode.wait(20)
        return [0] * self._prompt_tokens

    def stream(
        self, prompt: Prompt, params: SamplingParams, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Piece]:
        self.seen.append(params)
        return self._out()

    def _out(self) -> Iterator[Piece]:
        self.under_way += 1
        self.most_under_way = max(self.under_way, self.most_under_way)
        try:
            for piece in self._pieces:
                assert self._steps.acquire(timeout=20), "nobody called step"  # else a failure would hang
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self.under_way -= 1


def says(*texts: str) -> list[Piece]:
    """The pieces of an answer, the last one its end."""
    return [Piece(text, 7) for text in texts] + [Piece("", 2, "stop")]


@contextmanager
def serving(generator: Generator, **options: Any) -> Iterator[str]:
    """Address of a server on a free port, in a thread."""
    ready = threading.Event()
    with listen("127.0.0.1", 0) as listener:
        server = Server(create_app(generator, MODEL, **options), listener, lambda _: ready.set())
        thread = threading.Thread(target=server.run, name="test-server")
        thread.start()
        try:
            assert ready.wait(20), "the server did not start"
            yield server.url
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive(), "the server did not stop"


def pages_free(generator: Generator) -> int:
    """Pages that no request holds."""
    return len(generator._free)


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Return as soon as the condition holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)


def body(text: str = "Hello", /, **fields: Any) -> dict[str, Any]:
    """A chat request with one user message."""
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0, **fields}
