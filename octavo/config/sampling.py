"""How one request wants its tokens chosen."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from octavo.errors import UsageError

MAX_LOGPROBS = 20  # OpenAI's limit
MAX_CHOICES = 8
_FINITE = 1e6  # what a logit bias or a penalty may be at most: far beyond any use, and no overflow in fp32


@dataclass(frozen=True)
class Grammar:
    """What an answer must look like: a JSON schema, a regular expression, or one of several texts.

    text: the schema as JSON, or the expression; choices: the texts, for kind "choice" only.
    """

    kind: Literal["json_schema", "regex", "choice"]
    text: str = ""
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ("json_schema", "regex", "choice"):
            raise UsageError(f"the grammar's kind is {self.kind!r}: choose json_schema, regex or choice")
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
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            raise UsageError(f"stop is {self.stop!r}: it must be a sequence of strings")
        within = f"it must be between -{_FINITE:g} and {_FINITE:g}"
        up_to = f"it must be between 0 and {MAX_LOGPROBS}, or None"
        bias = all(token >= 0 and -_FINITE <= value <= _FINITE for token, value in self.logit_bias.items())
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
