"""OpenAI's own client, of any major version: what it sends, and the answers that are known to break it."""

import asyncio
import base64
import json
import math
import struct
from collections.abc import Iterable
from typing import Any, Literal

import openai
from cases import BASE, MODEL, QUESTION, no_waiting, raises, run
from pydantic import BaseModel

client = openai.OpenAI(base_url=BASE, api_key="none", max_retries=0, timeout=60)
chats = client.chat.completions


class Paint(BaseModel):
    colour: Literal["red", "green"]
    coats: Literal[1, 2]


def ask(model: str = MODEL, messages: Any = QUESTION, **fields: Any) -> Any:
    return chats.create(model=model, messages=messages, **{"temperature": 0, **fields})


def unit(vector: list[float]) -> bool:
    return same([sum(value * value for value in vector)], [1.0])


def same(vector: Iterable[float], other: Iterable[float]) -> bool:
    """In torch a text's figures depend on its batch, by rounding."""
    return all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(vector, other, strict=True))


# ---- chats


def case_stream_with_usage() -> None:
    whole = ask(max_tokens=12)
    *chunks, counts = ask(max_tokens=12, stream=True, stream_options={"include_usage": True})
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text and text == whole.choices[0].message.content
    assert counts.choices == [] and counts.usage.completion_tokens == whole.usage.completion_tokens == 12
    assert all(chunk.usage is None for chunk in chunks)
    assert all(chunk.usage is None for chunk in ask(max_tokens=3, stream=True))


def case_stream_helper_takes_several_choices() -> None:
    """It fails with IndexError where choice 1 is heard of before choice 0."""
    sampling: Any = {"n": 3, "temperature": 1.2, "seed": 5, "max_tokens": 8, "model": MODEL, "messages": QUESTION}
    whole = chats.create(**sampling)
    with chats.stream(**sampling, stream_options={"include_usage": True}) as stream:
        kinds = {event.type for event in stream}
        try:
            final = stream.get_final_completion()
        except openai.LengthFinishReasonError as error:  # a cut-off answer is one, in the helper
            final = error.completion
    assert "content.delta" in kinds
    assert [choice.index for choice in final.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in final.choices]
    assert texts == [choice.message.content for choice in whole.choices] and len(set(texts)) == 3
    assert final.usage == whole.usage and final.usage.completion_tokens == 24


def case_logprobs_streamed_and_whole() -> None:
    whole = ask(max_tokens=6, logprobs=True, top_logprobs=2)
    streamed = ask(max_tokens=6, logprobs=True, top_logprobs=2, stream=True)
    entries = [entry for chunk in streamed if (given := chunk.choices[0].logprobs) for entry in given.content]
    assert len(entries) == 6 and entries == whole.choices[0].logprobs.content
    assert all(len(entry.top_logprobs) == 2 and entry.top_logprobs[0].token == entry.token for entry in entries)


def case_parse_gives_models() -> None:
    answer = chats.parse(model=MODEL, messages=QUESTION, response_format=Paint, temperature=1, seed=3)
    assert isinstance(answer.choices[0].message.parsed, Paint)
    with chats.stream(model=MODEL, messages=QUESTION, response_format=Paint, temperature=1, seed=3) as stream:
        assert "content.done" in {event.type for event in stream}
        assert stream.get_final_completion().choices[0].message.parsed == answer.choices[0].message.parsed


def case_parse_says_that_an_answer_was_cut() -> None:
    with raises(openai.LengthFinishReasonError) as cut:
        chats.parse(model=MODEL, messages=QUESTION, response_format=Paint, max_tokens=3)
    assert cut.value.completion.usage.completion_tokens == 3
    with raises(openai.LengthFinishReasonError):
        with chats.stream(model=MODEL, messages=QUESTION, response_format=Paint, max_tokens=3) as stream:
            stream.until_done()


def case_newer_fields() -> None:
    messages = [{"role": "developer", "content": [{"type": "text", "text": "Be short."}]}, *QUESTION]
    answer = ask(messages=messages, max_completion_tokens=4, metadata={"a": "b"}, store=False, service_tier="auto",
                 reasoning_effort="low", verbosity="low", prompt_cache_key="k", safety_identifier="s",
                 parallel_tool_calls=True, modalities=["text"], stop=None, user="u")  # fmt: skip
    assert answer.usage.completion_tokens == 4
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    assert answer.system_fingerprint.startswith("octavo-")


