"""The tokenizer of a model folder: as transformers reads it, and one clear line where it cannot be read."""

import json
import os
import subprocess
import sys

import pytest

from octavo.data.tokenizer import Tokenizer
from octavo.errors import UserError
from tests.data.chat_templates import CONVERSATIONS, TEMPLATES
from tests.data.tiny_tokenizers import SPECIAL, TEXT, byte_level, sentencepiece
from tests.tiny import tiny_tokenizer_files

UNK, BOS, EOS, START, END = range(len(SPECIAL))
ADDED = {
    str(index): {"content": token, "special": True, "normalized": False, "lstrip": False, "rstrip": False}
    for index, token in enumerate(SPECIAL)
}
CONFIG = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "added_tokens_decoder": ADDED}
KINDS = {"byte-level": byte_level(), "sentencepiece": sentencepiece(), "metaspace": sentencepiece(metaspace=True)}


def folder(path, tokenizer=None, **files):
    """A model folder with tokenizer.json and other files; keyword `config` is config.json."""
    (path / "tokenizer.json").write_text(tokenizer or byte_level(), encoding="utf-8")
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (path / (name if "." in name else f"{name}.json")).write_text(text, encoding="utf-8")
    return path


def from_folder(path, **files):
    return Tokenizer.from_folder(folder(path, **files))


@pytest.mark.parametrize("kind", KINDS)
def test_as_transformers(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    config = CONFIG | {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATES["chatml"]}
    tokenizer = from_folder(tmp_path, tokenizer=KINDS[kind], tokenizer_config=config)
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in [*TEXT, "", " ", "<s>a</s>b <|im_end|> c", "a  b\n\n\tc", "🇫🇷 👨‍👩‍👧 \x00"]:
        for special in (True, False):
            ids = tokenizer.encode(text, add_special_tokens=special)
            assert ids == reference(text, add_special_tokens=special)["input_ids"]
            assert tokenizer.decode(ids, skip_special_tokens=special) == reference.decode(
                ids, skip_special_tokens=special, clean_up_tokenization_spaces=False
            )
    for name in ("one", "turns"):
        messages = CONVERSATIONS[name]
        expected = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert tokenizer.encode_chat(messages) == expected
        expected = reference.apply_chat_template(messages, tokenize=False)
        assert tokenizer.apply_chat(messages, add_generation_prompt=False) == expected
    assert tokenizer.vocab_size == len(reference)
    assert tokenizer.bos_id == reference.bos_token_id == BOS
    assert tokenizer.eos_ids == {reference.eos_token_id} == {EOS}
    assert tokenizer.pad_id is reference.pad_token_id is None
    assert tokenizer.special_ids == set(reference.all_special_ids) | {START, END}


def test_chats_have_one_beginning(tmp_path):
    """The template writes <s>, and so would tokenizer.json: encode_chat leaves it to the template."""
    tokenizer = from_folder(
        tmp_path, tokenizer=sentencepiece(), tokenizer_config=CONFIG | {"chat_template": TEMPLATES["mixtral"]}
    )
    assert tokenizer.encode("Hi")[:1] == [BOS]
    assert tokenizer.encode("Hi", add_special_tokens=False).count(BOS) == 0
    assert tokenizer.encode_chat(CONVERSATIONS["turns"]).count(BOS) == 1


def test_tools_and_prompt_reach_the_template(tmp_path):
    source = "{{ tools | length }} {{ add_generation_prompt }}"
    tokenizer = from_folder(tmp_path, **{"chat_template.jinja": source})
    assert tokenizer.apply_chat(CONVERSATIONS["one"], tools=[1, 2], add_generation_prompt=False) == "2 False"
    assert tokenizer.encode_chat(CONVERSATIONS["one"], tools=[1]) == tokenizer.encode("1 True")


@pytest.mark.parametrize(
    ("files", "bos", "eos", "pad"),
    [
        ({}, None, set(), None),
        ({"tokenizer_config": {"eos_token": "</s>"}}, None, {EOS}, None),
        ({"tokenizer_config": {"eos_token": {"content": "</s>", "special": True}}}, None, {EOS}, None),
        ({"tokenizer_config": {"eos_token": None, "bos_token": "<nowhere>"}}, None, set(), None),
        ({"special_tokens_map": {"bos_token": "<s>", "pad_token": {"content": "</s>"}}}, BOS, set(), EOS),
        ({"config": {"eos_token_id": 4, "bos_token_id": 3, "pad_token_id": 0}}, START, {END}, UNK),
        ({"config": {"eos_token_id": None}}, None, set(), None),
        ({"generation_config": {"eos_token_id": [2, 4], "bos_token_id": 1}}, BOS, {EOS, END}, None),
        (
            {
                "tokenizer_config": {"eos_token": "<|im_end|>", "bos_token": "<s>"},
                "config": {"eos_token_id": 2, "bos_token_id": 3},
                "generation_config": {"eos_token_id": [90001], "bos_token_id": 4, "pad_token_id": 2},
            },
            BOS,
            {EOS, END, 90001},
            EOS,
        ),
    ],
)
def test_which_tokens_begin_and_end(tmp_path, files, bos, eos, pad):
    tokenizer = from_folder(tmp_path, **files)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (bos, eos, pad)


def test_special_tokens_map_of_old_and_new_folders(tmp_path):
    """As in transformers: it wins in folders from before the table of added tokens."""
    names = {"special_tokens_map": {"eos_token": "<|im_end|>"}, "tokenizer_config": {"eos_token": "</s>"}}
    assert from_folder(tmp_path, **names).eos_ids == {END}
    names["tokenizer_config"] = CONFIG
    assert from_folder(tmp_path, **names).eos_ids == {EOS}


def test_named_tokens_are_special(tmp_path):
    """A tokenizer.json may hold </s> as a plain piece; the config's word makes it special."""
    content = json.loads(sentencepiece())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "</s>"]
    plain = from_folder(tmp_path, tokenizer=json.dumps(content))
    assert EOS not in plain.special_ids and plain.decode([EOS]) == "</s>"
    named = from_folder(tmp_path, tokenizer=json.dumps(content), tokenizer_config=CONFIG)
    assert EOS in named.special_ids and named.decode([EOS]) == "" and named.encode("</s>")[-1] == EOS
    assert named.vocab_size == plain.vocab_size


