"""Packs larger than memory: checked once, asked for ahead, the same bits; also in a memory cgroup."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from octavo.checkpoint import pack as pack_module
from octavo.checkpoint.pack import DamagedPack, Pack, checked_note
from tests.engine.native import VARIANTS, poisoned, same_bits, variant
from tests.engine.steps import batch, tokens
from tests.native.kernels import isas
from tests.quantised import packed, random_decoder

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.parametrize("core", isas()[:1])  # skipped where there is none
MEGABYTE = 1 << 20


@pytest.mark.parametrize("name", VARIANTS)
def test_asking_ahead_changes_no_bit(core, name, tmp_path) -> None:
    """Neither logits nor the choice of experts, in prefill and in decoding."""
    pack = packed(random_decoder(variant(name)), tmp_path / "pack", 4)
    results = []
    for pack.fits_memory in (True, False):
        runner = poisoned(pack)
        prompt = runner.step(batch([(tokens(40), 0, [0, 1])], logit_rows=np.arange(40)))
        answer = [runner.step(batch([(tokens(1), 40 + i, [0, 1])], logit_rows=np.arange(1))) for i in range(3)]
        results.append([prompt, *answer])
    for plain, advised in zip(*results, strict=True):
        assert same_bits(advised.logits, plain.logits)
        assert np.array_equal(advised.expert_counts, plain.expert_counts)


def test_a_pack_larger_than_memory_is_read_whole_only_once(core, tmp_path, monkeypatch) -> None:
    pack = packed(random_decoder(variant("mixtral")), tmp_path / "model.pack", 4)
    assert pack.fits_memory and not checked_note(pack.path).exists()
    monkeypatch.setattr(pack_module, "usable_memory", lambda: pack.nbytes - 1)
    reads: list[Path] = []
    verify = Pack._verify
    monkeypatch.setattr(Pack, "_verify", lambda self: (reads.append(self.path), verify(self))[1])
    assert [Pack(pack.path).fits_memory for _ in range(3)] == [False] * 3 and reads == [pack.path]
    os.utime(pack.path, ns=(0, 0))  # it may have been written to
    data = bytearray(pack.path.read_bytes())
    data[100] ^= 1
    pack.path.write_bytes(data)
    for _ in range(2):  # and what was found damaged is not called good
        with pytest.raises(DamagedPack, match="is not what was written"):
            Pack(pack.path)
    assert len(reads) == 3


@pytest.fixture
def noted(core, tmp_path, monkeypatch) -> Path:
    """A pack larger than memory that was found good."""
    pack = packed(random_decoder(variant("mixtral")), tmp_path / "model.pack", 4)
    monkeypatch.setattr(pack_module, "usable_memory", lambda: pack.nbytes - 1)
    assert not Pack(pack.path).fits_memory and checked_note(pack.path).exists()
    return pack.path


def damaged(path: Path) -> bytes:
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    return bytes(data)


def test_a_note_of_any_bytes_is_read(noted) -> None:
    good = checked_note(noted).read_bytes()
    checked_note(noted).write_bytes(b"\xff\xfe")
    Pack(noted)
    assert checked_note(noted).read_bytes() == good


def test_other_contents_with_the_old_time_are_compared(noted) -> None:
    """As a copy that keeps times leaves them."""
    status = noted.stat()
    time.sleep(0.02)  # some systems count time in such steps
    noted.write_bytes(damaged(noted))
    os.utime(noted, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DamagedPack, match="is not what was written"):
        Pack(noted)


def test_a_note_is_about_the_file_that_was_read(noted, monkeypatch) -> None:
    """Not about one that another process puts in its place meanwhile."""
    checked_note(noted).unlink()
    small = pack_module.usable_memory()

    def replace() -> int | None:
        other = noted.with_name("other")
        other.write_bytes(damaged(noted))
        other.replace(noted)
        return small

    monkeypatch.setattr(pack_module, "usable_memory", replace)
    Pack(noted)
    monkeypatch.setattr(pack_module, "usable_memory", lambda: small)
    with pytest.raises(DamagedPack, match="is not what was written"):
        Pack(noted)


# ---- in a cgroup

PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
with open(sys.argv[1], "a") as group:
    group.write("0")  # this process
from octavo.checkpoint.pack import Pack
from octavo.engine.native_runner import NativeRunner
from tests.engine.steps import batch, tokens
pack = Pack(Path(sys.argv[2]))
runner = NativeRunner(pack, 4)
prompt = runner.step(batch([(tokens(40), 0, [0, 1])]))
logits = [runner.step(batch([(tokens(1, i), 40 + i, [0, 1])], logit_rows=np.arange(1))).logits for i in range(20)]
np.save(sys.argv[3], np.concatenate(logits))
print(json.dumps({"fits": pack.fits_memory, "torch": "torch" in sys.modules}))
"""


class Group:
    """A memory cgroup of version 1 or 2 with a limit."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, old = folder, "memory" in folder.parts
        folder.mkdir()
        (folder / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(limit))
        self.processes = folder / "cgroup.procs"
        self._peak = folder / ("memory.max_usage_in_bytes" if old else "memory.peak")

    def peak(self) -> int:
        return int(self._peak.read_text())


@pytest.fixture
def group() -> Iterator[Group]:
    """One of 96 MB; skips where none can be made, with the reason."""
    made, reasons = None, []
    for parent in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        folder = parent / f"octavo-test-{os.getpid()}"
        try:
            made = Group(folder, 96 * MEGABYTE)
            break
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror}")
            if folder.is_dir():
                folder.rmdir()
    if made is None:
        pytest.skip(f"no memory cgroup can be made here ({'; '.join(reasons)})")
    yield made
    made.folder.rmdir()


def test_in_a_memory_cgroup(core, group, tmp_path) -> None:
    """150 MB of weights in 96 MB, the interpreter's included: read again and again, the same bits, nobody killed."""
    config = variant("mixtral", hidden_size=512, intermediate_size=3072, num_experts=8, head_dim=64)
    pack = packed(random_decoder(config), tmp_path / "model.pack", 16)
    assert 130 * MEGABYTE < pack.nbytes < 170 * MEGABYTE

    def run(processes: Path, out: str) -> dict[str, object]:
        with open(pack.path, "rb") as file:  # out of the page cache, where it counts as this process's
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, processes, pack.path, tmp_path / out],
            capture_output=True, text=True, timeout=120, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return dict(json.loads(done.stdout))

    del pack.__dict__["_bytes"], pack.__dict__["_map"]  # so that none of its pages is in use here
    assert run(tmp_path / "no group", "plain.npy") == {"fits": True, "torch": False}
    for _ in range(2):  # the second time its checksums are not compared
        assert run(group.processes, "small.npy") == {"fits": False, "torch": False}
        assert same_bits(np.load(tmp_path / "small.npy"), np.load(tmp_path / "plain.npy"))
        assert checked_note(pack.path).exists()
    assert group.peak() > 80 * MEGABYTE, "it was not that group's memory"
