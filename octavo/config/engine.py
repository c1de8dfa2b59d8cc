"""How much the engine may hold and do at once."""

from dataclasses import dataclass

from octavo.config.numbers import check_numbers
from octavo.errors import UsageError

_WHOLE = ("context", "memory_tokens", "max_running", "max_waiting", "state_bytes", "snapshot_bytes", "step_tokens",
          "step_tokens_beside", "speculate")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Limits of an engine. Raises UsageError on nonsense.

    context: most tokens of one request, prompt and answer together; the model may allow fewer.
    memory_tokens: tokens whose keys and values are held at once, those of the prefix cache included; by default four
    contexts. A request that does not fit beside others waits; one that could never fit is refused.
    max_running, max_waiting: requests that share steps, and that wait for their turn; one more is refused.
    state_bytes: for the recurrent states of running requests (models with lightning layers; at least one request runs).
    snapshot_bytes: for the states that the prefix cache keeps, and as much again for those kept during guesses.
    compress_snapshots: keep those in int8, a quarter of the bytes; answers after a hit may then differ.
    step_tokens: most prompt tokens in a step; step_tokens_beside: the same while others decode, who wait for it.
    prefix_cache: whether what requests have in common is kept.
    disk_bytes: of a file that takes what the prefix cache has no room for, 0 for none. disk_folder: where it lies,
    octavo's own folder by default; it has no name there, and nothing is left of it.
    speculate: tokens guessed ahead at most, by what followed the same tokens before; answers do not change by it.
    """

    context: int = 8192
    memory_tokens: int | None = None
    max_running: int = 32
    max_waiting: int = 1024
    state_bytes: int = 4 * 2**30
    snapshot_bytes: int = 2**30
    compress_snapshots: bool = False
    step_tokens: int = 512
    step_tokens_beside: int = 128
    prefix_cache: bool = True
    disk_bytes: int = 0
    disk_folder: str | None = None
    speculate: int = 8

    def __post_init__(self) -> None:
        check_numbers(self, _WHOLE)
        for name in ("context", "max_running", "max_waiting", "step_tokens", "step_tokens_beside"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("state_bytes", "snapshot_bytes", "disk_bytes"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}: it must be 0 or above")
        if not 0 <= self.speculate <= 16:
            raise UsageError(f"speculate is {self.speculate}: it must be between 0 (off) and 16")
        if self.memory_tokens is not None and self.memory_tokens < 1:
            raise UsageError(f"memory_tokens is {self.memory_tokens}: it must be at least 1")