def test_added_tokens_need_not_be_special(tmp_path):
    content = json.loads(byte_level())
    content["added_tokens"][START]["special"] = False
    tokenizer = from_folder(tmp_path, tokenizer=json.dumps(content))
    assert tokenizer.special_ids == {UNK, BOS, EOS, END}
    assert tokenizer.decode([START, END]) == "<|im_start|>"


def test_truncation_and_padding_are_switched_off(tmp_path):
    content = json.loads(byte_level())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<unk>",
    }  # fmt: skip
    tokenizer = from_folder(tmp_path, tokenizer=json.dumps(content))
    assert tokenizer.encode("Hello world, hello!") == from_folder(tmp_path).encode("Hello world, hello!")
    assert 4 < len(tokenizer.encode("Hello world, hello! Hello")) < 64


def test_ids_without_a_token_have_no_text(tmp_path):
    """The embedding of a model is often larger than its vocabulary."""
    tokenizer = from_folder(tmp_path)
    assert tokenizer.decode([10**6, *tokenizer.encode("Hi"), tokenizer.vocab_size]) == "Hi"


def test_ids_without_a_token_are_not_remembered() -> None:
    """Strangers may ask for the text of any."""
    tokenizer = Tokenizer.from_files(tiny_tokenizer_files(), "tiny")
    assert {tokenizer.decode([10**6 + at]) for at in range(100)} == {""}
    assert not tokenizer._alone and tokenizer.decode([5]) and len(tokenizer._alone) == 1


def test_half_a_surrogate_pair(tmp_path):
    """JSON can hold one, and with it a request to the server."""
    with pytest.raises(UserError, match="surrogate pair at character 1"):
        from_folder(tmp_path).encode("a\ud83db")


