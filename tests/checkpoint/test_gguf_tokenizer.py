"""Tokenizers rebuilt from GGUF files: the ids are transformers', text survives, and no damage goes unnoticed."""

import gzip
import json
import os
import random
import re
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from octavo.checkpoint.gguf import GGUFFile
from octavo.checkpoint.gguf_tokenizer import tokenizer_files
from octavo.errors import UserError

CORPUS = [
    "It was a bright cold day in April, and the clocks were striking thirteen; they'd say it's 10:30, I'LL say 12,345.",
    "def halve(values: list[int]) -> list[float]:\n    total = 0.5\n    return [v / 2 for v in values if v != 3]\n",
    "for i in range(100):\n\tif i % 7 == 0:\n\t\tprint(f'{i:>4}', end='\\n\\n')  # 1024 lines\n\n\n",
    "Fußgängerübergänge in Köln kosten 3,50 €; Straße, Größe, äöü ÄÖÜ ß.",
    "Où est passé l'été ? À l'hôtel «Français», c'est déjà 20 °C, n'est-ce pas… œuvre.",
    "¿Dónde está el baño? ¡Mañana, señor! Año 1999, pingüino.",
    "Perché no? È già così: più città, virtù e società, 25 lire.",
    "你好，世界！红楼梦第一回　甄士隐梦幻识通灵。二〇二四年12月",
    "emoji 🙂👍🏽👨‍👩‍👧‍👦 🇫🇷 and accents e\u0301 a\u030a, nb\u00a0sp, zero\u200bwidth, ﬁ ½ ² Ⅻ ٣٤",
    "   three spaces  two   three\t\ttabs \n \n  \r\n mixed   \n\n\n  end   ",
    "  leading", " one", "trailing  ", "\n", " ", "", "   ", "\t", "a", "12", " 12", "   12", "x  7\n    8\n\n  9",
    "<s>special</s> in <unk> the <|im_start|>user\nmiddle<|im_end|> <keep me> or <|im_start|",
    "control \x00 \x01 \x7f bytes \x04\x06 and ￿ ￹ private \ue000 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠀀",
    "CamelCaseWords likeThis HTTPServer2024 x86_64 don't DON'T we'VE //path/to/file.py\n/**/",
    "<0x0A> <0xFF> ▁▁under▁score Ġ Ċ",
]  # fmt: skip
NEVER_SEEN = ["Ελληνικά και кириллица, עברית, हिन्दी, 한국어 텍스트, ไทย", "\u2603\ufe0f \U0001f9ff \x05"]
TEXTS = CORPUS + NEVER_SEEN
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"


