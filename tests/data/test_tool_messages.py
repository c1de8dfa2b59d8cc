"""Conversations with tools reach each family's template as its makers give them to it."""

import json
from typing import Any

import pytest

from octavo.data.chat_template import ChatTemplate
from octavo.data.tool_formats import HERMES, MINIMAX, MINIMAX_M1, MISTRAL, style_of
from octavo.data.tool_messages import tool_prompt
from octavo.data.tool_parser import ToolParser
from octavo.errors import UserError
from tests.data.test_tool_parser import joined
from tests.data.tool_models import ANSWERED, ASKED, FORMATS, GOING_ON, MODELS, SOURCES, TOOLS, call, tokenizer

STYLES = {
    "mistral": (MISTRAL, True),
    "minimax": (MINIMAX, True),
    "minimax_m1": (MINIMAX_M1, True),
    "qwen": (HERMES, True),
    "chatml": (HERMES, False),
    "mixtral": (HERMES, False),
}
OBJECTS = [{"name": "get_weather", "arguments": {"city": "Århus"}}, {"name": "get_time", "arguments": {}}]
CODE = '<function_call>```typescript\nfunctions.get_weather({"city": "Århus"})\n```' + (
    "<function_call>```typescript\nfunctions.get_time({})\n```"
)
LINES = '{"name": "get_weather", "arguments": {"city": "Århus"}}', '{"name": "get_time", "arguments": {}}'


def parts(text: str, **more: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text, **more}]


def given(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


# what the makers' own code gives to their templates for the conversation ANSWERED
NATIVE = {
    "mistral": [
        given("user", "Be brief.\n\nWeather in Århus, and the time?"),
        given("assistant", "", tool_calls=[{"id": "74196fe72", "type": "function", "function": OBJECTS[0]},
                                           {"id": "abcdefgh9", "type": "function", "function": OBJECTS[1]}]),
        given("tool", '"22 °C"', tool_call_id="74196fe72"),
        given("tool", '{"hour": 12}', tool_call_id="abcdefgh9"),
    ],
    "minimax": [
        given("system", parts("Be brief.<end_of_sentence>\n" + "<end_of_sentence>\n".join(
            "<beginning_of_sentence>system function_setting=functions\n" + json.dumps(tool["function"])
            for tool in TOOLS))),
        given("user", parts("Weather in Århus, and the time?")),
        given("assistant", parts(CODE)),
        given("function", parts('"22 °C"'), name="get_weather"),
        given("function", parts('{"hour": 12}'), name="get_time"),
    ],
    "minimax_m1": [
        given("system", parts("Be brief.")),
        given("user", parts("Weather in Århus, and the time?")),
        given("assistant", parts("<tool_calls>\n" + "\n".join(LINES) + "\n</tool_calls>")),
        given("tool", parts("22 °C", name="get_weather") + parts('{"hour": 12}', name="get_time")),
    ],
    "qwen": [
        *ASKED,
        given("assistant", "", tool_calls=[{"function": each} for each in OBJECTS]),
        given("tool", "22 °C"),
        given("tool", '{"hour": 12}'),
    ],
}  # fmt: skip


def rendered(model: str, messages: list[dict[str, Any]], tools: list[Any] | None = TOOLS) -> str:
    fitted, offered = tool_prompt(tokenizer(model), messages, tools)
    return tokenizer(model).apply_chat(fitted, tools=offered)


@pytest.mark.parametrize("model", MODELS)
def test_the_form_is_found_by_the_template(model: str) -> None:
    style = tokenizer(model).tool_style
    assert (style.format, style.native) == STYLES[model] and style.forgets_system == (model == "mistral")


def test_a_template_must_write_the_tools_too() -> None:
    mute = "{# [TOOL_CALLS] <tool_call> #}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert not style_of(ChatTemplate(mute)).native and not style_of(None).native
    assert style_of(ChatTemplate("{{ tools }}" + mute)).native
    remembers = "{{ tools }}" + mute
    assert not style_of(ChatTemplate(remembers)).forgets_system
    assert not style_of(ChatTemplate("[TOOL_CALLS] {{ raise_exception('no') }}")).native


@pytest.mark.parametrize("model", NATIVE)
def test_what_the_template_gets_is_what_its_makers_give_it(model: str) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"x": 0}, unk_token="x"))
    end = tokenizer(model).special_tokens["eos_token"]
    oracle = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=end)
    offered = {"mistral": TOOLS, "minimax": None, "minimax_m1": [tool["function"] for tool in TOOLS], "qwen": TOOLS}
    expected = oracle.apply_chat_template(
        NATIVE[model], tools=offered[model], chat_template=SOURCES[model], tokenize=False, add_generation_prompt=True
    )
    assert rendered(model, ANSWERED) == expected
    for text in ("Be brief.", "22 °C", "Århus", "get_time"):
        assert text in expected


def test_minimax_as_its_guide_has_it() -> None:
    assert rendered("minimax", ASKED, TOOLS[1:]) == (
        "<beginning_of_sentence>system ai_setting=assistant\nBe brief.<end_of_sentence>\n"
        "<beginning_of_sentence>system function_setting=functions\n"
        '{"name": "get_time", "description": "Does get_time."}<end_of_sentence>\n'
        "<beginning_of_sentence>user name=user\nWeather in Århus, and the time?<end_of_sentence>\n"
        "<beginning_of_sentence>ai name=assistant\n"
    )
    assert "ai_setting=assistant\nYou are a helpful assistant.<end" in rendered("minimax", ASKED[1:], TOOLS)


