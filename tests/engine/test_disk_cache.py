"""The prefix cache's file: what comes back is what went, nothing is left, and no error of a disk reaches a request."""

import errno
import logging
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test

from octavo.config import EngineOptions
from octavo.engine import disk_cache
from octavo.engine.disk_cache import SECTOR, DiskCache
from octavo.engine.scheduler import Scheduler
from octavo.engine.scheduler import Sequence as Tokens
from octavo.errors import UsageError, UserError
from tests.engine.symbols import check_books, request, run, run_step, scheduler
from tests.engine.test_scheduler_traffic import Traffic

PROMPT = np.random.default_rng(1).integers(0, 9, 150).tolist()
KINDS = {"softmax": {"slots": 0}, "window": {"slots": 0, "window": 40}, "hybrid": {"slots": 2}}


def fail(*_: Any) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def planner_with_disk(tmp_path: Path, kind: str, disk_bytes: int = 2**20, **options: Any) -> Scheduler:
    """Twelve pages: a prompt of 150 tokens and another one do not stay together."""
    return scheduler(12, **KINDS[kind], disk_bytes=disk_bytes, disk_folder=str(tmp_path), **options)


def answer(planner: Scheduler, ids: list[int], tenant: str = "", **marks: Any) -> Tokens:
    sequence = request(ids, 5, tenant, **marks)
    planner.add(sequence)
    run(planner)
    check_books(planner)
    return sequence


def other_traffic(planner: Scheduler, tenant: str = "") -> None:
    """Enough to push everything else out of memory."""
    for seed in range(3):
        answer(planner, np.random.default_rng(100 + seed).integers(10, 20, 300).tolist(), tenant)


class DiskTraffic(Traffic):
    """The same traffic with a file behind the prefix cache, which is too small and fails now and then."""

    @initialize(
        slots=st.sampled_from([0, 1, 3]),
        window=st.sampled_from([None, None, 40]),
        pages=st.integers(8, 20),
        budget=st.sampled_from([1000, 5000]),
        blocks=st.sampled_from([0, 1, 7, 40, 1000]),
    )
    def begin(self, slots: int, window: int | None, pages: int, budget: int, blocks: int) -> None:
        disk = {"disk_bytes": 1 + blocks * SECTOR, "disk_folder": tempfile.gettempdir()}
        self.planner = scheduler(pages, slots, window, max_running=4, snapshot_bytes=budget, **disk)
        self.pages = pages
        self.patch = pytest.MonkeyPatch()

    @rule(call=st.sampled_from(["pwrite", "preadv"]), works=st.booleans())
    def disk(self, call: str, works: bool) -> None:
        self.patch.setattr(disk_cache.os, call, REAL[call] if works else fail)

    def teardown(self) -> None:
        if hasattr(self, "planner"):
            super().teardown()
            assert self.planner.cache.disk is not None and not self.planner.cache.disk.used_bytes
            self.planner.cache.disk.close()
            self.patch.undo()


REAL = {"pwrite": os.pwrite, "preadv": os.preadv}


def test_random_traffic() -> None:
    run_state_machine_as_test(DiskTraffic, settings=settings(max_examples=120, stateful_step_count=30, deadline=None))


