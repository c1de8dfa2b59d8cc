"""Forced calls: whatever tokens are chosen among the allowed, the answer is calls that match their schemas."""

import json
import time
from collections.abc import Iterator
from functools import cache
from random import Random
from typing import Any

import jsonschema
import pytest

from octavo.config import Grammar, SamplingParams
from octavo.data.token_bytes import token_bytes
from octavo.data.tool_formats import MISTRAL
from octavo.data.tool_specs import read_tools
from octavo.engine.engine import Engine
from octavo.engine.grammar import MAX_DEPTH, Grammars, Matcher
from octavo.engine.prompts import Chat
from octavo.engine.tool_grammar import tool_grammar
from octavo.errors import UserError
from octavo.models import Decoder
from tests.data.test_tool_parser import parsed
from tests.data.tool_models import ASKED, FORMATS, TOOLS, WEATHER, tokenizer, tool
from tests.engine.grammars import BEYOND, DRIVERS, Driver
from tests.tiny import tiny_config

TREE = tool(
    "plant-tree_2",
    {
        "type": "object",
        "properties": {"under": {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 2}},
        "required": ["under"],
        "additionalProperties": False,
        "$defs": {"leaf": {"type": "object", "properties": {"é": {"enum": ["</tool_call>", '"}]}', 3]}},
                           "required": ["é"], "additionalProperties": False}},
    },
)  # fmt: skip
ALL = [*TOOLS, TREE, tool("get_weather_2", {"type": "object", "properties": {"x": {"type": "boolean"}}})]
NAMED = {"type": "function", "function": {"name": "plant-tree_2"}}
SCHEMAS = {each.name: each.parameters for each in read_tools(ALL)}
CLOSING = (b'"', b"}", b"]", b")", b"\n", b",", b"0")  # by what an answer soonest ends
by_model = pytest.mark.parametrize("model", FORMATS)


@cache
def grammars(model: str) -> Grammars:
    """Shared by the tests: it owns a process."""
    return Grammars(tokenizer(model), tokenizer(model).vocab_size + BEYOND)


def write(matcher: Matcher, model: str, rng: Random, driver: Driver, budget: int = 60) -> str | None:
    """An answer of tokens that `driver` chooses and, after `budget` of them, of what ends it soonest; None if not."""
    its, texts = tokenizer(model), token_bytes(tokenizer(model), tokenizer(model).vocab_size + BEYOND)
    ids: list[int] = []
    for step in range(budget + 800):
        allowed = matcher.allowed().nonzero()[0].tolist()
        assert allowed
        ends = [index for index in allowed if index in its.eos_ids]
        closing = [index for text in CLOSING for index in allowed if texts[index] == text]
        late = step >= budget
        token = ends[0] if late and ends else closing[0] if late and closing else driver(rng, allowed, texts)
        matcher.accept(token)
        ids.append(token)
        if matcher.ended:
            return its.decode([index for index in ids if index not in its.eos_ids], skip_special_tokens=False)
    return None


def check(model: str, answer: str) -> list[tuple[str, str]]:
    """The calls of an answer that is nothing else, matching their schemas."""
    form = tokenizer(model).tool_style.format
    content, calls = parsed(form, answer, names=tuple(SCHEMAS))
    assert content == "" and calls
    for name, arguments in calls:
        jsonschema.validate(json.loads(arguments), SCHEMAS[name])
    return calls


@by_model
@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
@pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "one"])
def test_forced_calls_match(model: str, choice: Any, parallel: bool) -> None:
    matcher = grammars(model).matcher(tool_grammar(tokenizer(model), read_tools(ALL), choice, parallel))
    names, counts, whole = set(), set(), 0
    for name, driver in DRIVERS.items():
        for seed in range(4):
            answer = write(matcher.copy(), model, Random(f"{name}{seed}"), driver, 40 * seed)
            if answer is None:
                continue
            whole += 1
            calls = check(model, answer)
            counts.add(len(calls))
            names |= {called for called, _ in calls}
    assert whole >= 0.8 * 4 * len(DRIVERS)
    assert (names == {"plant-tree_2"}) == (choice is NAMED) and (choice is NAMED or len(names) >= 2)
    assert counts == {1} or (parallel and choice == "required")


