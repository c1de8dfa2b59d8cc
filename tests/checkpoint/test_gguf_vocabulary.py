"""Tokenizers written into GGUF files: each rule that is read comes back, and no other is written under its name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from octavo.checkpoint.gguf import GGUFFile
from octavo.checkpoint.gguf_tokenizer import SPLITS, tokenizer_files
from octavo.checkpoint.gguf_vocabulary import vocabulary_fields
from octavo.checkpoint.gguf_writer import write_gguf
from octavo.config import ModelConfig
from octavo.data.tokenizer import Tokenizer
from octavo.errors import UserError
from tests.checkpoint.test_gguf_tokenizer import TEMPLATE, TEXTS, write_byte_level, write_sentencepiece
from tests.tiny import tiny_config, tiny_tokenizer_files

GIVEN = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe", "midm-2.0": "llama-bpe",
         "pixtral": "llama-bpe", "starcoder": "smollm", "refact": "smollm", "minerva-7b": "smollm",
         "default": "gpt-2"}  # fmt: skip


class Vocabulary:
    """A source that has a tokenizer and a config, and nothing else."""

    label, dtype, licence = "the model", torch.float32, None

    def __init__(self, files: dict[str, bytes], **changes: Any) -> None:
        self.files = files
        size = max(Backend.from_str(files["tokenizer.json"].decode()).get_vocab().values()) + 1
        ids = {"vocab_size": size, "bos_token_id": None, "eos_token_id": None}
        self.config: ModelConfig = tiny_config("llama", **(ids | changes))

    def side_files(self) -> dict[str, bytes]:
        return self.files

    def tensor(self, name: str) -> torch.Tensor:
        raise AssertionError("a vocabulary has no tensors")

    def check(self, *_: object) -> None:
        """Nothing to check."""


def edited(files: dict[str, bytes], change: Any) -> dict[str, bytes]:
    """The files with tokenizer.json's content changed by `change`."""
    content = json.loads(files["tokenizer.json"])
    change(content)
    return files | {"tokenizer.json": json.dumps(content).encode()}


def write_pieces(path: Path, ties: int = 1, **keys: Any) -> Path:
    """`write_sentencepiece` without the pieces that llama.cpp cannot hold."""
    tokens = GGUFFile(write_sentencepiece(path, ties)).fields["tokenizer.ggml.tokens"]
    return write_sentencepiece(path, ties, tokens=[token.replace("\0", "\x0e") for token in tokens], **keys)


