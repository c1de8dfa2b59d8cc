"""Grammars: every finished answer matches, whatever tokens are chosen among the allowed; the state can be copied."""

import json
import re
import subprocess
import sys
from random import Random
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.config.sampling import Grammar
from octavo.data.token_bytes import token_bytes
from octavo.data.tokenizer import Tokenizer
from octavo.engine import grammar as module
from octavo.engine.grammar import Grammars
from octavo.engine.grammar_worker import FORCED_CHARS, ByteTokens
from octavo.errors import UserError
from tests.engine.grammars import BEYOND, DRIVERS, grammars, tokenizer, write

KINDS = ("byte-level", "sentencepiece")
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TREE = {
    "$ref": "#/$defs/tree",
    "$defs": {
        "tree": {
            "type": "object",
            "properties": {"leaf": {"type": "boolean"}, "under": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
            "required": ["leaf"],
            "additionalProperties": False,
        }
    },
}
SCHEMAS: list[dict[str, Any]] = [
    {},
    {"type": "object"},
    PERSON,
    TREE,
    {"enum": ["red", "blué", 3, None, {"a": [1]}]},
    {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 3},
    {"type": "string", "pattern": "^[A-Z]{2}[0-9]{1,3}$"},
    {"type": "string", "minLength": 3, "maxLength": 5},
    {"type": "integer", "minimum": -5, "maximum": 17},
    {**PERSON, "x-guidance": {"item_separator": "#", "whitespace_pattern": "z", "lenient": True}},  # options, not ours
    {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"é": {"const": "世界"}}, "required": ["é"]}]},
]
EXPRESSIONS = [  # none with \w or \d: Rust knows letters of later Unicode versions than Python
    r"[a-z]{3}-[0-9]+!",
    r"(a|ab)(c|bcd)*",
    r"(?:你好|naïve|[😀-😎]){1,4}",
    r".{0,12}",
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}",
    r"a+b*|c?",
]
CHOICES = ("yes", "no", "not at all", "", "<|im_end|>", "café 世界", 'a "b" \\ (c|d)* [^e]\n$', " ")
# Part of JSON schema that both llguidance and jsonschema read alike, small enough to be finished.
LEAVES = st.one_of(
    st.sampled_from([{"type": "null"}, {"type": "boolean"}, {"type": "integer"}]),
    st.builds(lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more}, st.integers(-300, 300),
              st.integers(0, 500)),
    st.builds(lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more}, st.integers(0, 3),
              st.integers(0, 4)),
    st.builds(lambda values: {"enum": values}, st.lists(st.text(max_size=4), min_size=1, max_size=4, unique=True)),
)  # fmt: skip
NAMES = st.text('abé_ 世"\\', min_size=1, max_size=3)


def _object(properties: dict[str, Any], optional: int) -> dict[str, Any]:
    required = sorted(properties)[optional:]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(_object, st.dictionaries(NAMES, inner, max_size=3), st.integers(0, 2)),
        st.builds(lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(0, 2)),
        st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=6,
)


def _texts(kind: str) -> list[bytes]:
    return token_bytes(tokenizer(kind), tokenizer(kind).vocab_size + BEYOND)


def _answers(kind: str, grammar: Grammar, count: int = 6) -> list[str]:
    """What `count` answers of each driver are, as the tokenizer writes them; nearly all must come to an end."""
    made, texts = [], _texts(kind)
    for driver in DRIVERS.values():
        for seed in range(count):
            answer = write(grammars(kind).matcher(grammar), texts, Random(seed), driver, budget=5 + 10 * seed)
            made += [] if answer is None else [answer.decode()]  # raises on half a character
    assert len(made) >= 0.8 * len(DRIVERS) * count
    return made


# ---- what is written matches


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_answers_match_the_schema(kind: str, schema: dict[str, Any]) -> None:
    for answer in _answers(kind, Grammar("json_schema", json.dumps(schema))):
        jsonschema.validate(json.loads(answer), schema)


