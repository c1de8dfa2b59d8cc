"""The vocabulary of a GGUF file from a model's Hugging Face tokenizer: `gguf_tokenizer` the other way round.

llama.cpp has no field for how a tokenizer treats text, only names of rules that it knows. What tokenizer.json says is
therefore recognised piece by piece, and refused where it is not exactly what such a name stands for: a wrong one would
give other ids, and a model that answers a little worse for no visible reason.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

from octavo.checkpoint.gguf_tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    ROLES,
    SPLITS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    merges_from_scores,
)
from octavo.checkpoint.load import load_tokenizer
from octavo.checkpoint.source import Source
from octavo.data.tokenizer import TOKENIZER, Tokenizer
from octavo.errors import UserError

logger = logging.getLogger(__name__)

_END_ROLES = ("eos", "eot", "eom")  # the end of a text, a turn, a message: llama.cpp stops at each
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "▁"
Pair = tuple[str, str]


def vocabulary_fields(source: Source) -> dict[str, Any]:
    """The keys under `tokenizer.` that describe the tokenizer of `source`.

    Raises UserError when it has none, or one that llama.cpp's `gpt2` and `llama` vocabularies cannot express: the
    message names the part of tokenizer.json that is not known.
    """
    tokenizer = load_tokenizer(source)
    vocabulary = _Vocabulary(source, tokenizer)
    fields = {**vocabulary.kind_fields(), **vocabulary.token_fields(), **_roles(source, tokenizer, vocabulary)}
    fields = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    template = tokenizer.chat_template
    return fields if template is None else fields | {"tokenizer.chat_template": template.source}


class _Vocabulary:
    """tokenizer.json taken apart: `model` is its BPE, `added` its added tokens by id, `ids` all ids by token."""

    def __init__(self, source: Source, tokenizer: Tokenizer) -> None:
        self._label, self._rows, self._special = source.label, source.config.vocab_size, tokenizer.special_ids
        self.content: dict[str, Any] = json.loads(source.side_files()[TOKENIZER])
        self.model: dict[str, Any] = self.content["model"]
        if self.model.get("type", "BPE") != "BPE":
            raise self.unknown("model.type", self.model["type"])
        for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if self.model.get(name):
                raise self.unknown(f"model.{name}", self.model[name])
        listed: list[dict[str, Any]] = self.content.get("added_tokens") or []
        for token in listed:
            if any(token.get(flag) for flag in ("lstrip", "rstrip", "single_word")):
                raise self.unknown("added_tokens", token)
        self.added = {token["id"]: token["content"] for token in listed}
        self.ids: dict[str, int] = {**self.model["vocab"], **{text: index for index, text in self.added.items()}}
        self.merges: list[Pair] = [_pair(merge) for merge in self.model["merges"]]
        if cut := [text for text in self.ids if "\0" in text]:
            # it reads tokens as C strings, finds some twice, and aborts
            raise UserError(
                f"{self._label}: token {cut[0]!r} in {TOKENIZER} has a NUL, which llama.cpp cannot hold in a token"
            )
        beyond = max(self.ids.values(), default=0)
        if beyond >= self._rows:
            raise UserError(f"{self._label}: its tokenizer has token {beyond}, its vocab_size is {self._rows}; "
                            "llama.cpp wants a row of embeddings for every token")  # fmt: skip

    @property
    def byte_fallback(self) -> bool:
        """Whether it is SentencePiece's kind, and not the byte-level one."""
        return bool(self.model.get("byte_fallback"))

    def kind_fields(self) -> dict[str, Any]:
        """Which kind it is, with how it splits or prepends, and its merges or scores."""
        if self.byte_fallback:
            return {"model": "llama", "pre": "default", "add_space_prefix": self._space_prefix(),
                    "scores": self._scores()}  # fmt: skip
        return {"model": "gpt2", "pre": self._split_name(), "merges": [" ".join(merge) for merge in self.merges]}

    def token_fields(self) -> dict[str, Any]:
        """Token and type of every row of the embeddings. Rows without a token get one that no text comes to."""
        by_id = {index: text for text, index in self.ids.items()}
        tokens = [by_id.get(index, f"[PAD{index}]") for index in range(self._rows)]
        types = [self._type(index, text) if index in by_id else UNUSED for index, text in enumerate(tokens)]
        return {"tokens": tokens, "token_type": types}

    def unknown(self, name: str, found: object) -> UserError:
        """The error of a part of tokenizer.json that a GGUF has no word for."""
        return UserError(f"{self._label}: {name} in {TOKENIZER} is {json.dumps(found):.200}, for which octavo "
                         "knows no name that llama.cpp would understand; a guess may give wrong ids")  # fmt: skip

    def _type(self, index: int, text: str) -> int:
        if self.byte_fallback and text == self.model.get("unk_token"):
            return UNKNOWN
        if index in self._special:
            return CONTROL
        if index in self.added:
            return USER_DEFINED
        return BYTE if self.byte_fallback and _BYTE_TOKEN.fullmatch(text) else NORMAL

    def _split_name(self) -> str:
        """The name under tokenizer.ggml.pre of how a byte-level tokenizer splits text."""
        if _steps(self.content.get("normalizer"), "normalizers"):
            raise self.unknown("normalizer", self.content["normalizer"])
        regex, digits = None, False
        *steps, last = _steps(self.content.get("pre_tokenizer"), "pretokenizers") or [{"type": None}]
        for step in steps:
            if step["type"] == "Digits" and step["individual_digits"] and not digits and regex is None:
                digits = True
            elif step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"] and regex is None:
                regex = step["pattern"].get("Regex", "")
            else:
                raise self.unknown("pre_tokenizer", step)
        if (
            last["type"] != "ByteLevel"
            or last["add_prefix_space"]
            or last.get("use_regex", True) is not (regex is None)
        ):
            raise self.unknown("pre_tokenizer", last)
        found = (regex, digits, bool(self.model.get("ignore_merges")))
        for name, split in SPLITS.items():
            # llama.cpp's own "default" is yet another rule
            if found == (split.regex, split.digits, split.whole) and name != "default":
                return name
        raise self.unknown("pre_tokenizer", self.content["pre_tokenizer"])

    def _space_prefix(self) -> bool:
        """Whether a SentencePiece tokenizer puts a space before a text: by its normalizer (Llama 2) or its splitter."""
        normalizer = _steps(self.content.get("normalizer"), "normalizers")
        splitter = _steps(self.content.get("pre_tokenizer"), "pretokenizers")
        prepend = {"type": "Prepend", "prepend": _SPACE}
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
        if not splitter and normalizer in ([prepend, replace], [replace]):
            return len(normalizer) == 2
        if not normalizer and len(splitter) == 1 and splitter[0].get("type") == "Metaspace":
            step = splitter[0]
            if step["replacement"] == _SPACE and step.get("split", True) is False:
                if step["prepend_scheme"] == "never":
                    return False
                logger.warning("%s: llama.cpp puts a space behind every special token, and before a text that begins "
                               "with one; this tokenizer does not, so ids differ there", self._label)  # fmt: skip
                return True
        raise self.unknown("normalizer and pre_tokenizer", [*normalizer, *splitter])

    def _scores(self) -> list[float]:
        """Scores by id under which SentencePiece makes the same merges: the earlier a piece is made, the higher.

        SentencePiece tries every cut of a piece into two, and all of them before any of a piece with a lower score.
        Merges that are not of this form, as a tokenizer trained by Hugging Face may have them, no scores can tell.
        """
        added = {*self.added.values(), self.model.get("unk_token")}  # matched whole, before merging, or never
        pieces = {text: index for text, index in self.ids.items() if not (text in added or _BYTE_TOKEN.fullmatch(text))}
        given = [pair for pair in self.merges if {*pair, "".join(pair)} <= pieces.keys()]
        made = ["".join(pair) for pair in given]
        last = {text: rank for rank, text in enumerate(made)}
        score, end, ranks = 0.0, -1, dict[str, float]()
        for rank, text in enumerate(made):
            score -= rank > end  # while a piece before this one is not finished, both have the same score
            end = max(end, last[text])
            ranks[text] = score
        by_id = [score - 1] * self._rows
        for text, its_score in ranks.items():
            by_id[self.ids[text]] = its_score
        sharing = Counter(ranks.values())
        # the order of one piece's cuts differs from version to version of transformers; it decides nothing
        again = merges_from_scores(pieces, by_id)
        tied = [[pair for pair in merges if sharing[ranks.get("".join(pair), 0.0)] > 1] for merges in (given, again)]
        if set(given) != set(again) or tied[0] != tied[1]:
            wanted = "every cut of a piece, one piece after the other; llama.cpp has only scores of pieces to merge by"
            raise UserError(f"{self._label}: model.merges in {TOKENIZER} are not SentencePiece's: {wanted}")
        return by_id


