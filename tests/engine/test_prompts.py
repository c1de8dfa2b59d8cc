"""Prompts of every kind as token ids, and where a context ends and its continuation begins."""

import numpy as np
import pytest

from octavo.data.tokenizer import Tokenizer
from octavo.engine.prompts import Chat, encode, encode_pair
from octavo.errors import UserError
from tests.data.tiny_tokenizers import sentencepiece
from tests.tiny import tiny_tokenizer_files

BYTE_LEVEL = Tokenizer.from_files(tiny_tokenizer_files(), "byte-level")
SENTENCEPIECE = [
    Tokenizer.from_files({"tokenizer.json": sentencepiece(metaspace).encode()}, "sentencepiece")
    for metaspace in (False, True)
]


@pytest.mark.parametrize("tokenizer", SENTENCEPIECE)
def test_a_continuation_gets_no_space_of_its_own(tokenizer) -> None:
    for context, continuation in (("Hello world!", " x"), ("def f(x):", " return"), ("Hello", "!"), ("", "Hello")):
        before, after = encode_pair(tokenizer, context, continuation)
        assert before + after == tokenizer.encode(context + continuation)
        assert before == tokenizer.encode(context) and after


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, *SENTENCEPIECE])
def test_a_token_across_the_border_counts_to_the_continuation(tokenizer) -> None:
    whole = tokenizer.encode("The capital of France")
    for cut in range(3, 20):
        before, after = encode_pair(tokenizer, "The capital of France"[:cut], "The capital of France"[cut:])
        assert before + after == whole and before and after
        assert tokenizer.encode("The capital of France"[:cut])[: len(before)] == before


def test_pairs_that_are_not_two_texts_are_tokenised_apart() -> None:
    assert encode_pair(BYTE_LEVEL, [5, 6], " is") == ([5, 6], BYTE_LEVEL.encode(" is"))
    assert encode_pair(BYTE_LEVEL, "The", [5, 6]) == (BYTE_LEVEL.encode("The"), [5, 6])
    chat = [{"role": "user", "content": "x"}]
    assert encode_pair(BYTE_LEVEL, chat, "y") == (BYTE_LEVEL.encode_chat(chat), BYTE_LEVEL.encode("y"))
    assert encode_pair(SENTENCEPIECE[0], [5], "Hello")[1] == SENTENCEPIECE[0].encode("Hello")[1:]  # no <s>


def test_a_first_token_across_the_border_is_tokenised_apart() -> None:
    assert len(BYTE_LEVEL.encode("is")) == 1
    assert encode_pair(BYTE_LEVEL, "i", "s") == (BYTE_LEVEL.encode("i"), BYTE_LEVEL.encode("s"))


def test_ids_of_any_kind_and_nothing_else() -> None:
    for ids in ([3, 4], (3, 4), np.array([3, 4]), np.array([3, 4], np.uint8), range(3, 5)):
        assert encode(BYTE_LEVEL, ids).ids == (3, 4)
    for prompt in (b"abc", bytearray(b"abc"), [3.0], ["a"], {"role": "user"}):
        with pytest.raises(UserError, match="prompt"):
            encode(BYTE_LEVEL, prompt)


def test_a_chat_with_tools() -> None:
    messages = [{"role": "user", "content": "x"}]
    tool = {"type": "function", "function": {"name": "get_time"}}
    plain, told = encode(BYTE_LEVEL, Chat(messages)), encode(BYTE_LEVEL, Chat(messages, [tool]))
    assert plain == encode(BYTE_LEVEL, messages)
    assert '"get_time"' in BYTE_LEVEL.decode(told.ids) and told.marks and not told.continues
