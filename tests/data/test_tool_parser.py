"""Calls are found in an answer however it is cut, and what is no call stays text."""

import json
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.data.tool_formats import HERMES, MINIMAX, MINIMAX_M1, MISTRAL, ToolFormat
from octavo.data.tool_parser import (
    MAX_HELD,
    CallArguments,
    CallBegins,
    Content,
    Event,
    ToolParser,
    as_delta,
    as_message,
)

FORMATS = (MISTRAL, MINIMAX, MINIMAX_M1, HERMES)
by_format = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
CALLS = [("get_weather", '{"city": "Å}\\"]x", "a": [1, {"b": {}}]}'), ("get_time", "{}"), ("get-3", '{ "x" : "</" }')]


def joined(events: list[Event]) -> tuple[str, list[tuple[str, str]]]:
    """All content, and each call with its arguments; the order of the events must make sense."""
    content, calls, ids = "", [], []
    for event in events:
        if isinstance(event, Content):
            content += event.text
        elif isinstance(event, CallBegins):
            assert event.index == len(calls)
            calls.append((event.name, ""))
            ids.append(event.id)
        else:
            assert event.text and event.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + event.text)
    assert len(set(ids)) == len(ids)
    return content, calls


def parsed(form: ToolFormat, *pieces: str, names: tuple[str, ...] | None = None) -> tuple[str, list[tuple[str, str]]]:
    parser = ToolParser(form, names)
    events = [event for piece in pieces for event in parser.put(piece)] + parser.flush()
    assert parser.put("") == []
    return joined(events)


@by_format
def test_what_is_written_is_read(form: ToolFormat) -> None:
    for count in (1, 2, 3):
        assert parsed(form, form.write(CALLS[:count])) == ("", CALLS[:count])
        assert parsed(form, "Let me see.\n\n" + form.write(CALLS[:count]) + "\n") == ("Let me see.", CALLS[:count])
        assert parsed(form, form.write(CALLS[:count]) + " Done.\n") == (" Done.\n", CALLS[:count])


@by_format
def test_arguments_come_as_they_are_written(form: ToolFormat) -> None:
    parser, seen = ToolParser(form, make_id=lambda: "me"), []
    whole = "Well " + form.write([("f", '{"x": [1, 2]}')])
    for char in whole:
        seen.append(parser.put(char))
    start = whole.index('{"x"')
    assert seen[3] == [Content("l")] and seen[4] == []  # a space may be before a call
    assert seen[start] == [CallBegins(0, "me", "f"), CallArguments(0, "{")]
    assert [each for each in seen[start + 1 : start + 13]] == [[CallArguments(0, char)] for char in '"x": [1, 2]}']
    assert not any(seen[start + 13 :]) and parser.flush() == []


@by_format
def test_ids(form: ToolFormat) -> None:
    ids = {form.make_id() for _ in range(50)}
    assert len(ids) == 50
    for each in ids:
        assert len(each) == 9 and each.isalnum() if form is MISTRAL else each.startswith("call_")


@by_format
def test_messages_as_openai_has_them(form: ToolFormat) -> None:
    parser = ToolParser(form)
    events = [event for char in "Hm. " + form.write(CALLS) for event in parser.put(char)] + parser.flush()
    message = as_message(events)
    assert [message["role"], message["content"], len(message["tool_calls"])] == ["assistant", "Hm.", len(CALLS)]
    functions = [each["function"] for each in message["tool_calls"]]
    assert [(each["name"], each["arguments"]) for each in functions] == CALLS
    assert as_message(parser.put("")) == {"role": "assistant", "content": ""}
    assert as_message([CallBegins(0, "i", "f")])["content"] is None

    accumulate = pytest.importorskip("openai.lib.streaming._deltas").accumulate_delta
    whole: dict[object, object] = {"role": "assistant", "content": ""}
    for event in events:
        whole = accumulate(whole, as_delta(event))
    assert whole == {**message, "tool_calls": [{**each, "index": i} for i, each in enumerate(message["tool_calls"])]}


@by_format
def test_text_that_is_no_call_is_content_at_once(form: ToolFormat) -> None:
    parser = ToolParser(form)
    assert parser.put("a < b, [x] and `c`.") == [Content("a < b, [x] and `c`.")]
    assert parser.put(form.marker[:-1]) == []
    assert parser.put("!") == [Content(form.marker[:-1] + "!")]
    assert parser.put("  \n ") == [] and parser.flush() == [Content("  \n ")]


BROKEN = [
    "{}",
    "{}{}",
    '{"name": "f", "arguments": 3}',
    '{"name": "f", "arguments": "{}"}',
    '{"name": 3, "arguments": {}}',
    '{"name": "", "arguments": {}}',
    '{"name": "f" "arguments": {}}',
    '{"arguments": {"x": 1}}',
    '{"name": "bad \\x", "arguments": {}}',
    "functions.(1)",
    "functions.f(1)",
    "functions.f{}",
    "functions f({})",
    "",
    "[",
    '{"name": "' + "x" * MAX_HELD + '", "arguments": {}}',
    '{"arguments": {"x": "' + "x" * MAX_HELD + '"}, "name": "f"}',
]