def follow(matcher: Matcher, model: str, text: str) -> str:
    """Let the matcher take `text`, in the longest tokens that it allows; what of the text it does not allow."""
    its = tokenizer(model)
    texts = [its.decode([index], skip_special_tokens=False).encode() if index in its.special_ids else known
             for index, known in enumerate(token_bytes(its, its.vocab_size))]  # fmt: skip
    left = text.encode()
    while left:
        allowed = matcher.allowed()[: len(texts)].nonzero()[0].tolist()
        fits = [index for index in allowed if texts[index] and left.startswith(texts[index])]
        if not fits:
            break
        token = max(fits, key=lambda index: len(texts[index]))
        matcher.accept(token)
        left = left[len(texts[token]) :]
    return left.decode()


def may_end(matcher: Matcher, model: str) -> bool:
    return any(matcher.allowed()[index] for index in tokenizer(model).eos_ids)


@by_model
def test_several_calls_can_be_made(model: str) -> None:
    form, its = tokenizer(model).tool_style.format, tokenizer(model)
    written = form.write([("get_time", "{}"), ("get_weather_2", '{"x": true}'), ("get_time", "{}")])
    for parallel in (True, False):
        matcher = grammars(model).matcher(tool_grammar(its, read_tools(ALL), "required", parallel))
        assert (follow(matcher, model, written) == "") == parallel
        assert may_end(matcher, model) == parallel or form.closing in form.separator