def _roles(source: Source, tokenizer: Tokenizer, vocabulary: _Vocabulary) -> dict[str, Any]:
    """The ids of special tokens by role, and whether a text begins with BOS and ends with EOS."""
    named = {role: tokenizer.special_tokens.get(name) for name, role in ROLES.items()}
    ids = {role: vocabulary.ids[text] for role, text in named.items() if text in vocabulary.ids}
    if vocabulary.byte_fallback and vocabulary.model.get("unk_token") in vocabulary.ids:
        ids["unknown"] = vocabulary.ids[vocabulary.model["unk_token"]]
    ids |= {
        role: found for role, found in (("bos", tokenizer.bos_id), ("padding", tokenizer.pad_id)) if found is not None
    }
    first = [ids.pop("eos")] if "eos" in ids else []
    ends = list(dict.fromkeys((*first, *source.config.eos_token_ids, *sorted(tokenizer.eos_ids))))
    if len(ends) > len(_END_ROLES):
        raise UserError(f"{source.label}: its config and tokenizer name {len(ends)} end tokens, {ends}; a GGUF has "
                        f"room for {len(_END_ROLES)}: take some out of eos_token_id in config.json")  # fmt: skip
    ids |= dict(zip(_END_ROLES, ends, strict=False))
    add_bos, add_eos = _added_around(source, tokenizer, ids.get("bos"), ids.get("eos"))
    return {
        **{f"{role}_token_id": index for role, index in ids.items()},
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
    }


def _added_around(source: Source, tokenizer: Tokenizer, bos: int | None, eos: int | None) -> tuple[bool, bool]:
    """Whether the tokenizer puts BOS before and EOS behind a text, found by trying."""
    plain, whole = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    for add_bos, add_eos in product((False, True), repeat=2):
        if whole == [*[bos] * add_bos, *plain, *[eos] * add_eos]:
            return add_bos, add_eos
    raise UserError(f"{source.label}: its tokenizer makes {whole} of a text of {plain}; a GGUF can say only that "
                    f"BOS ({bos}) comes before and EOS ({eos}) behind it")  # fmt: skip


def _steps(part: Mapping[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as the list of its steps; `name` is where a sequence keeps them."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for inner in part[name] for step in _steps(inner, name)]
    return [dict(part)]


def _pair(merge: str | Iterable[str]) -> Pair:
    """A merge, which older files write as "left right"."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
