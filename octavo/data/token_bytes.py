"""What every token writes, in bytes: a token may hold half a character, which `Tokenizer.decode` cannot show."""

import json
import re
from typing import Any

from octavo.data.tokenizer import Tokenizer
from octavo.errors import UserError


def token_bytes(tokenizer: Tokenizer, vocab_size: int) -> list[bytes]:
    """What each of `vocab_size` ids writes within a text; b"" for special tokens and ids without a token.

    Raises UserError for a tokenizer that is neither byte-level nor of SentencePiece's kind.
    """
    backend = tokenizer._backend
    step: dict[str, Any] = (
        json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {"type": "none"}
    )
    steps = step["decoders"] if step["type"] == "Sequence" else [step]
    kinds = {each["type"] for each in steps}
    if not kinds & {"ByteLevel", "ByteFallback", "Metaspace"}:
        raise UserError(f"structured output needs a byte-level or SentencePiece tokenizer; this one's is {kinds}")
    spaces = [each["replacement"] for each in steps if each["type"] == "Metaspace"]
    spaces += [each["pattern"]["String"] for each in steps if each["type"] == "Replace" and each["content"] == " "]
    hidden = tokenizer.special_ids | tokenizer.eos_ids
    texts = [b""] * vocab_size
    for token, index in backend.get_vocab(with_added_tokens=True).items():
        if index >= vocab_size or index in hidden:
            continue
        if "ByteLevel" in kinds:
            known = all(char in _BYTES for char in token)
            texts[index] = bytes(_BYTES[char] for char in token) if known else token.encode()
        elif "ByteFallback" in kinds and re.fullmatch("<0x[0-9A-Fa-f]{2}>", token):
            texts[index] = bytes.fromhex(token[3:5])
        else:
            for space in spaces:
                token = token.replace(space, " ")
            texts[index] = token.encode()
    return [b"" if text[:1] == b"\xff" else text for text in texts]  # llguidance's mark of special tokens; never UTF-8


def _byte_letters() -> dict[str, int]:
    """The byte of every letter of GPT-2's byte-level alphabet: printable Latin-1 is itself, the rest follows U+0100."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + at): byte for at, byte in enumerate(rest)}


_BYTES = _byte_letters()


def spell_within(tokenizer: Tokenizer, texts: list[bytes], text: str) -> list[int]:
    """The ids of `text` where other text is before it; `texts` is what `token_bytes` made.

    They may write something else, as where `text` has the name of a special token: compare."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if not all(index < len(texts) for index in ids):
        return []
    if b"".join(texts[index] for index in ids) == text.encode():
        return ids
    ids, written = tokenizer.encode("\n" + text, add_special_tokens=False), b""  # SentencePiece begins with a space
    for at, index in enumerate(ids):
        if written.endswith(b"\n"):
            return ids[at:]
        written += texts[index] if index < len(texts) else b""
    return []
