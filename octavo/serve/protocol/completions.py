"""POST /v1/completions: what clients send."""

from typing import Annotated, Any

from pydantic import Field, field_validator

from octavo.config import SamplingParams
from octavo.config.sampling import MAX_LOGPROBS
from octavo.serve.errors import ApiError
from octavo.serve.protocol.limits import MAX_PROMPTS
from octavo.serve.protocol.sampling import SamplingFields
from octavo.serve.protocol.strict import UNSUPPORTED
from octavo.serve.protocol.texts import Checked, Texts, as_texts


class CompletionRequest(SamplingFields):
    """The body of POST /v1/completions. `echo` with `logprobs` gives those of the prompt, with `max_tokens` 0 nothing
    but those: what evaluation harnesses ask for."""

    only = {**UNSUPPORTED, "suffix": (None, ""), "add_special_tokens": (None, True)}

    prompt: Checked
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = None
    best_of: int | None = None

    @field_validator("prompt", mode="before", json_schema_input_type=Texts)
    @classmethod
    def _prompts(cls, given: Any) -> Any:
        return as_texts(given, MAX_PROMPTS)

    def params(self, room: int) -> SamplingParams:
        """How to choose tokens. room: tokens that the context has left after the prompt.

        Raises ApiError 400 where best_of would choose among more answers than it returns, or nothing is asked for.
        """
        if self.best_of not in (None, self.choices):
            raise ApiError(400, f"best_of is {self.best_of}: it must be n, {self.choices}", param="best_of")
        if self.max_tokens == 0 and not self.echo:
            raise ApiError(400, "max_tokens is 0: give at least 1, or echo the prompt", param="max_tokens")
        wanted = 16 if self.max_tokens is None else self.max_tokens  # OpenAI's default
        if self.max_tokens is None:
            wanted = max(1, min(wanted, room))
        # with 0 one token is computed all the same, and not shown
        prompt_logprobs = self.logprobs if self.echo else None
        return self.sampling(max(1, wanted), logprobs=self.logprobs, prompt_logprobs=prompt_logprobs)