@by_format
@pytest.mark.parametrize("inside", BROKEN, ids=lambda text: text[:24])
def test_broken_calls_are_content(form: ToolFormat, inside: str) -> None:
    text = "a " + form.opening + inside + form.closing + " b"
    assert parsed(form, text) == (text, [])
    assert parsed(form, *text) == (text, [])
    whole = form.write(CALLS[:1])
    assert parsed(form, text + whole) == (text, CALLS[:1])


@by_format
def test_a_broken_second_call_is_content(form: ToolFormat) -> None:
    text = form.write([CALLS[0], ("f", "oops"), CALLS[1]])
    content, calls = parsed(form, text)
    assert calls[0] == CALLS[0] and "oops" in content and (calls[1:] == [CALLS[1]]) == form.reopens


@by_format
def test_an_answer_may_end_anywhere(form: ToolFormat) -> None:
    text = "Hm. " + form.write(CALLS[:2])
    begins = text.index(CALLS[0][1])
    for length in range(len(text)):
        content, calls = parsed(form, text[:length])
        if length <= begins:
            assert content == text[:length] and not calls
        else:
            assert calls[0] == (CALLS[0][0], text[begins : begins + len(CALLS[0][1])][: length - begins])


@by_format
def test_calls_of_unknown_functions_are_content(form: ToolFormat) -> None:
    text = form.write([("g", "{}")])
    assert parsed(form, text, names=("f",)) == (text, [])
    assert parsed(form, text, names=("f", "g")) == ("", [("g", "{}")])


def test_forms_that_models_write_at_times() -> None:
    call = [("f", '{"x": 1}')]
    assert parsed(HERMES, '<tool_call>{"arguments": {"x": 1}, "id": [1], "name": "f"}</tool_call>') == ("", call)
    assert parsed(HERMES, '<tool_call>\n{"name": "f"}\n</tool_call>') == ("", [("f", "{}")])
    assert parsed(HERMES, '<tool_call>\n{"name": "f", "arguments": {"x": 1}}') == ("", call)
    assert parsed(MISTRAL, '[TOOL_CALLS][{"name":"f","arguments":{"x": 1},"id":"abcdefgh0"}]') == ("", call)
    assert parsed(MISTRAL, '[TOOL_CALLS] [{"id": "a", "name": "f", "arguments": {"x": 1}} ,\n {"name": "f"}]') == (
        "",
        [*call, ("f", "{}")],
    )
    block = '```typescript\nfunctions.f({"x": 1});\nfunctions.f()\n```'
    assert parsed(MINIMAX, block) == parsed(MINIMAX, "<function_call>\n" + block) == ("", [*call, ("f", "{}")])
    assert parsed(MINIMAX, "```typescript\nlet x\n```") == ("```typescript\nlet x\n```", [])


PIECES = st.sampled_from(
    [form.write(CALLS[:2]) for form in FORMATS]
    + [form.opening for form in FORMATS]
    + [form.closing for form in FORMATS]
    + [form.separator for form in FORMATS]
    + ["functions.f({", '{"name": "f", ', '"arguments": {', "}", "]", '"', "\\", " ", "\n", "text", "好", "<tool", "[T"]
)


@settings(max_examples=300, deadline=None)
@given(form=st.sampled_from(FORMATS), parts=st.lists(PIECES, max_size=8), data=st.data())
def test_cuts_make_no_difference(form: ToolFormat, parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = parsed(form, text)
    assert parsed(form, *pieces) == whole and parsed(form, *text) == whole
    if form.marker not in text and form.bare not in text:
        assert whole == (text, [])


def test_a_thousand_random_cuts() -> None:
    rng = Random(0)
    for form in FORMATS:
        text = f"First, {form.opening}nothing. " + form.write(CALLS) + "\n\nthen " + form.write(CALLS[:1]) + "\n"
        content, calls = parsed(form, text)
        assert calls == [*CALLS, CALLS[0]] and content == f"First, {form.opening}nothing.\n\nthen"
        for _ in range(250):
            cuts = sorted(rng.sample(range(len(text)), rng.randrange(1, 30)))
            assert parsed(form, *[text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]) == (
                content,
                calls,
            )


def test_hostile_answers_take_no_time() -> None:
    for form in FORMATS:
        for text in (form.opening * 3000, (form.opening + "{" * 50) * 300, " " * 50_000, form.opening + '{"' * 20_000):
            parser = ToolParser(form)
            events = [event for at in range(0, len(text), 7) for event in parser.put(text[at : at + 7])]
            assert joined(events + parser.flush())[0] == text
    nested = HERMES.write([("f", '{"a":' * 20_000 + "1" + "}" * 20_000)])
    assert len(json.dumps(parsed(HERMES, nested)[1])) > 120_000
