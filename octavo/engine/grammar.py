"""Structured output: which tokens may come next in an answer that must match a schema, an expression or a grammar.

`Grammars` belongs to a loaded model, a `Matcher` to one answer; llguidance does the matching (an Earley parser over a
lexer of regular-expression derivatives, so nothing ever backtracks).

    matcher = Grammars(tokenizer, vocab_size).matcher(Grammar("json_schema", '{"type": "integer"}'))
    while not matcher.ended:
        matcher.accept(choose(logits, matcher.allowed()))

A grammar is a stranger's program. Its source is bounded here, its compilation is tried in a process of its own
(`grammar_worker.py`, which says why), and each step of matching has llguidance's limits.
"""

import json
import re
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from octavo.config.sampling import Grammar
from octavo.data.token_bytes import spell_within, token_bytes
from octavo.data.tokenizer import Tokenizer
from octavo.engine.grammar_trial import Trial, reason
from octavo.errors import UserError

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_SOURCE_BYTES = 256 * 2**10
MAX_DEPTH = 100  # arrays and objects inside each other in a schema; llguidance's JSON reader stops at 128
STEP_BYTES = 4 * 2**10  # what a grammar is taken to grow by with every mask (its lexer remembers states)
# llguidance's own limits; those left out are its defaults. The states of a lexer are what its memory grows by.
LIMITS: dict[str, Any] = {"max_lexer_states": 50_000, "verbose_errors": False}
# Any whitespace would do, but a model that writes spaces must be made to stop.
JSON_OPTIONS = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,64}"}
_NAMES = {"json_schema": "JSON schema", "regex": "regular expression", "choice": "choice", "lark": "grammar"}


@dataclass
class _Compiled:
    """A grammar that passed its trial. Copies of `first` share its lexer, and so what that has learnt."""

    source: str  # as llguidance takes it
    bytes: int  # of source and compiled form after the first mask
    first: "LLMatcher"
    masks: int = 0  # computed with the shared lexer
    broken: bool = False  # the shared lexer went over a limit, which it never forgets

    @property
    def grown(self) -> int:
        return STEP_BYTES * self.masks


