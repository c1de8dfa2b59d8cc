"""Conversations with calls of functions: from OpenAI's messages to what a model's chat template reads.

    messages, tools = tool_prompt(tokenizer, messages, tools)
    ids = tokenizer.encode_marked(messages, tools=tools)

What each family gets (`tool_formats.py`):

- Mistral: arguments as objects, ids of nine letters and digits, results as JSON. Where the template would forget the
  system prompt, as after results, it is put before the last user's message, where the template has it otherwise.
- MiniMax-Text-01: its function-call guide wants the functions between the system prompt and the conversation; the
  template that came with the model writes them after all messages. The guide is followed: they are written into the
  system prompt, which is closed and opened again around them. A conversation without a system prompt gets a short
  one. Calls are text of the model's; results are messages of the role `function`, one for each.
- MiniMax-M1: functions without their wrapping, calls as text, neighbouring results as the parts of one message.
- Hermes and Qwen: OpenAI's messages as they are, with arguments as objects.
- all others: the functions are described in the system prompt, calls are text, results a user's turn.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from octavo.data.chat_content import text_parts
from octavo.data.tool_formats import ToolFormat, ToolStyle, description
from octavo.errors import UserError

if TYPE_CHECKING:
    from octavo.data.tokenizer import Tokenizer

Message = dict[str, Any]
_SYSTEM = ("system", "developer")
_MINIMAX_SYSTEM = "You are a helpful assistant."
_MINIMAX_FUNCTION = "<end_of_sentence>\n<beginning_of_sentence>system function_setting=functions\n"


@dataclass(frozen=True)
class _Call:
    """arguments: as the message has them, a string or an object."""

    id: str
    name: str
    arguments: Any

    @property
    def as_object(self) -> Any:
        """The arguments as an object; as they are where they are no JSON of one, which models write at times."""
        if not isinstance(self.arguments, str):
            return self.arguments
        try:
            value = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            return self.arguments
        return value if isinstance(value, dict) else self.arguments

    @property
    def as_text(self) -> tuple[str, str]:
        """The name, and the arguments as JSON."""
        given = self.arguments
        return self.name, (given or "{}") if isinstance(given, str) else json.dumps(given, ensure_ascii=False)


def tool_prompt(
    tokenizer: "Tokenizer", messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None
) -> tuple[list[Message], list[Any] | None]:
    """Messages and tools as `tokenizer.encode_marked` wants them, from those of an OpenAI request.

    messages: `content` may be null, `tool_calls` have their arguments as a string, messages of the role `tool` a
    `tool_call_id`. tools: as `tool_specs.read_tools` has found them good. Conversations without tools come back with
    no change but to null contents. Raises UserError, naming the field, for calls and results that are not in order.
    """
    style, offered = tokenizer.tool_style, list(tools or ())
    read = list(_read(messages))
    if style.format.name == "minimax":
        return _for_minimax(read, offered, style.format), None
    if style.format.name == "minimax_m1":
        return _for_m1(read, style.format), [tool["function"] for tool in offered] or None
    if style.native:
        turns = [_native(message, calls, style.format) for message, calls in read]
        return _reminded(turns) if style.forgets_system else turns, offered or None
    return _described(read, offered, style), None


def _read(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Message, list[_Call]]]:
    """Each message, without its `tool_calls`, and these. Results get the name of the function that was called."""
    names: dict[str, str] = {}
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise UserError(f"messages[{index}] is {message!r:.80}: it must be an object with a role and a content")
        place = f"messages[{index}]"
        calls = [_read_call(call, f"{place}.tool_calls[{at}]") for at, call in enumerate(_listed(message, place))]
        plain = {key: value for key, value in message.items() if key != "tool_calls"}
        plain["content"] = "" if message.get("content") is None else message["content"]
        if message.get("role") == "tool":
            answered = message.get("tool_call_id")
            if not isinstance(answered, str) or answered not in names:
                raise UserError(
                    f"{place}.tool_call_id is {answered!r:.80}: it must be the id of a call in an earlier message"
                )
            plain["name"] = names[answered]
        names |= {call.id: call.name for call in calls}
        yield plain, calls


def _listed(message: Mapping[str, Any], place: str) -> Sequence[Any]:
    calls = message.get("tool_calls")
    if not calls:
        return ()
    if not isinstance(calls, list | tuple) or message.get("role") != "assistant":
        raise UserError(f"{place}.tool_calls is {calls!r:.80}: it must be a list, of an assistant's message")
    return calls


def _read_call(call: Any, place: str) -> _Call:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise UserError(f"{place} is {call!r:.80}: it must have an id and a function")
    name, arguments, its_id = function.get("name"), function.get("arguments", "{}"), call.get("id")
    for key, value, kinds in (
        ("id", its_id, str),
        ("function.name", name, str),
        ("function.arguments", arguments, str | Mapping),
    ):
        if not isinstance(value, kinds) or (key != "function.arguments" and not value):
            raise UserError(f"{place}.{key} is {value!r:.80}: it must be a string")
    return _Call(str(its_id), str(name), arguments)


# ---- what templates read


def _native(message: Message, calls: list[_Call], form: ToolFormat) -> Message:
    """For templates that write calls and results themselves."""
    written = [
        {"id": _id(call.id, form), "type": "function", "function": {"name": call.name, "arguments": call.as_object}}
        for call in calls
    ]
    own: Message = {"tool_calls": written} if written else {}
    if message.get("role") == "tool":
        own["tool_call_id"] = _id(message["tool_call_id"], form)
        if form.name == "mistral":
            own["content"] = _as_json(message["content"])
    return {**message, **own}


def _reminded(messages: list[Message]) -> list[Message]:
    """The messages with the system prompt in the last user's, where a template that reads it only there would not."""
    users = [index for index, message in enumerate(messages) if message.get("role") == "user"]
    if not users or users[-1] == len(messages) - 1 or messages[0].get("role") not in _SYSTEM:
        return messages
    last = messages[users[-1]]
    told = {**last, "content": f"{_text(messages[0]['content'])}\n\n{_text(last['content'])}"}
    return [*messages[1 : users[-1]], told, *messages[users[-1] + 1 :]]


