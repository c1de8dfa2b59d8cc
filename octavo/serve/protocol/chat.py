"""POST /v1/chat/completions: what clients send."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from octavo.config import SamplingParams
from octavo.config.sampling import MAX_LOGPROBS
from octavo.serve.errors import ApiError
from octavo.serve.protocol.limits import MAX_MESSAGES
from octavo.serve.protocol.sampling import SamplingFields
from octavo.serve.protocol.strict import UNSUPPORTED, Strict


class TextPart(Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(Strict):
    """One turn. `developer` is OpenAI's newer name for `system`; text parts are joined by line breaks."""

    only = {"tool_calls": (None, []), "function_call": (None,), "audio": (None,)}

    role: Literal["system", "developer", "user", "assistant"]
    content: str = ""

    @field_validator("content", mode="before", json_schema_input_type=str | list[TextPart] | None)
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


class ChatRequest(SamplingFields):
    """The body of POST /v1/chat/completions."""

    only = {
        **UNSUPPORTED,
        "tools": (None, []),
        "tool_choice": (None, "none", "auto"),
        "functions": (None, []),
        "function_call": (None, "none", "auto"),
        "modalities": (None, ["text"]),
        "audio": (None,),
        "web_search_options": (None,),
        "chat_template": (None,),
        "chat_template_kwargs": (None, {}),
        "documents": (None, []),
        "continue_final_message": (None, False),
        "add_generation_prompt": (None, True),
        "echo": (None, False),
    }

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    def prompt(self) -> list[dict[str, str]]:
        """The messages as chat templates know them."""
        return [message.for_template() for message in self.messages]

    def params(self, default_max_tokens: int) -> SamplingParams:
        """How to choose tokens; `default_max_tokens` where the request sets no limit. Raises ApiError 400 for
        top_logprobs without logprobs."""
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs", code="invalid_value")
        most = self.max_completion_tokens or self.max_tokens or default_max_tokens
        return self.sampling(most, logprobs=(self.top_logprobs or 0) if self.logprobs else None)