@settings(max_examples=40, deadline=None)
@given(schema=TREES, seed=st.integers(0, 2**32), driver=st.sampled_from(sorted(DRIVERS)), kind=st.sampled_from(KINDS))
def test_answers_match_any_schema(schema: dict[str, Any], seed: int, driver: str, kind: str) -> None:
    matcher = grammars(kind).matcher(Grammar("json_schema", json.dumps(schema)))
    answer = write(matcher, _texts(kind), Random(seed), DRIVERS[driver], budget=60)
    assert answer is not None
    jsonschema.validate(json.loads(answer), schema)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_answers_match_the_expression(kind: str, expression: str) -> None:
    answers = _answers(kind, Grammar("regex", expression))
    assert all(re.fullmatch(expression, answer) for answer in answers)
    assert len(set(answers)) > 2


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_choices(kind: str) -> None:
    answers = _answers(kind, Grammar("choice", choices=CHOICES), count=30)
    assert set(answers) <= set(CHOICES)
    assert len(set(answers)) >= 6
    for choice in CHOICES:
        assert set(_answers(kind, Grammar("choice", choices=(choice,)), count=1)) == {choice}


@pytest.mark.parametrize("kind", KINDS)
def test_characters_may_be_written_in_parts(kind: str) -> None:
    texts = _texts(kind)
    matcher = grammars(kind).matcher(Grammar("regex", '"[^"]*"'))
    for byte in '"😀é"'.encode():
        token = texts.index(bytes([byte]))
        assert matcher.allowed()[token]
        matcher.accept(token)
    assert matcher.ended
    matcher = grammars(kind).matcher(Grammar("regex", "[a-z]*"))
    assert not matcher.allowed()[texts.index("😀".encode()[:1])]


def test_whitespace_in_json_comes_to_an_end() -> None:
    matcher, texts = grammars("byte-level").matcher(Grammar("json_schema", json.dumps(PERSON))), _texts("byte-level")
    matcher.accept(texts.index(b"{"))
    space = texts.index(b" ")
    for _ in range(64):
        matcher.accept(space)
    assert not matcher.allowed()[space]
    assert matcher.allowed()[texts.index(b'"')]


def test_the_usual_spelling_of_a_forced_text() -> None:
    for kind in KINDS:
        matcher, written = grammars(kind).matcher(Grammar("choice", choices=("café 世界 hello world",))), []
        while not matcher.ended:
            assert matcher.allowed().sum() <= (1 if not written else 40)  # in the midst, what may be begun otherwise
            written.append(int(matcher.allowed().nonzero()[0][-1]))
            matcher.accept(written[-1])
        assert b"".join(_texts(kind)[index] for index in written) == "café 世界 hello world".encode()
        assert len(written) <= len(tokenizer(kind).encode("café 世界 hello world")) + 2


def test_a_long_forced_text_is_spelt_from_its_beginning_only() -> None:
    texts, asked = _texts("byte-level"), list[str]()
    tokens = ByteTokens(texts, [], lambda text: asked.append(text) or [])
    assert b"".join(texts[index] for index in tokens("é" * 10**6)).decode() == "é" * FORCED_CHARS == asked[0]
    assert tokens("a") == [texts.index(b"a")] and ByteTokens([b"a"], [])("ab") == []


# ---- special tokens and the end


@pytest.mark.parametrize("kind", KINDS)
def test_only_end_tokens_where_the_answer_may_end(kind: str) -> None:
    made, texts = tokenizer(kind), _texts(kind)
    matcher = grammars(kind).matcher(Grammar("regex", "(?:.|\n){2,5}"))
    for written in range(6):
        allowed = matcher.allowed()
        assert allowed.shape == (made.vocab_size + BEYOND,) and allowed.dtype == np.bool_
        assert not allowed[made.vocab_size :].any()
        special = {index for index in made.special_ids | made.eos_ids if allowed[index]}
        assert len(made.eos_ids) == 2 and special == (set(made.eos_ids) if written >= 2 else set())
        assert matcher.ended == (written == 5)
        matcher.accept(texts.index(b"x") if written < 5 else min(made.eos_ids))
    assert matcher.ended and set(matcher.allowed().nonzero()[0]) == made.eos_ids


def test_every_end_token_ends_an_answer() -> None:
    made = tokenizer("byte-level")
    for end in made.eos_ids:
        matcher = grammars("byte-level").matcher(Grammar("regex", "a*"))
        assert not matcher.ended
        matcher.accept(end)
        assert matcher.ended and not matcher.allowed()[_texts("byte-level").index(b"a")]


