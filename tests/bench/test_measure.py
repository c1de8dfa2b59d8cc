"""What a runner is asked to do for each metric."""

import time

import numpy as np
import pytest
from numpy.typing import NDArray

from octavo.bench.measure import measure, pages_needed
from octavo.bench.metrics import WARM_STEPS, parse_metric
from octavo.engine.runner import StepBatch, StepResult
from octavo.engine.torch_runner import TorchRunner
from octavo.models import Decoder
from tests.tiny import tiny_config

STEP_SECONDS = 0.01


class Recorder:
    """Checks and remembers its batches; a step takes STEP_SECONDS and reads `step` experts."""

    def __init__(self, num_pages: int, num_slots: int = 0) -> None:
        self.config, self.num_pages, self.num_slots = tiny_config(), num_pages, num_slots
        self.batches: list[StepBatch] = []
        self.filled: list[tuple[list[int], int, int]] = []

    def fill_synthetic(self, page_table_row: NDArray[np.int64], tokens: int, state_slot: int) -> None:
        time.sleep(5 * STEP_SECONDS)
        self.filled.append((page_table_row.tolist(), tokens, state_slot))

    def step(self, batch: StepBatch) -> StepResult:
        batch.check(self.num_pages, self.config.vocab_size, self.num_slots)
        self.batches.append(batch)
        time.sleep(STEP_SECONDS)
        counts = np.zeros((2, 5), np.int64)
        counts.flat[: len(self.batches)] = 7
        return StepResult(np.zeros((len(batch.logit_rows), 331), np.float32), np.zeros((0, 48), np.float32), counts)


def test_prefill_goes_in_chunks_and_wants_the_last_rows_logits() -> None:
    metric = parse_metric("prefill_1100")
    runner = Recorder(pages_needed(metric, 1))
    timing = measure(runner, metric, steps=9)
    assert runner.num_pages == 35 and not runner.filled
    assert [len(batch.ids) for batch in runner.batches] == [512, 512, 76]
    assert np.concatenate([batch.positions for batch in runner.batches]).tolist() == list(range(1100))
    assert [batch.logit_rows.tolist() for batch in runner.batches] == [[], [], [75]]
    assert len({tuple(batch.ids[:9]) for batch in runner.batches}) == 3
    assert (timing.tokens, timing.steps, timing.expert_reads) == (1100, 3, 2.0)
    assert 3 * STEP_SECONDS <= timing.seconds < 30 * STEP_SECONDS


@pytest.mark.parametrize("slots", [0, 3])
def test_decode_feeds_one_token_a_sequence_at_the_depth(slots) -> None:
    metric = parse_metric("decode_3@70")
    runner = Recorder(pages_needed(metric, 4), slots)
    timing = measure(runner, metric, steps=4)
    places = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert runner.num_pages == 9
    assert runner.filled == [(pages, 70, slot if slots else -1) for slot, pages in enumerate(places)]
    assert [batch.positions.tolist() for batch in runner.batches] == [[70 + step] * 3 for step in range(WARM_STEPS + 4)]
    for batch in runner.batches:
        assert batch.page_table.tolist() == places and batch.logit_rows.tolist() == [0, 1, 2]
    assert len({tuple(batch.ids) for batch in runner.batches}) == WARM_STEPS + 4
    # the first steps and the filling are not timed
    assert (timing.tokens, timing.steps) == (12, 4) and timing.expert_reads == np.mean([3, 4, 5, 6])
    assert timing.seconds >= 4 * STEP_SECONDS


def test_the_clock_leaves_out_warm_up_and_filling(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr("time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    metric = parse_metric("decode_2@40")
    assert measure(Recorder(9), metric, 5).seconds == pytest.approx(5 * STEP_SECONDS)
    assert measure(Recorder(9), parse_metric("prefill_9@40"), 5).seconds == pytest.approx(STEP_SECONDS)


@pytest.mark.parametrize("family", ["llama", "mixtral", "minimax_text_01"])
@pytest.mark.parametrize("name", ["prefill_70", "prefill_5@40", "decode_3", "decode_2@70"])
def test_the_torch_runner_can_be_measured(family, name) -> None:
    metric = parse_metric(name)
    runner = TorchRunner(Decoder(tiny_config(family)).initialise().eval(), pages_needed(metric, 2), 3)
    timing = measure(runner, metric, steps=2)
    assert timing.seconds > 0 and timing.tokens == (metric.count if metric.kind == "prefill" else 2 * metric.count)
    assert (timing.expert_reads > 0) == (family != "llama")
