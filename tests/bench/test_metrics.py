"""Names of metrics."""

import pytest

from octavo.bench.metrics import DEFAULT_METRICS, Metric, parse_metric, parse_metrics
from octavo.errors import UsageError


def test_names_are_read_both_ways() -> None:
    assert parse_metric("decode_8@4096") == Metric("decode", 8, 4096) and parse_metric("prefill_512").depth == 0
    assert [metric.name for metric in parse_metrics(None)] == list(DEFAULT_METRICS)
    assert [metric.name for metric in parse_metrics("decode_2, prefill_7@3,decode_2")] == ["decode_2", "prefill_7@3"]


@pytest.mark.parametrize(
    "name", ["", "decode", "decode_0", "decode_1@0", "train_1", "decode_1@", "Decode_1", "decode_1x"]
)
def test_other_names_are_refused(name) -> None:
    with pytest.raises(UsageError, match="prefill_TOKENS"):
        parse_metrics(f"decode_1,{name}")
