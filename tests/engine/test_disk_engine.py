"""An engine with a file behind its prefix cache: answers are what they are without any cache, bit for bit."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.config import EngineOptions, SamplingParams
from octavo.data.tokenizer import Tokenizer
from octavo.engine import disk_cache
from octavo.engine.engine import Engine
from octavo.engine.open import OpenModel
from octavo.engine.snapshots import RunnerMemory
from octavo.engine.torch_runner import TorchRunner
from octavo.models import Decoder
from tests.engine import native
from tests.engine.steps import batch, tokens
from tests.quantised import packed, random_decoder
from tests.tiny import tiny_config, tiny_tokenizer_files

TURN = SamplingParams(max_new_tokens=12, ignore_eos=True, logprobs=20)
SMALL = {"context": 256, "memory_tokens": 352, "max_running": 2, "step_tokens": 40}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_files(tiny_tokenizer_files(), "tiny")


@pytest.fixture(params=["mixtral", "minimax_text_01"])
def decoder(request) -> Decoder:
    return random_decoder(tiny_config(request.param))


def on_native(decoder: Decoder, tokenizer: Tokenizer, kv: str, path: Path) -> OpenModel:
    pack = packed(decoder, path, 8)

    return OpenModel(
        decoder.config, tokenizer, lambda pages, slots: native.poisoned(pack, kv, pages=pages), "as many slots as pages"
    )


def talk(engine: Engine) -> list[tuple[Any, Any]]:
    """Two conversations of four turns and others' prompts in between; tokens and logprobs of every answer."""
    histories, said = [tokens(70, 1).tolist(), tokens(55, 2).tolist()], []
    for turn in range(4):
        for number, history in enumerate(histories):
            history += tokens(21, 10 * turn + number).tolist()
            done = engine.complete(history, TURN)
            history += done.token_ids
            said.append((done.token_ids, done.logprobs))
            engine.complete(tokens(200, 50 + 10 * turn + number).tolist(), TURN)  # the others'
    return said


@pytest.mark.parametrize("kv", ["float32", "int8"])
def test_answers_are_those_without_a_cache(decoder, tokenizer, kv, tmp_path) -> None:
    model = on_native(decoder, tokenizer, kv, tmp_path / "pack")
    with Engine(model, EngineOptions(**SMALL, prefix_cache=False, speculate=0)) as plain:
        expected = talk(plain)
    with Engine(model, EngineOptions(**SMALL)) as memory_only:
        assert talk(memory_only) == expected and memory_only.statistics().disk_bytes == 0
    with Engine(model, EngineOptions(**SMALL, disk_bytes=2**26, disk_folder=str(tmp_path))) as engine:
        assert talk(engine) == expected
        found = engine.statistics()
    assert found.disk_tokens > 400 and 0 < found.disk_bytes < 2**26
    assert found.cached_tokens > memory_only.statistics().cached_tokens


def test_on_torch_too(decoder, tokenizer, tmp_path) -> None:
    model = OpenModel(decoder.config, tokenizer, lambda pages, slots: TorchRunner(decoder, pages, slots), "torch")
    with Engine(model, EngineOptions(**SMALL, prefix_cache=False)) as plain:
        expected = [ids for ids, _ in talk(plain)]
    with Engine(model, EngineOptions(**SMALL, disk_bytes=2**26, disk_folder=str(tmp_path))) as engine:
        assert [ids for ids, _ in talk(engine)] == expected and engine.statistics().disk_tokens > 400


@pytest.mark.parametrize(("call", "code"), [("pwrite", errno.ENOSPC), ("preadv", errno.EIO)])
def test_requests_do_not_notice_a_failing_disk(decoder, tokenizer, call, code, tmp_path, monkeypatch) -> None:
    model = on_native(decoder, tokenizer, "int8", tmp_path / "pack")
    with Engine(model, EngineOptions(**SMALL, prefix_cache=False)) as plain:
        expected = talk(plain)
    calls = []

    def fail(*_: Any) -> int:
        calls.append(0)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(disk_cache.os, call, fail)
    with Engine(model, EngineOptions(**SMALL, disk_bytes=2**26, disk_folder=str(tmp_path))) as engine:
        assert talk(engine) == expected and calls and engine.statistics().disk_tokens == 0


def test_closing_gives_the_file_back(decoder, tokenizer, tmp_path) -> None:
    model = on_native(decoder, tokenizer, "int8", tmp_path / "pack")
    before = set(os.listdir("/proc/self/fd"))
    engine = Engine(model, EngineOptions(**SMALL, disk_bytes=2**26, disk_folder=str(tmp_path)))
    engine.complete(tokens(200).tolist(), TURN)
    assert set(os.listdir("/proc/self/fd")) > before
    engine.close()
    engine.close()
    assert set(os.listdir("/proc/self/fd")) == before and [path.name for path in tmp_path.iterdir()] == ["pack"]


@pytest.mark.parametrize("compress", [False, True])
def test_states_as_bytes_and_back(tokenizer, compress, tmp_path) -> None:
    model = on_native(random_decoder(tiny_config("minimax")), tokenizer, "int8", tmp_path / "pack")
    runner = model.make_runner(8, 2)
    runner.step(batch([(tokens(40), 0, [1, 2])], [1]))
    memory = RunnerMemory(runner, compress)
    states = memory.save(1)
    data = memory.to_bytes(states)
    assert data.dtype == np.uint8 and data.nbytes == states.nbytes
    memory.restore(0, memory.from_bytes(data), 40)
    expected = states.restored() if compress else states  # type: ignore[union-attr]
    assert expected.any() and np.array_equal(runner.read_states(0), expected)
