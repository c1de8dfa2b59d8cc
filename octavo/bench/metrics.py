"""What is measured, by name: `prefill_512`, `decode_8`, `decode_8@4096`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from octavo.errors import UsageError

DEFAULT_METRICS = (
    "prefill_512", "prefill_4096", "decode_1", "decode_4", "decode_8", "decode_16",
    "decode_1@4096", "decode_8@4096", "decode_1@32768",
)  # fmt: skip
CHUNK = 512  # prompt tokens a step, as the engine feeds them and as llama.cpp's batches are by default
WARM_STEPS = 2  # decode steps before the clock starts
_NAME = re.compile(r"(prefill|decode)_([1-9]\d{0,5})(?:@([1-9]\d{0,6}))?")


@dataclass(frozen=True)
class Metric:
    """One figure: a prompt of `count` tokens, or `count` sequences decoding, after `depth` tokens that lie there."""

    kind: Literal["prefill", "decode"]
    count: int
    depth: int = 0

    @property
    def name(self) -> str:
        """As it is written in options, tables and JSON."""
        return f"{self.kind}_{self.count}" + (f"@{self.depth}" if self.depth else "")

    @property
    def sequences(self) -> int:
        """Sequences that run at once."""
        return self.count if self.kind == "decode" else 1

    def request(self, steps: int) -> dict[str, Any]:
        """What a worker is asked (workers/protocol.py)."""
        return {"metric": self.name, "kind": self.kind, "count": self.count, "depth": self.depth, "steps": steps}

    def tokens_held(self, steps: int) -> int:
        """Tokens that one sequence has in the end, when decoding is measured over `steps` steps."""
        return self.depth + (steps + WARM_STEPS if self.kind == "decode" else self.count)


def parse_metric(name: str) -> Metric:
    """The metric of a name. Raises UsageError for anything else."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise UsageError(f"--metrics has {name!r}: expected prefill_TOKENS or decode_SEQUENCES, with @DEPTH or without")
    kind, count, depth = found.groups()
    return Metric("prefill" if kind == "prefill" else "decode", int(count), int(depth or 0))


def parse_metrics(names: str | None) -> list[Metric]:
    """The metrics of a comma list, each once, in its order; None means all the usual ones."""
    wanted: Sequence[str] = DEFAULT_METRICS if names is None else [name.strip() for name in names.split(",")]
    return [parse_metric(name) for name in dict.fromkeys(wanted)]
