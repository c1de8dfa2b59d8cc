"""How one request wants its tokens chosen."""

from dataclasses import dataclass, field

from octavo.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one request wants its tokens chosen. Temperature 0 is greedy. Raises UsageError on nonsense."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = field(default=())
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            raise UsageError(f"stop is {self.stop!r}: it must be a sequence of strings")
        checks = (
            ("seed", self.seed is None or self.seed >= 0, "it must be 0 or above"),
            ("max_new_tokens", self.max_new_tokens >= 1, "it must be at least 1"),
            ("temperature", 0.0 <= self.temperature <= 100.0, "it must be between 0 (greedy) and 100"),
            ("top_k", self.top_k >= 0, "it must be 0 (off) or above"),
            ("top_p", 0.0 < self.top_p <= 1.0, "it must be above 0 and at most 1"),
            ("stop", all(self.stop), "a stop string must not be empty"),
        )
        for name, good, remedy in checks:
            if not good:
                raise UsageError(f"{name} is {getattr(self, name)!r}: {remedy}")
