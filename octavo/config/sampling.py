"""How one request wants its tokens chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal

from octavo.config.numbers import check_numbers
from octavo.errors import UsageError

MAX_LOGPROBS = 20  # OpenAI's limit
MAX_CHOICES = 8
_WHOLE = ("max_new_tokens", "top_k", "seed", "n", "logprobs", "prompt_logprobs")
_REAL = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_FINITE = 1e6  # what a logit bias or a penalty may be at most: far beyond any use, and no overflow in fp32


@dataclass(frozen=True)
class Grammar:
    """What an answer must look like: a JSON schema, a regular expression, one of several texts, or a grammar.

    text: the schema as JSON, the expression, or the grammar in llguidance's variant of Lark's language; choices: the
    texts, for kind "choice" only.
    """

    kind: Literal["json_schema", "regex", "choice", "lark"]
    text: str = ""
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ("json_schema", "regex", "choice", "lark"):
            raise UsageError(f"the grammar's kind is {self.kind!r}: choose json_schema, regex, choice or lark")
        if not isinstance(self.text, str):
            raise UsageError(f"the grammar's text is {self.text!r:.80}: it must be a string (json.dumps of a schema)")
        if not _are_texts(self.choices):
            raise UsageError(f"the grammar's choices are {self.choices!r:.80}: they must be a sequence of strings")
        object.__setattr__(self, "choices", tuple(self.choices))  # compiled grammars are looked up by their contents
        if bool(self.choices) != (self.kind == "choice") or bool(self.text) == (self.kind == "choice"):
            raise UsageError(f"a grammar of kind {self.kind} needs {'choices' if self.kind == 'choice' else 'a text'}")


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one request wants its tokens chosen. Temperature 0 is greedy. Raises UsageError on nonsense.

    In the order of their application (engine/sampler.py): repetition_penalty divides positive logits of tokens that
    the prompt or the answer has, and multiplies negative ones (Keskar et al. 2019, section 4.1); presence_penalty and
    frequency_penalty are subtracted for tokens of the answer, once and per occurrence (OpenAI); logit_bias is added;
    grammar rules tokens out; then temperature, top_k (0: all), top_p (1: all) and min_p, the least probability as a
    share of the likeliest token's (Nguyen et al. 2024).
    logprobs, prompt_logprobs: how many alternatives are reported beside each token of the answer or the prompt, None
    for no log probabilities at all; they are the model's own, before any of the above.
    n: answers to the same prompt; the seed of answer i follows from `seed` and i.
    skip_special_tokens: whether special tokens have no text in the answer; those that end it never have any.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    stop: tuple[str, ...] = field(default=())
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        check_numbers(self, _WHOLE, _REAL)
        if not _are_texts(self.stop):
            raise UsageError(f"stop is {self.stop!r:.200}: it must be a sequence of strings")
        if not isinstance(self.grammar, Grammar | None):
            raise UsageError(f"grammar is {self.grammar!r:.200}: it must be a Grammar, or None")
        within = f"it must be between -{_FINITE:g} and {_FINITE:g}"
        up_to = f"it must be between 0 and {MAX_LOGPROBS}, or None"
        bias = isinstance(self.logit_bias, Mapping) and all(map(_is_bias, self.logit_bias.items()))
        checks = (
            ("seed", self.seed is None or self.seed >= 0, "it must be 0 or above"),
            ("max_new_tokens", self.max_new_tokens >= 1, "it must be at least 1"),
            ("temperature", 0.0 <= self.temperature <= 100.0, "it must be between 0 (greedy) and 100"),
            ("top_k", self.top_k >= 0, "it must be 0 (off) or above"),
            ("top_p", 0.0 < self.top_p <= 1.0, "it must be above 0 and at most 1"),
            ("min_p", 0.0 <= self.min_p <= 1.0, "it must be between 0 (off) and 1"),
            ("repetition_penalty", 0.0 < self.repetition_penalty <= _FINITE, "it must be above 0; 1 is off"),
            ("presence_penalty", -_FINITE <= self.presence_penalty <= _FINITE, within),
            ("frequency_penalty", -_FINITE <= self.frequency_penalty <= _FINITE, within),
            ("logit_bias", bias, f"token ids are 0 or above, and of a bias {within}"),
            ("n", 1 <= self.n <= MAX_CHOICES, f"it must be between 1 and {MAX_CHOICES}"),
            ("logprobs", self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS, up_to),
            ("prompt_logprobs", self.prompt_logprobs is None or 0 <= self.prompt_logprobs <= MAX_LOGPROBS, up_to),
            ("stop", all(self.stop), "a stop string must not be empty"),
        )
        for name, good, remedy in checks:
            if not good:
                raise UsageError(f"{name} is {getattr(self, name)!r:.200}: {remedy}")


def _are_texts(value: Any) -> bool:
    """Whether it is a sequence of strings, rather than one of them."""
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(each, str) for each in value)


def _is_bias(entry: tuple[Any, Any]) -> bool:
    token, value = entry
    numbers = isinstance(token, Integral), isinstance(value, Real)
    return all(numbers) and token >= 0 and -_FINITE <= value <= _FINITE
