"""Decoding token by token gives the text of decoding all, never half a character, and never waits for ever."""

import time
from collections import defaultdict

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from octavo.data.tokenizer import Tokenizer, TokenStream
from tests.data.tiny_tokenizers import byte_level, byte_tokens, sentencepiece

JSON = {"byte-level": byte_level(), "sentencepiece": sentencepiece(), "metaspace": sentencepiece(metaspace=True)}
TOKENIZERS = {kind: Tokenizer.from_files({"tokenizer.json": text.encode()}, kind) for kind, text in JSON.items()}
BYTE_LEVEL, SENTENCEPIECE = TOKENIZERS["byte-level"], TOKENIZERS["sentencepiece"]
EMOJI = ["😀", "👨‍👩‍👧", "🇫🇷", "👍🏽", "é", "e\u0301", "你好", "世界", " ", "  ", "\n", "Hello", " world", "\ufffd"]
TEXTS = st.lists(st.one_of(st.sampled_from(EMOJI), st.text(max_size=5)), max_size=8).map("".join)
END = 2


def pieces(tokenizer, ids, **options):
    stream = tokenizer.stream(**options)
    return [stream.put(index) for index in ids] + [stream.flush()]


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=TEXTS)
@example(text=" leading space")
@example(text="\ufffd" * 5 + "x")
@example(text="")
def test_joined_pieces_are_the_text(kind, text):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text, add_special_tokens=False)
    parts = pieces(tokenizer, ids)
    assert "".join(parts) == tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(parts)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
def test_any_well_formed_ids(kind, skip, data):
    """Not only what the tokenizer would write: models cut words elsewhere, and special tokens come anywhere."""
    tokenizer = TOKENIZERS[kind]
    if kind == "byte-level":
        part = st.integers(0, tokenizer.vocab_size - 1).map(lambda index: [index])
    else:
        whole = st.integers(len(byte_tokens(bytes(256))) + 5, tokenizer.vocab_size - 1).map(lambda index: [index])
        char = st.sampled_from("你é😀").map(lambda char: byte_tokens(char.encode()))
        part = st.one_of(whole, char, st.sampled_from([[1], [END], [10**6]]))
    ids = sum(data.draw(st.lists(part, max_size=12)), [])
    assert "".join(pieces(tokenizer, ids, skip_special_tokens=skip)) == tokenizer.decode(ids, skip_special_tokens=skip)


@given(st.lists(st.one_of(st.integers(-5, 255), st.integers(0x80, 0xFF)), max_size=60))
def test_broken_bytes_of_byte_level_are_exact(values):
    """Any bytes at all, one a token: the decoder's own replacement characters, no more and no fewer."""
    ids = [BYTE_LEVEL._backend.token_to_id(_ALPHABET[value]) if value >= 0 else END for value in values]
    assert "".join(pieces(BYTE_LEVEL, ids)) == BYTE_LEVEL.decode(ids)


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
def test_tokens_known_to_be_whole_only_save_time(kind, data):
    """Piece by piece what a stream gives that decodes every window, for any ids and any context."""
    tokenizer = TOKENIZERS[kind]
    any_ids = st.lists(st.integers(0, tokenizer.vocab_size + 1), max_size=20)
    ids, context, skip = data.draw(any_ids), data.draw(any_ids), data.draw(st.booleans())
    stream = tokenizer.stream(skip, context)
    stream._whole = defaultdict(lambda: None)
    decoded = [stream.put(index) for index in ids] + [stream.flush()]
    assert pieces(tokenizer, ids, skip_special_tokens=skip, context=context) == decoded


def test_which_tokens_are_known_to_be_whole():
    """Those of a byte-level tokenizer that have text and no part of a character."""
    known = BYTE_LEVEL.whole_texts()
    (hello,) = BYTE_LEVEL.encode("Hello", add_special_tokens=False)[:1]
    assert known[hello] == BYTE_LEVEL.decode([hello])
    assert known[END] is known[10**6] is known[BYTE_LEVEL._backend.token_to_id(_ALPHABET[0xC3])] is None
    assert BYTE_LEVEL.whole_texts(skip_special_tokens=False)[END] == "</s>"
    assert SENTENCEPIECE.whole_texts()[SENTENCEPIECE.encode("world")[-1]] is None