TEMPLATE_SOURCES = [
    ({}, None),
    ({"tokenizer_config": {"chat_template": "one"}}, "one"),
    ({"tokenizer_config": {"chat_template": None}}, None),
    ({"tokenizer_config": {"chat_template": [{"name": "x", "template": "X"}]}}, None),
    (
        {"tokenizer_config": {"chat_template": [{"name": "x", "template": "X"}, {"name": "default", "template": "D"}]}},
        "D",
    ),
    ({"tokenizer_config": {"chat_template": "one"}, "chat_template.jinja": "file é"}, "file é"),
]


@pytest.mark.parametrize(("files", "source"), TEMPLATE_SOURCES)
def test_where_the_template_comes_from(tmp_path, files, source):
    template = from_folder(tmp_path, **files).chat_template
    assert (template and template.source) == source


def test_special_tokens_in_templates(tmp_path):
    config = CONFIG | {"extra_special_tokens": {"image_token": "<i>"}, "boi_token": "<b>", "add_bos_token": True}
    source = "{{ bos_token }}{{ eos_token }}{{ image_token }}{{ boi_token }}{{ add_bos_token }}{{ pad_token }}"
    tokenizer = from_folder(tmp_path, tokenizer_config=config, **{"chat_template.jinja": source})
    assert tokenizer.apply_chat([]) == "<s></s><i><b>"


def test_without_a_template(tmp_path):
    with pytest.raises(UserError, match=r"has no chat template; use `octavo generate` without --chat, or add"):
        from_folder(tmp_path).encode_chat(CONVERSATIONS["one"])


def test_a_broken_template_hurts_only_chats(tmp_path):
    tokenizer = from_folder(tmp_path, **{"chat_template.jinja": "{% if"})
    assert tokenizer.encode("Hi")
    with pytest.raises(UserError, match="syntax error"):
        tokenizer.apply_chat(CONVERSATIONS["one"])


def test_missing(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}: tokenizer.json is missing"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(UserError, match=r"only tokenizer.model.*save_pretrained"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "cannot read tokenizer.json"),
        ("tokenizer.json", "[]", "cannot read tokenizer.json"),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "Unheard-of"}}', "cannot read tokenizer.json"),
        ("tokenizer.json", "", "cannot read tokenizer.json"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is damaged"),
        ("tokenizer_config.json", "[" * 100_000, "tokenizer_config.json is damaged"),
        ("config.json", "[]", "config.json holds no JSON object"),
        ("config.json", '{"eos_token_id": "</s>"}', "eos_token_id in config.json is '</s>'"),
        ("generation_config.json", '{"eos_token_id": [2, 0.5]}', r"eos_token_id in generation_config.json is \[2,"),
        ("generation_config.json", '{"bos_token_id": true}', "bos_token_id in generation_config.json is True"),
        ("tokenizer_config.json", '{"chat_template": {"a": 1}}', "chat_template in tokenizer_config.json is neither"),
        ("chat_template.jinja", os.fsdecode(b"\xff"), "chat_template.jinja is not UTF-8"),
    ],
)
def test_damaged(tmp_path, name, content, message):
    folder(tmp_path)
    (tmp_path / name).write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError, match=f"{tmp_path}: {message}") as caught:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_panic_of_the_library_is_an_error_like_any_other():
    content = json.loads(sentencepiece())
    content["model"]["continuing_subword_prefix"] = "much longer than any piece"
    with pytest.raises(UserError, match="cannot read tokenizer.json") as caught:
        Tokenizer.from_files({"tokenizer.json": json.dumps(content).encode()}, "hostile")
    assert not isinstance(caught.value.__cause__, Exception)  # or this tokenizer.json no longer causes one


def test_files_as_bytes(tmp_path):
    folder(tmp_path, tokenizer_config=CONFIG)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    tokenizer = Tokenizer.from_files(files, "hub/name")
    assert tokenizer.eos_ids == {EOS}
    with pytest.raises(UserError, match="^hub/name: tokenizer.json is missing"):
        Tokenizer.from_files({}, "hub/name")


def test_no_heavy_imports():
    code = "import sys, octavo.data.tokenizer; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
