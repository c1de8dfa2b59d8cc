"""POST /tokenize and /detokenize, in vLLM's shapes: what clients send."""

from typing import Annotated, Any

from pydantic import Field, SkipValidation, field_validator, model_validator
from pydantic_core import PydanticCustomError

from octavo.serve.errors import ApiError
from octavo.serve.protocol.chat import ChatMessage
from octavo.serve.protocol.limits import MAX_MESSAGES
from octavo.serve.protocol.strict import Objects, Strict
from octavo.serve.protocol.texts import are_ids


class TokenizeRequest(Strict):
    """A text, or a chat that goes through the model's template."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    tools: Objects | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ApiError(400, "give either prompt or messages", param="prompt", code="invalid_value")
        return self


class DetokenizeRequest(Strict):
    """Token ids to be written out."""

    model: str | None = None
    tokens: Annotated[list[int], SkipValidation]

    @field_validator("tokens", mode="before", json_schema_input_type=list[int])
    @classmethod
    def _ids(cls, given: Any) -> Any:
        if given != [] and not are_ids(given):
            raise PydanticCustomError("tokens", "expected a list of token ids")
        return given
