"""POST /v1/embeddings, /tokenize and /detokenize: what is read rather than written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.data.tool_messages import tool_prompt
from octavo.data.tool_specs import read_tools
from octavo.engine.engine import Engine
from octavo.engine.prompts import Encoded
from octavo.serve.errors import ApiError, Json
from octavo.serve.jobs import Job, Start
from octavo.serve.models import Models
from octavo.serve.protocol.embeddings import EmbeddingRequest
from octavo.serve.protocol.tokens import DetokenizeRequest, TokenizeRequest


@dataclass(frozen=True)
class Embedding:
    """A request for vectors that was found good."""

    engine: Engine
    texts: Sequence[Encoded]
    wanted: EmbeddingRequest

    def start(self, tenant: str) -> Start:
        """What hands it to the engine."""
        pooling = self.wanted.pooling or "last"
        return lambda emit: [self.engine.submit_pooled(self.texts, pooling, emit, tenant)]

    async def whole(self, job: Job) -> Json:
        """The answer, when all vectors are there."""
        vectors: dict[int, Any] = {}
        while len(vectors) < len(self.texts):
            for number, vector in await job.items():
                vectors[number] = self.wanted.shown(np.asarray(vector, np.float32))
        data = [{"object": "embedding", "index": at, "embedding": vectors[at]} for at in range(len(self.texts))]
        tokens = sum(len(text.ids) for text in self.texts)
        counts = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": self.wanted.model, "usage": counts}


def read_embedding(models: Models, body: bytes) -> Embedding:
    """Texts to be embedded. Raises ApiError or UserError for everything that can be wrong with them."""
    wanted = EmbeddingRequest.parse(body)
    engine = models.engine(wanted.model)
    width = engine.config.hidden_size
    if wanted.dimensions is not None and wanted.dimensions > width:
        message = f"dimensions is {wanted.dimensions}: this model's vectors have {width}"
        raise ApiError(400, message, param="dimensions", code="invalid_value")
    return Embedding(engine, [engine.encode(text) for text in wanted.input], wanted)


def tokenize(models: Models, body: bytes) -> Json:
    """How many tokens a text or a chat has, and which."""
    wanted = TokenizeRequest.parse(body)
    engine = models.engine(models.name(wanted.model))
    if wanted.prompt is not None:
        special = wanted.add_special_tokens is not False
        ids = engine.tokenizer.encode(wanted.prompt, add_special_tokens=special)
    else:
        given = [message.for_template() for message in wanted.messages or ()]
        messages, tools = tool_prompt(engine.tokenizer, given, [tool.given for tool in read_tools(wanted.tools)])
        prompt = wanted.add_generation_prompt is not False
        ids = engine.tokenizer.encode_chat(messages, add_generation_prompt=prompt, tools=tools)
    return {"count": len(ids), "max_model_len": engine.context, "tokens": ids, "token_strs": None}


def detokenize(models: Models, body: bytes) -> Json:
    """The text of token ids, special ones written out."""
    wanted = DetokenizeRequest.parse(body)
    engine = models.engine(models.name(wanted.model))
    largest = max(wanted.tokens, default=0)
    if largest >= engine.config.vocab_size:
        message = f"tokens has {largest}: this model's vocabulary has {engine.config.vocab_size}"
        raise ApiError(400, message, param="tokens", code="invalid_value")
    return {"prompt": engine.tokenizer.decode(wanted.tokens, skip_special_tokens=False)}