def llama_2(files: dict[str, bytes], space: bool = True) -> dict[str, bytes]:
    """The files with the space in front put there by a normalizer, as older tokenizers do."""
    steps = [{"type": "Prepend", "prepend": "▁"}] * space
    steps += [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    sequence = {"type": "Sequence", "normalizers": steps}
    return edited(files, lambda content: content.update(normalizer=sequence, pre_tokenizer=None))


def rewritten(path: Path, source: Vocabulary) -> tuple[dict[str, Any], Tokenizer]:
    """The fields of a GGUF file with this vocabulary, and the tokenizer read back from it."""
    fields = {"general.architecture": "llama", "llama.context_length": 9, "llama.vocab_size": source.config.vocab_size}
    write_gguf(path, fields | vocabulary_fields(source), [])
    file = GGUFFile(path)
    return file.fields, Tokenizer.from_files(tokenizer_files(file), "read back")


def assert_equal(ours: Tokenizer, theirs: Tokenizer) -> None:
    assert [ours.encode(text) for text in TEXTS] == [theirs.encode(text) for text in TEXTS]
    everything = list(range(ours.vocab_size))
    assert ours.decode(everything, skip_special_tokens=False) == theirs.decode(everything, skip_special_tokens=False)
    for name in ("bos_id", "pad_id", "eos_ids", "special_ids"):
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize("pre", SPLITS)
def test_byte_level(tmp_path: Path, pre: str) -> None:
    """What was read under any name is written under one of the same rule; a user-defined token stays one."""
    files = tokenizer_files(GGUFFile(write_byte_level(tmp_path / "a.gguf", pre=pre, padding_token_id=3)))
    fields, theirs = rewritten(tmp_path / "b.gguf", Vocabulary(files))
    assert fields["tokenizer.ggml.pre"] == GIVEN.get(pre, pre)
    assert_equal(Tokenizer.from_files(files, ""), theirs)
    first = GGUFFile(tmp_path / "a.gguf").fields
    for name in ("tokens", "token_type", "merges", "padding_token_id", "bos_token_id", "eos_token_id"):
        assert fields[f"tokenizer.ggml.{name}"] == first[f"tokenizer.ggml.{name}"], name
    assert fields["tokenizer.chat_template"] == TEMPLATE


@pytest.mark.parametrize("ties", [1, 7])
@pytest.mark.parametrize("space", [True, False])
def test_sentencepiece(tmp_path: Path, caplog: pytest.LogCaptureFixture, ties: int, space: bool) -> None:
    path = write_pieces(tmp_path / "a.gguf", ties, add_space_prefix=space)
    files = tokenizer_files(GGUFFile(path))
    fields, theirs = rewritten(tmp_path / "b.gguf", Vocabulary(files))
    assert_equal(Tokenizer.from_files(files, ""), theirs)
    assert ("a space behind every special token" in caplog.text) is space
    first = GGUFFile(path).fields
    for name in ("tokens", "token_type", "add_space_prefix", "model", "unknown_token_id"):
        assert fields[f"tokenizer.ggml.{name}"] == first[f"tokenizer.ggml.{name}"], name


def test_normalizer_of_llama_2(tmp_path: Path) -> None:
    """The older spelling of the space in front; the newer one differs behind special tokens and before spaces."""
    files = tokenizer_files(GGUFFile(write_pieces(tmp_path / "a.gguf")))
    for space in (True, False):
        older = llama_2(files, space)
        fields, theirs = rewritten(tmp_path / "b.gguf", Vocabulary(older))
        assert fields["tokenizer.ggml.add_space_prefix"] is space
        ours, plain = Tokenizer.from_files(older, ""), [text for text in TEXTS if "<" not in text and text[:1] != " "]
        assert len(plain) > 12
        assert [ours.encode(text) for text in plain] == [theirs.encode(text) for text in plain]
        (tmp_path / "b.gguf").unlink()


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("behind", [False, True])
def test_bos_and_eos(tmp_path: Path, before: bool, behind: bool) -> None:
    keys = {"add_bos_token": before, "add_eos_token": behind}
    files = tokenizer_files(GGUFFile(write_byte_level(tmp_path / "a.gguf", pre="llama-bpe", **keys)))
    fields, theirs = rewritten(tmp_path / "b.gguf", Vocabulary(files))
    assert {name: fields[f"tokenizer.ggml.{name}"] for name in keys} == keys
    assert (theirs.encode("a")[0] == 1) is before and (theirs.encode("a")[-1] == 2) is behind


def test_rows_without_a_token(tmp_path: Path) -> None:
    """Padding of the embeddings gets unused tokens, as llama.cpp wants one for each row."""
    files, texts = tiny_tokenizer_files(), TEXTS
    ours = Tokenizer.from_files(files, "")
    source = Vocabulary(files, vocab_size=ours.vocab_size + 5)
    fields, theirs = rewritten(tmp_path / "b.gguf", source)
    assert fields["tokenizer.ggml.tokens"][-1] == f"[PAD{ours.vocab_size + 4}]"
    assert fields["tokenizer.ggml.token_type"][-6:] == [1, 5, 5, 5, 5, 5]
    texts = [*texts, "[PAD331] [PAD335]"]
    assert [ours.encode(text) for text in texts] == [theirs.encode(text) for text in texts]


@pytest.mark.parametrize(
    ("named", "config", "expected"),
    [
        ("<|im_end|>", 2, [2, None, None]),
        ("<|im_end|>", (0, 2), [2, 0, None]),  # the tokenizer's own is what the chat template writes
        ("<|im_end|>", (1, 0), [2, 1, 0]),
        (None, (1, 2), [1, 2, None]),
        (None, None, [None, None, None]),
    ],
)
def test_end_tokens(tmp_path: Path, named: str | None, config: Any, expected: list[int | None]) -> None:
    files = tiny_tokenizer_files() | {"tokenizer_config.json": json.dumps({"eos_token": named}).encode()}
    fields, _ = rewritten(tmp_path / "b.gguf", Vocabulary(files, eos_token_id=config))
    assert [fields.get(f"tokenizer.ggml.{role}_token_id") for role in ("eos", "eot", "eom")] == expected


def test_spelling_of_older_files(tmp_path: Path) -> None:
    """Merges as strings, a ByteLevel step without use_regex, a Sequence of one step."""

    def older(content: dict[str, Any]) -> None:
        content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
        step = {name: value for name, value in content["pre_tokenizer"].items() if name != "use_regex"}
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [step]}

    files = tiny_tokenizer_files()
    fields, theirs = rewritten(tmp_path / "b.gguf", Vocabulary(edited(files, older)))
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert_equal(Tokenizer.from_files(files, ""), theirs)


