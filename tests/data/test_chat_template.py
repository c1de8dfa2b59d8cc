"""Chat templates render as transformers renders them, and what goes wrong is told in one clear line."""

import itertools
import json
import threading
from datetime import datetime

import jinja2
import pytest

from octavo.data.chat_template import ChatTemplate
from octavo.errors import UserError
from tests.data.chat_templates import CONVERSATIONS, TEMPLATES, TOOLS

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
USER = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_as_transformers(name, conversation):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"x": 0}, unk_token="x"))
    reference = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)
    source, messages = TEMPLATES[name], CONVERSATIONS[conversation]
    template = ChatTemplate(source, SPECIAL)
    for tools, prompt in itertools.product((None, TOOLS), (True, False)):
        given = {"tools": tools, "add_generation_prompt": prompt}
        try:
            expected = reference.apply_chat_template(messages, chat_template=source, tokenize=False, **given)
        except (ValueError, TypeError, jinja2.TemplateError) as error:
            with pytest.raises(UserError) as caught:
                template.render(messages, **given)
            assert str(error) in str(caught.value)
        else:
            assert template.render(messages, **given) == expected


def test_the_conversations_exercise_the_templates():
    """Every template but the failing one renders something, and those that can refuse, refuse something."""
    outcomes = {name: set() for name in TEMPLATES}
    for name, source in TEMPLATES.items():
        for messages in CONVERSATIONS.values():
            try:
                outcomes[name].add(ChatTemplate(source, SPECIAL).render(messages))
            except UserError as error:
                outcomes[name].add(type(error))
    for name, found in outcomes.items():
        assert (found == {UserError}) == (name == "fails"), name
        assert len(found) > 1 or name in ("fails", "whitespace", "strings"), name
    assert UserError in outcomes["mixtral"] and UserError in outcomes["minimax"]


def test_mixtral_by_hand():
    text = ChatTemplate(TEMPLATES["mixtral"], SPECIAL).render(CONVERSATIONS["turns"])
    assert text == ("<s>[INST] Be brief. 好😀 \n\nHi [/INST] <think>\nhm\n</think>\n\nYes.</s>[INST] Hm, and? [/INST]")


def test_date_is_today():
    before = datetime.now().strftime("%d %b %Y")
    text = ChatTemplate(TEMPLATES["llama3"], SPECIAL).render(USER)
    after = datetime.now().strftime("%d %b %Y")
    assert f"Today is {before}." in text or f"Today is {after}." in text


def test_special_tokens_and_variables():
    source = "{{ bos_token }}{{ extra }}{{ eos_token is defined }}"
    assert ChatTemplate(source).render(USER) == "False"
    assert ChatTemplate(source, {"bos_token": "<s>"}).render(USER, extra=1) == "<s>1False"
    assert ChatTemplate(source, {"bos_token": "<s>"}).render(USER, bos_token="<b>") == "<b>False"


def test_messages_reach_the_template_unchanged():
    message = {"role": "user", "content": [{"type": "text", "text": "好\n'\"\u2028"}], "extra": {"x": [1, None, 2.5]}}
    seen = ChatTemplate("{{ [messages, tools] | tojson }}").render((message,), tools=(1,))
    assert json.loads(seen) == [[message], [1]]


def test_refusal_carries_the_message():
    template = ChatTemplate("{{ raise_exception('need a\\nsystem \\x1b[31mprompt') }}")
    with pytest.raises(UserError, match=r"^chat template refused the messages: need a system \?\[31mprompt$"):
        template.render(USER)


def test_long_refusals_are_cut():
    with pytest.raises(UserError) as caught:
        ChatTemplate("{{ raise_exception('x' * 100000) }}").render(USER)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n{% if %}", "syntax error in line 2"),
        ("{{ x | nofilter }}", "syntax error in line 1: No filter named 'nofilter'"),
        ("{% for x in y %}", "syntax error in line 1"),
        ("{% include 'x' %}", "failed"),
        ("{% break %}", "failed: SyntaxError"),
        ("{{ nothing.at.all }}", "failed: UndefinedError: 'nothing' is undefined"),
        ("{{ 1 + 'a' }}", "failed: TypeError"),
        ("{{ 1 / 0 }}", "failed: ZeroDivisionError"),
        ("{{ messages() }}", "failed: TypeError"),
    ],
)
def test_templates_that_fail(source, message):
    template = ChatTemplate(source)
    with pytest.raises(UserError) as caught:
        template.render(USER)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_values_that_are_not_json_are_refused():
    with pytest.raises(UserError, match="must be JSON values"):
        ChatTemplate("x").render([{"role": "user", "content": object()}])


def test_messages_must_be_mappings():
    with pytest.raises(UserError, match="role and a content"):
        ChatTemplate("").render(["Hi"])


def test_one_template_in_many_threads():
    template = ChatTemplate("{% for m in messages %}{% for i in range(50) %}{{ m.content }}{% endfor %}{% endfor %}")
    wrong = []

    def work(text):
        for _ in range(20):
            if template.render([{"role": "user", "content": text}]) != text * 50:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(str(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
