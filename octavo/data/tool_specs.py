"""The functions that a request offers to the model, in OpenAI's form, checked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.errors import UserError

MAX_TOOLS = 128  # OpenAI's limit
_NAME = re.compile("[a-zA-Z0-9_-]{1,64}")


@dataclass(frozen=True)
class Tool:
    """A function. parameters: the JSON schema of its arguments, always of an object; given: as the request has it."""

    name: str
    parameters: Mapping[str, Any]
    strict: bool
    given: Mapping[str, Any]


def read_tools(tools: Any) -> tuple[Tool, ...]:
    """The tools of a request: [{"type": "function", "function": {"name", "description", "parameters", "strict"}}].

    Parameters left out mean a function without any. Raises UserError naming the field.
    """
    if tools is None:
        return ()
    if not isinstance(tools, Sequence) or isinstance(tools, str | bytes):
        raise UserError(f"tools is {_shown(tools)}: it must be a list")
    if len(tools) > MAX_TOOLS:
        raise UserError(f"tools has {len(tools)} entries, more than the limit of {MAX_TOOLS}: offer fewer")
    read = tuple(_read(tool, f"tools[{index}]") for index, tool in enumerate(tools))
    seen: dict[str, int] = {}
    for index, tool in enumerate(read):
        first = seen.setdefault(tool.name, index)
        if first != index:
            raise UserError(f"tools[{index}].function.name is {tool.name!r}, which tools[{first}] has: rename one")
    return read


def _read(tool: Any, place: str) -> Tool:
    if not isinstance(tool, Mapping):
        raise UserError(f"{place} is {_shown(tool)}: it must be an object")
    if tool.get("type") != "function":
        raise UserError(f"{place}.type is {_shown(tool.get('type'))}: only 'function' is supported")
    function, place = tool.get("function"), f"{place}.function"
    if not isinstance(function, Mapping):
        raise UserError(f"{place} is {_shown(function)}: it must be an object")
    name, strict, about = function.get("name"), function.get("strict"), function.get("description")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(f"{place}.name is {_shown(name)}: it must be 1 to 64 of the characters a-z A-Z 0-9 _ -")
    if not isinstance(strict, bool | None):
        raise UserError(f"{place}.strict is {_shown(strict)}: it must be true or false")
    if not isinstance(about, str | None):
        raise UserError(f"{place}.description is {_shown(about)}: it must be a string")
    return Tool(name, _schema(function.get("parameters"), f"{place}.parameters"), bool(strict), tool)


def _schema(parameters: Any, place: str) -> Mapping[str, Any]:
    if parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(parameters, Mapping):
        raise UserError(f"{place} is {_shown(parameters)}: it must be a JSON schema of an object")
    if parameters.get("type", "object") != "object":
        raise UserError(
            f"{place}.type is {_shown(parameters['type'])}: arguments are an object, so it must be 'object'"
        )
    return {"type": "object", **parameters}


def _shown(value: Any) -> str:
    return f"{value!r:.80}"
