"""Marks in a chat's tokens: what precedes one is the same in every conversation that parts from this one behind it."""

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers, processors

from octavo.data.chat_marks import EncodedChat, mark_places, marks_at
from octavo.data.tokenizer import Tokenizer
from tests.data.chat_templates import TEMPLATES
from tests.data.tiny_tokenizers import TEXT as TRAINED
from tests.data.tiny_tokenizers import byte_level, sentencepiece
from tests.tiny import TEXTS

KINDS = {"byte-level": byte_level, "sentencepiece": sentencepiece, "metaspace": lambda: sentencepiece(metaspace=True)}
SHOWN = ["chatml", "mixtral", "llama3", "minimax"]
# what the tokenizers have merges for, what they spell in bytes, and white space that templates trim
CONTENT = st.one_of(
    st.lists(st.sampled_from([*" \n\tabdehlorw.,:[]<>/世é😀", "the ", "world", "Hello", "user", "[INST]"]), min_size=1)
    .map("".join).filter(lambda text: text.strip() != ""),
    st.sampled_from(TRAINED + TEXTS),
)  # fmt: skip
EXAMPLES = 15
TURN = st.tuples(CONTENT, CONTENT)
Message = dict[str, Any]


@cache
def tokenizer(kind: str, template: str) -> Tokenizer:
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATES.get(template, template)}
    files = {"tokenizer.json": KINDS[kind]().encode(), "tokenizer_config.json": json.dumps(settings).encode()}
    return Tokenizer.from_files(files, kind)


def said(system: str | None, turns: list[tuple[str, str]], question: str) -> list[Message]:
    written = [] if system is None else [("system", system)]
    for user, assistant in turns:
        written += [("user", user), ("assistant", assistant)]
    return [{"role": role, "content": content} for role, content in [*written, ("user", question)]]


@pytest.mark.parametrize("template", SHOWN)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=EXAMPLES, deadline=None)
@given(st.none() | CONTENT, CONTENT, CONTENT)
def test_ids_to_the_first_mark_are_those_of_any_other_question(kind, template, system, one, other) -> None:
    chats = [tokenizer(kind, template).encode_marked(said(system, [], question)) for question in (one, other)]
    for chat, another in (chats, chats[::-1]):
        first = chat.marks[0] if chat.marks else 0  # none where a short question is found at the very beginning
        assert chat.ids[:first] == another.ids[:first]


@pytest.mark.parametrize("template", SHOWN)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.none() | CONTENT,
    st.lists(TURN, max_size=2),
    CONTENT,
    st.lists(st.tuples(CONTENT, CONTENT), min_size=2, max_size=2),
)
def test_ids_to_a_mark_are_those_of_any_other_continuation(kind, template, system, turns, question, further) -> None:
    own = tokenizer(kind, template)
    shared = own.encode_marked(said(system, turns, question))
    for answer, next_question in further:
        chat = own.encode_marked(said(system, [*turns, (question, answer)], next_question))
        assert set(shared.marks) <= set(chat.marks)
        last = max(shared.marks, default=0)
        assert chat.ids[:last] == shared.ids[:last]
        assert chat.ids == own.encode_chat(said(system, [*turns, (question, answer)], next_question))
        assert list(chat.marks) == sorted(set(chat.marks) - {0, len(chat.ids)})


def before_marks(own: Tokenizer, chat: EncodedChat) -> list[str]:
    return [own.decode(chat.ids[:mark], skip_special_tokens=False) for mark in chat.marks]


