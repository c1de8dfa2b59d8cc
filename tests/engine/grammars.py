"""What the tests of grammars share: tokenizers of both kinds, and drivers that choose among the allowed tokens."""

import json
from collections.abc import Callable
from functools import cache
from random import Random

from octavo.data.tokenizer import Tokenizer
from octavo.engine.grammar import Grammars, Matcher
from tests.data.tiny_tokenizers import sentencepiece
from tests.tiny import tiny_tokenizer_files

# By what an answer soonest ends: an end token, then this, inside a string or elsewhere.
CLOSING = {True: (b"", b'"'), False: (b"", b"}", b"]", b'"', b":", b",", b"!", b"0")}
BEYOND = 13  # logits of the model that the tokenizer has no token for
Driver = Callable[[Random, list[int], list[bytes]], int]
DRIVERS: dict[str, Driver] = {
    "uniform": lambda rng, ids, texts: rng.choice(ids),
    "longest": lambda rng, ids, texts: max(ids, key=lambda index: (len(texts[index]), rng.random())),
    "latest merge": lambda rng, ids, texts: ids[-1] if rng.random() < 0.7 else rng.choice(ids),
    "single bytes": lambda rng, ids, texts: min(ids, key=lambda index: (len(texts[index]), rng.random())),
    "no ASCII": lambda rng, ids, texts: rng.choice([i for i in ids if max(texts[i], default=0) > 127] or ids),
}


@cache
def tokenizer(kind: str) -> Tokenizer:
    """Of kind "byte-level" or "sentencepiece", with two end tokens each."""
    if kind == "byte-level":
        files = dict(tiny_tokenizer_files())
        ends = [0, 2]
    else:
        files = {"tokenizer.json": sentencepiece().encode(), "tokenizer_config.json": b'{"eos_token": "</s>"}'}
        ends = [2, 4]
    return Tokenizer.from_files({**files, "generation_config.json": json.dumps({"eos_token_id": ends}).encode()}, kind)


@cache
def grammars(kind: str) -> Grammars:
    """Shared by the tests: it owns a process."""
    return Grammars(tokenizer(kind), tokenizer(kind).vocab_size + BEYOND)


def write(matcher: Matcher, texts: list[bytes], rng: Random, driver: Driver, budget: int) -> bytes | None:
    """An answer of tokens that `driver` chooses and, after `budget` of them, of what ends it soonest; None if not."""
    written: list[bytes] = []
    for step in range(budget + 600):
        allowed = matcher.allowed().nonzero()[0].tolist()
        if step < budget:
            token = driver(rng, allowed, texts)
        else:
            inside = any(texts[i] == b"x" for i in allowed)
            closing = [i for end in CLOSING[inside] for i in allowed if texts[i] == end]
            token = closing[0] if closing else rng.choice(allowed)
        matcher.accept(token)
        written.append(texts[token])
        if matcher.ended:
            return b"".join(written)
    return None