@by_model
def test_strict_tools_bind_calls_after_any_text(model: str) -> None:
    its = tokenizer(model)
    form = its.tool_style.format
    strict = [{**WEATHER, "function": {**WEATHER["function"], "strict": True}}, *ALL[1:]]
    assert tool_grammar(its, read_tools(ALL)) is tool_grammar(its, read_tools(strict), "none") is None
    matcher = grammars(model).matcher(tool_grammar(its, read_tools(strict), "auto"))
    assert may_end(matcher, model)
    assert follow(matcher, model, "So {, [ and <. 世") == "" and may_end(matcher, model)
    after = matcher.copy()
    assert follow(after, model, form.write([("get_weather", '{"city":"x"}'), ("get_time", '{"any":1}')])) == ""
    assert may_end(after, model)
    bad = form.write([("get_weather", '{"city":1}')])
    assert follow(matcher.copy(), model, bad).startswith("1}")
    after = matcher.copy()
    assert follow(after, model, form.marker) == "" and not may_end(after, model) and follow(after, model, "!") == "!"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("required", "there are no tools"),
        ("any", "tool_choice is 'any': choose"),
        (7, "tool_choice is 7: choose"),
        ({"type": "function"}, "tool_choice is {'type': 'function'}: choose"),
        ({"type": "function", "function": {"name": "f"}}, "tool_choice names the function 'f'"),
    ],
)
def test_choices_that_are_none(choice: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tool_grammar(tokenizer("chatml"), (), choice)


@by_model
def test_one_call_at_most_where_the_model_chooses(model: str) -> None:
    its = tokenizer(model)
    form = its.tool_style.format
    matcher = grammars(model).matcher(tool_grammar(its, read_tools(ALL), "auto", parallel=False))
    assert may_end(matcher, model) and follow(matcher.copy(), model, "So {, [ and <. 世") == ""
    one, two = (form.write([("get_time", '{"any":1}')] * count) for count in (1, 2))
    after = matcher.copy()
    assert follow(after, model, one) == "" and may_end(after, model)
    assert follow(matcher.copy(), model, two)


def _deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


HOSTILE = {
    "remote": {"properties": {"a": {"$ref": "http://169.254.169.254/latest"}}},
    "missing reference": {"properties": {"a": {"$ref": "#/$defs/none"}}, "required": ["a"]},
    "deep": _deep(MAX_DEPTH),
    "no schema": {"properties": {"a": {"type": "elephant"}}},
    "chain": {
        "$ref": "#/$defs/d0",
        "$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(3000)} | {"d3000": {"type": "object"}},
    },
    "patterns": {
        "properties": {"a": {"allOf": [{"type": "string", "pattern": f"a{{{i}}}.*b.{{{i}}}c"} for i in range(40)]}},
        "required": ["a"],
    },
    "long": {"properties": {f"p{i}": {"type": "string", "description": "x" * 100} for i in range(3000)}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_are_refused_in_time(name: str) -> None:
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        grammars("chatml").matcher(
            tool_grammar(tokenizer("chatml"), read_tools([tool("f", HOSTILE[name])]), "required")
        )
    assert time.monotonic() - began < 10 and len(str(caught.value)) < 500 and "\n" not in str(caught.value)


def test_as_many_tools_as_there_may_be() -> None:
    schema = WEATHER["function"]["parameters"]
    many = read_tools([tool(f"tool_{index}", schema) for index in range(128)])
    matcher = grammars("mistral").matcher(tool_grammar(tokenizer("mistral"), many, "required"))
    matcher.accept(tokenizer("mistral").special_id(MISTRAL.marker))  # type: ignore[arg-type]


def test_grammars_that_are_none_are_refused() -> None:
    for text in ("start: nothing", "start: <[999999]>", "%%", 'start: %json {"type": "elephant"}', "a: 'x'"):
        with pytest.raises(UserError, match="^grammar cannot be used"):
            grammars("chatml").matcher(Grammar("lark", text))


# ---- through the engine


@pytest.fixture(scope="module", autouse=True)
def _closed_in_the_end() -> Iterator[None]:
    yield
    while _ENGINES:
        _ENGINES.popitem()[1].close()


_ENGINES: dict[str, Engine] = {}


def engine(model: str) -> Engine:
    if model not in _ENGINES:
        its = tokenizer(model)
        config = tiny_config(vocab_size=its.vocab_size, eos_token_id=min(its.eos_ids), max_positions=2048)
        _ENGINES[model] = Engine.for_decoder(Decoder(config).initialise(3).eval(), its)
    return _ENGINES[model]


@by_model
def test_a_random_model_makes_calls(model: str) -> None:
    its, tools = tokenizer(model), read_tools(TOOLS)
    prompt = Chat(ASKED, TOOLS)
    assert engine(model).encode(prompt).marks
    ended = 0
    for seed in range(3):
        params = SamplingParams(
            max_new_tokens=300, temperature=1.0, seed=seed, grammar=tool_grammar(its, tools, "required"),
            skip_special_tokens=False, logprobs=1,
        )  # fmt: skip
        done = engine(model).complete(prompt, params)
        assert done.logprobs is not None and len(done.logprobs) == len(done.token_ids)
        if done.finish_reason == "stop":
            ended += 1
            check(model, done.text)
    assert ended


def test_special_tokens_show_only_where_asked_for_and_end_tokens_never() -> None:
    its = tokenizer("mistral")
    marker = its.special_id(MISTRAL.marker)
    bias = {marker: 100.0}
    for skip, text in ((True, ""), (False, "[TOOL_CALLS]" * 3)):
        params = SamplingParams(max_new_tokens=3, logit_bias=bias, skip_special_tokens=skip)
        assert engine("mistral").complete("Hello", params).text == text
    stopped = SamplingParams(max_new_tokens=9, logit_bias=bias, skip_special_tokens=False, stop=("LLS][",))
    assert engine("mistral").complete("Hello", stopped).text == "[TOOL_CA"
    end = min(its.eos_ids)
    for ignore in (False, True):
        params = SamplingParams(max_new_tokens=3, logit_bias={end: 100.0}, skip_special_tokens=False, ignore_eos=ignore)
        done = engine("mistral").complete("Hello", params)
        assert done.text == "" and done.token_ids == (end,) * (3 if ignore else 1)