def test_a_tokenizer_without_an_end_token_and_a_narrow_model() -> None:
    made = Tokenizer.from_files({"tokenizer.json": tokenizer("byte-level")._backend.to_str().encode()}, "no end")
    assert not made.eos_ids
    narrow = Grammars(made, 300)
    texts = token_bytes(made, 300)
    matcher = narrow.matcher(Grammar("choice", choices=("a", "ab")))
    matcher.accept(texts.index(b"a"))
    assert not matcher.ended and matcher.allowed().shape == (300,) and matcher.allowed().sum() == 1
    matcher.accept(texts.index(b"b"))
    assert matcher.ended and not matcher.allowed().any()


# ---- the state


def test_what_is_not_allowed_is_refused_and_changes_nothing() -> None:
    matcher, texts = grammars("byte-level").matcher(Grammar("regex", "ab")), _texts("byte-level")
    before = matcher.allowed().copy()
    for token in (texts.index(b"b"), 0, 1, -1, len(texts), 10**9):
        with pytest.raises(ValueError, match="cannot come next"):
            matcher.accept(token)
    np.testing.assert_array_equal(matcher.allowed(), before)
    matcher.accept(texts.index(b"a"))
    matcher.accept(texts.index(b"b"))
    assert matcher.ended


def test_matchers_of_one_grammar_do_not_disturb_each_other() -> None:
    rng, grammar = Random(0), Grammar("json_schema", json.dumps(PERSON))
    matchers = [grammars("byte-level").matcher(grammar) for _ in range(4)]
    written: list[list[tuple[np.ndarray, int]]] = [[] for _ in matchers]
    for _ in range(400):
        which = rng.randrange(4)
        if not matchers[which].ended:
            allowed = matchers[which].allowed()
            token = rng.choice(allowed.nonzero()[0].tolist())
            matchers[which].accept(token)
            written[which].append((allowed, token))
    for steps in written:
        alone = grammars("byte-level").matcher(grammar)
        for allowed, token in steps:
            np.testing.assert_array_equal(alone.allowed(), allowed)
            alone.accept(token)


@pytest.mark.parametrize("schema", [PERSON, {"enum": ["abc", "abcd", "some more"]}], ids=str)
def test_copies_and_rollback(schema: dict[str, Any]) -> None:
    ends = 0
    for seed in range(8):
        rng, masks, tokens = Random(seed), [], []
        matcher = grammars("byte-level").matcher(Grammar("json_schema", json.dumps(schema)))
        while not matcher.ended and len(tokens) < 60:
            masks.append(matcher.allowed().copy())
            tokens.append(rng.choice(matcher.allowed().nonzero()[0].tolist()))
            matcher.accept(tokens[-1])
        if matcher.ended:  # llguidance does not count an end token after the end
            masks.append(matcher.allowed().copy())
            tokens.append(int(matcher.allowed().nonzero()[0][0]))
            matcher.accept(tokens[-1])
            ends += 1
        twin = matcher.copy()
        for count in (1, 2, 0, len(tokens) - 3):
            matcher.rollback(count)
            del tokens[len(tokens) - count :]
            np.testing.assert_array_equal(matcher.allowed(), masks[min(len(tokens), len(masks) - 1)])
        twin.rollback(len(masks) - len(tokens))
        np.testing.assert_array_equal(twin.allowed(), matcher.allowed())
        assert not twin.ended
        for bad in (len(tokens) + 1, -1):
            with pytest.raises(ValueError, match="take back"):
                twin.rollback(bad)
    assert ends or schema is PERSON


def test_importing_the_engine_does_not_import_llguidance() -> None:
    code = "import sys, octavo.engine.grammar, octavo.engine.engine; print('llguidance' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


# ---- limits of a step


def test_an_answer_over_the_limit_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.LIMITS, "max_lexer_states", 1200)
    texts, grammar = _texts("byte-level"), Grammar("regex", "([a-z]|[0-9]x){1,900}-[a-z]{900}")
    made = Grammars(tokenizer("byte-level"), len(texts))
    other = made.matcher(grammar)
    other.accept(texts.index(b"a"))
    long = made.matcher(grammar)
    with pytest.raises(UserError, match="cannot be followed further") as failure:
        for _ in range(900):
            long.accept(texts.index(b"a"))
        long.accept(texts.index(b"-"))
        for _ in range(900):
            long.accept(texts.index(b"a"))
    assert "\n" not in str(failure.value)
    with pytest.raises(UserError, match="cannot be followed further"):  # and stays so
        long.copy().allowed()
    assert other.allowed()[texts.index(b"b")] and not other.allowed()[texts.index(b"!")]
    other.accept(texts.index(b"b"))
    assert made.matcher(grammar).allowed()[texts.index(b"a")]
