"""Log probabilities as clients get them: OpenAI's two shapes, of chats and of plain completions."""

import codecs
from collections.abc import Sequence
from typing import Any

from octavo.data.token_bytes import token_bytes
from octavo.data.tokenizer import Tokenizer
from octavo.engine.logprobs import TokenLogprob
from octavo.errors import UserError

LEAST = -9999.0  # for a token that cannot come: JSON has no infinity


class TokenTexts:
    """What each token writes: of one model."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        try:
            self._bytes = token_bytes(tokenizer, vocab_size)
        except UserError:  # a tokenizer whose tokens do not write the same bytes everywhere
            self._bytes = []

    def bytes(self, token: int) -> bytes:
        """Its bytes within a text; of a special token, its name's."""
        known = self._bytes[token] if token < len(self._bytes) else b""
        return known or self._tokenizer.decode([token], skip_special_tokens=False).encode()

    def text(self, token: int) -> str:
        """Its text; of one that holds part of a character, "bytes:\\xe2\\x80", as OpenAI writes it."""
        raw = self.bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def chat_logprob(texts: TokenTexts, given: TokenLogprob) -> dict[str, Any]:
    """An entry of choices[].logprobs.content."""
    top = [_entry(texts, token, logprob) for token, logprob in given.top]
    return {**_entry(texts, given.token, given.logprob), "top_logprobs": top}


def _entry(texts: TokenTexts, token: int, logprob: float) -> dict[str, Any]:
    raw = texts.bytes(token)
    return {"token": raw.decode(errors="replace"), "logprob": max(logprob, LEAST), "bytes": list(raw)}


def completion_logprobs(
    texts: TokenTexts,
    tokens: Sequence[int],
    given: Sequence[TokenLogprob | None],
    offset: int,
    length: int | None = None,
) -> dict[str, Any]:
    """choices[].logprobs of a plain completion: of tokens whose text begins `offset` characters into the answer.

    length: characters of their text, where it may lack what the tokens begin with: a beginning-of-sequence token, the
    space of SentencePiece. The first token of a prompt has no log probability (`None`). A token is always among its own
    alternatives, as OpenAI has it.
    """
    words = [texts.text(token) for token in tokens]
    places, width = [], 0
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")  # a character may be in several tokens
    for token in tokens:
        places.append(width)
        width += len(decoder.decode(texts.bytes(token)))
    unseen = 0 if length is None else max(0, width - length)
    return {
        "tokens": words,
        "token_logprobs": [None if each is None else max(each.logprob, LEAST) for each in given],
        "top_logprobs": [None if each is None else _alternatives(texts, each) for each in given],
        "text_offset": [offset + max(0, place - unseen) for place in places],
    }


def _alternatives(texts: TokenTexts, given: TokenLogprob) -> dict[str, float]:
    found: dict[str, float] = {}
    for token, logprob in (*given.top, (given.token, given.logprob)):
        found.setdefault(texts.text(token), max(logprob, LEAST))  # likeliest first: of equal texts that one stays
    return found
