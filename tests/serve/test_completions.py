"""POST /v1/completions: what evaluation harnesses need of it, against the engine's own figures."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from octavo.config import SamplingParams
from octavo.data.tokenizer import Tokenizer
from octavo.engine.engine import Engine
from octavo.serve.protocol.logprobs import TokenTexts, completion_logprobs
from tests.data.tiny_tokenizers import byte_level, sentencepiece
from tests.serve.serving import MODEL

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def complete(client: openai.OpenAI, prompt: Any = PROMPT, **fields: Any) -> Any:
    return client.completions.create(model=MODEL, prompt=prompt, **{"temperature": 0, **fields})


def joined(chunks: list[Any], index: int = 0) -> str:
    return "".join(each.text for chunk in chunks for each in chunk.choices if each.index == index)


def test_text_ids_and_batches_are_the_engines(client: openai.OpenAI, engine: Engine) -> None:
    params = SamplingParams(max_new_tokens=12)
    texts = [PROMPT, "Two and two are", " x y z"]
    expected = [done.text for done in engine.generate(texts, params)]
    assert len(set(expected)) == 3
    whole = complete(client, texts, max_tokens=12)
    assert [(choice.index, choice.text) for choice in whole.choices] == list(enumerate(expected))
    assert whole.usage.completion_tokens == 36
    ids = [list(engine.encode(text).ids) for text in texts]
    assert [choice.text for choice in complete(client, ids, max_tokens=12).choices] == expected
    assert complete(client, ids[1], max_tokens=12).choices[0].text == expected[1]
    assert whole.usage.prompt_tokens == sum(map(len, ids))
    streamed = list(complete(client, texts, max_tokens=12, stream=True, stream_options={"include_usage": True}))
    assert [joined(streamed, index) for index in range(3)] == expected
    assert streamed[-1].usage.completion_tokens == 36 and not streamed[-1].choices


def test_n_answers_a_prompt(client: openai.OpenAI, engine: Engine) -> None:
    sampling = {"temperature": 1.2, "seed": 5, "max_tokens": 10}
    whole = complete(client, [PROMPT, "Two"], n=3, **sampling)
    params = SamplingParams(max_new_tokens=10, temperature=1.2, seed=5, n=3)
    first = [done.text for done in engine.generate([PROMPT], params)]
    assert [choice.index for choice in whole.choices] == list(range(6))
    assert [choice.text for choice in whole.choices[:3]] == first
    assert len({choice.text for choice in whole.choices}) == 6
    assert [choice.text for choice in complete(client, [PROMPT, "Two"], n=3, best_of=3, **sampling).choices] == [
        choice.text for choice in whole.choices
    ]


def test_default_length_is_16(client: openai.OpenAI) -> None:
    assert complete(client).usage.completion_tokens == 16


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 1, 6])
def test_echo_with_logprobs_is_the_log_likelihood(
    client: openai.OpenAI, engine: Engine, max_tokens: int, stream: bool
) -> None:
    """What lm-eval sends."""
    context, continuation = "Two and two", " are four, I think."
    ids = list(engine.encode(context + continuation).ids)
    split = len(engine.encode(context).ids)
    (expected,) = engine.log_likelihoods([(ids[:split], ids[split:])])
    answer = complete(client, ids, max_tokens=max_tokens, echo=True, logprobs=2, stream=stream)
    if stream:
        chunks = [chunk.choices[0] for chunk in answer]
        text = "".join(each.text for each in chunks)
        parts = [each.logprobs for each in chunks if each.logprobs]
        tokens, logprobs, top, offsets = (
            [item for part in parts for item in getattr(part, name)]
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        )
    else:
        text, given = answer.choices[0].text, answer.choices[0].logprobs
        tokens, logprobs, top, offsets = given.tokens, given.token_logprobs, given.top_logprobs, given.text_offset
        assert answer.usage.completion_tokens == max_tokens
        assert answer.choices[0].finish_reason == "length"
    assert len(tokens) == len(logprobs) == len(top) == len(offsets) == len(ids) + max_tokens
    assert (logprobs[0], top[0]) == (None, None)
    assert logprobs[split : len(ids)] == pytest.approx(expected.tokens, abs=1e-5)
    assert not np.allclose(expected.tokens, 0)
    for token, logprob, alternatives in zip(tokens[1:], logprobs[1:], top[1:], strict=True):
        assert alternatives[token] == logprob and 2 <= len(alternatives) <= 3
    plain = engine.complete(ids, SamplingParams(max_new_tokens=max(1, max_tokens))).text if max_tokens else ""
    assert text == engine.tokenizer.decode(ids, skip_special_tokens=False) + plain
    for token, offset in zip(tokens, offsets, strict=True):
        if "\ufffd" not in text[: offset + 1]:  # a broken character is shown later than its token
            assert text.startswith(token, offset)


@pytest.mark.parametrize("kind", [byte_level, sentencepiece])
def test_places_of_an_echo_are_those_of_its_text(kind: Any) -> None:
    """Though a tokenizer begins with a token that nobody wrote, and cuts characters in pieces."""
    files = {"tokenizer.json": kind().encode(), "tokenizer_config.json": b'{"bos_token": "<s>"}'}
    tokenizer = Tokenizer.from_files(files, "made")
    text = "Hello \U0001f680 na\xefve caf\xe9 \u4e16\u754c, the end"
    ids = tokenizer.encode(text, add_special_tokens=False)
    texts = TokenTexts(tokenizer, tokenizer.vocab_size)
    assert any(texts.text(token).startswith("bytes:") for token in ids)
    for given in (ids, [tokenizer.bos_id or 0, *ids]):
        found = completion_logprobs(texts, given, [None] * len(given), 7, len(text))
        for word, place in zip(
            found["tokens"][len(given) - len(ids) :], found["text_offset"][-len(ids) :], strict=True
        ):
            assert word.startswith("bytes:") or text.startswith(word.lstrip() if place == 7 else word, place - 7)
        assert found["text_offset"][0] == 7


def test_greedy_is_told_by_the_alternatives(client: openai.OpenAI, engine: Engine) -> None:
    """As lm-eval finds it: the likeliest alternative is the token itself."""
    answer = engine.complete(PROMPT, SamplingParams(max_new_tokens=8))
    for continuation, greedy in ((list(answer.token_ids), True), ([5, *answer.token_ids[1:]], False)):
        ids = [*engine.encode(PROMPT).ids, *continuation]
        given = complete(client, ids, max_tokens=1, echo=True, logprobs=1).choices[0].logprobs
        pairs = list(zip(given.tokens, given.top_logprobs, strict=True))[-9:-1]
        assert all(token == max(top, key=top.get) for token, top in pairs) is greedy


def test_echo_alone_repeats_the_prompt(client: openai.OpenAI, engine: Engine) -> None:
    plain = complete(client, max_tokens=5).choices[0].text
    whole = complete(client, [PROMPT, PROMPT], max_tokens=5, echo=True, n=2)
    assert [choice.text for choice in whole.choices] == [PROMPT + plain] * 4
    chunks = list(complete(client, [PROMPT, PROMPT], max_tokens=5, echo=True, n=2, stream=True, logprobs=0))
    assert [joined(chunks, index) for index in range(4)] == [PROMPT + plain] * 4


def test_logprobs_of_an_answer(client: openai.OpenAI, engine: Engine) -> None:
    params = SamplingParams(max_new_tokens=6, logprobs=3)
    expected = engine.complete(PROMPT, params)
    assert expected.logprobs
    given = complete(client, max_tokens=6, logprobs=3).choices[0].logprobs
    assert given.token_logprobs == [each.logprob for each in expected.logprobs]
    texts = TokenTexts(engine.tokenizer, engine.config.vocab_size)
    assert given.tokens == [texts.text(token) for token in expected.token_ids]
    assert complete(client, max_tokens=6).choices[0].logprobs is None


def test_half_characters_are_told_apart(engine: Engine) -> None:
    texts = TokenTexts(engine.tokenizer, engine.config.vocab_size)
    halves = [token for token in range(engine.config.vocab_size) if texts.text(token).startswith("bytes:")]
    assert halves and len({texts.text(token) for token in halves}) == len(halves)
    assert all(json.loads(json.dumps(texts.text(token))) == texts.text(token) for token in halves)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**31]}, "prompt"),
        ({"prompt": [10**6]}, "outside the model's vocabulary"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ["a"] * 257}, "257 texts"),
        ({"prompt": None}, "prompt"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 2**40}, "do not fit the context"),
        ({"logprobs": 21}, "logprobs"),
        ({"best_of": 3}, "best_of is 3"),
        ({"suffix": "x"}, "suffix is"),
        ({"logit_bias": {"5000": 1}}, "logit_bias"),
        ({"guided_regex": "("}, "regular expression"),
    ],
)
def test_wrong_requests(url: str, engine: Engine, fields: dict[str, Any], named: str) -> None:
    content = {"model": MODEL, "prompt": PROMPT, "max_tokens": 2} | fields
    response = httpx.post(url + "/v1/completions", json=content, timeout=30)
    assert response.status_code == 400
    assert named in response.json()["error"]["message"]
    assert engine.statistics().running + engine.statistics().waiting == 0


def test_a_batch_is_taken_whole_or_not_at_all(url: str, engine: Engine) -> None:
    before = engine.statistics().steps
    content = {"model": MODEL, "prompt": ["fine"] * 5 + ["x " * 5000], "max_tokens": 2}
    assert httpx.post(url + "/v1/completions", json=content, timeout=30).status_code == 400
    assert engine.statistics().steps == before
