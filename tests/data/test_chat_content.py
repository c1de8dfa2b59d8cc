"""Strings and lists of parts reach every template in the form that it reads; MiniMax-Text-01's special tokens."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from octavo.data.chat_content import ContentForms
from octavo.data.chat_template import ChatTemplate
from octavo.data.tokenizer import Tokenizer
from octavo.errors import UserError
from tests.data.chat_templates import CONVERSATIONS, TEMPLATES
from tests.tiny import tiny_tokenizer_files

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

# As the released template is described: only the first part of a content is read, and tools come after all messages.
MINIMAX = """{% for message in messages %}{% if message['role'] == 'system' -%}
{{ '<beginning_of_sentence>system ai_setting=assistant\n' + message['content'][0]['text'] + '<end_of_sentence>\n' }}
{%- elif message['role'] == 'user' -%}
{{ '<beginning_of_sentence>user name=user\n' + message['content'][0]['text'] + '<end_of_sentence>\n' }}
{%- elif message['role'] == 'assistant' -%}
{{ '<beginning_of_sentence>ai name=assistant\n' }}{% generation %}{{ message['content'][0]['text'] }}{% endgeneration %}
{{- '<end_of_sentence>\n' }}
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<beginning_of_sentence>ai name=assistant\n' }}{% endif %}"""
PARTS_LOOP = """{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"""
WRITTEN = "<beginning_of_sentence>{}\n{}<end_of_sentence>\n"


def text(content: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}]


# Llama-3.2-Vision's way: users may send parts, a system prompt must be a string
MIXED = """{% if messages[0].role == 'system' %}{{ messages[0].content | trim }};
{%- set messages = messages[1:] %}{% endif %}
{%- for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content -%}
{{ part.text }}{% endfor %}{% endif %};{% endfor %}"""
DEMANDING = "{% if messages[0].role != 'system' %}{{ raise_exception('a system prompt first') }}{% endif %}" + MINIMAX
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
)
STRICT += "{% endif %}{{ m.content + ';' }}{% endfor %}"
LOUD = "{% for m in messages %}{{ m.content | upper }};{% endfor %}"
EXAMPLE = """Answer as {"type": "text", "text": "..."}: {% for m in messages %}{{ m.content }};{% endfor %}"""
KEYS = "{{ messages | tojson }}"
SYSTEM = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes."), ("user", "And?")]
PLAIN = SYSTEM[1:]


def written(source: str, conversation: list[tuple[str, str]], form: Callable[[str], Any]) -> str:
    template = ChatTemplate(source, SPECIAL)
    return template.render(ContentForms(template).fit([{"role": r, "content": form(c)} for r, c in conversation]))


@pytest.mark.parametrize("conversation", [SYSTEM, PLAIN, SYSTEM[:2], PLAIN[:1]], ids=len)
@pytest.mark.parametrize(
    "source",
    [
        MINIMAX,
        DEMANDING,
        MIXED,
        STRICT,
        LOUD,
        EXAMPLE,
        KEYS,
        PARTS_LOOP,
        *(TEMPLATES[n] for n in ("chatml", "llama3", "tools")),
    ],
)
def test_strings_and_lists_come_out_alike(source, conversation) -> None:
    """Every text is there whatever form it came in, and no list is written out."""
    try:
        as_strings = written(source, conversation, str)
    except UserError:  # it refuses such a conversation in any form
        with pytest.raises(UserError):
            written(source, conversation, text)
        return
    as_parts = written(source, conversation, text)
    if source == KEYS:  # it writes out whatever it gets
        assert '"content": "Hi"' in as_strings and '"content": "Hi"' in as_parts
        return
    for _, content in conversation:
        assert content.lower() in as_strings.lower() and content.lower() in as_parts.lower()
    assert "'type'" not in as_parts and as_parts.count('"text":') == as_strings.count('"text":')
    assert as_parts == as_strings or source in (TEMPLATES["tools"], MIXED, PARTS_LOOP)


def test_minimax_text_01_with_strings_and_lists() -> None:
    forms, template = ContentForms(ChatTemplate(MINIMAX)), ChatTemplate(MINIMAX)
    conversation = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes."), ("user", "And {{ 'x' }}?")]
    heads = {"system": "system ai_setting=assistant", "user": "user name=user", "assistant": "ai name=assistant"}
    expected = "".join(WRITTEN.format(heads[role], content) for role, content in conversation)
    expected += "<beginning_of_sentence>ai name=assistant\n"
    for form in (str, text):
        messages = [{"role": role, "content": form(content)} for role, content in conversation]
        assert template.render(forms.fit(messages)) == expected
    with pytest.raises(UserError):  # what happens to strings without it
        template.render([{"role": "user", "content": "Hi"}])
    two = [{"role": "user", "content": text("a") + text("b")}]
    assert WRITTEN.format(heads["user"], "a\nb") in template.render(forms.fit(two))


