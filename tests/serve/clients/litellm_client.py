"""LiteLLM's two ways to a server of OpenAI's kind: `openai/` by OpenAI's client, `hosted_vllm/` by its own."""

import asyncio
import json
from typing import Any, Literal

import litellm
from cases import BASE, MODEL, QUESTION, raises, run
from pydantic import BaseModel

litellm.telemetry = False
ROUTES = ("openai", "hosted_vllm")


class Paint(BaseModel):
    colour: Literal["red", "green"]
    coats: Literal[1, 2]


def fields(route: str, model: str = MODEL, **more: Any) -> dict[str, Any]:
    common = {"api_base": BASE, "api_key": "none", "max_retries": 0, "timeout": 60}
    return {"model": f"{route}/{model}", **common, **more}


def ask(route: str, model: str = MODEL, **more: Any) -> Any:
    given = {"messages": QUESTION, "max_tokens": 10, "temperature": 0, **more}
    return litellm.completion(**fields(route, model, **given))


def case_completion() -> None:
    answers = [ask(route) for route in ROUTES]
    assert len({answer.choices[0].message.content for answer in answers}) == 1
    for answer in answers:
        assert answer.choices[0].message.content and answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 10 and answer.usage.prompt_tokens > 10


def case_several_choices() -> None:
    for route in ROUTES:
        answer = ask(route, n=3, temperature=1.2, seed=5)
        assert len({choice.message.content for choice in answer.choices}) == 3


def case_stream() -> None:
    for route in ROUTES:
        text = ask(route).choices[0].message.content
        chunks = list(ask(route, stream=True))
        assert len(chunks) > 3
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
        counted = list(ask(route, stream=True, stream_options={"include_usage": True}))
        assert counted[-1].usage.completion_tokens == 10
        built = litellm.stream_chunk_builder(counted, messages=QUESTION)
        assert built.choices[0].message.content == text and built.usage.completion_tokens == 10


def case_async() -> None:
    async def main(route: str) -> str:
        chunks = await litellm.acompletion(
            **fields(route, messages=QUESTION, max_tokens=10, temperature=0, stream=True)
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    for route in ROUTES:
        assert asyncio.run(main(route)) == ask(route).choices[0].message.content


def case_structured_output() -> None:
    for route in ROUTES:
        answer = ask(route, response_format=Paint, max_tokens=100)
        Paint.model_validate_json(answer.choices[0].message.content)


def case_functions() -> None:
    properties = {"city": {"enum": ["Paris", "Rome"]}}
    parameters = {"type": "object", "properties": properties, "required": ["city"], "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
    for route in ROUTES:
        calls = ask(route, "caller", tools=tools).choices[0].message.tool_calls
        assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Paris", "Rome"]
        chunks = list(ask(route, "caller", tools=tools, stream=True))
        (choice,) = litellm.stream_chunk_builder(chunks, messages=QUESTION).choices
        calls = choice.message.tool_calls
        assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Paris", "Rome"]
        assert choice.finish_reason == "tool_calls"
        forced = ask(route, tools=tools, tool_choice="required", parallel_tool_calls=False, max_tokens=200)
        (call,) = forced.choices[0].message.tool_calls
        assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


def case_embedding() -> None:
    for route in ROUTES:
        for more in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
            made = litellm.embedding(**fields(route, input=["a text", "another"], **more))
            assert len(made.data) == 2 and made.usage.prompt_tokens > 0
            if more != {"encoding_format": "base64"}:
                assert [len(each["embedding"]) for each in made.data] == [48, 48]
    made = litellm.embedding(**fields("hosted_vllm", input=["a text"], dimensions=8))
    assert len(made.data[0]["embedding"]) == 8


def case_text_completion() -> None:
    sampling = {"prompt": "Two and", "max_tokens": 6, "temperature": 0}
    for route in ("text-completion-openai", "hosted_vllm"):
        whole = litellm.text_completion(**fields(route, **sampling)).choices[0].text
        chunks = litellm.text_completion(**fields(route, **sampling, stream=True))
        assert whole and "".join(chunk.choices[0].text or "" for chunk in chunks) == whole


def case_errors() -> None:
    for route in ROUTES:
        with raises(litellm.BadRequestError, "temperature"):
            ask(route, temperature=3)
        with raises(litellm.NotFoundError, "gpt-7", MODEL):
            ask(route, "gpt-7")
        with raises(litellm.exceptions.MidStreamFallbackError, "its log says why"):
            list(ask(route, "breaks", stream=True))
        with raises(litellm.InternalServerError, "its log says why"):
            ask(route, "breaks")


if __name__ == "__main__":
    run(globals(), "litellm", "openai")