class Grammars:
    """The grammars of a loaded model: compiled once, kept while there is room. May be used from several threads."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, cache_bytes: int = 64 * 2**20) -> None:
        """`vocab_size` is the width of the model's logits, which may be more or less than the tokenizer has.

        cache_bytes bounds what the kept grammars are taken to hold: their source and what compiling them allocated
        (both measured), and STEP_BYTES for every mask since (an estimate). Answers under way keep theirs regardless.
        """
        self._tokenizer, self._vocab_size, self._cache_bytes = tokenizer, vocab_size, cache_bytes
        self._kept: OrderedDict[Grammar, _Compiled] = OrderedDict()  # the last is the latest used
        self._keeping, self._compiling = threading.Lock(), threading.Lock()

    def matcher(self, grammar: Grammar) -> "Matcher":
        """A matcher at the beginning of an answer.

        A new grammar takes milliseconds, at worst COMPILE_SECONDS twice, and the very first one starts a process: not
        for the thread that runs the model. Raises UserError for a grammar that is not valid, refers to other documents
        or is over a limit.
        """
        compiled = self._find(grammar)
        if compiled is None:
            with self._compiling:
                compiled = self._find(grammar) or self._keep(grammar, self._compiler.compile(grammar))
        return Matcher(self._compiler, compiled, compiled.first.deep_copy())

    @property
    def held_bytes(self) -> int:
        """What the kept grammars are taken to hold: at most cache_bytes, and what they grew by since one was kept."""
        with self._keeping:
            return self._held()

    @cached_property
    def _compiler(self) -> "_Compiler":
        return _Compiler(self._tokenizer, self._vocab_size)

    def _find(self, grammar: Grammar) -> _Compiled | None:
        """The kept form, made anew where its lexer has grown much or is broken: a second trial is not needed."""
        with self._keeping:
            found = self._kept.get(grammar)
            if found is not None:
                self._kept.move_to_end(grammar)
        if found is not None and (found.broken or found.grown > self._cache_bytes // 8):
            return self._keep(grammar, replace(found, first=self._compiler.start(found.source), masks=0, broken=False))
        return found

    def _keep(self, grammar: Grammar, compiled: _Compiled) -> _Compiled:
        with self._keeping:
            self._kept.pop(grammar, None)
            self._kept[grammar] = compiled
            while self._held() > self._cache_bytes:
                self._kept.popitem(last=False)
        return compiled

    def _held(self) -> int:
        return sum(compiled.bytes + compiled.grown for compiled in self._kept.values())


class Matcher:
    """The state of one answer. Every call may raise UserError when the grammar needs more work than a step may take."""

    def __init__(self, compiler: "_Compiler", compiled: _Compiled, inner: "LLMatcher") -> None:
        """Made by `Grammars.matcher`."""
        self._compiler, self._compiled, self._inner = compiler, compiled, inner
        self._shared = True  # the lexer, with other answers
        self._tokens: list[int] = []
        self._allowed: NDArray[np.bool_] | None = None  # until the next token
        self._after = 0  # end tokens accepted after the grammar itself had ended: llguidance does not count them

    @property
    def ended(self) -> bool:
        """Whether nothing may follow."""
        return bool(self._inner.is_stopped())

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next, [vocab_size], not to be written to.

        An end token may come exactly where the answer may end, and alone once it has `ended`. Where the grammar leaves
        only one text, its usual spelling is the only one let through.
        """
        if self._allowed is None:
            words = np.zeros(self._compiler.mask_words, np.uint32)
            self._attempt(lambda inner: inner.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes))
            self._compiled.masks += self._shared
            bits = np.unpackbits(words.view(np.uint8), count=self._compiler.vocab_size, bitorder="little")
            bits.flags.writeable = False
            self._allowed = bits.view(np.bool_)
        return self._allowed

    def accept(self, token: int) -> None:
        """Append `token` to the answer. Raises ValueError, with the state as it was, if it was not allowed."""
        # the mask rather than llguidance's own validation of a token, which refuses a few that the mask allows (1.9.1)
        if not (0 <= token < self._compiler.vocab_size and self.allowed()[token]):
            raise ValueError(f"token {token} cannot come next in this grammar")
        if self.ended:
            self._after += 1
        else:
            self._attempt(lambda inner: inner.consume_token(token))
            self._allowed = None
        self._tokens.append(token)

    def copy(self) -> "Matcher":
        """Another matcher with the same answer so far."""
        twin = Matcher(self._compiler, self._compiled, self._inner.deep_copy())
        twin._shared, twin._tokens, twin._after = self._shared, self._tokens.copy(), self._after
        twin._allowed = self._allowed
        return twin

    def rollback(self, count: int) -> None:
        """Take back the last `count` tokens. Raises ValueError if there are not so many."""
        if not 0 <= count <= len(self._tokens):
            raise ValueError(f"cannot take back {count} of {len(self._tokens)} tokens")
        after = min(count, self._after)
        self._after -= after
        self._allowed = None
        del self._tokens[len(self._tokens) - count :]
        if count > after and not self._inner.rollback(count - after):
            self._recover()

    def _attempt(self, call: Callable[["LLMatcher"], object]) -> None:
        """`call` on llguidance's matcher; with a lexer of our own if the shared one is over a limit."""
        call(self._inner)
        if self._inner.is_error():
            self._recover()
            call(self._inner)
            self._check()

    def _recover(self) -> None:
        """Go on with a lexer of our own: the shared one may be over its limits through somebody else's answer."""
        if not self._shared:
            self._check()
        self._shared, self._compiled.broken = False, True
        self._inner = self._compiler.start(self._compiled.source)
        self._inner.consume_tokens(self._tokens[: len(self._tokens) - self._after])
        self._check()

    def _check(self) -> None:
        if self._inner.is_error():
            raise UserError(
                f"the grammar of this answer cannot be followed further ({reason(self._inner.get_error())}) after"
                f" {len(self._tokens)} tokens; ask for something simpler"
            )