def _id(given: str, form: ToolFormat) -> str:
    """A call's id as the format allows it; the same one for the same call, so that prompts go on as they began."""
    if form.name != "mistral" or re.fullmatch("[a-zA-Z0-9]{9}", given):
        return given
    return hashlib.sha256(given.encode(errors="surrogatepass")).hexdigest()[:9]


def _for_minimax(read: list[tuple[Message, list[_Call]]], tools: list[Any], form: ToolFormat) -> list[Message]:
    messages = []
    for message, calls in read:
        message = _with_calls(message, calls, form)
        if message.get("role") == "tool":
            message = {"role": "function", "name": message["name"], "content": _as_json(message["content"])}
        messages.append(message)
    if not tools:
        return messages
    listed = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
    return _in_system(messages, "".join(_MINIMAX_FUNCTION + one for one in listed), "", _MINIMAX_SYSTEM)


def _for_m1(read: list[tuple[Message, list[_Call]]], form: ToolFormat) -> list[Message]:
    messages: list[Message] = []
    for results, group in groupby(read, lambda entry: entry[0].get("role") == "tool"):
        own = [_with_calls(message, calls, form) for message, calls in group]
        if results:
            parts = [{"type": "text", "name": each["name"], "text": _text(each["content"])} for each in own]
            own = [{"role": "tool", "content": parts}]
        messages += own
    return messages


def _described(read: list[tuple[Message, list[_Call]]], tools: list[Any], style: ToolStyle) -> list[Message]:
    messages: list[Message] = []
    for results, group in groupby(read, lambda entry: entry[0].get("role") == "tool"):
        own = [_with_calls(message, calls, style.format) for message, calls in group]
        if results:
            texts = [f"<tool_response>\n{_text(each['content'])}\n</tool_response>" for each in own]
            own = [{"role": "user", "content": "\n".join(texts)}]
        messages += own
    return _in_system(messages, description(tools), "\n\n") if tools else messages


def _with_calls(message: Message, calls: list[_Call], form: ToolFormat) -> Message:
    """The message with its calls as the model wrote them."""
    if not calls:
        return message
    said, written = _text(message["content"]), form.write([call.as_text for call in calls])
    return {**message, "content": f"{said}\n{written}" if said else written}


def _in_system(messages: list[Message], text: str, between: str, default: str = "") -> list[Message]:
    """The messages with `text` at the end of the system prompt, or of the `default` where there is none."""
    if not messages or messages[0].get("role") not in _SYSTEM:
        messages = [{"role": "system", "content": default}, *messages]
    said = _text(messages[0]["content"])
    return [{**messages[0], "content": said + (between if said else "") + text}, *messages[1:]]


def _text(content: Any) -> str:
    return "\n".join(text_parts(content))


def _as_json(content: Any) -> str:
    """A result as JSON: as it is if that is what it is, else a string of it."""
    text = _text(content)
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return text
