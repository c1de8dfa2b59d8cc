"""How much memory weights may take before the system has to drop pages of them."""

from collections.abc import Iterator
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_OWN_GROUPS = Path("/proc/self/cgroup")  # "0::/path" of cgroup v2, "4:memory:/path" of v1
_GROUPS = Path("/sys/fs/cgroup")


def usable_memory() -> int | None:
    """Bytes that weights may fill: what the system has available, or the whole limit of the cgroup where that is lower,
    whatever the group already uses of it. None where the system does not say."""
    known = [*_available(), *_limits()]
    return min(known) if known else None


def _available() -> Iterator[int]:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _limits() -> Iterator[int]:
    """Of the memory cgroups this process is in, up to the root; a container may see its own as the root."""
    try:
        own = [line.split(":", 2) for line in _OWN_GROUPS.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in own:
        if controllers == "":
            root, names = _GROUPS, ["memory.max", "memory.high"]  # above the second, too, pages are dropped
        elif "memory" in controllers.split(","):
            root, names = _GROUPS / "memory", ["memory.limit_in_bytes"]
        else:
            continue
        inner = root / path.lstrip("/")
        for group in (inner, *inner.parents):
            if group.is_relative_to(root):
                for name in names:
                    yield from _number(group / name)


def _number(file: Path) -> Iterator[int]:
    try:
        yield int(file.read_text())
    except (OSError, ValueError):  # none, or "max"
        return
