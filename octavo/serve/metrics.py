"""What Prometheus is told at /metrics. The names are vLLM's after the colon, so that its dashboards need only another
prefix; the labels are the model, and what has few values. Nothing is global: each server counts for itself."""

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from octavo.engine.core import Statistics
from octavo.engine.engine import Engine

MOST_EXPERT_SERIES = 1000  # of one model: more are too many for a scrape, and its layers' imbalance has to do
REASONS = ("stop", "length", "tool_calls", "abort", "error")
METHODS = ("GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH")

_TIMES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 640)  # seconds
_GAPS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 10)  # seconds
_TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 131072)


class Prompted(Protocol):
    """What is to be known of a prompt that was handed in: an engine's ticket."""

    prompt_tokens: int

    @property
    def cached_tokens(self) -> int:
        """Of the prompt, known once the first piece is there."""
        ...


class Metrics:
    """The counts of one server. Safe to use from several threads."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Engines(engines))
        self._requests = Counter(
            "octavo:http_requests",
            "Requests by route and status.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        families = _Families(self.registry)
        self._models = {name: families.of(name) for name in engines}

    def begin(self, model: str, tickets: Sequence[Prompted], began: float | None = None) -> "Watch":
        """Watch one generation, of one prompt or several. model: one of the engines' names, else KeyError; began:
        time.perf_counter() when its request came in."""
        return Watch(self._models[model], tickets, time.perf_counter() if began is None else began)

    def answered(self, method: str, route: str, status: int) -> None:
        """Count an answer. route: its template, so that there are few."""
        self._requests.labels(method if method in METHODS else "other", route, str(status)).inc()

    def page(self) -> tuple[bytes, str]:
        """What a scrape gets, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class Watch:
    """One request for generation: tell it of each piece, and in the end of its end. For the event loop's thread."""

    def __init__(self, counts: "_Model", tickets: Sequence[Prompted], began: float) -> None:
        self._counts, self._tickets, self._began = counts, tickets, began
        self._unfinished: dict[Hashable, _Progress] = {}
        self._has_begun = self._over = False

    def piece(self, answer: Hashable = 0, finish_reason: str | None = None, tokens: int = 1) -> None:
        """A piece of an answer is here, the last one where it has a finish_reason. answer: whatever tells it from the
        request's others; tokens: those that came together, with the time since the last ones shared among them."""
        now, counts = time.perf_counter(), self._counts
        progress = self._unfinished.get(answer)
        gaps, gap = tokens, 0.0
        if progress is not None:
            gap = (now - progress.last) / tokens
        else:
            progress, gaps = _Progress(), tokens - 1
            self._unfinished[answer] = progress
            if not self._has_begun:
                self._first(now)
        for _ in range(gaps):
            counts.gap.observe(gap)
        progress.last = now
        progress.tokens += tokens
        counts.generated.inc(tokens)
        if finish_reason is not None:
            self._finish(self._unfinished.pop(answer), finish_reason, now)

    def end(self, error: Exception | None = None) -> None:
        """The request is over; answers without a finish_reason were left by their client, or failed with `error`.
        Harmless when it was told already."""
        if self._over:
            return
        self._over = True
        now, reason = time.perf_counter(), "abort" if error is None else "error"
        for progress in self._unfinished.values() if self._has_begun else [_Progress()]:
            self._finish(progress, reason, now)
        if self._has_begun:
            self._counts.queried.inc(sum(ticket.prompt_tokens for ticket in self._tickets))
            self._counts.hit.inc(sum(ticket.cached_tokens for ticket in self._tickets))

    def _first(self, now: float) -> None:
        self._has_begun, counts = True, self._counts
        counts.first.observe(now - self._began)
        for ticket in self._tickets:
            counts.prompted.inc(ticket.prompt_tokens)
            counts.prompt_sizes.observe(ticket.prompt_tokens)

    def _finish(self, progress: "_Progress", reason: str, now: float) -> None:
        self._counts.ended[reason if reason in REASONS else "error"].inc()
        self._counts.whole.observe(now - self._began)
        if progress.tokens:
            self._counts.answer_sizes.observe(progress.tokens)


class _Progress:
    """How far an answer is: when its last piece came, and its tokens."""

    __slots__ = ("last", "tokens")

    def __init__(self) -> None:
        self.last, self.tokens = 0.0, 0


