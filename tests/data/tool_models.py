"""Tokenizers with the tool templates of the families, written as in their releases, and requests with tools."""

import json
from functools import cache
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from octavo.data.tokenizer import Tokenizer
from tests.data.chat_templates import TEMPLATES
from tests.data.tiny_tokenizers import byte_level, sentencepiece

# Mixtral-8x22B-Instruct-v0.1 and Mistral-7B-Instruct-v0.3
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {{- '"' + key + '": ' + ('"' + val + '"' if val is string else val | tojson) }}
                    {{- ", " if not loop.last }}
                {%- endfor %}
                {{- "}}" + (", " if not loop.last else "]") }}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function | tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id | length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' + (", " if not loop.last else "]" + eos_token) }}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content | string + ", " }}
        {%- if not message.tool_call_id is defined or message.tool_call_id | length != 9 %}
            {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
        {%- endif %}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with an initial system message!") }}
    {%- endif %}
{%- endfor %}
"""
_HEADS = {"system": "system ai_setting=assistant", "user": "user name=user", "assistant": "ai name=assistant"}
# MiniMax-Text-01; its own loop has a branch for each role
MINIMAX = "{% for message in messages %}"
for _role, _head in _HEADS.items():
    MINIMAX += (
        "{% if message['role'] == '" + _role + "' %}{{ '<beginning_of_sentence>" + _head + "\\n' + "
        "message['content'][0]['text'] + '<end_of_sentence>\\n' }}{% endif %}"
    )
MINIMAX += """{% if message['role'] == 'function' %}\
{{ '<beginning_of_sentence>system function_response=functions\\n' + \
'{"name": "' + message['name'] + '", "response": ' + message['content'][0]['text'] + '}<end_of_sentence>\\n' }}\
{% endif %}{% endfor %}{% if tools %}{% for function in tools %}\
{{ '<beginning_of_sentence>system function_setting=functions\\n' + function | tojson + '<end_of_sentence>\\n' }}\
{% endfor %}{% endif %}{% if add_generation_prompt %}{{ '<beginning_of_sentence>ai name=assistant\\n' }}{% endif %}"""
# MiniMax-M1
M1 = """{{ '<begin_of_document>' -}}{% set ns = namespace(system_prompt='') -%}
{% for message in messages -%}{% if message['role'] == 'system' -%}
{% set ns.system_prompt = ns.system_prompt + message['content'][0]['text'] -%}{% endif -%}{%- endfor -%}
{% if ns.system_prompt != '' -%}
{{ '<beginning_of_sentence>system ai_setting=assistant\\n' + ns.system_prompt + '<end_of_sentence>\\n' -}}{%- endif -%}
{% if tools -%}{{ '<beginning_of_sentence>system tool_setting=tools\\n<tools>\\n' -}}
{% for tool in tools -%}{{ tool | tojson ~ '\\n' -}}{%- endfor -%}
{{ '</tools>\\n\\nrespond with <tool_calls></tool_calls> XML tags<end_of_sentence>\\n' -}}{%- endif -%}
{% for message in messages -%}{% if message['role'] == 'user' -%}
{{ '<beginning_of_sentence>user name=user\\n' + message['content'][0]['text'] + '<end_of_sentence>\\n' -}}
{% elif message['role'] == 'assistant' -%}{{ '<beginning_of_sentence>ai name=assistant\\n' -}}
{% for content in message['content'] | selectattr('type', 'equalto', 'text') -%}{{ content['text'] -}}{%- endfor -%}
{{ '<end_of_sentence>\\n' -}}{% elif message['role'] == 'tool' -%}
{{ '<beginning_of_sentence>tool name=tools\\n' }} {%- for content in message['content'] -%}
{{- 'tool name: ' + content['name'] + '\\n' + 'tool result: ' + content['text'] + '\\n\\n' -}} {%- endfor -%}
{{- '<end_of_sentence>\\n' -}}{% endif -%}{%- endfor -%}
{% if add_generation_prompt -%}{{ '<beginning_of_sentence>ai name=assistant\\n' -}}{%- endif -%}"""
# Qwen2.5, without its default system prompt
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools>\\n\\n<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <object>}\\n</tool_call>" }}
    {{- "<|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) or
        (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments | tojson + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

_MARKS = {
    "mistral": ["[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
                "[/TOOL_RESULTS]"],
    "minimax": ["<beginning_of_sentence>", "<end_of_sentence>", "<function_call>"],
    "minimax_m1": ["<begin_of_document>", "<beginning_of_sentence>", "<end_of_sentence>"],
    "qwen": [],
    "chatml": [],
    "mixtral": [],
}  # fmt: skip
SOURCES = {
    "mistral": MISTRAL,
    "minimax": MINIMAX,
    "minimax_m1": M1,
    "qwen": QWEN,
    "chatml": TEMPLATES["chatml"],
    "mixtral": TEMPLATES["mixtral"],
}
MODELS = tuple(SOURCES)
FORMATS = ("mistral", "minimax", "minimax_m1", "qwen", "chatml")  # all forms, and Hermes' with and without a template


@cache
def tokenizer(model: str) -> Tokenizer:
    """Byte-level but for Mistral's models, with the family's special tokens; `<tool_call>` is a token of Qwen's."""
    backend = Backend.from_str(sentencepiece() if model in ("mistral", "mixtral") else byte_level())
    backend.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in _MARKS[model]])
    if model == "qwen":
        backend.add_tokens([AddedToken(mark, normalized=False) for mark in ("<tool_call>", "</tool_call>")])
    end = {"minimax": "<end_of_sentence>", "minimax_m1": "<end_of_sentence>"}.get(model)
    end = end or ("</s>" if model in ("mistral", "mixtral") else "<|im_end|>")
    config = {"bos_token": "<s>", "eos_token": end, "chat_template": SOURCES[model]}
    files = {"tokenizer.json": backend.to_str().encode(), "tokenizer_config.json": json.dumps(config).encode()}
    return Tokenizer.from_files(files, model)


def tool(name: str, parameters: Any = None, **more: Any) -> dict[str, Any]:
    """A function as OpenAI's clients describe it."""
    about = {} if parameters is None else {"parameters": parameters}
    return {"type": "function", "function": {"name": name, "description": f"Does {name}.", **about, **more}}


WEATHER = tool(
    "get_weather",
    {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "maximum": 9,
                                                                            "minimum": 0}},
        "required": ["city"],
        "additionalProperties": False,
    },
)  # fmt: skip
CLOCK = tool("get_time")
TOOLS = [WEATHER, CLOCK]


def call(its_id: str, name: str, arguments: str) -> dict[str, Any]:
    """A call as an assistant's message has it."""
    return {"id": its_id, "type": "function", "function": {"name": name, "arguments": arguments}}


ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Weather in Århus, and the time?"}]
ANSWERED = [
    *ASKED,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [call("call_1", "get_weather", '{"city": "Århus"}'), call("abcdefgh9", "get_time", "{}")],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "22 °C"},
    {"role": "tool", "tool_call_id": "abcdefgh9", "content": '{"hour": 12}'},
]
GOING_ON = [*ANSWERED, {"role": "assistant", "content": "Warm; noon."}, {"role": "user", "content": "Thanks"}]