def step(**changes: Any) -> Any:
    """A change of the one step of a pre-tokenizer."""
    return lambda content: content["pre_tokenizer"].update(changes)


def split(**changes: Any) -> Any:
    """A change to Llama 3's splitter, but for `changes`."""
    regex = {"type": "Split", "pattern": {"Regex": SPLITS["llama-bpe"].regex}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    steps = {"type": "Sequence", "pretokenizers": [regex | changes, byte_level]}
    return lambda content: (content.update(pre_tokenizer=steps), content["model"].update(ignore_merges=True))


def test_split_is_llama_3s(tmp_path: Path) -> None:
    """The next test's helper makes a known splitter where nothing is changed."""
    fields, _ = rewritten(tmp_path / "b.gguf", Vocabulary(edited(tiny_tokenizer_files(), split())))
    assert fields["tokenizer.ggml.pre"] == "llama-bpe"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(normalizer={"type": "NFC"}), "normalizer in tokenizer.json is .*NFC"),
        (lambda c: c.update(pre_tokenizer=None), "pre_tokenizer in tokenizer.json"),
        (lambda c: c["model"].update(ignore_merges=True), "pre_tokenizer in tokenizer.json"),
        (lambda c: c["added_tokens"][1].update(rstrip=True), "added_tokens in tokenizer.json is .*im_start"),
        (lambda c: c["model"].update(dropout=0.5), "model.dropout"),
        (lambda c: c["model"].update(end_of_word_suffix="</w>"), "model.end_of_word_suffix"),
        (step(add_prefix_space=True), "pre_tokenizer in tokenizer.json is .*add_prefix_space"),
        (step(use_regex=False), "pre_tokenizer in tokenizer.json"),
        (split(pattern={"Regex": r"\p{L}+|\p{N}"}), "pre_tokenizer in tokenizer.json"),
        (split(behavior="Removed"), "pre_tokenizer in tokenizer.json is .*Split"),
        (split(invert=True), "pre_tokenizer in tokenizer.json is .*Split"),
        (split(type="Punctuation"), "pre_tokenizer in tokenizer.json is .*Punctuation"),
    ],
)
def test_unknown_rules_are_refused(change: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"the model: {message}"):
        vocabulary_fields(Vocabulary(edited(tiny_tokenizer_files(), change)))


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFKC"}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": False}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}},
    ],
)
def test_unknown_spaces_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    files = tokenizer_files(GGUFFile(write_pieces(tmp_path / "a.gguf")))
    with pytest.raises(UserError, match="normalizer and pre_tokenizer in tokenizer.json"):
        vocabulary_fields(Vocabulary(edited(files, lambda content: content.update(change))))


def test_merges_that_no_scores_give(tmp_path: Path) -> None:
    """Not every cut of a piece, as a training of merges leaves them; or all, but another piece's between them."""
    files = tokenizer_files(GGUFFile(write_pieces(tmp_path / "a.gguf")))
    merges = json.loads(files["tokenizer.json"])["model"]["merges"]
    place = next(i for i, (a, b) in enumerate(zip(merges, merges[1:], strict=False)) if "".join(a) == "".join(b))

    def apart(content: dict[str, Any]) -> None:
        content["model"]["merges"].append(content["model"]["merges"].pop(place))

    for change in (apart, lambda content: content["model"]["merges"].pop(place)):
        with pytest.raises(UserError, match="are not SentencePiece's"):
            vocabulary_fields(Vocabulary(edited(files, change)))


def test_a_nul_in_a_token_is_refused(tmp_path: Path) -> None:
    """llama.cpp aborts on such a file: to it the piece ends there, and is one that it has already."""
    files = tokenizer_files(GGUFFile(write_sentencepiece(tmp_path / "a.gguf")))
    with pytest.raises(UserError, match="has a NUL"):
        vocabulary_fields(Vocabulary(files))


def test_other_surroundings_are_refused() -> None:
    """A post-processor that writes something other than BOS and EOS around a text."""
    special = {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}
    single = [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}
    files = edited(tiny_tokenizer_files(), lambda content: content.update(post_processor=template))
    with pytest.raises(UserError, match="a GGUF can say only that BOS"):
        vocabulary_fields(Vocabulary(files))


def test_word_pieces_are_refused() -> None:
    tokenizer = Backend(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"]))
    with pytest.raises(UserError, match="model.type in tokenizer.json is .*WordPiece"):
        vocabulary_fields(Vocabulary({"tokenizer.json": tokenizer.to_str().encode()}))