def test_models_without_tools_are_told_of_them() -> None:
    text = rendered("chatml", ANSWERED)
    told = text.split("<|im_end|>")[0]
    assert told.startswith("<|im_start|>system\nBe brief.\n\n#") and all(json.dumps(tool) in told for tool in TOOLS)
    assert "<tool_call>\n" + LINES[0] + "\n</tool_call>\n<tool_call>\n" + LINES[1] + "\n</tool_call><|im_end|>" in text
    assert 'user\n<tool_response>\n22 °C\n</tool_response>\n<tool_response>\n{"hour": 12}\n</tool_response><|im' in text
    assert rendered("chatml", GOING_ON[1:]).startswith("<|im_start|>system\n# Functions")
    mixtral = rendered("mixtral", GOING_ON)
    assert mixtral.count("[INST]") == 3 and "</tool_response> [/INST] Warm; noon.</s>[INST] Thanks [/INST]" in mixtral


@pytest.mark.parametrize("model", MODELS)
def test_without_tools_nothing_changes(model: str) -> None:
    plain = [*ASKED, {"role": "assistant", "content": "No."}, {"role": "user", "content": "Why?"}]
    for tools in (None, []):
        assert tool_prompt(tokenizer(model), plain, tools) == (plain, None)
    asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": []}]
    assert tool_prompt(tokenizer(model), asked, None)[0] == [asked[0], {"role": "assistant", "content": ""}]


@pytest.mark.parametrize("model", MODELS)
def test_calls_in_the_history_without_tools(model: str) -> None:
    text = rendered(model, GOING_ON, None)
    assert "Århus" in text and "22 °C" in text and "Does get_time" not in text and "Warm; noon." in text


@pytest.mark.parametrize("model", MODELS)
def test_prompts_go_on_as_they_began(model: str) -> None:
    """Else nothing of a conversation could come from the prefix cache."""
    before, after = rendered(model, ANSWERED), [*ANSWERED, {"role": "assistant", "content": "Yes."}]
    # Mistral's template moves system prompt and tools to the last user's message with each
    assert rendered(model, after if model == "mistral" else GOING_ON).startswith(before)


@pytest.mark.parametrize("model", FORMATS)
def test_what_the_model_wrote_is_written_again(model: str) -> None:
    """An answer with calls, parsed and sent back, is in the next prompt as the model wrote it."""
    form = tokenizer(model).tool_style.format
    written = form.write([("get_weather", '{"city": "Bø"}'), ("get_time", "{}")])
    _, calls = joined(ToolParser(form).put(written))
    made = [call(form.make_id(), *each) for each in calls]
    back = rendered(model, [ASKED[1], {"role": "assistant", "content": None, "tool_calls": made}])
    for each in made if model == "mistral" else ():  # whose template adds ids
        arguments = each["function"]["arguments"] + "}"
        written = written.replace(arguments, f'{arguments[:-1]}, "id": "{each["id"]}"}}')
    assert written in back


@pytest.mark.parametrize("model", MODELS)
def test_arguments_that_are_no_json_are_passed_on(model: str) -> None:
    """A model may have written them; the conversation must be able to go on."""
    for arguments in ('{"city": ', "[1]", "Århus"):
        broken = {"role": "assistant", "content": "Hm", "tool_calls": [call("a", "get_weather", arguments)]}
        answer = {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "bad arguments"}]}
        text = rendered(model, [ASKED[1], broken, answer])
        assert (arguments in text or json.dumps(arguments, ensure_ascii=False) in text) and "bad arguments" in text


BAD = {
    "messages[1].tool_calls[0] is 3": [{"role": "assistant", "tool_calls": [3]}],
    "messages[1].tool_calls is 'x'": [{"role": "assistant", "tool_calls": "x"}],
    "messages[1].tool_calls is [": [{"role": "user", "content": "x", "tool_calls": [call("a", "f", "{}")]}],
    "messages[1].tool_calls[0].id is 7": [
        {"role": "assistant", "tool_calls": [call(7, "f", "{}")]}  # type: ignore[arg-type]
    ],
    "messages[1].tool_calls[0].function.name is ''": [{"role": "assistant", "tool_calls": [call("a", "", "{}")]}],
    "messages[1].tool_calls[0].function.arguments is 1": [
        {"role": "assistant", "tool_calls": [call("a", "f", 1)]}  # type: ignore[arg-type]
    ],
    "messages[1].tool_call_id is None": [{"role": "tool", "content": "x"}],
    "messages[2].tool_call_id is 'b'": [
        {"role": "assistant", "tool_calls": [call("a", "f", "{}")]},
        {"role": "tool", "tool_call_id": "b", "content": "x"},
    ],
    "messages[1] is 'x'": ["x"],
}


@pytest.mark.parametrize("message", BAD)
def test_calls_that_are_not_in_order_are_refused(message: str) -> None:
    for model in ("mistral", "chatml"):
        with pytest.raises(UserError) as caught:
            tool_prompt(tokenizer(model), [ASKED[1], *BAD[message]], TOOLS)
        assert str(caught.value).startswith(message)
