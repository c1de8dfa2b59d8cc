"""Several answers, log probabilities and structured output of chats."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pydantic
import pytest

from octavo.config import SamplingParams
from octavo.engine.engine import Engine
from tests.serve.serving import MODEL

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "sure": {"type": "boolean"}},
    "required": ["city", "sure"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=QUESTION, **{"temperature": 0, **fields})


def test_n_answers(client: openai.OpenAI, engine: Engine) -> None:
    params = SamplingParams(max_new_tokens=20, temperature=1.1, seed=3, n=4)
    expected = [done.text for done in engine.generate([QUESTION], params)]
    assert len(set(expected)) == 4
    whole = ask(client, n=4, max_tokens=20, temperature=1.1, seed=3)
    assert [choice.message.content for choice in whole.choices] == expected
    assert whole.usage.completion_tokens == 80
    streamed = list(ask(client, n=4, max_tokens=20, temperature=1.1, seed=3, stream=True))
    # the openai client's helper takes the first chunk for choice 0
    assert [chunk.choices[0].index for chunk in streamed[:4]] == [0, 1, 2, 3]
    assert all(chunk.choices[0].delta.role == "assistant" for chunk in streamed[:4])
    texts = [""] * 4
    ends: list[int] = []
    for chunk in streamed[4:]:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            ends.append(choice.index)
    assert texts == expected and sorted(ends) == [0, 1, 2, 3]


def test_stream_helper_with_several_answers(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=QUESTION, n=3, temperature=1.0, seed=2, max_tokens=30, stop=["e"]
    ) as stream:
        for _ in stream:
            pass
        try:
            final = stream.get_final_completion()
        except openai.LengthFinishReasonError:
            pytest.fail("the seed's answers have no letter e")
    assert len(final.choices) == 3


def test_logprobs(client: openai.OpenAI, engine: Engine) -> None:
    expected = engine.complete(QUESTION, SamplingParams(max_new_tokens=10, logprobs=4))
    assert expected.logprobs
    given = ask(client, max_tokens=10, logprobs=True, top_logprobs=4).choices[0].logprobs.content
    assert [each.logprob for each in given] == [each.logprob for each in expected.logprobs]
    assert all(len(each.top_logprobs) == 4 for each in given)
    assert [each.top_logprobs[0].logprob for each in given] == [each.top[0][1] for each in expected.logprobs]
    assert b"".join(bytes(each.bytes) for each in given).decode(errors="replace") == expected.text
    streamed = ask(client, max_tokens=10, logprobs=True, top_logprobs=4, stream=True)
    chunks = [chunk.choices[0].logprobs for chunk in streamed]
    assert [each for chunk in chunks if chunk for each in chunk.content] == given
    assert all(not each.top_logprobs for each in ask(client, max_tokens=3, logprobs=True).choices[0].logprobs.content)
    assert ask(client, max_tokens=3).choices[0].logprobs is None


def test_penalties_and_biases_reach_the_model(client: openai.OpenAI, engine: Engine) -> None:
    sampling: Any = {"max_tokens": 100, "temperature": 1.3, "seed": 6}
    plain = ask(client, **sampling).choices[0].message.content
    token = engine.complete(QUESTION, SamplingParams(max_new_tokens=1)).token_ids[0]
    for fields in (
        {"logit_bias": {str(token): 100}},
        {"presence_penalty": 2},
        {"frequency_penalty": 2},
        {"extra_body": {"repetition_penalty": 5.0}},
    ):
        assert ask(client, **sampling, **fields).choices[0].message.content != plain
    greedy = ask(client, max_tokens=20).choices[0].message.content
    sure = ask(client, max_tokens=20, temperature=1.5, seed=1, extra_body={"min_p": 1.0}).choices[0].message.content
    assert sure == greedy
    assert ask(client, max_tokens=3, extra_body={"ignore_eos": True}, logit_bias={"0": 0}).usage.completion_tokens == 3


@pytest.mark.parametrize("seed", range(3))
def test_json_schema(client: openai.OpenAI, seed: int) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}
    answer = ask(client, response_format=wanted, temperature=1.5, seed=seed, max_tokens=200)
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(answer.choices[0].message.content), SCHEMA)


def test_json_object_regex_and_choice(client: openai.OpenAI) -> None:
    def text(**fields: Any) -> str:
        return str(ask(client, temperature=1.5, seed=1, **fields).choices[0].message.content)

    assert text(response_format={"type": "json_object"}, max_tokens=40).lstrip().startswith("{")
    assert re.fullmatch("[a-c]{3}", text(extra_body={"guided_regex": "[a-c]{3}"}))
    assert text(extra_body={"guided_choice": ["left", "right"]}) in ("left", "right")
    assert text(extra_body={"structured_outputs": {"choice": ["up", "down"]}}) in ("up", "down")
    assert text(extra_body={"structured_outputs": {"json": {"enum": [17]}}}) == "17"
    assert text(extra_body={"guided_json": '{"const": 5}'}) == "5"


def test_pydantic_models(client: openai.OpenAI) -> None:
    class City(pydantic.BaseModel):
        capital: bool
        river: bool

    parsed = client.chat.completions.parse(
        model=MODEL, messages=QUESTION, response_format=City, temperature=1, seed=4, max_tokens=200
    )
    assert isinstance(parsed.choices[0].message.parsed, City)
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model=MODEL, messages=QUESTION, response_format=City, max_tokens=2)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"guided_regex": "(", "guided_choice": None}, "regular expression"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_regex and guided_choice exclude each other"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "json, regex and choice exclude each other"),
        ({"structured_outputs": {"grammar": "root"}}, "structured_outputs.grammar is not supported"),
        ({"guided_json": {"$ref": "http://127.0.0.1:9/x"}}, "JSON schema"),
        ({"guided_json": "{"}, "JSON schema"),
        ({"guided_choice": []}, "choice"),
    ],
)
def test_wrong_grammars(client: openai.OpenAI, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(openai.BadRequestError, match=re.escape(named)):
        ask(client, extra_body=fields)
