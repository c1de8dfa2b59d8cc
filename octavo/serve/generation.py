"""POST /v1/chat/completions and /v1/completions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from octavo.config import SamplingParams
from octavo.data.tool_parser import ToolParser
from octavo.data.tool_specs import Tool
from octavo.engine.engine import Engine
from octavo.engine.prompts import Encoded
from octavo.engine.tool_grammar import tool_grammar
from octavo.serve.answers import Asked
from octavo.serve.errors import ApiError
from octavo.serve.jobs import Start
from octavo.serve.models import Models
from octavo.serve.protocol.chat import ChatRequest
from octavo.serve.protocol.completions import CompletionRequest
from octavo.serve.protocol.limits import MAX_LOGPROBS_IN_ALL
from octavo.serve.replies import ChatReply, CompletionReply, Echo, Reply


@dataclass(frozen=True)
class Generation:
    """A request that was found good: what the engine is to do, and how its answers are shown."""

    model: str
    engine: Engine
    prompts: Sequence[Encoded]
    params: Sequence[SamplingParams]
    reply: Reply
    asked: Asked

    @property
    def has_grammar(self) -> bool:
        """Whether handing it in may mean to compile one."""
        return any(params.grammar for params in self.params)

    def start(self, tenant: str) -> Start:
        """What hands it to the engine."""
        return lambda emit: self.engine.submit_all(self.prompts, self.params, emit, tenant)


def read_chat(models: Models, body: bytes, default_max_tokens: int) -> Generation:
    """A chat. Raises ApiError or UserError for everything that can be wrong with it; takes long for long ones."""
    chat = ChatRequest.parse(body)
    engine = models.engine(chat.model)
    tools = chat.offered()
    prompt = engine.encode(chat.prompt(tools))
    room = engine.context - len(prompt.ids)
    params = chat.params(max(1, min(default_max_tokens, room)), **_calling(engine, chat, tools))
    engine.check_fits(len(prompt.ids), params)
    _check_logprobs([params], params.logprobs)
    parsers = [_parser(engine, tools) for _ in range(chat.choices)] if tools else ()
    reply = ChatReply(chat.model, chat.choices, models.texts(chat.model) if chat.logprobs else None, parsers)
    asked = Asked(chat.choices, len(prompt.ids), bool(chat.stream), chat.wants_usage)
    return Generation(chat.model, engine, [prompt], [params], reply, asked)


def _check_logprobs(params: Sequence[SamplingParams], alternatives: int | None, echoed: int = 0) -> None:
    """Raise ApiError 400 for more log probabilities than one answer may hold. echoed: tokens of prompts with theirs."""
    tokens = echoed + sum(its.n * its.max_new_tokens for its in params)
    if alternatives is not None and (entries := tokens * (1 + alternatives)) > MAX_LOGPROBS_IN_ALL:
        message = (
            f"{tokens} tokens with {alternatives} alternatives may have {entries} log probabilities, above the limit "
            f"of {MAX_LOGPROBS_IN_ALL}: ask for fewer"
        )
        raise ApiError(400, message, param="logprobs", code="invalid_value")


def _calling(engine: Engine, chat: ChatRequest, tools: Sequence[Tool]) -> dict[str, Any]:
    """Fields of SamplingParams by which the model can call functions, and calls only what there is."""
    choice, parallel = chat.tool_choice, chat.parallel_tool_calls is not False
    grammar = tool_grammar(engine.tokenizer, tools, choice, parallel, chat.grammar())
    marker = engine.tokenizer.tool_style.format.marker if tools else ""
    return {"grammar": grammar, "skip_special_tokens": engine.tokenizer.special_id(marker) is None}


def _parser(engine: Engine, tools: Sequence[Tool]) -> ToolParser:
    return ToolParser(engine.tokenizer.tool_style.format, {tool.name for tool in tools})


def read_completion(models: Models, body: bytes) -> Generation:
    """Texts to be continued. Raises as `read_chat`."""
    wanted = CompletionRequest.parse(body)
    engine = models.engine(wanted.model)
    prompts = [replace(engine.encode(prompt), continues=True) for prompt in wanted.prompt]
    params = []
    for number, prompt in enumerate(prompts):
        its = wanted.params(engine.context - len(prompt.ids))
        engine.check_fits(len(prompt.ids), its)
        params.append(its if number == 0 or its.seed is None else replace(its, seed=(its.seed + number) % 2**64))
    echoed = sum(len(prompt.ids) for prompt in prompts) if wanted.echo else 0
    _check_logprobs(params, wanted.logprobs, echoed)
    echoes = []
    if wanted.echo:
        for given, prompt in zip(wanted.prompt, prompts, strict=True):
            text = given if isinstance(given, str) else engine.tokenizer.decode(prompt.ids, skip_special_tokens=False)
            echoes.append(Echo(text, prompt.ids))
    texts = models.texts(wanted.model) if wanted.logprobs is not None else None
    silent = wanted.max_tokens == 0
    reply = CompletionReply(wanted.model, wanted.choices, len(prompts), texts, echoes, silent)
    counts = len(prompts) * wanted.choices, sum(len(prompt.ids) for prompt in prompts)
    asked = Asked(*counts, bool(wanted.stream), wanted.wants_usage, shows_tokens=not silent)
    return Generation(wanted.model, engine, prompts, params, reply, asked)