def write(path: Path, **keys: Any) -> Path:
    """A GGUF file with a vocabulary and no tensors; `keys` go under tokenizer.ggml, None leaves one out."""
    writer = gguf.GGUFWriter(None, "llama")
    for name in ("block_count", "embedding_length", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{name}", 4)
    writer.add_uint32("llama.context_length", 77)
    writer.add_chat_template(TEMPLATE)
    for name, value in ({"pre": "default", "unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | keys).items():
        if value is not None:
            whole = type(value) is int
            value_type = gguf.GGUFValueType.UINT32 if whole else gguf.GGUFValueType.get_type(value)
            writer.add_key_value(f"tokenizer.ggml.{name}", value, value_type)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.close()
    return path


@cache
def byte_level() -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE trained on the corpus; bytes the corpus lacks have no token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(CORPUS * 2, trainers.BpeTrainer(vocab_size=900, show_progress=False))
    model = json.loads(tokenizer.to_str())["model"]
    return [*SPECIAL, *model["vocab"]], [" ".join(pair) for pair in model["merges"]]


def write_byte_level(path: Path, **keys: Any) -> Path:
    """The vocabulary above, special tokens first and a user-defined one last."""
    tokens, merges = byte_level()
    types = [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)) + [4]
    vocabulary = {"model": "gpt2", "tokens": [*tokens, "<keep"], "token_type": types, "merges": merges}
    return write(path, **vocabulary | keys)


@cache
def sentencepiece() -> tuple[list[str], list[float], list[str]]:
    """Pieces with scores in SentencePiece's manner, and the merges they come of: the earlier merged, the better."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    spelled = [re.sub("<[^>]*>?", "", text) for text in CORPUS]  # no piece that spells a special token
    tokenizer.train_from_iterator(spelled * 2, trainers.BpeTrainer(vocab_size=700, show_progress=False))
    model = json.loads(tokenizer.to_str())["model"]
    merged = list(dict.fromkeys("".join(pair) for pair in model["merges"]))
    pieces = [*merged, *(piece for piece in model["vocab"] if piece not in set(merged))]
    return pieces, [-float(rank) for rank in range(len(pieces))], [" ".join(pair) for pair in model["merges"]]


def write_sentencepiece(path: Path, ties: int = 1, with_bytes: bool = True, **keys: Any) -> Path:
    """The pieces above after special and byte tokens; `ties` neighbours share a score."""
    pieces, scores, _ = sentencepiece()
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256 * with_bytes)]
    tokens = [*SPECIAL, *byte_tokens, *pieces, "<keep me>"]
    types = [2] + [3] * (len(SPECIAL) - 1) + [6] * len(byte_tokens) + [1] * len(pieces) + [4]
    scores = [0.0] * (len(SPECIAL) + len(byte_tokens)) + [float(score // ties) for score in scores] + [-1e4]
    return write(path, **{"model": "llama", "tokens": tokens, "token_type": types, "scores": scores} | keys)


def rebuilt(path: Path) -> Tokenizer:
    """Our tokenizer."""
    return Tokenizer.from_str(tokenizer_files(GGUFFile(path))["tokenizer.json"].decode())


def theirs(path: Path) -> Tokenizer:
    """What transformers makes of the same file."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name).backend_tokenizer


def ids(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Ids of each text, without BOS and EOS: transformers' GGUF reader knows of neither."""
    return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


@pytest.mark.parametrize("pre", ["default", "gpt-2", "llama-bpe", "llama3", "tekken", "smaug-bpe", "falcon3"])
def test_byte_level_ids(tmp_path: Path, pre: str) -> None:
    path = write_byte_level(tmp_path / "m.gguf", pre=pre)
    ours = rebuilt(path)
    assert ids(ours, TEXTS) == ids(theirs(path), TEXTS)
    for text in CORPUS:
        assert ours.decode(ids(ours, [text])[0], skip_special_tokens=False) == text


@pytest.mark.parametrize("pre", ["smollm", "starcoder", "refact", "minerva-7b"])
def test_digits_are_split_first(tmp_path: Path, pre: str) -> None:
    path = write_byte_level(tmp_path / "m.gguf", pre=pre)
    ours, other = rebuilt(path), theirs(path)
    assert ids(ours, TEXTS) != ids(other, TEXTS)
    other.pre_tokenizer = digits_then_bytes()
    assert ids(ours, TEXTS) == ids(other, TEXTS)


def digits_then_bytes() -> pre_tokenizers.PreTokenizer:
    """The original SmolLM2's pre-tokenizer, which transformers' GGUF reader does not know."""
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    return pre_tokenizers.Sequence(steps)


def test_splits_in_pieces(tmp_path: Path) -> None:
    """The rules by what they do, so that a wrong copy of a regex on both sides cannot pass."""
    expected = {
        "gpt-2": ["it", "'s", "Ġ1234", "Ġ", "Ġ5", "ĠHTTPServer"],
        "smollm": ["it", "'s", "Ġ", "1", "2", "3", "4", "ĠĠ", "5", "ĠHTTPServer"],
        "llama-bpe": ["it", "'s", "Ġ", "123", "4", "Ġ", "Ġ", "5", "ĠHTTPServer"],
        "tekken": ["it", "'s", "Ġ", "1", "2", "3", "4", "Ġ", "Ġ", "5", "ĠHTTPServer"],
    }
    for pre, pieces in expected.items():
        split = rebuilt(write_byte_level(tmp_path / "m.gguf", pre=pre)).pre_tokenizer
        assert split is not None
        assert [piece for piece, _ in split.pre_tokenize_str("it's 1234  5 HTTPServer")] == pieces


def test_whole_words_skip_merging(tmp_path: Path) -> None:
    """Llama 3's tokenizer takes a word that is a token as it is, though no sequence of merges leads there."""
    tokens, types = [*byte_level()[0], "zyzzyva"], [3] * 5 + [1] * (len(byte_level()[0]) - 4)
    for pre, whole in (("llama-bpe", True), ("tekken", True), ("gpt-2", False)):
        path = write_byte_level(tmp_path / "m.gguf", tokens=tokens, token_type=types, pre=pre)
        assert (ids(rebuilt(path), ["zyzzyva"]) == [[tokens.index("zyzzyva")]]) is whole


@pytest.mark.parametrize("ties", [1, 7])
@pytest.mark.parametrize("merges", [False, True])
def test_sentencepiece_ids(tmp_path: Path, ties: int, merges: bool) -> None:
    path = write_sentencepiece(tmp_path / "m.gguf", ties, merges=sentencepiece()[2] if merges else None)
    ours = rebuilt(path)
    assert ids(ours, TEXTS) == ids(theirs(path), TEXTS)
    for text in TEXTS:
        decoded = ours.decode(ids(ours, [text])[0], skip_special_tokens=False)
        # the space that is put in front merges with one that is there; ▁ and space are one to SentencePiece
        assert decoded == re.sub("^ ", "", text).replace("▁", " ")


def test_space_prefix(tmp_path: Path) -> None:
    with_space = rebuilt(write_sentencepiece(tmp_path / "m.gguf", add_space_prefix=True))
    without = rebuilt(write_sentencepiece(tmp_path / "m.gguf", add_space_prefix=False))
    assert ids(with_space, ["the</s>the"]) == [[*ids(without, [" the"])[0], 2, *ids(without, ["the"])[0]]]
    assert without.decode(ids(without, [" a  b"])[0]) == " a  b"
    transformers = pytest.importorskip("transformers")
    vocabulary = without.get_vocab(with_added_tokens=False)
    merges = [tuple(pair) for pair in json.loads(without.to_str())["model"]["merges"]]
    other = transformers.LlamaTokenizer(vocabulary, merges, add_prefix_space=False).backend_tokenizer
    plain = [text for text in TEXTS if "<" not in text]
    assert ids(without, plain) == ids(other, plain)


def test_text_without_byte_tokens_is_unknown(tmp_path: Path) -> None:
    ours = rebuilt(write_sentencepiece(tmp_path / "m.gguf", with_bytes=False))
    assert ids(ours, ["한국"])[0][-1:] == [0]


@pytest.mark.parametrize(
    ("kind", "keys", "before", "behind"),
    [
        ("llama", {}, [1], []),
        ("llama", {"add_bos_token": False}, [], []),
        ("llama", {"add_eos_token": True}, [1], [2]),
        ("llama", {"bos_token_id": None}, [], []),
        ("gpt2", {"pre": "smollm"}, [], []),
        ("gpt2", {"pre": "gpt-2", "add_bos_token": True, "bos_token_id": 3}, [3], []),
        ("gpt2", {"pre": "llama-bpe"}, [1], []),
        ("gpt2", {"pre": "llama-bpe", "add_bos_token": False, "add_eos_token": True}, [], [2]),
        ("gpt2", {"pre": "tekken"}, [1], []),
    ],
)
def test_bos_and_eos(tmp_path: Path, kind: str, keys: dict[str, Any], before: list[int], behind: list[int]) -> None:
    path = (write_byte_level if kind == "gpt2" else write_sentencepiece)(tmp_path / "m.gguf", **keys)
    ours = rebuilt(path)
    plain, second = ids(ours, ["the day", "is cold"])
    assert ours.encode("the day").ids == [*before, *plain, *behind]
    assert ours.encode("the day", "is cold").ids == [*before, *plain, *behind, *before, *second, *behind]


def test_awkward_bos(tmp_path: Path) -> None:
    """Names that tokenizers' own template language cannot hold, and that are not spelled in the byte alphabet."""
    for bos in ("<a:1>", "$A", "<｜begin▁of▁sentence｜>", "two words"):
        tokens = [bos, *byte_level()[0][1:], "<keep"]
        path = write_byte_level(tmp_path / "m.gguf", tokens=tokens, pre="llama3", bos_token_id=0)
        assert rebuilt(path).encode(f"the{bos}").ids == [0, *ids(rebuilt(path), ["the"])[0], 0]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("with_config", [False, True])
def test_transformers_loads_the_files(tmp_path: Path, kind: str, with_config: bool) -> None:
    transformers = pytest.importorskip("transformers")
    path = (write_byte_level if kind == "gpt2" else write_sentencepiece)(tmp_path / "m.gguf", padding_token_id=4)
    folder = tmp_path / "folder"
    folder.mkdir()
    files = tokenizer_files(GGUFFile(path))
    assert files.keys() == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    if with_config:
        (folder / "config.json").write_text(json.dumps({"model_type": "mixtral" if kind == "llama" else "llama"}))
    loaded, ours = transformers.AutoTokenizer.from_pretrained(folder), rebuilt(path)
    assert [loaded(text).input_ids for text in TEXTS] == [ours.encode(text).ids for text in TEXTS]
    assert loaded.model_max_length == 77 and loaded.clean_up_tokenization_spaces is False
    special = (loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id, loaded.pad_token_id)
    assert special == (1, 2, 0, 4)
    assert loaded.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi</s>"
    assert len(loaded) == ours.get_vocab_size() == len(GGUFFile(path).fields["tokenizer.ggml.tokens"])


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        ("gpt2", {"pre": "qwen2"}, "how 'qwen2' splits text"),
        ("gpt2", {"pre": None}, "how None splits text"),
        ("gpt2", {"model": "bert"}, "tokenizer.ggml.model is 'bert'"),
        ("gpt2", {"model": None}, "tokenizer.ggml.model is None"),
        ("gpt2", {"tokens": None}, "there are 0"),
        ("gpt2", {"tokens": [1, 2]}, "not a list of the right kind"),
        ("gpt2", {"tokens": ["a", "b", "a"], "token_type": None}, "'a' is there twice"),
        ("gpt2", {"tokens": ["a", "x" * 2000], "token_type": None}, "longest of 2000"),
        ("gpt2", {"token_type": [1, 1]}, "2 types"),
        ("gpt2", {"merges": None}, "merges: there are none"),
        ("gpt2", {"merges": ["a"]}, "'a' does not join"),
        ("gpt2", {"merges": ["t zyzzyva"]}, "'t zyzzyva' does not join"),
        ("gpt2", {"eos_token_id": 99999}, "it is 99999"),
        ("gpt2", {"add_bos_token": 3}, "3 is not true or false"),
        ("gpt2", {"add_bos_token": True, "bos_token_id": None}, "no bos_token_id"),
        ("llama", {"scores": None}, "0 of them"),
        ("llama", {"scores": ["a"]}, "not a list of the right kind"),
    ],
)
def test_damaged_vocabulary(tmp_path: Path, kind: str, keys: dict[str, Any], message: str) -> None:
    path = (write_byte_level if kind == "gpt2" else write_sentencepiece)(tmp_path / "m.gguf", **keys)
    with pytest.raises(UserError, match=message) as caught:
        tokenizer_files(GGUFFile(path))
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_random_damage(tmp_path: Path, kind: str) -> None:
    """A UserError, or files that load; never another exception."""
    path = (write_byte_level if kind == "gpt2" else write_sentencepiece)(tmp_path / "m.gguf")
    content, choose, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(100):
        damaged = bytearray(content)
        damaged[choose.randrange(4, len(content))] ^= 1 << choose.randrange(8)
        path.write_bytes(damaged)
        try:
            Tokenizer.from_str(tokenizer_files(GGUFFile(path))["tokenizer.json"].decode()).encode_batch(CORPUS)
        except UserError:
            refused += 1
    assert refused > 10


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> tuple[Tokenizer, Tokenizer]:
    """SmolLM2's tokenizer, ours and transformers'."""
    return rebuilt(smollm2_gguf), theirs(smollm2_gguf)


def shared_texts() -> list[str]:
    """Slices of the novels, code and problems that lie beside some checkouts; none elsewhere."""
    data = Path(os.environ.get("OCTAVO_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    texts = []
    for path in sorted(data.glob("text_*/*.txt.gz")):
        text = gzip.decompress(path.read_bytes()).decode()
        texts += [text[start : start + 4000] for start in range(0, len(text), len(text) // 10)]
    for path in sorted(data.glob("humaneval/*.jsonl.gz")):
        texts += [json.loads(line)["prompt"] for line in gzip.decompress(path.read_bytes()).splitlines()]
    for path in sorted(data.glob("gsm8k/test.jsonl")):
        texts += path.read_text(encoding="utf-8").splitlines()[:400]
    return texts


def told_apart(text: str) -> bool:
    """Whether splitting digits first can matter: a run of white space, or anything before ½, ² and their like.

    One space and a digit do not: GPT-2's rule joins them, but the vocabulary has no token for the two.
    """
    beyond_ascii = any(ord(char) > 127 and unicodedata.category(char)[0] == "N" for char in text)
    return beyond_ascii or re.search(r"\s\s[0-9]", text) is not None


def test_smollm2_ids(smollm2: tuple[Tokenizer, Tokenizer]) -> None:
    """Exactly transformers' ids where no number follows a run of white space, and everywhere once transformers splits
    digits first, as the original tokenizer.json does."""
    ours, other = smollm2
    texts = [*TEXTS, *shared_texts()]
    alike = [text for text in texts if not told_apart(text)]
    assert len(alike) >= 15
    assert ids(ours, alike) == ids(other, alike)
    assert ids(ours, ["x = 1\n    2"]) != ids(other, ["x = 1\n    2"])
    other.pre_tokenizer = digits_then_bytes()
    assert ids(ours, texts) == ids(other, texts)
    no_token = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # some control bytes: dropped, as the original does
    for text in texts:
        decoded = ours.decode(ids(ours, [text])[0], skip_special_tokens=False)
        assert decoded == text or no_token.search(text)


def test_smollm2_digits_have_no_longer_token(smollm2_gguf: Path) -> None:
    """Why digits must be split first: the vocabulary was learned without any digit beside anything else."""
    byte_decoder = decoders.ByteLevel()
    tokens = [byte_decoder.decode([token]) for token in GGUFFile(smollm2_gguf).fields["tokenizer.ggml.tokens"][17:]]
    assert sorted(token for token in tokens if re.search("[0-9]", token)) == list("0123456789")
    numbers = Regex(r"\p{N}")
    split = pre_tokenizers.Split(numbers, behavior="isolated")
    assert all(len(split.pre_tokenize_str(token)) == 1 for token in tokens if token)