def _alphabet():
    """GPT-2's letter for each byte: printable Latin-1 stands for itself, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


_ALPHABET = _alphabet()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_characters_come_whole_and_at_once(kind):
    tokenizer = TOKENIZERS[kind]
    for text in ("a你b", "a😀b", "👨‍👩‍👧", "你好世界"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        parts = pieces(tokenizer, ids)
        assert "".join(parts) == text
        for count in range(len(ids)):  # as soon as the ids so far are whole, so is what was given out
            so_far = tokenizer.decode(ids[: count + 1])
            if not so_far.endswith("\ufffd"):
                assert "".join(parts[: count + 1]) == so_far


def test_a_token_may_end_one_character_and_begin_the_next():
    """Byte-level BPE merges over borders of characters: every prefix of such a text ends within one."""
    content = {"你": 0, "好": 1}
    raw = {char: [_ALPHABET[byte] for byte in char.encode()] for char in content}
    first, (head, *tail) = raw["你"], raw["好"]
    vocab = {"".join(first[:1]): 0, "".join(first[1:] + [head]): 1, "".join(tail + first[:1]): 2, "".join(tail): 3}
    tokenizer = _from_vocab(vocab)
    ids = [0] + [1, 2] * 200 + [1, 3]
    parts = pieces(tokenizer, ids)
    assert "".join(parts) == tokenizer.decode(ids) == "你好" * 201
    assert parts[1:4] == ["你", "好", "你"]


def _from_vocab(vocab):
    backend = Backend(models.BPE(vocab, []))
    backend.decoder = decoders.ByteLevel()
    return Tokenizer.from_files({"tokenizer.json": backend.to_str().encode()}, "tiny")


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_bytes_that_never_become_a_character_do_not_block(kind):
    tokenizer = TOKENIZERS[kind]
    broken = byte_tokens(b"\xff") if kind == "sentencepiece" else [tokenizer._backend.token_to_id(_ALPHABET[0xFF])]
    stream = tokenizer.stream()
    shown, behind = 0, []
    for count in range(1, 201):
        shown += len(stream.put(broken[0]))
        behind.append(count - shown)
        assert len(stream._window) <= 2 * TokenStream.MAX_HELD
    assert max(behind) <= TokenStream.MAX_HELD + 1
    rest = "".join(stream.put(index) for index in tokenizer.encode(" Hello", add_special_tokens=False)[-3:])
    assert rest.startswith("\ufffd" * (200 - shown)) and rest.endswith("o")


def test_broken_byte_tokens_after_whole_ones():
    """`decode` makes replacement characters of the whole run; what is out already stays, and the rest is not lost."""
    ids = byte_tokens("你".encode() + b"\xff") + SENTENCEPIECE.encode("the world", add_special_tokens=False)
    assert "".join(pieces(SENTENCEPIECE, ids)) == "你\ufffd the world"


@pytest.mark.parametrize("kind", ["sentencepiece", "metaspace"])
def test_spaces_of_sentencepiece(kind):
    tokenizer = TOKENIZERS[kind]
    world = tokenizer.encode("world", add_special_tokens=False)
    assert tokenizer.decode(world) == "world"
    assert "".join(pieces(tokenizer, world)) == "world"
    assert "".join(pieces(tokenizer, [1, *world, END, *world])) == "world world"  # skipped tokens are no beginning
    assert "".join(pieces(tokenizer, world, context=[1, *world])) == " world"


@given(before=TEXTS, after=TEXTS)
def test_context(before, after):
    """With the ids before it as context, the text is what follows theirs."""
    for tokenizer in TOKENIZERS.values():
        first = tokenizer.encode(before, add_special_tokens=False)
        ids = first + tokenizer.encode(after, add_special_tokens=False)
        start = tokenizer.decode(first)
        if start and "\ufffd" not in before:
            assert start + "".join(pieces(tokenizer, ids[len(first) :], context=first)) == tokenizer.decode(ids)


@pytest.mark.parametrize("before", ["你é", "é你", "😀", "aé😀", "你好世界" * 9])
def test_context_may_be_cut_inside_a_character(before):
    ids = byte_tokens("好".encode())
    assert "".join(pieces(SENTENCEPIECE, ids, context=byte_tokens(before.encode()))) == "好"


def test_flush_gives_the_unfinished_and_ends():
    ids = byte_tokens("好".encode()[:2])
    stream = SENTENCEPIECE.stream()
    assert [stream.put(index) for index in ids] == ["", ""]
    assert stream.flush() == "\ufffd\ufffd"
    assert stream.flush() == ""


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_cost_is_linear(kind):
    """Each token costs a bounded window: the longest one seen, and the time of four times as many."""
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode("Hello 你好 😀 the end\n" * 300, add_special_tokens=False)
    stream, longest = tokenizer.stream(), 0
    began = time.perf_counter()
    for index in ids:
        stream.put(index)
        longest = max(longest, len(stream._window))
    assert longest <= 8
    assert (time.perf_counter() - began) / len(ids) < 1e-3


def test_why_the_library_has_no_part_in_it():
    """If this fails, `tokenizers.decoders.DecodeStream` has been repaired, and may replace TokenStream."""
    backend, stream = SENTENCEPIECE._backend, decoders.DecodeStream(skip_special_tokens=True)
    assert [stream.step(backend, byte_tokens(b"\xff")[0]) for _ in range(200)] == [None] * 200
    stream = decoders.DecodeStream(skip_special_tokens=True)
    with pytest.raises(Exception, match="Invalid prefix"):  # noqa: B017 - the library raises a plain Exception
        for index in byte_tokens("你".encode() + b"\xff") + SENTENCEPIECE.encode("the", add_special_tokens=False):
            stream.step(backend, index)
