"""Packs are made when needed, found again, made anew when the model or the pack has changed, and tidied up."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from octavo.checkpoint import pack_cache
from octavo.checkpoint.pack_cache import identity, open_pack
from octavo.checkpoint.quantize import quantize_model
from octavo.checkpoint.source import open_source
from octavo.engine.open import open_model
from octavo.errors import UserError
from octavo.native.library import NativeUnavailable
from tests.tiny import write_tiny_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def model(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "home"))
    write_tiny_model(tmp_path / "tiny", "mixtral")
    return tmp_path / "tiny"


@pytest.fixture
def made(monkeypatch) -> list[Path]:
    """The packs that are written from now on."""
    written: list[Path] = []
    write = pack_cache.write_pack
    monkeypatch.setattr(pack_cache, "write_pack", lambda *given: (written.append(given[2]), write(*given))[1])
    return written


def packs(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "home/packs").iterdir())


def test_a_pack_is_made_once(model, tmp_path, made) -> None:
    first = open_pack(model)
    assert (first.bits, len(made)) == (8, 1) and packs(tmp_path) == made
    assert open_pack(str(model)).bits == 8 and len(made) == 1
    assert open_pack(model, 4).bits == 4 and len(made) == 2 and len(packs(tmp_path)) == 2
    assert open_pack(model, 8).tensor("embed").tobytes() == first.tensor("embed").tobytes() and len(made) == 2


def test_a_model_that_changed_is_packed_anew_and_the_old_pack_goes(model, tmp_path, made) -> None:
    before = open_pack(model).tensor("final_norm").copy()
    shutil.rmtree(model)
    write_tiny_model(model, "mixtral", seed=1)
    after = open_pack(model)
    assert len(made) == 2 and packs(tmp_path) == [made[1]] and after.tensor("embed").nbytes > 0
    assert before.shape == after.tensor("final_norm").shape
    config = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": 5}))
    assert b"5" in open_pack(model).side_files["generation_config.json"] and len(made) == 3
    (model / "README.md").write_text("another card")
    open_pack(model)
    assert len(made) == 3


def test_contents_that_change_behind_an_old_time_are_noticed(model) -> None:
    weights = model / "model-00001-of-00001.safetensors"
    status, before = weights.stat(), identity(model)
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert identity(model) != before


@pytest.mark.parametrize("place", [100, -40, -9])
def test_a_damaged_pack_is_made_again(model, made, place) -> None:
    good = open_pack(model).tensor("embed").tobytes()
    data = bytearray(made[0].read_bytes())
    data[place] ^= 64
    made[0].write_bytes(data)
    assert open_pack(model).tensor("embed").tobytes() == good and len(made) == 2


def test_a_pack_that_cannot_be_read_is_no_damage(model, made, monkeypatch) -> None:
    open_pack(model)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(made[0]))

    monkeypatch.setattr("octavo.checkpoint.pack.open", refuse, raising=False)
    with pytest.raises(UserError, match="Permission denied"):
        open_pack(model)
    assert made[0].exists() and len(made) == 1


def test_messages(model, tmp_path, monkeypatch) -> None:
    for name in ("nothing", "mixtral-8x7b"):
        with pytest.raises(UserError, match=name):
            open_pack(tmp_path / "nothing" if name == "nothing" else name)
    (model / "broken.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"broken\.json"):
        open_pack(model)
    (model / "broken.json").unlink()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="OCTAVO_HOME"):
        open_pack(model)


def test_a_quantised_folder_keeps_its_bits(model, tmp_path) -> None:
    quantize_model(open_source(model), tmp_path / "small", 4)
    assert open_pack(tmp_path / "small").bits == 4
    with pytest.raises(UserError, match="is quantised to int4, and int8 would round its weights again"):
        open_pack(tmp_path / "small", 8)


def test_abandoned_builds_are_swept_after_a_day(model, tmp_path) -> None:
    old, new = (tmp_path / f"home/packs/.{name}.pack.partial-x" for name in ("old", "new"))
    old.parent.mkdir(parents=True)
    for path in (old, new):
        path.write_text("half")
    os.utime(old, (1e9, 1e9))
    open_pack(model)
    assert not old.exists() and new.exists()


def test_a_warm_start_imports_no_torch(model) -> None:
    code = (
        "import sys; from octavo.engine.open import open_model; from octavo import Engine, SamplingParams\n"
        f"with Engine(open_model({str(model)!r}, 4)) as engine:\n"
        "    done = engine.complete('Hello', SamplingParams(max_new_tokens=3))\n"
        "print(len(done.token_ids), 'torch' in sys.modules)"
    )
    for loaded in ("True", "False"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=200)
        assert done.stdout.split() == ["3", loaded], done.stderr


def test_without_a_core_torch_computes_and_says_why(model, monkeypatch) -> None:
    def missing() -> None:
        raise NativeUnavailable("octavo's CPU core was not built: install g++")

    native = open_model(model)
    assert native.how.startswith("int8 weights on the CPU core")
    monkeypatch.setattr("octavo.engine.open.library", missing)
    plain = open_model(model)
    assert plain.how == "float32 weights in torch on cpu (octavo's CPU core was not built: install g++)"
    assert np.array_equal(plain.tokenizer.encode("Hello"), native.tokenizer.encode("Hello"))
    with pytest.raises(UserError, match=r"int4 needs octavo's CPU core: .*install g\+\+"):
        open_model(model, 4)
    monkeypatch.undo()
    assert open_model(model, dtype=torch.float32).how == "float32 weights in torch on cpu"
    with pytest.raises(UserError, match="CPU core only"):
        open_model(model, 4, device="cuda")