# ---- compiling


class _Compiler:
    """llguidance with the vocabulary of a model."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        from octavo.engine.grammar_worker import ByteTokens, make_tokenizer

        self.vocab_size = vocab_size
        self.eos_ids = frozenset(index for index in tokenizer.eos_ids if index < vocab_size)
        self.texts = token_bytes(tokenizer, vocab_size)
        spell = partial(spell_within, tokenizer, self.texts)
        self._tokenizer = make_tokenizer(ByteTokens(self.texts, sorted(self.eos_ids), spell))
        self.mask_words = -(-self._tokenizer.vocab_size // 32)
        self._trial: Trial | None = None

    def compile(self, grammar: Grammar) -> _Compiled:
        """`grammar` after its trial. Raises UserError."""
        source = _source(grammar)
        size = sys.getsizeof(grammar.text) + sum(map(sys.getsizeof, grammar.choices)) + sys.getsizeof(source)
        try:
            if self._trial is None or not self._trial.usable:
                self._trial = Trial(self.texts, self.eos_ids, LIMITS)
            size += self._trial.compile(source)
            first = self.start(source)
            if first.is_error():
                raise ValueError(reason(first.get_error()))
        except ValueError as error:
            raise UserError(f"{_NAMES[grammar.kind]} cannot be used: {error}; change or simplify it") from None
        return _Compiled(source, size, first)

    def start(self, source: str) -> "LLMatcher":
        """A matcher with a lexer of its own, maybe in a state of error."""
        import llguidance

        from octavo.engine.grammar_worker import STACK_BYTES, on_big_stack

        limits = llguidance.LLParserLimits(**LIMITS)
        make = partial(llguidance.LLMatcher, self._tokenizer, source, log_level=0, limits=limits)
        return on_big_stack(make, 2 * STACK_BYTES)


# ---- grammars as llguidance takes them


def _source(grammar: Grammar) -> str:
    """Raises UserError if it is too long, too deep, or no JSON where that is asked for."""
    name, text = _NAMES[grammar.kind], grammar.text
    size = max(len(text), sum(map(len, grammar.choices)))
    try:
        size = max(size, len(text.encode()), sum(len(choice.encode()) for choice in grammar.choices))
    except UnicodeEncodeError:
        raise UserError(f"{name} has half of a UTF-16 surrogate pair: it is no text; correct it") from None
    if size > MAX_SOURCE_BYTES:
        raise UserError(f"{name} has {size} bytes, more than the limit of {MAX_SOURCE_BYTES}; shorten it")
    if grammar.kind == "json_schema":
        return json.dumps({"grammars": [{"json_schema": read_schema(text)}]})
    import llguidance

    if grammar.kind == "lark":
        return llguidance.LLMatcher.grammar_from_lark(text)
    if grammar.kind == "choice":
        text = "|".join(re.sub(r"[!-/:;=?@\[-`{-~]", r"\\\g<0>", choice) for choice in grammar.choices)
    return llguidance.LLMatcher.grammar_from_regex(text)


def read_schema(text: str) -> dict[str, Any]:
    """A JSON schema as llguidance takes it. Raises UserError for one that is none, or is nested too deeply."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else reason(str(error))
        raise UserError(f"JSON schema is not valid JSON: {why}; correct it") from None
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise UserError(f"JSON schema is {text!r:.80}: it must be an object; {{}} allows any JSON")
    check_depth(schema, "JSON schema")
    return {**schema, "x-guidance": JSON_OPTIONS}


def check_depth(schema: dict[str, Any], place: str) -> None:
    """Raise UserError, beginning with `place`, where a schema is nested deeper than MAX_DEPTH."""
    level: list[Any] = [schema]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise UserError(f"{place} is nested deeper than the limit of {MAX_DEPTH}; use $defs and $ref")
        inside = [child for node in level for child in (node.values() if isinstance(node, dict) else node)]
        level = [child for child in inside if isinstance(child, (dict, list))]