@pytest.mark.parametrize("kind", KINDS)
def test_places_in_chatml_and_mixtral(kind) -> None:
    """In Mixtral's, the white space before a question may belong to its first token: the mark stands before it."""
    turns, own = [("Hello", "the world")], tokenizer(kind, "chatml")
    head = "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user"
    spaced = kind == "sentencepiece"  # its decoder leaves the space that it puts after each special token
    texts = before_marks(own, own.encode_marked(said("Be brief", turns, "why? ")))
    again = f"{head}\nHello<|im_end|>\n<|im_start|>assistant\nthe world<|im_end|>\n<|im_start|>user\nwhy? "
    found = [text.replace("> ", ">") if spaced else text for text in texts]
    assert found == [head, f"{head}\nHello", again]
    own = tokenizer(kind, "mixtral")
    texts = before_marks(own, own.encode_marked(said("Be brief", turns, "why?")))
    found = [text.replace("> ", ">") if spaced else text for text in texts]
    first = "<s>[INST] Be brief"
    assert found == [first, f"{first}\n\nHello", f"{first}\n\nHello [/INST] the world</s>[INST] why?"]


def test_tools_belong_to_the_prefix() -> None:
    own = tokenizer("byte-level", "{{ tools | length }}tools {% for m in messages %}{{ m.content }}!{% endfor %}")
    chat = own.encode_marked(said(None, [], "Hello"), tools=[1, 2])
    assert before_marks(own, chat) == ["2tools", "2tools Hello"]
    without = own.encode_marked([{"role": "assistant", "content": "Hello"}], tools=[1], add_generation_prompt=False)
    assert before_marks(own, without) == ["1tools"]


PLACES = [
    (
        [("system", "S"), ("user", "one"), ("assistant", "two"), ("user", "three")],
        "[S] (one) {two} (three)",
        [5, 8, 22],
    ),
    ([("user", "a"), ("assistant", "a"), ("user", "a")], "a-a-a", [0, 1, 5]),
    ([("user", " one\n")], "<one>", [1, 4]),  # trimmed by the template
    ([("user", "one\n")], "<one\n>", [1, 5]),
    ([("user", "one"), ("user", "two")], "<two>", [4]),  # the first left out: no place for it, nor for the prefix
    ([("user", "one"), ("assistant", None), ("user", "two")], "<one><call><two>", [1, 4, 15]),
    ([("user", [{"type": "text", "text": t} for t in ("one", "", "two")])], "<one, two>", [1, 9]),
    ([("user", [{"type": "image"}]), ("user", "two")], "<image two>", [10]),
    ([("user", "  "), ("user", "two")], "<  two>", [6]),
    ([("developer", "D"), ("user", "ser")], "D user: ser", [3, 6]),  # too early, never too late
    ([("user", "one"), ("assistant", "two\n"), ("user", "two\nlong")], "one two two\nlong", [0, 3, 16]),
]


@pytest.mark.parametrize(("messages", "text", "places"), PLACES)
def test_places_in_a_text(messages, text, places) -> None:
    assert list(mark_places(text, [{"role": role, "content": content} for role, content in messages])) == places


def test_marks_part_no_character() -> None:
    offsets = [(0, 3), (3, 4), (3, 4), (3, 5), (5, 9), (9, 9), (9, 10)]
    assert marks_at(range(12), offsets) == (1, 4, 6)
    assert marks_at([9, 4, 4], offsets) == (1, 6) and marks_at([], offsets) == marks_at([1], []) == ()


def test_offsets_are_those_of_the_text_as_written() -> None:
    """Through a normalizer that shortens the text, and a post-processor that trims offsets."""
    content = "e\u0301" * 3
    for change in (lambda b: setattr(b, "normalizer", normalizers.NFC()),
                   lambda b: setattr(b, "post_processor", processors.ByteLevel(trim_offsets=True))):  # fmt: skip
        backend = Backend.from_str(byte_level())
        change(backend)
        own = Tokenizer(backend, {}, "<s>{% for m in messages %} {{ m.content }} <s>{% endfor %}", "changed")
        chat = own.encode_marked([{"role": "user", "content": content}, {"role": "user", "content": "world"}])
        bounds = [own.encode(text) for text in ("<s>", f"<s> {content}", f"<s> {content} <s> world")]
        assert [chat.ids[:mark] for mark in chat.marks] == bounds
