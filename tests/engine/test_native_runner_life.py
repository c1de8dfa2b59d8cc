"""The native runner's life: what it refuses at birth, many threads on it, the end of the process, a fork."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from octavo.checkpoint.pack import Pack, write_pack
from octavo.checkpoint.save import DecoderSource
from octavo.engine.native_runner import NativeRunner
from octavo.engine.runner import StepBatch
from octavo.models import Decoder
from octavo.native.library import library
from tests.tiny import tiny_config

ROOT = Path(__file__).resolve().parents[2]
PREPARE = """
import os, sys, threading
import numpy as np
from pathlib import Path
from octavo.checkpoint.pack import Pack
from octavo.engine.native_runner import NativeRunner
from tests.engine.test_native_runner_life import one
runner = NativeRunner(Pack(Path(sys.argv[1])), 40)
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("pack") / "tiny.pack"
    write_pack(DecoderSource(Decoder(tiny_config("mixtral")).initialise(), {}), 8, made)
    return made


def one(page: int, rows: int = 20) -> StepBatch:
    """A prompt in a page of its own."""
    ids = np.random.default_rng(page).integers(0, 331, rows)
    return StepBatch(ids=ids, cu_seqlens=np.array([0, rows]), positions=np.arange(rows),
                     page_table=np.array([[page]]), state_slots=np.array([-1]), logit_rows=np.arange(rows))  # fmt: skip


def test_impossible_settings_are_refused(path) -> None:
    pack = Pack(path)
    for given, named in (({"threads": 0}, "threads is 0"), ({"threads": -1}, "-1"), ({"kv": "int4"}, "float32, int8")):
        with pytest.raises(ValueError, match=named):
            NativeRunner(pack, 4, **given)
    pack.lanes = 3
    with pytest.raises(ValueError, match=f"the kernels in use {library().lanes}"):
        NativeRunner(pack, 4)


def test_steps_of_several_threads_take_turns(path) -> None:
    runner = NativeRunner(Pack(path), 40, threads=2)
    expected = [runner.step(one(page)).logits for page in range(4)]
    wrong: list[int] = []

    def go(page: int) -> None:
        for _ in range(50):
            if not np.array_equal(runner.step(one(page)).logits, expected[page]):
                wrong.append(page)

    threads = [threading.Thread(target=go, args=(page,)) for page in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    "end",
    [
        "import time\ndef go():\n    while True: runner.step(one(0))\n"
        "threading.Thread(target=go, daemon=True).start(); time.sleep(0.3)",
        "pid = os.fork()\nif pid == 0:\n    runner.step(one(0)); del runner; os._exit(0)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0",
        "runner.step(one(0)); del runner; import gc; gc.collect()",
    ],
    ids=["exit in a step", "fork", "closed"],
)
def test_the_process_ends_well(path, end) -> None:
    code = PREPARE + end
    done = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
