"""Rebuild a Hugging Face tokenizer from the vocabulary that a GGUF file carries.

A GGUF has tokens, merges or scores, and the name of the rule by which text is split before merging; tokenizer.json
wants the rule itself. Two kinds are known: `gpt2`, byte-level BPE, and `llama`, SentencePiece's BPE with a fallback to
bytes. The ids are those of transformers' own GGUF reader, but where that lacks a rule that the model was trained with:
the splits of `smollm` and its like, and BOS and EOS, which it never adds.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from octavo.checkpoint.gguf import GGUFFile
from octavo.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # llama.cpp's kinds of token
# Longer than any token of a real vocabulary; recovering merges tries every cut of a token.
_LONGEST_TOKEN = 1024
ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

_WORDS_AND_NUMBERS = (  # Llama 3: up to three digits together
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CASED_WORDS = (  # Mistral's Tekken: a word ends where upper case begins; digits alone
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Split(NamedTuple):
    """How a byte-level vocabulary splits text before merging: a regex, or GPT-2's rule if None.

    `digits` first makes every digit a piece of its own; `whole` takes a piece that is in the vocabulary without
    merging; `bos` is llama.cpp's default where the file does not say whether a text begins with BOS.
    """

    regex: str | None = None
    digits: bool = False
    whole: bool = False
    bos: bool = False


# By `tokenizer.ggml.pre`, after llama.cpp's src/llama-vocab.cpp, for the tokenizers that Llama and Mistral models use.
# The trap: transformers 5.18 has no rule for `smollm` and its like and falls back to GPT-2's, under which a run of
# blanks before a digit keeps its last blank to itself: "  12" is Ġ Ġ 1 2, not the ĠĠ 1 2 that the model was trained
# with. Of 110 texts that the two rules tell apart, SmolLM2 finds 103 likelier under the one here.
_GPT2 = Split()
_DIGITS = Split(digits=True)
_LLAMA3 = Split(_WORDS_AND_NUMBERS, whole=True, bos=True)
SPLITS: dict[str, Split] = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "minerva-7b": _DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "midm-2.0": _LLAMA3,
    "pixtral": _LLAMA3,
    "smaug-bpe": Split(_WORDS_AND_NUMBERS),
    "tekken": Split(_CASED_WORDS, whole=True, bos=True),
}


class _Vocabulary:
    """The token lists of a GGUF file, checked: `tokens` by id, `ids` by token, `types` and `roles` (bos_token, ...)."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.tokens: list[str] = self.items("tokens", str)
        self.ids = {token: index for index, token in enumerate(self.tokens)}
        self.types: list[int] = self.items("token_type", int) or [NORMAL] * len(self.tokens)
        rows = file.fields.get("llama.vocab_size", len(self.tokens))
        longest = max(self.tokens, key=len, default="")
        if not self.tokens or len(longest) > _LONGEST_TOKEN:
            raise self.error("tokens", f"there are {len(self.tokens)}, the longest of {len(longest)} characters")
        if len(self.ids) < len(self.tokens):
            twice = next(token for index, token in enumerate(self.tokens) if self.ids[token] != index)
            raise self.error("tokens", f"{twice[:40]!r} is there twice, and tokenizer.json can hold only one")
        if len(self.types) != len(self.tokens) or isinstance(rows, int) and len(self.tokens) > rows:
            raise self.error("tokens", f"{len(self.tokens)} tokens, {len(self.types)} types, {rows} embeddings")
        self.roles: dict[str, str] = {}
        for name, role in ROLES.items():
            index = file.token_id(role)
            if index is not None and index >= len(self.tokens):
                raise self.error(f"{role}_token_id", f"it is {index}, the vocabulary has {len(self.tokens)} tokens")
            if index is not None:
                self.roles[name] = self.tokens[index]

    def items(self, name: str, kind: type | tuple[type, ...]) -> list[Any]:
        """The list under tokenizer.ggml.`name`, empty when absent."""
        found = self.file.fields.get(f"tokenizer.ggml.{name}", [])
        if not isinstance(found, list) or not all(isinstance(item, kind) for item in found):
            raise self.error(name, "it is not a list of the right kind")
        return found

    def flag(self, name: str, default: bool) -> bool:
        """The boolean under tokenizer.ggml.`name`."""
        found = self.file.fields.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(found, bool):
            raise self.error(name, f"{found!r:.40} is not true or false")
        return found

    def error(self, name: str, problem: str) -> UserError:
        """The error of a key under tokenizer.ggml."""
        return UserError(f"{self.file.path}: tokenizer.ggml.{name}: {problem}; download or convert the model again")


