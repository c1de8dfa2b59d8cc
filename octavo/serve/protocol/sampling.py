"""The fields that chat and plain completions share: how tokens are chosen, and what a stream carries."""

import json
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from octavo.config import SamplingParams
from octavo.config.sampling import MAX_CHOICES, Grammar
from octavo.serve.errors import ApiError
from octavo.serve.protocol.limits import (
    MAX_BIAS,
    MAX_BIASES,
    MAX_PENALTY,
    MAX_STOP_CHARS,
    MAX_STOPS,
    MAX_TEMPERATURE,
)
from octavo.serve.protocol.strict import Strict

Penalty = Annotated[float, Field(ge=-MAX_PENALTY, le=MAX_PENALTY)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
_GRAMMARS = ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice")


class StreamOptions(Strict):
    """What a stream carries besides the text."""

    include_usage: bool | None = None


class SamplingFields(Strict):
    """Defaults are OpenAI's. Extensions, with vLLM's names: top_k, min_p, repetition_penalty, ignore_eos, and
    `structured_outputs` or `guided_json`, `guided_regex`, `guided_choice`."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=MAX_TEMPERATURE)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[tuple[StopString, ...], Field(max_length=MAX_STOPS)] = ()
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | bool | str | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[str], Field(fail_fast=True)] | None = None

    @field_validator("stop", mode="before", json_schema_input_type=StopString | list[StopString] | None)
    @classmethod
    def _as_tuple(cls, stop: Any) -> Any:
        if stop is None or isinstance(stop, str):
            return () if stop is None else (stop,)
        if not isinstance(stop, list):
            raise PydanticCustomError("stop", "expected a string or a list of strings")
        if len(stop) > MAX_STOPS:  # looked at before its items are
            raise PydanticCustomError("stop", f"more than {MAX_STOPS} strings")
        return tuple(stop)

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _biases(cls, given: Any) -> Any:
        if isinstance(given, dict):
            if len(given) > MAX_BIASES:
                raise PydanticCustomError("logit_bias", f"more than {MAX_BIASES} tokens")
            if not all(key.isascii() and key.isdecimal() and len(key) < 10 for key in given):
                raise PydanticCustomError("logit_bias", "the keys must be token ids")
        return given

    @model_validator(mode="after")
    def _one_grammar(self) -> "SamplingFields":
        given = [name for name in _GRAMMARS if getattr(self, name) not in (None, {"type": "text"}, {})]
        if len(given) > 1:
            raise ApiError(400, f"{' and '.join(given)} exclude each other: give one", param=given[1])
        return self

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def choices(self) -> int:
        """How many answers each prompt gets."""
        return self.n or 1

    def grammar(self) -> Grammar | None:
        """What the answer must look like, if anything. Raises ApiError 400 for a form that is not known."""
        if self.response_format is not None and (form := _of_response_format(self.response_format)):
            return form
        options = {f"guided_{name}": value for name, value in (self.structured_outputs or {}).items()}
        json_schema = options.pop("guided_json", self.guided_json)
        regex, choice = options.pop("guided_regex", self.guided_regex), options.pop("guided_choice", self.guided_choice)
        asked = [name for name, value in options.items() if value not in (None, False)]
        if asked:
            name = asked[0].removeprefix("guided_")
            raise ApiError(400, f"structured_outputs.{name[:60]} is not supported: use json, regex or choice")
        if sum(value is not None for value in (json_schema, regex, choice)) > 1:
            raise ApiError(400, "json, regex and choice exclude each other: give one", param="structured_outputs")
        if json_schema is not None:
            text = json_schema if isinstance(json_schema, str) else json.dumps(json_schema)
            return Grammar("json_schema", text)
        if regex is not None:
            return Grammar("regex", regex)
        return None if choice is None else Grammar("choice", choices=choice)

    def sampling(self, max_new_tokens: int, **more: Any) -> SamplingParams:
        """How to choose tokens; `more` are fields of SamplingParams that only some requests have."""

        def given(value: Any, default: Any) -> Any:
            return default if value is None else value

        return SamplingParams(
            max_new_tokens=max_new_tokens,
            temperature=given(self.temperature, 1.0),
            top_k=max(self.top_k or 0, 0),  # -1 is vLLM's word for "off"
            top_p=given(self.top_p, 1.0),
            min_p=given(self.min_p, 0.0),
            repetition_penalty=given(self.repetition_penalty, 1.0),
            presence_penalty=given(self.presence_penalty, 0.0),
            frequency_penalty=given(self.frequency_penalty, 0.0),
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
            # OpenAI's seeds may be negative, numpy's may not
            seed=None if self.seed is None else self.seed % 2**64,
            stop=self.stop,
            n=self.choices,
            ignore_eos=bool(self.ignore_eos),
            **{"grammar": self.grammar(), **more},
        )


def _of_response_format(given: dict[str, Any]) -> Grammar | None:
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return Grammar("json_schema", '{"type": "object"}')
    if kind != "json_schema":
        message = "response_format.type must be text, json_object or json_schema"
        raise ApiError(400, message, param="response_format.type", code="invalid_value")
    inner = given.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if not isinstance(schema, dict | bool):
        message = "response_format.json_schema.schema must be a JSON schema: an object"
        raise ApiError(400, message, param="response_format.json_schema", code="invalid_value")
    return Grammar("json_schema", json.dumps(schema))
