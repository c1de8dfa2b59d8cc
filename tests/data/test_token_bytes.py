"""The bytes of tokens: joined they are what `decode` writes, and special tokens have none."""

import json

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from octavo.data.token_bytes import spell_within, token_bytes
from octavo.data.tokenizer import Tokenizer
from octavo.errors import UserError
from tests.data.tiny_tokenizers import byte_level, byte_tokens, sentencepiece

SETTINGS = json.dumps({"eos_token": "</s>"}).encode()
KINDS = {"byte-level": byte_level, "sentencepiece": sentencepiece, "metaspace": lambda: sentencepiece(metaspace=True)}
TEXTS = ["Hello world", " hello", "你好 😀\n  x", "naïve\tcafé", "", "a\nb", "\n"]


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    files = {"tokenizer.json": KINDS[request.param]().encode(), "tokenizer_config.json": SETTINGS}
    return Tokenizer.from_files(files, "tiny")


def test_every_token_alone_writes_its_bytes(tokenizer: Tokenizer) -> None:
    texts = token_bytes(tokenizer, tokenizer.vocab_size + 3)
    before = tokenizer.encode("x", add_special_tokens=False)
    shown = tokenizer.decode(before)
    for index, text in enumerate(texts):
        if text and b"\xff" not in text and "\ufffd" not in text.decode(errors="replace"):
            assert tokenizer.decode([*before, index]) == shown + text.decode()
    empty = {index for index, text in enumerate(texts) if not text}
    unwritten = {index for index, text in enumerate(texts[: tokenizer.vocab_size]) if not text}
    assert empty == unwritten | set(range(tokenizer.vocab_size, tokenizer.vocab_size + 3))
    never = {index for index in unwritten - tokenizer.special_ids if index not in tokenizer.eos_ids}
    assert len(never) <= 1  # byte FF


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_spelt_and_written_back(tokenizer: Tokenizer, text: str) -> None:
    texts = token_bytes(tokenizer, tokenizer.vocab_size)
    assert b"".join(texts[index] for index in spell_within(tokenizer, texts, text)) == text.encode()


def test_a_narrower_model_has_no_ids_beyond_its_logits(tokenizer: Tokenizer) -> None:
    assert len(token_bytes(tokenizer, 50)) == 50


def test_bytes_of_sentencepiece_are_bytes() -> None:
    files = {"tokenizer.json": sentencepiece().encode(), "tokenizer_config.json": SETTINGS}
    texts = token_bytes(Tokenizer.from_files(files, "tiny"), 400)
    assert [texts[index] for index in byte_tokens("é".encode())] == [b"\xc3", b"\xa9"]


def test_other_kinds_of_tokenizer_are_refused() -> None:
    backend = Backend(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    tokenizer = Tokenizer.from_files({"tokenizer.json": backend.to_str().encode()}, "tiny")
    with pytest.raises(UserError, match="WordPiece"):
        token_bytes(tokenizer, 2)
