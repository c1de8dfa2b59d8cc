"""Turns, crashes and hangs, with parties that are scripts in processes of their own."""

import os
from pathlib import Path

import pytest

from octavo.bench.metrics import parse_metrics
from octavo.bench.party import Party, PartyError, Worker
from octavo.bench.schedule import Plan, run

PLAN = Plan(parse_metrics("prefill_512,decode_8,decode_1"), rounds=3, steps=4, timeout=20)


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    """No pauses; and a short timeout is meant for answers, not for the start of a Python on a busy machine."""
    monkeypatch.setattr("octavo.bench.schedule.SETTLE_SECONDS", 0.0)
    ready = Worker.ready
    monkeypatch.setattr(Worker, "ready", lambda worker, _: ready(worker, 60))


def nothing(_: str) -> None:
    pass


def events(log: Path) -> list[list[str]]:
    return [line.split() for line in log.read_text().splitlines()]


def all_ended(log: Path) -> bool:
    """The workers are killed and waited for, so their process ids are free."""
    return not any(Path(f"/proc/{pid}").exists() for _, _, _, pid in events(log))


def test_parties_take_turns_one_at_a_time(fake, log) -> None:
    found = run([fake("ours"), fake("theirs")], PLAN, nothing)
    assert [event[:2] for event in events(log)[:2]] == [["start", "ours"], ["start", "theirs"]]
    measured = events(log)[2:]
    assert len(measured) == 2 * 3 * 3 * 2
    for begin, end in zip(measured[::2], measured[1::2], strict=True):
        assert (begin[0], end[0]) == ("begin", "end") and begin[1:] == end[1:]
    order = [(metric, name) for word, name, metric, _ in measured if word == "begin"]
    turns = ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert order == [(metric, name) for metric in ("prefill_512", "decode_8", "decode_1") for name in turns]
    assert {name: {m: len(s) for m, s in party.samples.items()} for name, party in found.items()} == {
        name: {"prefill_512": 3, "decode_8": 3, "decode_1": 3} for name in ("ours", "theirs")
    }
    assert found["theirs"].about["version"] == "theirs 1" and all_ended(log)


def test_a_party_is_only_asked_for_what_it_measures(fake, log) -> None:
    peer = fake("theirs", measures=lambda metric: metric.count == 1)
    found = run([fake("ours"), peer], PLAN, nothing)
    assert list(found["theirs"].samples) == ["decode_1"] and not found["theirs"].errors
    assert list(found["ours"].samples) == ["prefill_512", "decode_8", "decode_1"]


@pytest.mark.parametrize(
    ("mode", "reason", "later"),
    [
        ("error", "theirs: decode_8: ValueError: too many sequences", True),
        ("crash", "theirs: decode_8: the process ended by signal 6: terminate called", False),
        ("garbage", "theirs: decode_8: its worker said b'llama_decode: what a surprise'", False),
        ("hang", "theirs: decode_8: no answer within 2 s", False),
    ],
)
def test_a_peer_that_fails_loses_the_metric_and_we_go_on(fake, log, mode, reason, later) -> None:
    plan = Plan(PLAN.metrics, PLAN.rounds, PLAN.steps, timeout=2 if mode == "hang" else 20)
    found = run([fake("ours"), fake("theirs", mode=mode)], plan, nothing)
    assert all(len(samples) == 3 for samples in found["ours"].samples.values()) and len(found["ours"].samples) == 3
    assert list(found["theirs"].samples) == ["prefill_512"] + ["decode_1"] * later
    assert found["theirs"].errors["decode_8"].startswith(reason)
    assert set(found["theirs"].errors) == ({"decode_8"} if later else {"decode_8", "decode_1"})
    assert all_ended(log)


@pytest.mark.parametrize("mode", ["error", "crash", "hang"])
def test_ours_must_not_fail(fake, log, mode) -> None:
    plan = Plan(PLAN.metrics, PLAN.rounds, PLAN.steps, timeout=2 if mode == "hang" else 20)
    with pytest.raises(PartyError, match="ours: decode_8"):
        run([fake("ours", mode=mode), fake("theirs")], plan, nothing)
    assert all_ended(log)


def test_a_party_that_cannot_load_stops_everything_before_the_clock_starts(fake, log) -> None:
    with pytest.raises(PartyError, match="theirs: loading the model: RuntimeError: no such model"):
        run([fake("ours"), fake("theirs", mode="no-load")], PLAN, nothing)
    assert {word for word, *_ in events(log)} == {"start"} and all_ended(log)
    with pytest.raises(PartyError, match="cannot be run"):
        run([fake("ours"), Party("theirs", ["/nonexistent/python"])], PLAN, nothing)
    assert all_ended(log)


def test_an_interrupt_ends_the_processes(fake, log) -> None:
    def interrupt(task: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([fake("ours"), fake("theirs")], PLAN, nothing, interrupt)
    assert len({pid for *_, pid in events(log)}) == 2 and all_ended(log)
    assert os.getpid() not in {int(pid) for *_, pid in events(log)}
