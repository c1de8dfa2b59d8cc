"""How models write calls of functions, by family, and which of the forms a model's chat template shows.

    [TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}]                        Mistral, Mixtral-8x22B (tokenizer v3)
    <function_call>```typescript\\nfunctions.f({"x": 1})\\n```                   MiniMax-Text-01
    <tool_calls>\\n{"name": "f", "arguments": {"x": 1}}\\n</tool_calls>          MiniMax-M1
    <tool_call>\\n{"name": "f", "arguments": {"x": 1}}\\n</tool_call>            Hermes, Qwen: ChatML

Models whose template knows nothing of tools are told of them in a system prompt, and asked for the last form.
"""

import json
import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from octavo.data.chat_template import ChatTemplate
from octavo.errors import UserError

FormatName = Literal["mistral", "minimax", "minimax_m1", "hermes"]
_ALPHANUMERIC = string.ascii_letters + string.digits
_PROBE = "octavo0probe0"
_SYSTEM, _USER = {"role": "system", "content": _PROBE}, {"role": "user", "content": "x"}
_CALL: dict[str, Any] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "abcdefgh0", "type": "function", "function": {"name": "f", "arguments": {}}}],
}
_RESULT = {"role": "tool", "tool_call_id": "abcdefgh0", "name": "f", "content": "1"}


@dataclass(frozen=True)
class ToolFormat:
    """A run of calls is written `opening`, the calls with `separator` between them, `closing`.

    call: what stands before a call's name, between the name and the arguments' JSON, and after these.
    bare: how a run may also begin where the opening's special token was left out, "" for none.
    """

    name: FormatName
    opening: str
    separator: str
    closing: str
    call: tuple[str, str, str] = ('{"name": "', '", "arguments": ', "}")
    bare: str = ""

    @property
    def marker(self) -> str:
        """What announces calls; a special token in the tokenizers of most models."""
        return self.opening.split()[0].removesuffix("```typescript")

    @property
    def reopens(self) -> bool:
        """Whether each call has an opening and a closing of its own."""
        return self.marker in self.separator

    def write(self, calls: Sequence[tuple[str, str]]) -> str:
        """Calls, each a name and arguments as JSON, as the model writes them."""
        before, between, after = self.call
        written = [f"{before}{name}{between}{arguments}{after}" for name, arguments in calls]
        return self.opening + self.separator.join(written) + self.closing

    def make_id(self) -> str:
        """A new call's id: Mistral's templates insist on nine letters and digits."""
        if self.name == "mistral":
            return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))
        return "call_" + secrets.token_hex(12)


MISTRAL = ToolFormat("mistral", "[TOOL_CALLS] [", ", ", "]")
MINIMAX = ToolFormat(
    "minimax",
    "<function_call>```typescript\n",
    "\n```<function_call>```typescript\n",
    "\n```",
    ("functions.", "(", ")"),
    bare="```typescript\nfunctions.",
)
MINIMAX_M1 = ToolFormat("minimax_m1", "<tool_calls>\n", "\n", "\n</tool_calls>")
HERMES = ToolFormat("hermes", "<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>")
# what a template that shows a form has in its source
_SIGNS = (
    ("[TOOL_CALLS]", MISTRAL),
    ("function_response=functions", MINIMAX),
    ("<tool_calls>", MINIMAX_M1),
    ("<tool_call>", HERMES),
)


@dataclass(frozen=True)
class ToolStyle:
    """A model's form of calls. native: its template knows tools, else a system prompt must describe them.

    forgets_system: its template writes a system prompt only where the last message is a user's, as Mistral's do; their
    tokenizer package always puts it before the last user's message.
    """

    format: ToolFormat
    native: bool
    forgets_system: bool = False


def style_of(template: ChatTemplate | None) -> ToolStyle:
    """The style of a model with this template: of the form it shows, if it also writes the tools that it is given."""
    if template is not None:
        for sign, form in _SIGNS:
            if sign in template.source and _shows(template, "tools", [_USER]):
                forgets = form is MISTRAL and not _shows(template, "messages", [_SYSTEM, _USER, _CALL, _RESULT])
                return ToolStyle(form, True, forgets)
    return ToolStyle(HERMES, native=False)


def _shows(template: ChatTemplate, probed: str, messages: list[dict[str, Any]]) -> bool:
    """Whether the probe comes out of the template, given among the messages or as a tool."""
    function = {"name": _PROBE, "description": "", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": function}] if probed == "tools" else None
    for form in (str, lambda text: [{"type": "text", "text": text}]):
        try:
            text = template.render([{**each, "content": form(each["content"])} for each in messages], tools=tools)
        except UserError:
            continue
        if _PROBE in text:
            return True
    return False


def description(tools: Sequence[Any]) -> str:
    """What tells a model without native tools of them."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    example = HERMES.write([("<name>", "<arguments as a JSON object>")]).replace('"<name>"', "<name>")
    return (
        f"# Functions\n\nThese functions can be called:\n<tools>\n{listed}\n</tools>\n\n"
        f"To call one, write nothing but this, once for each call:\n{example}\n\n"
        "The results come back in <tool_response></tool_response>. Where no function helps, answer in words."
    )
