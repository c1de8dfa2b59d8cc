"""Functions that a model may call, as clients meet them. What each family writes is tested in tests/data."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest

from octavo.engine.answer import Piece
from octavo.engine.engine import Engine
from tests.serve.serving import MODEL, Puppet, serving

QUESTION: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Foretells.", "parameters": PARAMETERS}}
TIME = {"type": "function", "function": {"name": "time"}}
TOOLS: Any = [WEATHER, TIME]
NAMED = {"type": "function", "function": {"name": "weather"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>'


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def ask(client: openai.OpenAI, messages: Any = QUESTION, **fields: Any) -> Any:
    return client.chat.completions.create(
        model=MODEL, messages=messages, **{"temperature": 1, "max_tokens": 300, "tools": TOOLS, **fields}
    )


def check(call: Any) -> None:
    assert call.type == "function" and call.id
    arguments = json.loads(call.function.arguments)
    if call.function.name == "weather":
        jsonschema.validate(arguments, PARAMETERS)
    else:
        assert (call.function.name, arguments) == ("time", {})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("choice", ["required", NAMED])
def test_calls_that_are_insisted_on(client: openai.OpenAI, choice: Any, seed: int) -> None:
    answer = ask(client, tool_choice=choice, seed=seed, parallel_tool_calls=False).choices[0]
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.message.tool_calls
    check(call)
    assert answer.message.content is None
    assert choice == "required" or call.function.name == "weather"


def test_a_streamed_call_is_the_whole_one(client: openai.OpenAI) -> None:
    fields: Any = {"tool_choice": NAMED, "seed": 4, "logprobs": True, "n": 2}
    whole = ask(client, **fields)
    deltas: list[list[Any]] = [[], []]
    logprobs: list[list[Any]] = [[], []]
    for chunk in ask(client, stream=True, **fields):
        (choice,) = chunk.choices
        deltas[choice.index] += choice.delta.tool_calls or []
        logprobs[choice.index] += choice.logprobs.content if choice.logprobs else []
    for choice, parts, tokens in zip(whole.choices, deltas, logprobs, strict=True):
        (call,) = choice.message.tool_calls
        check(call)
        first, *rest = parts
        assert (first.function.name, first.type, first.index) == ("weather", "function", 0) and first.id
        assert all(part.id is part.type is part.function.name is None for part in rest)  # clients join them
        assert "".join(part.function.arguments for part in parts) == call.function.arguments
        whole_tokens = choice.logprobs.content
        assert [each.token for each in tokens] == [each.token for each in whole_tokens]
        # the torch runner's rounding depends on how much of a prompt it computes at once
        assert [each.logprob for each in tokens] == pytest.approx([each.logprob for each in whole_tokens], abs=1e-4)


def test_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=QUESTION, tools=TOOLS, tool_choice=NAMED, temperature=1, seed=2, max_tokens=300
    ) as stream:  # type: ignore[arg-type]
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    (call,) = final.choices[0].message.tool_calls or ()
    check(call)


def puppet_client(*texts: str) -> Any:
    puppet = Puppet(*[Piece(text, 7) for text in texts], Piece("", 2, "stop"))
    puppet.step(100)
    return puppet


def test_text_and_parallel_calls_of_a_models_own_will() -> None:
    puppet = puppet_client("Let me", " see. <tool", CALL[5:40], CALL[40:] + "\n" + CALL[:20], CALL[20:])
    with serving(puppet) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        choice = ask(client).choices[0]
        assert choice.message.content.strip() == "Let me see."
        assert choice.finish_reason == "tool_calls"
        first, second = choice.message.tool_calls
        check(first), check(second)
        assert first.id != second.id
        plain = ask(client, tool_choice="none").choices[0]
        assert plain.message.tool_calls is None and CALL in plain.message.content
        assert plain.finish_reason == "stop"


def test_a_call_that_is_cut_off_ends_by_length() -> None:
    puppet = Puppet(Piece(CALL[:60], 7), Piece("", 2, "length"))
    puppet.step(100)
    with serving(puppet) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        assert ask(client).choices[0].finish_reason == "length"


def test_an_answer_in_a_format_or_a_call(client: openai.OpenAI, engine: Engine) -> None:
    """The model chooses between both, and writes nothing else."""
    schema = {"type": "object", "properties": {"ok": {"enum": [1]}}, "required": ["ok"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    # what it would rather begin with, as the tiny model has no opinion
    begins = {text: engine.tokenizer.encode(text)[0] for text in "{<"}
    for text, seed in itertools.product("{<", range(3)):
        bias = {str(begins[text]): 100}
        choice = ask(client, response_format=wanted, logit_bias=bias, seed=seed, parallel_tool_calls=False).choices[0]
        if text == "{":
            assert json.loads(choice.message.content) == {"ok": 1} and choice.message.tool_calls is None
        elif choice.finish_reason == "tool_calls":
            (call,) = choice.message.tool_calls
            assert call.function.name in ("weather", "time") and isinstance(json.loads(call.function.arguments), dict)
        else:
            assert choice.finish_reason == "length"  # a tool that is not strict may have any arguments


def test_the_results_of_calls_are_read(client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    turns = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain."},
    ]
    with_results, without = (ask(client, messages, max_tokens=1).usage.prompt_tokens for messages in (turns, QUESTION))
    assert with_results > without
    other = [*turns[:2], {**turns[2], "content": "Sun, and a long and windy evening."}]
    assert ask(client, other, max_tokens=1).usage.prompt_tokens > with_results
    told = ask(client, max_tokens=1, tools=[TIME]).usage.prompt_tokens
    assert ask(client, max_tokens=1, tool_choice="none").usage.prompt_tokens < told < without


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [TIME, TIME]}, "tools[1].function.name"),
        ({"tools": [TIME] * 129}, "tools has 129 entries"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": 5}, "tool_choice is 5"),
        ({"tool_choice": "sometimes"}, "tool_choice is"),
        ({"tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "nobody"),
        ({"tools": [], "tool_choice": "required"}, "there are no tools"),
        ({"tools": [], "tool_choice": NAMED}, "weather"),
        ({"extra_body": {"guided_regex": "a"}}, "a JSON schema for the answer only"),
        ({"messages": [{"role": "tool", "tool_call_id": "x", "content": "y"}]}, "messages[0].tool_call_id"),
    ],
)
def test_wrong_requests(client: openai.OpenAI, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, **fields)
    assert named in refused.value.message