@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_requests_in_little_memory(tmp_path, kind) -> None:
    """Conversations that take turns: most of what is reused has been on disk, whose file stays as large as it may."""
    planner = planner_with_disk(tmp_path, kind, disk_bytes=60 * SECTOR)
    random = np.random.default_rng(0)
    talks = [random.integers(0, 4, 60).tolist() for _ in range(8)]
    for number in range(1000):
        ids = talks[random.integers(8)]
        ids += random.integers(0, 4, random.integers(1, 30)).tolist()
        sequence = request(ids, int(random.integers(1, 9)), str(number % 2), [len(ids) // 2])
        planner.add(sequence)
        for _ in range(random.integers(0, 30)):
            run_step(planner, int(random.integers(4)))
        if number % 40 == 0:
            check_books(planner)
        if len(ids) > 250:
            del ids[random.integers(20, 60) :]
    run(planner)
    check_books(planner)
    assert planner.cache.disk_tokens > 20_000


@pytest.mark.parametrize("kind", KINDS)
def test_what_memory_forgot_comes_back(tmp_path, kind) -> None:
    planner = planner_with_disk(tmp_path, kind)
    answer(planner, PROMPT)
    other_traffic(planner)
    assert planner.cache.reach(np.array(PROMPT), "") == 0 and planner.cache.disk_tokens == 0
    again = answer(planner, [*PROMPT, 1, 2, 3])
    # keys and values of whole pages; states wherever there was a snapshot, here just before the prompt's last token
    assert again.cached == planner.cache.disk_tokens == (149 if kind == "hybrid" else 128)
    assert planner.cache.disk is not None and planner.cache.disk.used_bytes % SECTOR == 0


def test_states_alone_come_back_where_their_pages_are_still_there(tmp_path) -> None:
    planner = planner_with_disk(tmp_path, "hybrid", snapshot_bytes=2000)  # two of them
    answer(planner, PROMPT, marks=[40])
    answer(planner, [8] * 100)  # a snapshot that saves more than the first of these
    match = planner.cache._tree.match(np.array(PROMPT), "")
    assert match.length == 149 and planner.cache.reach(np.array(PROMPT[:80]), "") == 0
    again = answer(planner, [*PROMPT[:80], 9, 9, 9])
    assert again.cached == planner.cache.disk_tokens == 40
    assert 80 in again.marks  # where it parts from what is known


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_read_once_for_all_who_ask_together(tmp_path, kind) -> None:
    planner = planner_with_disk(tmp_path, kind)
    answer(planner, PROMPT)
    other_traffic(planner)
    both = [request([*PROMPT, token], 5) for token in (1, 2)]
    for sequence in both:
        planner.add(sequence)
    run(planner)
    assert both[0].cached == both[1].cached == planner.cache.disk_tokens > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_beginning_that_goes_on_otherwise(tmp_path, kind) -> None:
    """Part of it in memory, up to the middle of a page; the rest on disk."""
    planner = planner_with_disk(tmp_path, kind)
    answer(planner, PROMPT, marks=[70])
    other_traffic(planner)
    answer(planner, [*PROMPT[:75], 9, 9, 9], marks=[70])
    again = answer(planner, [*PROMPT, 1, 2, 3])
    assert again.cached == (149 if kind == "hybrid" else 128)


@pytest.mark.parametrize("kind", KINDS)
def test_few_tokens_are_not_worth_it(tmp_path, kind) -> None:
    planner = planner_with_disk(tmp_path, kind)
    answer(planner, PROMPT[:64], marks=[30])
    other_traffic(planner)
    assert answer(planner, PROMPT[:32]).cached == 0 and planner.cache.disk_tokens == 0
    other_traffic(planner)
    assert answer(planner, PROMPT[:33]).cached == (0 if kind == "hybrid" else 32)


@pytest.mark.parametrize("kind", ["softmax", "window"])
def test_nor_are_few_more_than_memory_has(tmp_path, kind, monkeypatch) -> None:
    planner = planner_with_disk(tmp_path, kind)
    answer(planner, PROMPT[:70])
    other_traffic(planner)
    assert answer(planner, [*PROMPT[:50], 9, 9, 9]).cached == 32
    monkeypatch.setattr(disk_cache.os, "preadv", None)
    assert answer(planner, [*PROMPT[:66], 8, 8]).cached == 50  # the disk has 64


@pytest.mark.parametrize("kind", KINDS)
def test_tenants_do_not_share(tmp_path, kind) -> None:
    planner = planner_with_disk(tmp_path, kind)
    answer(planner, PROMPT, "a")
    other_traffic(planner, "a")
    assert answer(planner, PROMPT, "b").cached == 0
    other_traffic(planner, "b")
    assert planner.cache.disk_tokens == 0 and answer(planner, PROMPT, "a").cached > 0
    digests = {disk_cache._digests(np.array(PROMPT), tenant, [150])[150] for tenant in ("", "a", "a\0", "\ud800")}
    assert len(digests) == 4
    goes_on = disk_cache._digests(np.array([1, *PROMPT]), "", [151])
    assert goes_on[151] not in disk_cache._digests(np.array(PROMPT), "\1\0\0\0\0\0\0\0", [150]).values()


@pytest.mark.parametrize("call", ["pwrite", "preadv"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_failing_disk_is_said_once_and_costs_the_hit_only(tmp_path, kind, call, monkeypatch, caplog) -> None:
    planner = planner_with_disk(tmp_path, kind)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(disk_cache.os, call, fail)
        answer(planner, PROMPT)
        other_traffic(planner)
        assert answer(planner, PROMPT).cached == 0
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "No space left" in caplog.text
    other_traffic(planner)
    assert answer(planner, PROMPT).cached > 0  # and it is used again when it works again


@pytest.mark.parametrize("call", ["pwrite", "preadv"])
def test_half_of_a_page_is_an_error(tmp_path, call, monkeypatch) -> None:
    planner = planner_with_disk(tmp_path, "softmax")
    monkeypatch.setattr(disk_cache.os, call, lambda file, parts, place: 100)
    answer(planner, PROMPT)
    other_traffic(planner)
    assert planner.cache.disk is not None and bool(planner.cache.disk.used_bytes) == (call == "preadv")
    assert answer(planner, PROMPT).cached == 0


def test_where_one_page_cannot_be_read_those_before_it_still_count(tmp_path, monkeypatch) -> None:
    planner = planner_with_disk(tmp_path, "softmax")
    answer(planner, PROMPT)
    other_traffic(planner)
    reads: list[int] = []

    def third_fails(*arguments: Any) -> int:
        reads.append(0)
        return fail() if len(reads) == 3 else REAL["preadv"](*arguments)

    monkeypatch.setattr(disk_cache.os, "preadv", third_fails)
    assert answer(planner, PROMPT).cached == planner.cache.disk_tokens == 64


class Bytes:
    """Pages of 100 bytes that are their own number."""

    def read_page(self, page: int) -> np.ndarray:
        return np.full(100, page, np.uint8)

    def to_bytes(self, states: np.ndarray) -> np.ndarray:
        return states

    from_bytes = to_bytes


def on_disk(disk: DiskCache, ids: np.ndarray) -> int:
    return disk.find(ids, "", 0, needs_states=False).length


def test_the_budget_holds_and_the_longest_unused_goes(tmp_path) -> None:
    disk = DiskCache(Bytes(), 4 * SECTOR + 10, 100, tmp_path)
    a, b, c = (np.full(64, number) for number in range(3))
    disk.spill(a, "", [1, 2])
    disk.spill(b, "", [3, 4])
    assert (on_disk(disk, b), on_disk(disk, a)) == (64, 64)  # a is the one used last
    disk.spill(c[:32], "", [5])
    assert (on_disk(disk, a), on_disk(disk, b), on_disk(disk, c)) == (64, 32, 32)  # of b its end goes first
    disk.spill(np.zeros(0, np.int64), "", [])
    disk.spill(a, "", [], np.zeros(5 * SECTOR, np.uint8))  # never fits
    disk.check()
    assert disk.used_bytes == 4 * SECTOR and on_disk(disk, a) == 64
    disk.spill(a, "", [], np.zeros(3 * SECTOR, np.uint8))
    disk.check()
    assert disk.used_bytes == 4 * SECTOR and disk.find(a, "", 64, needs_states=True).length == 64
    disk.close()


def test_of_too_much_the_beginning_stays(tmp_path) -> None:
    """And where states are not, the page that is not full has no use."""
    disk, ids = DiskCache(Bytes(), 2 * SECTOR, 100, tmp_path), np.arange(100)
    disk.spill(ids[:40], "", [1, 2])
    assert disk.used_bytes == SECTOR
    disk.spill(ids, "", [1, 2, 3, 4])
    assert on_disk(disk, ids) == 64
    disk.close()


def test_what_is_there_is_not_written_again(tmp_path, monkeypatch) -> None:
    disk = DiskCache(Bytes(), 2**20, 100, tmp_path)
    disk.spill(np.zeros(64, np.int64), "", [1, 2], np.zeros(7, np.uint8))
    monkeypatch.setattr(disk_cache.os, "pwrite", fail)
    disk.spill(np.zeros(64, np.int64), "", [3, 4], np.ones(7, np.uint8))
    assert on_disk(disk, np.zeros(64, np.int64)) == 64
    disk.close()


def test_the_file_has_no_name_and_is_its_owners(tmp_path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    disk = DiskCache(Bytes(), 2**20, 100, tmp_path)
    disk.spill(np.zeros(64, np.int64), "", [1, 2])
    found = os.fstat(disk._file.fileno())
    assert stat.S_IMODE(found.st_mode) == 0o600 and found.st_nlink == 0 and found.st_size > 0
    assert not list(tmp_path.iterdir())
    assert not os.get_inheritable(disk._file.fileno())
    disk.close()
    disk.close()
    disk.spill(np.zeros(64, np.int64), "", [1, 2])  # harmless: a step may end after it
    assert on_disk(disk, np.zeros(64, np.int64)) == 0 and set(os.listdir("/proc/self/fd")) == before


def test_it_lies_in_octavos_folder_by_default(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "new"))
    asked: list[Path] = []
    real = disk_cache.tempfile.TemporaryFile
    monkeypatch.setattr(
        disk_cache.tempfile, "TemporaryFile", lambda dir, **rest: (asked.append(dir), real(dir=dir, **rest))[1]
    )
    DiskCache(Bytes(), 2**20, 100).close()
    assert asked == [tmp_path / "new"]


def test_mistakes_are_said() -> None:
    with pytest.raises(UserError, match="no file for the prefix cache can be made in /no/such/folder"):
        DiskCache(Bytes(), 2**20, 100, "/no/such/folder")
    with pytest.raises(UsageError, match="disk_bytes is -1"):
        EngineOptions(disk_bytes=-1)
