"""Calls of functions that a request insists on: a grammar in which the model can write nothing else.

    params = SamplingParams(grammar=tool_grammar(tokenizer, tools, "required"), skip_special_tokens=False)

The grammar has the calls in the model's own form, special tokens included, and each function's schema for its
arguments. It is compiled as every grammar is (`grammar.py`), under the same limits.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.config.sampling import Grammar
from octavo.data.tokenizer import Tokenizer
from octavo.data.tool_formats import ToolFormat
from octavo.data.tool_specs import Tool
from octavo.engine.grammar import JSON_OPTIONS, check_depth, read_schema
from octavo.errors import UserError


def tool_grammar(
    tokenizer: Tokenizer,
    tools: Sequence[Tool],
    choice: Any = None,
    parallel: bool = True,
    answer: Grammar | None = None,
) -> Grammar | None:
    """What an answer must look like under OpenAI's `tool_choice` and `parallel_tool_calls`; None if it is free.

    "required": one or more calls; {"type": "function", "function": {"name": ...}}: one call of that function; "auto" or
    None: text, after which there may be calls. These are held to a grammar if one of the tools is `strict` (those that
    are not may get any object), or if only one call is allowed. answer: what it must look like where nothing is called;
    instead of text there are calls, then, or such an answer.

    Raises UserError for a choice that is none, or that names no tool, for an `answer` that is no JSON schema, and for
    schemas nested too deeply; what is wrong with them otherwise shows when the grammar is compiled.
    """
    if not tools and choice in (None, "none", "auto"):
        return answer
    if choice in (None, "none", "auto"):
        if choice == "none" or (parallel and not answer and not any(tool.strict for tool in tools)):
            return answer
        if answer and answer.kind != "json_schema":
            raise UserError("tools that may be called go with a JSON schema for the answer only: set tool_choice")
        lenient = [Tool(tool.name, {"type": "object"}, False, tool.given) for tool in tools]
        held = [tool if tool.strict else free for tool, free in zip(tools, lenient, strict=True)]
        return _grammar(tokenizer, held, parallel, text_first=answer is None, answer=answer)
    if choice == "required":
        if not tools:
            raise UserError("tool_choice is 'required', and there are no tools: give some")
        return _grammar(tokenizer, tools, parallel)
    wanted = _named(choice)
    named = [tool for tool in tools if tool.name == wanted]
    if not named:
        raise UserError(
            f"tool_choice names the function {wanted!r:.80}, which is not among the tools: choose one of them"
        )
    return _grammar(tokenizer, named, parallel=False)


def _named(choice: Any) -> str:
    function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise UserError(
            f"tool_choice is {choice!r:.80}: choose 'none', 'auto', 'required', or name a function:"
            ' {"type": "function", "function": {"name": ...}}'
        )
    return name


def _grammar(
    tokenizer: Tokenizer,
    tools: Sequence[Tool],
    parallel: bool,
    text_first: bool = False,
    answer: Grammar | None = None,
) -> Grammar:
    form = tokenizer.tool_style.format
    before, between, after = form.call
    rules, names = [], []
    for index, tool in enumerate(tools):
        schema = {**tool.parameters, "x-guidance": JSON_OPTIONS}
        check_depth(schema, f"parameters of the function {tool.name}")
        names.append(f"call_{index}")
        rules.append(f"call_{index}: {json.dumps(tool.name + between)} arguments_{index}")
        rules.append(f"arguments_{index}: %json {json.dumps(schema)}")
    end = json.dumps(after)
    if form.name == "mistral":  # it was trained to give its calls ids
        end = '("}" | ", \\"id\\": \\"" ID "\\"}")'
        rules.append("ID: /[a-zA-Z0-9]{9}/")
    call = f"call: {json.dumps(before)} ({' | '.join(names)}) {end}"
    more = f" ({_literal(tokenizer, form.separator)} call)*" if parallel else ""
    opening, head = _after_text(tokenizer, form) if text_first else (_literal(tokenizer, form.opening), [])
    run = f"{opening} call{more} {_literal(tokenizer, form.closing)}"
    start = f"start: TEXT | {run}" if text_first else f"start: {run}"
    if answer:
        start = f"start: answer | {run}"
        rules.append(f"answer: %json {json.dumps(read_schema(answer.text))}")
    return Grammar("lark", "\n".join([start, *head, call, *rules]))


def _after_text(tokenizer: Tokenizer, form: ToolFormat) -> tuple[str, list[str]]:
    """What begins calls after any text, and the rules for it."""
    text = r"TEXT: /(.|\n)*/"
    if tokenizer.special_id(form.marker) is not None:
        return f"TEXT {_literal(tokenizer, form.opening)}", [text]
    rest = json.dumps(form.opening.removeprefix(form.marker))
    # lazy: as soon as the marker is there, what follows is a call
    return f"head {rest}", [text, f"head[lazy]: TEXT {json.dumps(form.marker)}"]


def _literal(tokenizer: Tokenizer, text: str) -> str:
    """`text` as the grammar writes it: special tokens by their ids, the rest in quotes."""
    known = {mark: tokenizer.special_id(mark) for mark in re.findall(r"\[[A-Z_]+\]|</?[a-z_]+>", text)}
    special = [re.escape(mark) for mark, index in known.items() if index is not None]
    parts = re.split(f"({'|'.join(special)})", text) if special else [text]
    return " ".join(json.dumps(part) if known.get(part) is None else f"<[{known[part]}]>" for part in parts if part)
