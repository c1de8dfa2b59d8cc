"""Texts that are far too long: told quickly, and other threads run meanwhile."""

import threading
import time

import pytest

from octavo.data import tokenizer as module
from octavo.data.tokenizer import LONG, Tokenizer
from octavo.errors import UserError
from tests.tiny import tiny_tokenizer, tiny_tokenizer_files


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_files(tiny_tokenizer_files(), "tiny")


@pytest.mark.parametrize("length", [LONG - 1, LONG, LONG + 1, 3 * LONG])
def test_long_texts_have_the_ids_and_the_text_of_short_ones(tokenizer: Tokenizer, length: int) -> None:
    text = ("naïve 你好 <|im_start|>word 🙂 " * length)[:length]
    ids = tokenizer.encode(text)
    assert ids == tiny_tokenizer().encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.decode(ids * 5, skip_special_tokens=False) == text * 5


@pytest.mark.parametrize("text", ["a", "word " * 50, "<|im_start|>" * 60, "x" * (3 * LONG)])
def test_as_many_as_there_may_be(tokenizer: Tokenizer, text: str) -> None:
    count = len(tokenizer.encode(text))
    assert len(tokenizer.encode(text, most=count)) == count
    with pytest.raises(UserError, match=f"{count} prompt tokens do not fit the context of {count - 1} tokens"):
        tokenizer.encode(text, most=count - 1)


def test_what_can_never_fit_is_not_cut_at_all(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = len("<|endoftext|>")
    assert len(tokenizer.encode("<|endoftext|>" * 10, most=10)) == 10  # the longest token there is
    monkeypatch.setattr(tokenizer, "_backend", None)
    with pytest.raises(UserError, match="at least 11 prompt tokens do not fit the context of 10 tokens"):
        tokenizer.encode("x" * (10 * longest + 1), most=10)


def test_other_threads_run_while_a_long_text_is_cut(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def longest_pause(text: str) -> tuple[float, float]:
        """Seconds that cutting the text took, and the longest of this thread's naps beside it."""
        thread = threading.Thread(target=tokenizer.encode, args=(text,))
        began, pause = time.monotonic(), 0.0
        before = began
        thread.start()
        while thread.is_alive():
            time.sleep(0.001)
            now = time.monotonic()
            before, pause = now, max(pause, now - before)
        return time.monotonic() - began, pause

    text = "some words " * 30_000
    took, pause = longest_pause(text)
    monkeypatch.setattr(module, "LONG", 10**9)
    alone, held = longest_pause(text)
    assert held > alone / 2, "the library lets others run by itself: LONG is not needed"
    assert pause < 0.2 + took / 3
