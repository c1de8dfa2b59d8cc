"""Long answers as JSON. `json.dumps` of a million numbers takes a second, in which it lets no other thread run."""

import json
from collections.abc import Iterator
from typing import Any

DEEP = 4  # how far down long lists are looked for: choices[].logprobs.content, data[].embedding
NUMBERS, OBJECTS = 4096, 64  # items of a list that are written at once


def pieces(content: Any, depth: int = 0) -> Iterator[str]:
    """JSON, in pieces that are each written in milliseconds."""
    if isinstance(content, dict) and content and depth < DEEP:
        before = "{"
        for key, value in content.items():
            yield f"{before}{_dumps(key)}:"
            yield from pieces(value, depth + 1)
            before = ","
        yield "}"
    elif isinstance(content, list) and len(content) > 1 and depth <= DEEP:
        yield "["
        if depth < DEEP and isinstance(content[0], dict):
            for number, item in enumerate(content):
                yield "," if number else ""
                yield from pieces(item, depth + 1)
        else:
            step = OBJECTS if isinstance(content[0], dict | list) else NUMBERS
            for start in range(0, len(content), step):
                yield ("," if start else "") + _dumps(content[start : start + step])[1:-1]
        yield "]"
    else:
        yield _dumps(content)


def as_json(content: Any) -> bytes:
    """The same as one."""
    return "".join(pieces(content)).encode()


def _dumps(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
