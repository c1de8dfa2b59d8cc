"""What a request may give as its prompt, and the token ids of it."""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from octavo.data.tokenizer import Tokenizer
from octavo.errors import UserError

Message = Mapping[str, Any]
Prompt = str | Sequence[Message] | Sequence[int]  # raw text, a chat, or token ids


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """Token ids of raw text, of chat messages through the template, or as given."""
    return encode_marked(tokenizer, prompt)[0]


def encode_marked(tokenizer: Tokenizer, prompt: Prompt) -> tuple[list[int], tuple[int, ...]]:
    """Token ids of a prompt, and the lengths after which other prompts may part from it: the ends of a chat's turns."""
    if isinstance(prompt, str):
        return tokenizer.encode(prompt), ()
    ids = [int(item) for item in prompt if isinstance(item, Integral)]
    messages = [item for item in prompt if isinstance(item, Mapping)]
    if len(ids) == len(prompt):
        return ids, ()
    if len(messages) < len(prompt):
        raise UserError("a prompt must be text, a list of messages with role and content, or a list of token ids")
    encoded = tokenizer.encode_marked(messages)
    return encoded.ids, encoded.marks
