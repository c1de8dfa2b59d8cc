"""What /metrics says: readable by Prometheus' own parser, right in its counts, and bounded in its series."""

import asyncio
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from octavo.engine.answer import Piece
from octavo.engine.engine import Engine
from octavo.serve.jobs import Jobs
from octavo.serve.metrics import MOST_EXPERT_SERIES, Metrics
from tests.serve.serving import MODEL, body, says, serving, tiny_engine

CHAT = "/v1/chat/completions"
get, post = partial(httpx.get, timeout=30), partial(httpx.post, timeout=30)
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    return {
        (sample.name.removeprefix("octavo:"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def scrape(url: str) -> Samples:
    response = get(url + "/metrics")
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/plain")
    return samples(response.text)


def test_a_request_is_counted() -> None:
    with tiny_engine() as engine, serving(engine) as url:
        before = scrape(url)
        for stream in (False, True):
            answer = post(url + CHAT, json=body(max_tokens=7, stream=stream))
            assert answer.status_code == 200
        get(url + "/a%0Afantasy")
        httpx.request("PROPFIND", url + "/v1/models")
        found = scrape(url)
        model = {"model_name": MODEL}
        assert value(found, "generation_tokens_total", **model) == 14
        assert value(found, "request_success_total", finished_reason="length", **model) == 2
        assert value(found, "request_success_total", finished_reason="abort", **model) == 0
        prompt = value(found, "prompt_tokens_total", **model)
        assert prompt > 0 and value(found, "prefix_cache_queries_total", **model) == prompt
        cached = engine.statistics().cached_tokens
        assert value(found, "prefix_cache_hits_total", **model) == cached
        for name, count in (("time_to_first_token", 2), ("inter_token_latency", 12), ("e2e_request_latency", 2)):
            assert value(found, f"{name}_seconds_count", **model) == count
            assert 0 < value(found, f"{name}_seconds_sum", **model) < 60
        assert value(found, "request_generation_tokens_sum", **model) == 14
        assert value(found, "http_requests_total", method="POST", route=CHAT, status="200") == 2
        assert value(found, "http_requests_total", method="GET", route="unmatched", status="404") == 1
        assert value(found, "http_requests_total", method="other", route="/v1/models", status="405") == 1
        assert value(found, "computed_tokens_total", **model) == engine.statistics().tokens
        assert value(found, "kv_cache_usage_perc", **model) == 0 < value(found, "prefix_cache_usage_perc", **model)
        layers, experts = engine.config.num_layers, engine.config.num_experts
        counts = [v for (name, _), v in found.items() if name == "expert_tokens_total"]
        assert len(counts) == layers * experts and sum(counts) == engine.statistics().expert_counts.sum()
        assert 1 < value(found, "expert_load_imbalance", layer="0", **model) <= experts
        assert value(before, "expert_load_imbalance", layer="0", **model) == 1


def scrape_until(url: str, name: str, wanted: float, **labels: str) -> Samples:
    until = time.monotonic() + 10
    while value(found := scrape(url), name, **labels) != wanted:
        assert time.monotonic() < until, f"{name} did not become {wanted}"
    return found


def test_what_is_under_way_and_what_was_left(engine: Engine) -> None:
    with serving(engine) as url:
        model = {"model_name": MODEL}
        with httpx.stream("POST", url + CHAT, json=body(stream=True, max_tokens=1500), timeout=30):
            found = scrape_until(url, "num_requests_running", 1, **model)
            assert 0 < value(found, "kv_cache_usage_perc", **model) <= 1
        scrape_until(url, "request_success_total", 1, finished_reason="abort", **model)
        scrape_until(url, "num_requests_running", 0, **model)


def test_a_dead_engine_is_seen() -> None:
    engine = tiny_engine()
    with serving(engine) as url:
        assert value(scrape(url), "engine_up", model_name=MODEL) == 1
        engine.close()
        assert value(scrape(url), "engine_up", model_name=MODEL) == 0
        assert get(url + "/health").status_code == get(url + "/ready").status_code == 503


@dataclass
class Ticket:
    prompt_tokens: int = 5
    cached_tokens: int = 0


class Still:
    """An engine of any shape at rest."""

    closed = False

    def __init__(self, engine: Engine, layers: int, experts: int) -> None:
        self.runner = engine.runner
        self._statistics = replace(engine.statistics(), expert_counts=np.ones((layers, experts), np.int64))

    def statistics(self) -> Any:
        return self._statistics


def test_many_experts_are_summed_up(engine: Engine) -> None:
    found = samples(Metrics({"big": Still(engine, 60, 128)}).page()[0].decode())  # type: ignore[dict-item]
    assert not [name for name, _ in found if name == "expert_tokens_total"]
    assert len([name for name, _ in found if name == "expert_load_imbalance"]) == 60
    assert 60 * 128 > MOST_EXPERT_SERIES > len(found)
    dense = samples(Metrics({"dense": Still(engine, 60, 0)}).page()[0].decode())  # type: ignore[dict-item]
    assert not [name for name, _ in dense if name.startswith("expert")]


def test_several_answers_and_errors(engine: Engine) -> None:
    metrics = Metrics({"a": engine, "b": engine})
    watch = metrics.begin("a", [Ticket(5, 2), Ticket(7, 0)])
    for answer in ((0, 0), (0, 1), (1, 0)):
        watch.piece(answer)
    watch.piece((0, 1), "stop")
    watch.end(RuntimeError("x"))
    watch.end()
    metrics.begin("b", [Ticket()]).end()
    metrics.begin("b", [Ticket()]).end(RuntimeError("x"))
    found = samples(metrics.page()[0].decode())
    reasons = {
        (model, reason): value(found, "request_success_total", finished_reason=reason, model_name=model)
        for model in "ab"
        for reason in ("stop", "error", "abort")
    }
    assert reasons == {("a", "stop"): 1, ("a", "error"): 2, ("a", "abort"): 0,
                       ("b", "stop"): 0, ("b", "error"): 1, ("b", "abort"): 1}  # fmt: skip
    assert value(found, "prompt_tokens_total", model_name="a") == 12
    assert value(found, "prefix_cache_hits_total", model_name="a") == 2
    assert value(found, "time_to_first_token_seconds_count", model_name="a") == 1
    assert value(found, "inter_token_latency_seconds_count", model_name="a") == 1
    assert value(found, "prompt_tokens_total", model_name="b") == 0
    with pytest.raises(KeyError):
        metrics.begin("c", [])


def test_tokens_that_come_together_share_the_time_between(engine: Engine) -> None:
    """Streams are written to once in a while; tokens of a fast model were not made at once for all that."""
    metrics = Metrics({"a": engine})

    async def read() -> None:
        job = Jobs([]).job()
        job.watch = metrics.begin("a", [Ticket()])
        job.arrive(0, Piece("a", 7))
        await job.items()
        await asyncio.sleep(0.3)
        for piece in says(*"bcde"):
            job.arrive(0, piece)
        assert len(await job.items()) == 5
        job.cancel()

    asyncio.run(read())
    found = samples(metrics.page()[0].decode())
    assert value(found, "inter_token_latency_seconds_count", model_name="a") == 5
    assert value(found, "inter_token_latency_seconds_bucket", model_name="a", le="0.05") == 0
    assert value(found, "inter_token_latency_seconds_sum", model_name="a") >= 0.3
    assert value(found, "generation_tokens_total", model_name="a") == 6
    assert value(found, "request_success_total", finished_reason="stop", model_name="a") == 1


def test_servers_do_not_share_counts(engine: Engine) -> None:
    first, second = Metrics({"a": engine}), Metrics({"a": engine})
    first.answered("GET", "/", 200)
    assert b'route="/"' in first.page()[0] and b'route="/"' not in second.page()[0]


def test_a_token_is_cheap_to_count(engine: Engine) -> None:
    """Under 5 microseconds where nothing else runs; here only that it is no other order of magnitude."""
    watch = Metrics({"a": engine}).begin("a", [Ticket()])
    best = 1.0
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(2000):
            watch.piece()
        best = min(best, (time.perf_counter() - began) / 2000)
    assert best < 50e-6
