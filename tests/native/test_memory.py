"""How much memory there is to use, from what the system says."""

from pathlib import Path

import pytest

from octavo.native import memory

MEMINFO = "MemTotal:       24684092 kB\nMemFree:        100 kB\nMemAvailable:   2000 kB\n"


@pytest.fixture
def system(tmp_path, monkeypatch) -> Path:
    """A machine with 2,000 kB available and no cgroups."""
    for name, file in (("_MEMINFO", "meminfo"), ("_OWN_GROUPS", "own"), ("_GROUPS", "groups")):
        monkeypatch.setattr(memory, name, tmp_path / file)
    (tmp_path / "meminfo").write_text(MEMINFO)
    return tmp_path


def limit(system: Path, group: str, file: str, text: str) -> None:
    (system / "groups" / group).mkdir(parents=True, exist_ok=True)
    (system / "groups" / group / file).write_text(text)


def test_without_groups_what_is_available(system) -> None:
    assert memory.usable_memory() == 2000 * 1024
    (system / "meminfo").unlink()
    assert memory.usable_memory() is None


def test_the_lowest_limit_up_to_the_root_counts(system) -> None:
    (system / "own").write_text("0::/a/b\n")
    limit(system, "a/b", "memory.max", "max\n")
    assert memory.usable_memory() == 2000 * 1024
    limit(system, "a", "memory.max", "1000000\n")
    assert memory.usable_memory() == 1000000
    limit(system, "", "memory.max", "500000\n")
    assert memory.usable_memory() == 500000
    limit(system, "a/b", "memory.max", "3000\n")
    assert memory.usable_memory() == 3000


def test_pages_are_dropped_above_the_high_mark_already(system) -> None:
    (system / "own").write_text("0::/a\n")
    limit(system, "a", "memory.max", "80000\n")
    limit(system, "a", "memory.high", "max\n")
    assert memory.usable_memory() == 80000
    limit(system, "a", "memory.high", "70000\n")
    assert memory.usable_memory() == 70000


def test_version_1_of_cgroups(system) -> None:
    (system / "own").write_text("9:cpu:/a\n4:memory,hugetlb:/a\n0::/\n")
    limit(system, "memory/a", "memory.limit_in_bytes", "70000\n")
    limit(system, "memory", "memory.limit_in_bytes", "9223372036854771712\n")
    assert memory.usable_memory() == 70000


def test_a_group_that_cannot_be_seen(system) -> None:
    """As in a container, whose own group is the root of what it sees."""
    (system / "own").write_text("0::/../../outer\n")
    limit(system, "", "memory.max", "60000\n")
    assert memory.usable_memory() == 60000


def test_of_this_machine() -> None:
    found = memory.usable_memory()
    assert found is None or 1 << 20 < found < 1 << 50