def test_lists_for_templates_that_read_strings() -> None:
    forms = ContentForms(ChatTemplate(TEMPLATES["chatml"]))
    fitted = forms.fit(CONVERSATIONS["parts"])
    assert [message["content"] for message in fitted] == ["Be brief.", "a\nb", "c"]
    assert [message["role"] for message in fitted] == ["system", "user", "assistant"]


@pytest.mark.parametrize("content", [None, "", [], 7, [{"type": "image_url", "image_url": "x"}], text("a") + [None]])
@pytest.mark.parametrize("source", [MINIMAX, TEMPLATES["chatml"]])
def test_what_is_not_text_stays_as_it_is(source, content) -> None:
    forms = ContentForms(ChatTemplate(source))
    message = {"role": "assistant", "content": content, "tool_calls": []}
    assert forms.fit([message, {"role": "user"}]) in (
        [message, {"role": "user"}],
        [{**message, "content": text("")}, {"role": "user"}],
    )


def test_a_kind_of_conversation_is_rehearsed_once(monkeypatch) -> None:
    template, calls = ChatTemplate(MINIMAX), []
    render = template.render
    monkeypatch.setattr(template, "render", lambda *a, **k: calls.append(1) or render(*a, **k))
    forms = ContentForms(template)
    for content in ("Hi", "Ho", "Hey"):
        forms.fit([{"role": "user", "content": content}])
    assert len(calls) == 2  # as given, then as parts
    forms.fit([{"role": "user", "content": text("Hi")}])
    assert len(calls) == 3


def test_a_rehearsal_that_failed_is_not_remembered(monkeypatch) -> None:
    """A machine under load may kill a rendering; the next conversation must not lose its texts for it."""
    template = ChatTemplate(MINIMAX)
    forms, messages = ContentForms(template), [{"role": "user", "content": "Hi"}]

    def late(*_: Any, **__: Any) -> str:
        raise UserError("took longer than its limit of 5 seconds")

    with monkeypatch.context() as patch:
        patch.setattr(template, "render", late)
        assert forms.fit(messages) == messages
    assert forms.fit(messages) == [{"role": "user", "content": text("Hi")}]


def test_texts_that_no_form_brings_out_are_warned_of(caplog) -> None:
    forms = ContentForms(ChatTemplate("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"))
    with caplog.at_level(logging.WARNING):
        fitted = forms.fit([{"role": "system", "content": "secret"}, {"role": "user", "content": text("Hi")}])
    assert fitted[1]["content"] == "Hi"
    assert [r.getMessage() for r in caplog.records] == [
        "the chat template leaves out 1 of 2 texts of this conversation, as strings and as parts"
    ]


def test_through_the_tokenizer() -> None:
    files = tiny_tokenizer_files()
    files["chat_template.jinja"] = MINIMAX.encode()
    tokenizer = Tokenizer.from_files(files, "tiny")
    as_string = tokenizer.encode_chat([{"role": "user", "content": "Hi"}])
    assert as_string == tokenizer.encode_chat([{"role": "user", "content": text("Hi")}])
    assert "user name=user\nHi<end" in tokenizer.decode(as_string, skip_special_tokens=False)
    with pytest.raises(UserError, match="must be objects"):
        tokenizer.encode_chat(["Hi"])


def test_the_released_end_token_is_found_though_config_json_has_none() -> None:
    """GPT2Tokenizer files of 200,064 ids; config.json says null, and 200020 is <end_of_sentence>."""
    special = {200019: "<beginning_of_sentence>", 200020: "<end_of_sentence>", 200021: "<end_of_document>"}
    vocabulary = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {special.get(index, f"token{index}"): index for index in range(len(vocabulary), 200064)}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": special[200019], "eos_token": special[200020],
                "unk_token": special[200021], "chat_template": MINIMAX}  # fmt: skip
    files = {
        "tokenizer.json": backend.to_str().encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
        "config.json": b'{"bos_token_id": null, "eos_token_id": null}',
    }
    tokenizer = Tokenizer.from_files(files, "MiniMax-Text-01")
    assert tokenizer.eos_ids == {200020} and tokenizer.bos_id == 200019
    ids = tokenizer.encode_chat([{"role": "user", "content": "Hi"}])
    assert ids[0] == 200019 and ids.count(200020) == 1 and ids.count(200019) == 2


def test_parts_with_more_in_them_than_text_stay_parts() -> None:
    """MiniMax-M1 reads the name of a function beside each result, and strings nowhere."""
    source = (
        "{% for m in messages %}{% for part in m.content %}{{ part.name }}={{ part.text }};{% endfor %}{% endfor %}"
    )
    results = [{"type": "text", "text": "1", "name": "f"}, {"type": "text", "text": "2", "name": "g"}]
    messages = [{"role": "user", "content": "Hi"}, {"role": "tool", "content": results}]
    assert ChatTemplate(source).render(ContentForms(ChatTemplate(source)).fit(messages)) == "=Hi;f=1;g=2;"