class _Families:
    """The metrics of generation, for all models."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"octavo:{name}", about, ["model_name", *labels], registry=registry)

        def histogram(name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"octavo:{name}", about, ["model_name"], buckets=buckets, registry=registry)

        self.prompted = counter("prompt_tokens", "Tokens of prompts whose answer has begun.")
        self.generated = counter("generation_tokens", "Tokens of answers.")
        self.queried = counter("prefix_cache_queries", "Tokens of prompts that the prefix cache was asked for.")
        self.hit = counter("prefix_cache_hits", "Tokens of prompts that the prefix cache knew.")
        self.ended = counter("request_success", "Answers by how they ended.", "finished_reason")
        self.first = histogram("time_to_first_token_seconds", "From a request to its first token.", _TIMES)
        self.gap = histogram("inter_token_latency_seconds", "From one token of an answer to its next.", _GAPS)
        self.whole = histogram("e2e_request_latency_seconds", "From a request to the end of an answer.", _TIMES)
        self.prompt_sizes = histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self.answer_sizes = histogram("request_generation_tokens", "Tokens of an answer.", _TOKENS)

    def of(self, model: str) -> "_Model":
        """One model's."""
        return _Model(self, model)


class _Model:
    """The metrics of one model, looked up once: that costs more than counting."""

    def __init__(self, families: _Families, name: str) -> None:
        self.prompted, self.generated = families.prompted.labels(name), families.generated.labels(name)
        self.queried, self.hit = families.queried.labels(name), families.hit.labels(name)
        self.ended = {reason: families.ended.labels(name, reason) for reason in REASONS}
        self.first, self.gap, self.whole = (
            families.first.labels(name),
            families.gap.labels(name),
            families.whole.labels(name),
        )
        self.prompt_sizes, self.answer_sizes = families.prompt_sizes.labels(name), families.answer_sizes.labels(name)


class _Engines(Collector):
    """What engines hold and have done, asked when somebody scrapes."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engines = engines

    def describe(self) -> list[Metric]:
        """Nothing: the registry would otherwise ask the engines at once."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The families, with a sample for each model."""
        engines = {name: (engine, engine.statistics()) for name, engine in self._engines.items()}

        def family(kind: type, name: str, about: str, value: Callable[..., float]) -> Metric:
            made: Metric = kind(f"octavo:{name}", about, labels=["model_name"])
            for model, (engine, statistics) in engines.items():
                made.add_metric([model], value(engine, statistics))  # type: ignore[attr-defined]
            return made

        gauge, counter = GaugeMetricFamily, CounterMetricFamily
        yield family(gauge, "num_requests_running", "Answers being computed.", lambda e, s: s.running)
        yield family(gauge, "num_requests_waiting", "Answers in line.", lambda e, s: s.waiting)
        yield family(
            gauge,
            "kv_cache_usage_perc",
            "Share of the pages that answers hold; 1 is all.",
            lambda e, s: 1 - (s.pages_free + s.pages_cached) / e.runner.num_pages,
        )
        yield family(
            gauge,
            "prefix_cache_usage_perc",
            "Share of the pages that only the prefix cache holds.",
            lambda e, s: s.pages_cached / e.runner.num_pages,
        )
        yield family(gauge, "snapshot_bytes", "Of states in the prefix cache.", lambda e, s: s.snapshot_bytes)
        yield family(gauge, "disk_cache_bytes", "Of the prefix cache's file in use.", lambda e, s: s.disk_bytes)
        yield family(gauge, "engine_up", "0 once an engine broke down.", lambda e, s: not e.closed)
        yield family(counter, "num_preemptions", "Answers put back in line.", lambda e, s: s.preemptions)
        yield family(counter, "engine_steps", "Steps of the model.", lambda e, s: s.steps)
        yield family(counter, "computed_tokens", "Tokens of prompts and answers computed.", lambda e, s: s.tokens)
        yield family(counter, "disk_cache_tokens", "Tokens that came back from the file.", lambda e, s: s.disk_tokens)
        yield from _experts({model: statistics for model, (_, statistics) in engines.items()})


def _experts(all_statistics: Mapping[str, Statistics]) -> Iterator[Metric]:
    """Tokens by layer and expert, where these are few, and how far the busiest expert of a layer is above the mean."""
    tokens = CounterMetricFamily(
        "octavo:expert_tokens", "Tokens that an expert computed.", labels=["model_name", "layer", "expert"]
    )
    imbalance = GaugeMetricFamily(
        "octavo:expert_load_imbalance",
        "Tokens of a layer's busiest expert over the mean of its experts; 1 is even.",
        labels=["model_name", "layer"],
    )
    for model, statistics in all_statistics.items():
        counts = statistics.expert_counts
        if not counts.size:
            continue
        for layer, row in enumerate(counts.tolist()):
            total = sum(row)
            imbalance.add_metric([model, str(layer)], max(row) * len(row) / total if total else 1.0)
            for expert, count in enumerate(row if counts.size <= MOST_EXPERT_SERIES else ()):
                tokens.add_metric([model, str(layer), str(expert)], count)
    yield tokens
    yield imbalance
