"""The OpenAPI document says what the routes do."""

from typing import Any

import httpx
import jsonschema
import pytest

from octavo.serve.app import create_app
from octavo.serve.openapi import document
from octavo.serve.page import PAGE_PATHS
from tests.serve.serving import MODEL, Puppet, body

NOT_DESCRIBED = {"/openapi.json", "/metrics", "/ready"}


def validator(name: str) -> jsonschema.Draft202012Validator:
    schemas = document()["components"]["schemas"]
    root = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
    return jsonschema.Draft202012Validator(root)


def test_every_route_is_described() -> None:
    puppet: Any = Puppet()
    routes: Any = create_app({MODEL: puppet}).routes
    paths = {route.path.replace(":path", "") for route in routes}
    assert set(document()["paths"]) == paths - PAGE_PATHS - NOT_DESCRIBED


@pytest.mark.parametrize(
    ("name", "content", "good"),
    [
        ("ChatRequest", body(), True),
        ("ChatRequest", body(stop="a", n=8, logit_bias={"5": 1}, seed=-1), True),
        ("ChatRequest", body(stop=["a"], stream_options={"include_usage": True}, temperature=None), True),
        (
            "ChatRequest",
            {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
            True,
        ),
        ("ChatRequest", body(n=9), False),
        ("ChatRequest", body(stop=""), False),
        ("ChatRequest", body(echo=True), False),
        ("ChatRequest", {"model": "m"}, False),
        ("CompletionRequest", {"model": "m", "prompt": [[1, 2], [3]]}, True),
        ("CompletionRequest", {"model": "m", "prompt": "a", "echo": True, "max_tokens": 0}, True),
        ("CompletionRequest", {"model": "m", "prompt": 5}, False),
        ("EmbeddingRequest", {"model": "m", "input": ["a", "b"], "encoding_format": "base64"}, True),
        ("EmbeddingRequest", {"model": "m", "input": "a", "dimensions": 0}, False),
        ("TokenizeRequest", {"prompt": "a"}, True),
        ("DetokenizeRequest", {"tokens": ["a"]}, False),
    ],
)
def test_bodies_are_described_as_they_are_read(name: str, content: Any, good: bool) -> None:
    assert validator(name).is_valid(content) is good


def test_the_document_is_served(url: str) -> None:
    assert httpx.get(url + "/openapi.json").json() == document()