def tokenizer_files(file: GGUFFile) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and, if the file has one, chat_template.jinja, by file name.

    Special tokens (llama.cpp's control tokens, and whatever is named BOS, EOS, unknown or padding) and user-defined
    ones are matched whole. BOS and EOS are added to a text where the file, or else llama.cpp's default, says so.
    Raises UserError for a vocabulary that is missing or damaged, or is split by a rule that is not known.
    """
    kind = file.fields.get("tokenizer.ggml.model")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if not isinstance(kind, str) or kind not in builders:
        raise UserError(f"{file.path}: tokenizer.ggml.model is {kind!r:.40}; octavo rebuilds {' and '.join(builders)}, "
                        "for another put the model's Hugging Face tokenizer files in a folder")  # fmt: skip
    vocabulary = _Vocabulary(file)
    tokenizer, bos = builders[kind](vocabulary)
    by_type = list(zip(vocabulary.tokens, vocabulary.types, strict=True))
    special = {token for token, its_type in by_type if its_type == CONTROL} | set(vocabulary.roles.values())
    plain = [token for token, its_type in by_type if its_type == USER_DEFINED and token not in special]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in sorted(special)])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in plain])
    add_bos = vocabulary.flag("add_bos_token", bos and "bos_token" in vocabulary.roles)
    add_eos = vocabulary.flag("add_eos_token", False)
    content = json.loads(tokenizer.to_str())
    content["post_processor"] = _template(vocabulary, add_bos, add_eos)
    config = {
        # reads tokenizer.json as it stands; LlamaTokenizer would rebuild it by rules of its own
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": file.fields.get("llama.context_length"),
        "clean_up_tokenization_spaces": False,
        "add_bos_token": add_bos,  # for readers other than transformers 5, which looks into tokenizer.json
        "add_eos_token": add_eos,
        **vocabulary.roles,
    }
    files = {"tokenizer.json": _dump(content), "tokenizer_config.json": _dump(config)}
    template = file.fields.get("tokenizer.chat_template")
    if isinstance(template, str):
        files["chat_template.jinja"] = template.encode()
    return files


def _dump(content: Any) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()


def _byte_level(vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    """GPT-2's kind of tokenizer, and whether a text begins with BOS by default. A byte without a token is dropped."""
    name = vocabulary.file.fields.get("tokenizer.ggml.pre")
    if not isinstance(name, str) or name not in SPLITS:
        raise vocabulary.error("pre", f"octavo does not know how {name!r:.40} splits text, and a guess may give wrong "
                               f"ids; it knows {', '.join(SPLITS)}")  # fmt: skip
    split = SPLITS[name]
    merges = _given_merges(vocabulary)
    if not merges:
        raise vocabulary.error("merges", "there are none")
    tokenizer = Tokenizer(BPE(vocabulary.ids, merges, ignore_merges=split.whole))
    steps: list[pre_tokenizers.PreTokenizer] = []
    if split.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if split.regex is not None:
        steps.append(pre_tokenizers.Split(Regex(split.regex), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.regex is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, split.bos


def _sentencepiece(vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    """Llama 2's kind of tokenizer, and True: a text begins with BOS by default.

    The space in front of a text is put before its first piece only, as transformers 5 does, and not after every
    special token too, as llama.cpp and transformers 4 ("legacy") do.
    """
    merges = _given_merges(vocabulary)
    if not merges:
        scores = vocabulary.items("scores", (int, float))
        if len(scores) != len(vocabulary.tokens):
            raise vocabulary.error("scores", f"{len(scores)} of them for {len(vocabulary.tokens)} tokens")
        # a control, unknown or byte token never comes of its spelling in a text
        unspelled = (UNKNOWN, CONTROL, BYTE)
        pieces = {token: index for token, index in vocabulary.ids.items() if vocabulary.types[index] not in unspelled}
        merges = merges_from_scores(pieces, scores)
    unknown = vocabulary.roles.get("unk_token")
    tokenizer = Tokenizer(BPE(vocabulary.ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    space_first = vocabulary.flag("add_space_prefix", True)
    scheme = "first" if space_first else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(content=" ", left=1, right=0)] if space_first else []
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer, True


def _given_merges(vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """The file's own merges, "left right" each, in order of rank."""
    merges = []
    for rule in vocabulary.items("merges", str):
        cut = rule.find(" ", 1)  # from 1: the left half may itself be a space
        left, right = rule[:cut], rule[cut + 1 :]
        if cut < 0 or not {left, right, left + right} <= vocabulary.ids.keys():
            raise vocabulary.error("merges", f"{rule[:40]!r} does not join two tokens of the vocabulary into a third")
        merges.append((left, right))
    return merges


def merges_from_scores(pieces: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The merges that SentencePiece's scores imply: every cut of a piece into two, the best piece first.

    `pieces` maps token to id, `scores` is by id. Ties go to the longer left half, then to the longer right half, then
    to the piece, left and right of smaller id: the order of transformers' generate_merges, so that ids agree.
    """
    ranked = []
    for piece, index in pieces.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces:
                order = (-scores[index], -len(left), -len(right), index, pieces[left], pieces[right])
                ranked.append((order, (left, right)))
    return [pair for _, pair in sorted(ranked)]


def _template(vocabulary: _Vocabulary, add_bos: bool, add_eos: bool) -> dict[str, Any] | None:
    """The post-processor that puts BOS before and EOS behind each text of one or a pair, as tokenizer.json has it.

    Written as JSON, because tokenizers' own constructor cannot take a token that has a colon or begins with a dollar.
    """
    for role, wanted in (("bos", add_bos), ("eos", add_eos)):
        if wanted and f"{role}_token" not in vocabulary.roles:
            raise vocabulary.error(f"add_{role}_token", f"it is true, but there is no {role}_token_id")
    bos = [vocabulary.roles["bos_token"]] if add_bos else []
    eos = [vocabulary.roles["eos_token"]] if add_eos else []
    if not bos and not eos:
        return None

    def around(text: str, type_id: int) -> list[dict[str, Any]]:
        before, after = ([{"SpecialToken": {"id": token, "type_id": type_id}} for token in part] for part in (bos, eos))
        return [*before, {"Sequence": {"id": text, "type_id": type_id}}, *after]

    special = {token: {"id": token, "ids": [vocabulary.ids[token]], "tokens": [token]} for token in (*bos, *eos)}
    return {"type": "TemplateProcessing", "single": around("A", 0), "pair": around("A", 0) + around("B", 1),
            "special_tokens": special}  # fmt: skip
