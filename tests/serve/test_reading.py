"""Embeddings and token counts."""

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from octavo.engine.engine import Engine
from tests.engine.engines import pages_free, stepped, wait_until
from tests.serve.serving import CONTEXT, MODEL, serving, tiny_engine

TEXTS = ["The capital of France is Paris.", "Zebras", "Two and two are four."]


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_vectors_are_the_engines(client: openai.OpenAI, engine: Engine, pooling: Any) -> None:
    expected = unit(engine.hidden_states(TEXTS, pooling))
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    more = {"extra_body": {"pooling": pooling}}
    given = client.embeddings.create(model=MODEL, input=TEXTS, **more)  # the client asks for base64 by itself
    assert [each.index for each in given.data] == [0, 1, 2]
    np.testing.assert_allclose([each.embedding for each in given.data], expected, atol=1e-6)
    assert given.usage.prompt_tokens == sum(len(engine.encode(text).ids) for text in TEXTS)
    floats = client.embeddings.create(model=MODEL, input=TEXTS[0], encoding_format="float", **more)
    np.testing.assert_allclose(floats.data[0].embedding, expected[0], atol=1e-6)
    ids = [list(engine.encode(text).ids) for text in TEXTS]
    given = client.embeddings.create(model=MODEL, input=ids, encoding_format="base64", **more)
    raw: Any = given.data[1].embedding
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(raw), "<f4"), expected[1], atol=1e-6)


def test_fewer_dimensions(client: openai.OpenAI, engine: Engine) -> None:
    expected = unit(engine.hidden_states(TEXTS)[:, :7])
    given = client.embeddings.create(model=MODEL, input=TEXTS, dimensions=7)
    np.testing.assert_allclose([each.embedding for each in given.data], expected, atol=1e-6)
    with pytest.raises(openai.BadRequestError, match="dimensions is 100000: this model's vectors have"):
        client.embeddings.create(model=MODEL, input="x", dimensions=100_000)


def test_leaving_frees_what_was_asked_for() -> None:
    with tiny_engine() as engine, serving(engine) as url, stepped(engine) as stepper:
        content = {"model": MODEL, "input": ["word " * 300] * 40}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + "/v1/embeddings", json=content, timeout=0.5)
        stepper.open()
        wait_until(lambda: engine.statistics().running + engine.statistics().waiting == 0)
        assert pages_free(engine) == engine.runner.num_pages
        assert engine.statistics().tokens < 40 * 300


@pytest.mark.parametrize(
    "given", ["", [], [""], [[]], ["a", [1]], [10**9], {"a": 1}, ["a"] * 2049, "w " * CONTEXT, [[1], [10**6]]]
)
def test_wrong_inputs(url: str, given: Any) -> None:
    content = {"model": MODEL, "input": given}
    response = httpx.post(url + "/v1/embeddings", json=content, timeout=30)
    assert response.status_code == (200 if given == ["a", [1]] else 400), response.text


def test_tokenize(url: str, engine: Engine) -> None:
    def count(**fields: Any) -> Any:
        return httpx.post(url + "/tokenize", json=fields, timeout=30).json()

    ids = list(engine.encode(TEXTS[0]).ids)
    expected = {"count": len(ids), "max_model_len": CONTEXT, "tokens": ids, "token_strs": None}
    assert count(model=MODEL, prompt=TEXTS[0]) == count(prompt=TEXTS[0]) == expected
    bare = engine.tokenizer.encode(TEXTS[0], add_special_tokens=False)
    assert count(prompt=TEXTS[0], add_special_tokens=False)["tokens"] == bare
    messages = [{"role": "user", "content": "Hello"}]
    assert count(messages=messages)["tokens"] == list(engine.encode(messages).ids)
    assert count(messages=messages, add_generation_prompt=False)["count"] < len(engine.encode(messages).ids)
    assert count(prompt="")["count"] == len(engine.encode("").ids)
    text = httpx.post(url + "/detokenize", json={"tokens": bare}, timeout=30).json()
    assert text == {"prompt": TEXTS[0]}
    for wrong in (
        {},
        {"prompt": "a", "messages": messages},
        {"prompt": 5},
        {"messages": []},
        {"prompt": "\x00", "model": 5},
    ):
        assert httpx.post(url + "/tokenize", json=wrong, timeout=30).status_code == 400
    assert httpx.post(url + "/tokenize", json={"prompt": "a", "model": "b"}, timeout=30).status_code == 404
    assert httpx.post(url + "/detokenize", json={"tokens": [5, 10**9]}, timeout=30).status_code == 400
    assert httpx.post(url + "/detokenize", json={"tokens": [-1]}, timeout=30).status_code == 400
