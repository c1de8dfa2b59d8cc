"""What clients send and what they get back: OpenAI's chat completions, as far as this server goes.

Fields that nobody here knows are ignored, because clients send many that change nothing. Fields that would change
the answer and that we do not compute are refused: a client must not believe that it got what it asked for.
"""

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError, from_json

from octavo.config import SamplingParams
from octavo.engine.engine import Ticket
from octavo.serve.errors import ApiError, Json

# ---- requests


class _Strict(BaseModel):
    """Types as JSON has them ("5" is no number); unknown fields ignored; `only` names values a field may have."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name, allowed in cls.only.items():
                if name in data and data[name] not in allowed:
                    shown = json.dumps(data[name])
                    shown = shown if len(shown) <= 60 else shown[:57] + "..."
                    message = f"{name} is {shown}, which this server does not support: leave it out"
                    raise ApiError(400, message, param=name, code="unsupported_parameter")
        return data


class ChatMessage(_Strict):
    """One turn. `developer` is OpenAI's newer name for `system`; text parts are joined by line breaks."""

    only = {"tool_calls": (None, []), "function_call": (None,), "audio": (None,)}

    role: Literal["system", "developer", "user", "assistant"]
    content: str = ""

    @field_validator("content", mode="before")
    @classmethod
    def _as_text(cls, content: Any) -> Any:
        if content is None:
            return ""
        if not isinstance(content, list):
            return content
        for part in content:
            if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
                raise PydanticCustomError("part", "only parts of type 'text' with a string in 'text' are supported")
        return "\n".join(part["text"] for part in content)

    def for_template(self) -> dict[str, str]:
        """The message as chat templates know it."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class StreamOptions(_Strict):
    """What a stream carries besides the text."""

    include_usage: bool | None = None


class ChatRequest(_Strict):
    """The body of POST /v1/chat/completions; `top_k` is an extension. Defaults are OpenAI's."""

    only = {
        "n": (None, 1),
        "logprobs": (None, False),
        "top_logprobs": (None, 0),
        "logit_bias": (None, {}),
        "presence_penalty": (None, 0),
        "frequency_penalty": (None, 0),
        "repetition_penalty": (None, 1),
        "min_p": (None, 0),
        "tools": (None, []),
        "tool_choice": (None, "none", "auto"),
        "functions": (None, []),
        "function_call": (None, "none", "auto"),
        "response_format": (None, {"type": "text"}),
        "modalities": (None, ["text"]),
        "audio": (None,),
        "web_search_options": (None,),
        "chat_template": (None,),
        "chat_template_kwargs": (None, {}),
    }

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=256)], ...], Field(max_length=8)] = ()
    ignore_eos: bool = False
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _as_tuple(cls, stop: Any) -> Any:
        if stop is None or isinstance(stop, str):
            return () if stop is None else (stop,)
        if not isinstance(stop, list):
            raise PydanticCustomError("stop", "expected a string or a list of strings")
        return tuple(stop)

    @classmethod
    def parse(cls, body: bytes) -> "ChatRequest":
        """The request in a body. Raises ApiError 400 that names the field."""
        try:
            data = from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise _named(error.errors(include_url=False, include_context=False)[0]) from None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def prompt(self) -> list[dict[str, str]]:
        """The messages as chat templates know them."""
        return [message.for_template() for message in self.messages]

    def sampling(self, default_max_tokens: int) -> SamplingParams:
        """How to choose tokens; `default_max_tokens` where the request sets no limit."""
        return SamplingParams(
            max_new_tokens=self.max_completion_tokens or self.max_tokens or default_max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=max(self.top_k or 0, 0),  # -1 is vLLM's word for "off"
            top_p=1.0 if self.top_p is None else self.top_p,
            # OpenAI's seeds may be negative, numpy's may not
            seed=None if self.seed is None else self.seed % 2**64,
            stop=self.stop,
            ignore_eos=self.ignore_eos,
        )


def _named(error: ErrorDetails) -> ApiError:
    """messages[0].role: Input should be ..."""
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).lstrip(".")
    return ApiError(400, f"{place or 'the body'}: {error['msg']}", param=place or None, code="invalid_value")


# ---- answers


@dataclass(frozen=True)
class Reply:
    """The answers to one request: one id, one time, one model."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, finish_reason: str, usage: Json) -> Json:
        """The answer in one piece."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
        return self._head("chat.completion") | {"choices": [choice], "usage": usage}

    def chunk(self, delta: Json, finish_reason: str | None = None) -> Json:
        """One step of a stream."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._head("chat.completion.chunk") | {"choices": [choice], "usage": None}

    def usage_chunk(self, usage: Json) -> Json:
        """The last step of a stream that was asked for token counts."""
        return self._head("chat.completion.chunk") | {"choices": [], "usage": usage}

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage(ticket: Ticket, completion_tokens: int) -> Json:
    """Token counts; an end token that the model chose counts as one. cached_tokens: what the prefix cache knew."""
    return {
        "prompt_tokens": ticket.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": ticket.prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": ticket.cached_tokens},
    }
