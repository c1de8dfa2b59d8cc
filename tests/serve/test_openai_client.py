"""The official client against a real server: what it gets is what Engine.complete gives."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from octavo.config import SamplingParams
from octavo.engine.engine import Engine
from tests.serve.serving import CONTEXT, MODEL, Puppet, says, serving

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"temperature": 0.0}
SEEDED = {"temperature": 1.3, "top_p": 0.9, "seed": 11}


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def ask(client: openai.OpenAI, messages: Any = QUESTION, **fields: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=messages, **fields)


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED])
def test_whole_and_streamed_answers_are_the_engines(
    client: openai.OpenAI, engine: Engine, sampling: dict[str, Any]
) -> None:
    expected = engine.complete(QUESTION, SamplingParams(max_new_tokens=40, **sampling))
    assert len(expected.text) > 20  # else nothing is compared

    whole = ask(client, max_tokens=40, **sampling)
    streamed = list(ask(client, max_tokens=40, stream=True, stream_options={"include_usage": True}, **sampling))

    assert whole.choices[0].message.content == expected.text
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].finish_reason == expected.finish_reason
    assert whole.usage.prompt_tokens == expected.prompt_tokens == len(engine.encode(QUESTION).ids)
    assert whole.usage.completion_tokens == len(expected.token_ids)
    assert whole.usage.total_tokens == expected.prompt_tokens + len(expected.token_ids)
    # of a prompt that was there before, all but the last token, which has to be computed
    assert whole.usage.prompt_tokens_details.cached_tokens == expected.prompt_tokens - 1

    first, *deltas, finish, counts = streamed
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content for chunk in deltas) == expected.text
    assert len(deltas) > 5
    assert finish.choices[0].finish_reason == expected.finish_reason
    assert finish.choices[0].delta.content is None
    assert (counts.choices, counts.usage) == ([], whole.usage)
    assert {(chunk.id, chunk.created, chunk.model) for chunk in streamed} == {(first.id, first.created, MODEL)}
    assert first.id.startswith("chatcmpl-") and first.id != whole.id


def test_sampling_reaches_the_model(client: openai.OpenAI) -> None:
    texts = {
        ask(client, max_tokens=20, **fields).choices[0].message.content
        for fields in (GREEDY, SEEDED, SEEDED | {"seed": 12}, SEEDED | {"seed": -12}, SEEDED | {"top_p": 0.2})
    }
    assert len(texts) == 5
    one_candidate = ask(client, max_tokens=20, temperature=1.3, extra_body={"top_k": 1})
    assert one_candidate.choices[0].message.content == ask(client, max_tokens=20, **GREEDY).choices[0].message.content


def test_stream_helper(client: openai.OpenAI, engine: Engine) -> None:
    text = engine.complete(QUESTION, SamplingParams(max_new_tokens=40)).text
    stop = text[-3:]  # the helper takes a cut-off answer for an error
    with client.chat.completions.stream(model=MODEL, messages=QUESTION, stop=stop, temperature=0) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds
    assert final.choices[0].message.content == text[: text.index(stop)]


def test_async_client(url: str, engine: Engine) -> None:
    async def stream() -> str:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            chunks = await client.chat.completions.create(
                model=MODEL, messages=QUESTION, max_tokens=20, temperature=0, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    assert asyncio.run(stream()) == engine.complete(QUESTION, SamplingParams(max_new_tokens=20)).text


def test_stop_strings(client: openai.OpenAI) -> None:
    text = ask(client, max_tokens=40, **GREEDY).choices[0].message.content
    stop = text[len(text) // 2 :][:3]
    for given in (stop, ["never said", stop]):
        whole = ask(client, max_tokens=40, stop=given, **GREEDY)
        assert whole.choices[0].message.content == text[: text.index(stop)]
        assert whole.choices[0].finish_reason == "stop"
        streamed = ask(client, max_tokens=40, stop=given, stream=True, **GREEDY)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == text[: text.index(stop)]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_length_limits(client: openai.OpenAI, name: str) -> None:
    answer = ask(client, **{name: 3}, **GREEDY)
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (3, "length")


def test_default_length_fits_the_context(client: openai.OpenAI, engine: Engine) -> None:
    """A prompt that leaves room for 3 tokens is answered with 3, not refused."""

    def prompt_of(words: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": " x" * words}]

    frame = len(engine.encode(prompt_of(0)).ids)
    prompt = prompt_of((CONTEXT - 3 - frame) // (len(engine.encode(prompt_of(1)).ids) - frame))
    room = CONTEXT - len(engine.encode(prompt).ids)
    answer = ask(client, prompt, **GREEDY)
    assert 3 <= room < 6
    assert answer.usage.completion_tokens == room

    with pytest.raises(openai.BadRequestError, match=f"context of {CONTEXT} tokens"):
        ask(client, prompt, max_tokens=room + 1)


def test_end_token_counts() -> None:
    puppet = Puppet(*says("Par", "is"), cached_tokens=2)
    puppet.step(10)
    with serving(puppet) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        answer = ask(client)
        puppet.step(10)
        *_, counts = ask(client, stream=True, stream_options={"include_usage": True})
    assert answer.choices[0].message.content == "Paris"
    assert counts.usage == answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 3)
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    assert answer.choices[0].finish_reason == "stop"
    assert puppet.seen[0].temperature == 1.0 and puppet.seen[0].max_new_tokens == 512  # OpenAI's default; ours


def test_unicode(client: openai.OpenAI, engine: Engine) -> None:
    """Both ways, line separators that are not line ends of server-sent events included."""
    messages = [{"role": "user", "content": "naïve 你好 🙂 \u2028 \x85 \x00"}]
    expected = engine.complete(messages, SamplingParams(max_new_tokens=60, temperature=2.0, seed=5))
    assert not expected.text.isascii()
    sampling = {"max_tokens": 60, "temperature": 2.0, "seed": 5}
    assert ask(client, messages, **sampling).choices[0].message.content == expected.text
    streamed = ask(client, messages, stream=True, **sampling)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == expected.text


def test_message_forms(client: openai.OpenAI) -> None:
    plain = [
        {"role": "system", "content": "a\nb"},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": ""},
    ]
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    other = [{"role": "developer", "content": parts}, {"role": "user", "content": None}, {"role": "assistant"}]
    assert ask(client, plain, max_tokens=9, **GREEDY).choices == ask(client, other, max_tokens=9, **GREEDY).choices


def test_harmless_fields_are_accepted(client: openai.OpenAI) -> None:
    ask(client, max_tokens=1, n=1, user="me", metadata={"a": "b"}, store=False, service_tier="auto",
        presence_penalty=0, frequency_penalty=0.0, logit_bias={}, logprobs=False, tool_choice="none",
        response_format={"type": "text"}, modalities=["text"], parallel_tool_calls=True, reasoning_effort="low",
        stop=None, extra_body={"prompt_cache_key": "k", "invented": {"deep": [1]}, "tools": [], "stream": None,
                               "safety_identifier": "s", "verbosity": "low", "top_k": -1})  # fmt: skip


def test_models(client: openai.OpenAI) -> None:
    (card,) = client.models.list().data
    assert (card.id, card.object, card.max_model_len) == (MODEL, "model", CONTEXT)  # type: ignore[attr-defined]
    assert client.models.retrieve(MODEL) == card


def test_errors_are_readable(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        ask(client, extra_body={"echo": True})
    assert "echo is true" in bad.value.message
    assert (bad.value.param, bad.value.code, bad.value.type) == (
        "echo",
        "unsupported_parameter",
        "invalid_request_error",
    )
    with pytest.raises(openai.NotFoundError, match=re.escape(f"this server has '{MODEL}'")):
        client.chat.completions.create(model="gpt-7", messages=QUESTION)
    with pytest.raises(openai.NotFoundError, match="gpt-7"):
        client.models.retrieve("gpt-7")


def test_error_in_the_middle_of_a_stream(caplog: pytest.LogCaptureFixture) -> None:
    puppet = Puppet(*says("half an ")[:1], RuntimeError("secret detail"))
    puppet.step(10)
    with serving(puppet) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        got = []
        with pytest.raises(openai.APIError, match="its log says why") as failed:
            for chunk in ask(client, stream=True):
                got.append(chunk.choices[0].delta.content)
        assert got == ["", "half an "]
        assert failed.value.code == "internal_error"
        puppet.step(10)
        with pytest.raises(openai.InternalServerError, match="its log says why") as refused:
            ask(client)
        assert refused.value.response.headers["x-content-type-options"] == "nosniff"
        # uvicorn closes the connection: a client that was not told fails with its next request
        assert refused.value.response.headers["connection"] == "close"
    assert caplog.text.count("secret detail") == 2