# ---- functions


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


class Weather(BaseModel):
    city: Literal["Paris", "Rome"]


def cities(calls: Any) -> list[tuple[str, str]]:
    return [(call.function.name, json.loads(call.function.arguments)["city"]) for call in calls]


TWO = [("weather", "Paris"), ("weather", "Rome")]


def case_parallel_calls() -> None:
    choice = ask("caller", tools=[WEATHER]).choices[0]
    assert choice.finish_reason == "tool_calls" and cities(choice.message.tool_calls) == TWO
    turns = [*QUESTION, choice.message] + [
        {"role": "tool", "tool_call_id": call.id, "content": "Rain."} for call in choice.message.tool_calls
    ]
    assert ask(messages=turns, tools=[WEATHER], max_tokens=2, tool_choice="none").usage.completion_tokens == 2


def case_streamed_calls() -> None:
    """Without an index the helper fails with TypeError, with a null id or name in a later delta with AssertionError,
    and with repeated names it joins them."""
    parts: dict[int, list[Any]] = {}
    for chunk in ask("caller", tools=[WEATHER], stream=True):
        for call in chunk.choices[0].delta.tool_calls or ():
            parts.setdefault(call.index, []).append(call)
            later = call.model_fields_set | call.function.model_fields_set
            assert len(parts[call.index]) == 1 or not later & {"id", "type", "name"}, later
    arguments = ["".join(part.function.arguments for part in parts[index]) for index in (0, 1)]
    assert [json.loads(each)["city"] for each in arguments] == ["Paris", "Rome"]
    with chats.stream(model="caller", messages=QUESTION, tools=[WEATHER]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion().choices[0]
    assert kinds.count("tool_calls.function.arguments.done") == 2
    assert final.finish_reason == "tool_calls" and final.message.content.strip() == "Let me see."


def case_forced_calls_are_parsed() -> None:
    tool = openai.pydantic_function_tool(Weather)
    for choice in ("required", {"type": "function", "function": {"name": "Weather"}}):
        fields: Any = {"model": MODEL, "messages": QUESTION, "tools": [tool], "tool_choice": choice, "seed": 3}
        (call,) = chats.parse(**fields, parallel_tool_calls=False).choices[0].message.tool_calls
        assert isinstance(call.function.parsed_arguments, Weather)
        with chats.stream(**fields, parallel_tool_calls=False) as stream:
            (streamed,) = stream.get_final_completion().choices[0].message.tool_calls
        assert streamed.function.parsed_arguments == call.function.parsed_arguments
    with raises(openai.BadRequestError, "nobody"):
        ask(tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "nobody"}})


# ---- completions, embeddings, models


