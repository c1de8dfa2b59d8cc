"""The processes that measure, each asked over its pipe as `octavo bench` does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.bench import parties
from octavo.bench.bounds import WEIGHT_BYTES
from octavo.bench.metrics import parse_metric
from octavo.bench.parties import PEER_PYTHON, find_llama_cpp, llama_cpp_party, own_party, transformers_party
from octavo.bench.party import Party, PartyError, Worker
from octavo.bench.workers import protocol
from octavo.bench.workers.own import load_runner
from octavo.checkpoint.source import open_source
from octavo.errors import UserError

CHATTY = """
import sys
sys.path.insert(0, {folder!r})
from protocol import serve

def load():
    print("loading, please wait")
    def handle(request):
        print("counting")
        return {{"twice": 2 * request["number"]}}
    return {{"version": "chatty 1"}}, handle

sys.exit(serve(load))
"""


def ask(party: Party, *names: str) -> tuple[dict, list[dict]]:
    """What the party says of itself, and its answers."""
    with Worker(party) as worker:
        return worker.ready(60), [worker.ask(parse_metric(name).request(3), 60) for name in names]


def test_what_a_worker_prints_does_not_spoil_its_answers() -> None:
    script = CHATTY.format(folder=str(Path(protocol.__file__).parent))
    with Worker(Party("chatty", [sys.executable, "-c", script])) as worker:
        about = worker.ready(20)
        assert about["version"] == "chatty 1" and about["load_seconds"] >= 0 and about["resident_bytes"] > 2**20
        assert worker.ask({"metric": "x", "number": 4}, 20) == {"twice": 8}
        with pytest.raises(PartyError, match="chatty: y: KeyError: 'number'"):
            worker.ask({"metric": "y"}, 20)
        assert worker.ask({"metric": "x", "number": 5}, 20) == {"twice": 10}


def test_a_worker_ends_when_nobody_can_ask_it_any_more() -> None:
    script = CHATTY.format(folder=str(Path(protocol.__file__).parent))
    done = subprocess.run([sys.executable, "-c", script], input="", capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and done.stdout.count("\n") == 1 and "please wait" in done.stderr


def test_octavo_in_its_own_process(tiny_moe_folder) -> None:
    names = ("prefill_40", "decode_2@33")
    config = open_source(tiny_moe_folder).config
    party = own_party(tiny_moe_folder, "fp32", config, [parse_metric(name) for name in names], 3, 1)
    about, answers = ask(party, *names)
    assert about["version"].startswith("octavo ") and (about["weight_bytes"], about["key_value_bytes"]) == (4, 4)
    assert [answer["tokens"] for answer in answers] == [40, 6] and all(answer["seconds"] > 0 for answer in answers)
    assert all(6 <= answer["expert_reads"] <= 10 for answer in answers)


@pytest.mark.parametrize("folder", ["tiny_moe_folder", "tiny_dense_folder"])
def test_transformers_in_its_own_process(folder, request, tmp_path) -> None:
    party = transformers_party(request.getfixturevalue(folder), 1)
    about, answers = ask(party, "prefill_40", "decode_2")
    assert about["version"].startswith("transformers ") and [answer["tokens"] for answer in answers] == [40, 6]
    assert [party.measures(parse_metric(name)) for name in ("decode_16", "prefill_4096", "decode_1@64")] == [
        True, False, False]  # fmt: skip
    with pytest.raises(UserError, match="no Hugging Face folder"):
        transformers_party(tmp_path, 1)


def test_the_interpreter_with_llama_cpp(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv(PEER_PYTHON, raising=False)
    (tmp_path / "llama_cpp.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert find_llama_cpp(None) == sys.executable
    monkeypatch.setenv(PEER_PYTHON, "/nonexistent/python")
    assert find_llama_cpp(sys.executable) == sys.executable  # the option wins
    with pytest.raises(UserError, match="pip install llama-cpp-python"):
        find_llama_cpp(None)
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('no libllama')")
    with pytest.raises(UserError, match="no libllama.*--peer-python"):
        find_llama_cpp(sys.executable)


def test_llama_cpp_in_its_own_interpreter(smollm2_gguf) -> None:
    """Runs where $OCTAVO_LLAMA_CPP_PYTHON names an interpreter that has llama_cpp."""
    if PEER_PYTHON not in os.environ:
        pytest.skip(f"${PEER_PYTHON} is not set")
    party = llama_cpp_party(smollm2_gguf, find_llama_cpp(None), 1, deepest=100)
    about, answers = ask(party, "decode_2", "decode_2@40", "decode_2@40", "decode_1", "prefill_600", "prefill_9@40")
    assert 0.5 < about["weight_bytes"] < 1 and about["key_value_bytes"] == 2
    assert [answer["tokens"] for answer in answers] == [6, 6, 6, 3, 600, 9]
    assert all(answer["seconds"] > 0 for answer in answers)
    assert [party.measures(parse_metric(name)) for name in ("decode_16@100", "decode_1@101")] == [True, False]
    with pytest.raises(PartyError, match="cannot load this file"):
        ask(llama_cpp_party(Path(parties.__file__), find_llama_cpp(None), 1, 0))


@pytest.mark.parametrize(("quant", "width", "bits"), [("int4", 0.5625, 4), ("int8", 1.0625, 8)])
def test_own_worker_computes_with_the_weights_it_says(tiny_moe_folder, quant, width, bits) -> None:
    runner = load_runner(str(tiny_moe_folder), quant, 4, 1, 1)
    assert runner.pack.bits == bits and runner.threads == 1 and WEIGHT_BYTES[quant] == width
    config = open_source(tiny_moe_folder).config
    about, _ = ask(own_party(tiny_moe_folder, quant, config, [parse_metric("decode_1")], 3, 1), "decode_1")
    assert (about["weight_bytes"], about["runner"]) == (width, "NativeRunner")
    assert about["key_value_bytes"] == 1 + 4 / config.head_dim
