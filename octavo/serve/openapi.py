"""GET /openapi.json: what the server understands, as tools read it."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema
from starlette.responses import JSONResponse, Response

from octavo import __version__
from octavo.serve.errors import Json
from octavo.serve.protocol.chat import ChatRequest
from octavo.serve.protocol.completions import CompletionRequest
from octavo.serve.protocol.embeddings import EmbeddingRequest
from octavo.serve.protocol.strict import Strict
from octavo.serve.protocol.tokens import DetokenizeRequest, TokenizeRequest

BODIES: Mapping[str, tuple[type[Strict], str]] = {
    "/v1/chat/completions": (ChatRequest, "Answer a chat"),
    "/v1/completions": (CompletionRequest, "Continue texts"),
    "/v1/embeddings": (EmbeddingRequest, "Embed texts"),
    "/tokenize": (TokenizeRequest, "Count the tokens of a text or a chat"),
    "/detokenize": (DetokenizeRequest, "Write token ids out"),
}
READS = {
    "/v1/models": "List the models",
    "/v1/models/{name}": "Describe a model",
    "/health": "Whether the process is alive and its engines run",
}
_ERRORS = {
    "400": "the request is not valid; error.param names the field",
    "401": "the server has keys, and this request has none of them",
    "404": "no such model",
    "408": "the body did not come in time",
    "413": "the body is too long",
    "429": "the key has as many requests under way as it may",
    "503": "overloaded or not ready; Retry-After says when to come again",
}
_NULLABLE_STRING = {"type": ["string", "null"]}
_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": _NULLABLE_STRING,
                "code": _NULLABLE_STRING,
            },
        }
    },
}


def document() -> Json:
    """The OpenAPI document. Bodies are described as they are sent; answers have OpenAI's shapes."""
    bodies = {path: body for path, (body, _) in BODIES.items()}
    _, schemas = models_json_schema(
        [(body, "validation") for body in bodies.values()], ref_template="#/components/schemas/{model}"
    )
    paths: Json = {}
    for path, (body, summary) in BODIES.items():
        reference = {"$ref": f"#/components/schemas/{body.__name__}"}
        content = {"required": True, "content": {"application/json": {"schema": reference}}}
        paths[path] = {"post": {"summary": summary, "requestBody": content, "responses": _responses(_ERRORS)}}
    for path, summary in READS.items():
        operation: Json = {"summary": summary, "responses": _responses({"404": _ERRORS["404"], "503": _ERRORS["503"]})}
        if "{name}" in path:
            operation["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
        paths[path] = {"get": operation}
    return {
        "openapi": "3.1.0",
        "info": {"title": "octavo", "version": __version__},
        "paths": paths,
        "components": {"schemas": {**schemas["$defs"], "Error": _ERROR_SCHEMA}},
    }


def add_document(app: FastAPI) -> None:
    """Serve the document."""
    written = document()

    async def answer() -> Response:
        return JSONResponse(written)

    app.add_api_route("/openapi.json", answer, methods=["GET", "HEAD"], response_model=None)


def _responses(errors: Mapping[str, str]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    failed = {status: {"description": text, "content": error} for status, text in errors.items()}
    return {"200": {"description": "the answer"}, **failed}