def case_completions() -> None:
    answer = client.completions.create(model=MODEL, prompt=["Two and", "A"], max_tokens=4, echo=True, logprobs=1, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text.startswith(("Two and", "A")) for choice in answer.choices] == [True] * 4
    assert answer.choices[0].logprobs.token_logprobs[0] is None
    sampling: Any = {"model": MODEL, "prompt": [5, 6, 7], "max_tokens": 5, "temperature": 0}
    chunks = client.completions.create(**sampling, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == client.completions.create(**sampling).choices[0].text


def case_embeddings() -> None:
    """The client asks for base64 by itself, and decodes it by itself."""
    make = client.embeddings.create
    both = make(model=MODEL, input=["a text", "another"])
    floats = make(model=MODEL, input="a text", encoding_format="float").data[0].embedding
    coded: Any = make(model=MODEL, input="a text", encoding_format="base64").data[0].embedding
    assert [each.index for each in both.data] == [0, 1] and both.usage.prompt_tokens == both.usage.total_tokens > 0
    first, second = (each.embedding for each in both.data)
    assert same(first, floats) and not same(first, second) and unit(first) and unit(second)
    raw = base64.b64decode(coded)
    assert same(struct.unpack("<48f", raw), floats)
    short = make(model=MODEL, input="a text", dimensions=8).data[0].embedding
    assert len(short) == 8 and unit(short)
    ids = make(model=MODEL, input=[[5, 6], [7]]).data
    assert same(ids[1].embedding, make(model=MODEL, input=[7]).data[0].embedding)
    with raises(openai.BadRequestError, "dimensions is 49", "48") as refused:
        make(model=MODEL, input="a", dimensions=49)
    assert refused.value.param == "dimensions"


def case_models() -> None:
    ids = [card.id for card in client.models.list()]
    assert MODEL in ids and "breaks" in ids
    assert client.models.retrieve(MODEL).id == MODEL  # a name with a slash


def case_raw_responses() -> None:
    raw = chats.with_raw_response.create(model=MODEL, messages=QUESTION, max_tokens=2)
    assert raw.status_code == 200 and raw.headers["content-type"] == "application/json"
    assert raw.parse().usage.completion_tokens == 2
    assert raw.headers["x-request-id"] == raw.request_id == raw.parse()._request_id
    with chats.with_streaming_response.create(model=MODEL, messages=QUESTION, max_tokens=2, stream=True) as streamed:
        assert streamed.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in streamed.iter_lines() if line]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: {") for line in lines[:-1])


# ---- errors


def case_errors_say_what_is_wrong() -> None:
    with raises(openai.BadRequestError, "temperature") as bad:
        ask(temperature=3)
    found = bad.value
    assert (found.status_code, found.param, found.type) == (400, "temperature", "invalid_request_error")
    assert found.code == "invalid_value" and found.body["message"] in found.message and found.request_id
    with raises(openai.BadRequestError, "audio", "leave it out") as unsupported:
        ask(audio={"voice": "alloy", "format": "wav"})
    assert unsupported.value.code == "unsupported_parameter"
    with raises(openai.NotFoundError, "gpt-7", MODEL) as unknown:
        ask("gpt-7")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with raises(openai.NotFoundError, "gpt-7"):
        client.models.retrieve("gpt-7")
    with raises(openai.APIStatusError, "longer than") as long:
        ask(messages=[{"role": "user", "content": "a" * 2**22}])
    assert (long.value.status_code, long.value.code) == (413, "request_too_large")
    with raises(openai.NotFoundError, "there is no '/v1/images/generations'"):  # a route that is not there
        client.images.generate(prompt="a cat", model=MODEL)
    with raises(openai.BadRequestError, "stream"):  # it is read before a stream begins
        ask(stream="yes")


def case_error_in_the_middle_of_a_stream() -> None:
    got = []
    with raises(openai.APIError, "its log says why") as failed:
        for chunk in ask("breaks", stream=True):
            got.append(chunk.choices[0].delta.content)
    assert got == ["", "half an "] and (failed.value.code, failed.value.type) == ("internal_error", "server_error")
    with raises(openai.APIError, "its log says why"):
        with chats.stream(model="breaks", messages=QUESTION) as stream:
            stream.until_done()
    with raises(openai.InternalServerError, "its log says why"):
        ask("breaks")


def case_overload_is_tried_again() -> None:
    """It waits as long as Retry-After says."""
    with raises(openai.InternalServerError, "requests wait") as refused:
        ask("busy")
    assert (refused.value.status_code, refused.value.code) == (503, "overloaded")
    retry_after = int(refused.value.response.headers["retry-after"])
    with no_waiting() as slept:
        answer = client.with_options(max_retries=4).chat.completions.create(model="busy", messages=QUESTION)
    assert answer.choices[0].message.content == "at last"
    assert slept == [retry_after] * len(slept) and 1 <= len(slept) <= 2 and 0 < retry_after <= 120


# ---- the asynchronous client


def case_async() -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=BASE, api_key="none", max_retries=0, timeout=60) as other:
            fields: Any = {"model": MODEL, "messages": QUESTION, "max_tokens": 9, "temperature": 0}

            async def streamed() -> str:
                chunks = await other.chat.completions.create(**fields, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

            whole = await other.chat.completions.create(**fields)
            text = whole.choices[0].message.content
            assert set(await asyncio.gather(*(streamed() for _ in range(6)))) == {text}
            first = await other.chat.completions.create(**fields | {"max_tokens": 1500}, stream=True)
            await anext(first)
            await first.close()  # leaves in the middle
            assert await streamed() == text
            vectors = await other.embeddings.create(model=MODEL, input="a")
            assert len(vectors.data[0].embedding) == 48
            got = []
            with raises(openai.APIError, "its log says why"):
                async for chunk in await other.chat.completions.create(**fields | {"model": "breaks"}, stream=True):
                    got.append(chunk)
            assert len(got) == 2

    asyncio.run(main())


if __name__ == "__main__":
    run(globals(), "openai")
