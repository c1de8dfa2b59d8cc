"""Templates that refuse a conversation get its words in turns that they take; others get what was given."""

import gc
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.data.chat_folding import Folding, merged, without_system
from octavo.data.chat_template import ChatTemplate, RefusedError
from octavo.data.tokenizer import Tokenizer
from octavo.errors import UserError
from tests.data.chat_templates import TEMPLATES
from tests.tiny import tiny_tokenizer_files

# Mixtral-8x7B-Instruct-v0.1 as first released: user and assistant in turns, and nothing else
FIRST_MIXTRAL = """{{ bos_token }}{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}\
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""
CHAT = tuple[str, str]
FROM_DATA = [tracemalloc.Filter(True, "*/octavo/data/chat_*.py")]


def made(source: str) -> Tokenizer:
    files = {**tiny_tokenizer_files(), "chat_template.jinja": source.encode()}
    return Tokenizer.from_files(files, "made")


FIRST, LATER = made(FIRST_MIXTRAL), made(TEMPLATES["mixtral"])


def chat(*turns: CHAT) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


S, U, A = ("system", "s"), ("user", "u"), ("assistant", "a")


@pytest.mark.parametrize(
    ("turns", "written"),
    [
        ((U, A, U), "B[INST] u [/INST]aE[INST] u [/INST]"),
        ((S, U), "B[INST] s\n\nu [/INST]"),
        ((S, S, U, U, A, A, U), "B[INST] s\n\ns\n\nu\n\nu [/INST]a\n\naE[INST] u [/INST]"),
        ((S, A, U), "B[INST] s [/INST]aE[INST] u [/INST]"),
        ((A, U), "B[INST]  [/INST]aE[INST] u [/INST]"),
        ((U, S, A), "B[INST] u\n\ns [/INST]aE"),
        ((S,), "B[INST] s [/INST]"),
        ((("developer", "d"), U), "B[INST] d\n\nu [/INST]"),
        ((U, ("user", "")), "B[INST] u [/INST]"),
    ],
)
def test_what_mixtral_refuses_is_folded(turns: tuple[CHAT, ...], written: str) -> None:
    written = written.replace("B", "<|endoftext|>").replace("E", "<|im_end|>")
    for _ in range(2):  # the second time from memory
        assert FIRST.apply_chat(chat(*turns)) == written
    parts = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    assert FIRST.apply_chat(parts) == written


def test_no_more_is_folded_than_is_refused() -> None:
    """This template takes a system prompt, and has it in the first turn itself."""
    seen: list[Any] = []

    def write(messages: Any) -> str:
        seen.append([message["role"] for message in messages])
        return ChatTemplate(TEMPLATES["mixtral"], {"bos_token": "", "eos_token": ""}).render(messages)

    Folding().write(chat(S, U, U), write)
    assert seen == [["system", "user", "user"], ["system", "user"], ["system", "user", "user"]]  # the last is a trial
    seen.clear()
    Folding().write(chat(S, U, A), write)
    assert seen == [["system", "user", "assistant"]]
    assert (
        made(TEMPLATES["chatml"]).apply_chat(chat(A, S, U, U)).count("im_start") == 6
    )  # a default system prompt before


@settings(max_examples=60, deadline=None)
@given(turns=st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.sampled_from("xyz")), max_size=7))
def test_any_conversation_is_taken_and_no_word_lost(turns: list[CHAT]) -> None:
    messages = chat(*[(role, f"w{index}{text}") for index, (role, text) in enumerate(turns)])
    text = FIRST.apply_chat(messages)
    places = [text.index(message["content"]) for message in messages]
    assert places == sorted(places) and len(set(places)) == len(turns)
    for fold in (merged, without_system):
        folded = fold(messages)
        assert fold(folded) == folded or not messages
        roles = [turn["role"] for turn in folded]
        assert all(a != b for a, b in zip(roles, roles[1:], strict=False))


def test_calls_and_results_are_not_merged() -> None:
    called = {"role": "assistant", "content": "", "tool_calls": [{"id": "x"}]}
    result = {"role": "tool", "content": "1"}
    messages = [*chat(U), called, called, result, result, *chat(A, A)]
    assert merged(messages) == [*chat(U), called, called, result, result, *chat(("assistant", "a\n\na"))]


def test_what_nothing_helps_is_refused_as_it_was_given() -> None:
    never = made("{{ raise_exception('no ' ~ messages | length) }}")
    with pytest.raises(RefusedError, match="refused the messages: no 3"):
        never.apply_chat(chat(S, U, U))
    with pytest.raises(UserError, match="failed") as caught:
        made("{{ messages.x.y }}").apply_chat(chat(S, U, U))
    assert not isinstance(caught.value, RefusedError)


def test_marks_of_a_folded_chat_are_where_the_parts_end() -> None:
    messages = chat(("system", "Be very brief."), ("user", "first question"), ("assistant", "Yes."), ("user", "more"))
    marked = FIRST.encode_marked(messages)
    texts = [FIRST.decode(marked.ids[:mark], skip_special_tokens=False) for mark in marked.marks]
    assert texts[0].endswith("Be very brief.") and texts[1].endswith("first question")
    assert len(texts) == 3 and texts[2].endswith("more")


def test_marks_after_results_of_functions() -> None:
    messages = [*chat(("user", "question")), {"role": "tool", "content": "result"}, *chat(("assistant", "so"))]
    tokenizer = made("{% for m in messages %}<{{ m.content }}>{% endfor %}")
    marked = tokenizer.encode_marked(messages)
    assert [tokenizer.decode(marked.ids[:mark]) for mark in marked.marks][-2:] == ["<question", "<question><result"]


def test_what_one_said_changes_nothing_for_others() -> None:
    """A refusal of words is none of the order of turns."""
    picky = made(
        "{% for m in messages %}{% if m.role == 'system' and 'no' in m.content %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.role }}:{{ m.content }};{% endfor %}"
    )
    assert picky.apply_chat(chat(("system", "no"), U)) == "user:no\n\nu;"
    assert picky.apply_chat(chat(S, U)) == "system:s;user:u;"


def test_long_conversations_leave_little_behind() -> None:
    tokenizer = made(FIRST_MIXTRAL)
    tracemalloc.start()
    for length in range(1000, 1004):
        tokenizer.apply_chat(chat(*[U] * length))
    gc.collect()
    held = [each.size for each in tracemalloc.take_snapshot().filter_traces(FROM_DATA).traces]
    tracemalloc.stop()
    assert sum(held) < 4 * 2000
