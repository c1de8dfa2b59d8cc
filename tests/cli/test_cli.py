"""The command line as a user meets it: what each verb prints, and one clear line with the right status on a mistake."""

import json
from pathlib import Path

import pytest
import torch

from octavo.cli import main
from octavo.engine.engine import Engine
from octavo.errors import UserError
from tests.tiny import write_tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_tiny_model(folder / "mixture", "mixtral")
    write_tiny_model(folder / "dense", "llama", seed=1)
    write_tiny_model(folder / "windowed", "mistral", seed=1)
    return folder


def octavo(capsys, *arguments: object) -> tuple[int, str, list[str]]:
    """Exit status, standard output, and the lines of standard error."""
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return exit_.value.code or 0, captured.out, captured.err.splitlines()


def refused(result: tuple[int, str, list[str]], status: int, *words: str) -> None:
    code, out, err = result
    assert (code, out) == (status, "")
    assert err and all(err) and all(word in err[-1] for word in words), err
    assert "Traceback" not in "\n".join(err)


def test_generate_completes_the_raw_prompt(models, capsys) -> None:
    import octavo as package

    status, out, _ = octavo(capsys, "generate", models / "mixture", "The capital", "--max-new-tokens", 12)
    model, tokenizer = package.load(models / "mixture")
    assert (status, out) == (0, package.generate(model, tokenizer, "The capital", max_new_tokens=12) + "\n")
    _, templated, _ = octavo(capsys, "generate", models / "mixture", "The capital", "--max-new-tokens", 12, "--chat")
    assert templated != out
    messages = [{"role": "user", "content": "The capital"}]
    assert templated == package.generate(model, tokenizer, messages, max_new_tokens=12) + "\n"


def test_generate_with_a_seed_repeats(models, capsys) -> None:
    def run(seed: int) -> str:
        arguments = ("--max-new-tokens", 12, "--temperature", 1.5, "--top-k", 50, "--top-p", 0.9, "--seed", seed)
        return octavo(capsys, "generate", models / "mixture", "x", *arguments)[1]

    assert run(1) == run(1) != run(2)


def test_upcycle_then_verify_then_generate_as_the_parent(models, capsys, tmp_path) -> None:
    status, out, _ = octavo(capsys, "upcycle", models / "dense", tmp_path / "child", "--experts", 4, "--top-k", 2)
    assert status == 0 and "4 experts, 2 per token" in out
    assert json.loads((tmp_path / "child/config.json").read_text())["num_local_experts"] == 4
    status, out, _ = octavo(capsys, "verify", tmp_path / "child")
    assert status == 0 and "files unchanged" in out
    answers = [
        octavo(capsys, "generate", m, "x", "--max-new-tokens", 20)[1] for m in (models / "dense", tmp_path / "child")
    ]
    assert answers[0] == answers[1]
    refused(octavo(capsys, "upcycle", models / "dense", tmp_path / "child"), 2, "exists already")
    (tmp_path / "child/tokenizer.json").write_bytes(b"{}")
    refused(octavo(capsys, "verify", tmp_path / "child"), 1, "tokenizer.json", "SHA-256")


@pytest.mark.parametrize(("quant", "size"), [("int4", "as stored (int4)"), ("int8", "as stored (int8)")])
def test_quantise_then_verify_inspect_generate_and_convert_back(models, capsys, tmp_path, quant, size) -> None:
    status, out, _ = octavo(capsys, "convert", models / "mixture", tmp_path / "small", "--quant", quant)
    assert status == 0 and f"rounded to {quant}" in out and "From the parent's own they differ by up to" in out
    assert "all tensors present" in octavo(capsys, "verify", tmp_path / "small")[1]
    assert size in octavo(capsys, "inspect", tmp_path / "small")[1]
    assert octavo(capsys, "convert", tmp_path / "small", tmp_path / "back")[0] == 0
    plain = ("--dtype", "float32")  # the same numbers in both, where the CPU core would round the second folder's
    answers = [octavo(capsys, "generate", tmp_path / name, "The capital", *plain)[:2] for name in ("small", "back")]
    assert answers[0] == answers[1] and answers[0][0] == 0 and answers[0][1].strip()
    status, out, _ = octavo(capsys, "convert", tmp_path / "small", tmp_path / "again", "--quant", quant, "--json")
    assert status == 0 and json.loads(out)["proof"]["unrounded_max_difference"] == 0


def test_figures_as_json(models, capsys, tmp_path) -> None:
    _, out, _ = octavo(capsys, "upcycle", models / "dense", tmp_path / "a", "--json")
    assert json.loads(out)["proof"] == json.loads((tmp_path / "a/octavo.json").read_text())["proof"]
    _, out, _ = octavo(capsys, "convert", models / "dense", tmp_path / "b", "--json")
    assert json.loads(out)["proof"]["max_difference"] == 0.0
    _, out, _ = octavo(capsys, "verify", tmp_path / "b", "--json")
    assert json.loads(out) == {"model": str(tmp_path / "b"), "files": 8}


def test_options_of_upcycle_reach_it(models, capsys, tmp_path) -> None:
    options = ("--dtype", "bfloat16", "--seed", 7, "--router-init", "orthogonal", "--experts", 3, "--top-k", 3)
    octavo(capsys, "upcycle", models / "windowed", tmp_path / "a", "--drop-window", *options)
    record = json.loads((tmp_path / "a/octavo.json").read_text())
    asked = {"dtype": "bfloat16", "seed": 7, "router_init": "orthogonal", "experts": 3, "top_k": 3, "drop_window": True}
    assert record | asked == record
    config = json.loads((tmp_path / "a/config.json").read_text())
    assert (config["sliding_window"], config["torch_dtype"]) == (None, "bfloat16")
    octavo(capsys, "convert", models / "dense", tmp_path / "b", "--dtype", "bfloat16")
    assert json.loads((tmp_path / "b/config.json").read_text())["torch_dtype"] == "bfloat16"


def test_methods_of_upcycle_reach_it_and_drop_claims_no_equality(models, capsys, tmp_path) -> None:
    split = ("--method", "split", "--granularity", 4, "--top-k", 4)
    _, out, _ = octavo(capsys, "upcycle", models / "dense", tmp_path / "a", *split)
    assert "Logits equal the parent's" in out
    record = json.loads((tmp_path / "a/octavo.json").read_text())
    assert (record["method"], record["granularity"], record["exact"]) == ("split", 4, True)
    drop = ("--method", "drop", "--drop-share", 0.25)
    _, out, _ = octavo(capsys, "upcycle", models / "dense", tmp_path / "b", *drop)
    assert "NOT the parent's function: 25%" in out and "equal" not in out
    record = json.loads((tmp_path / "b/octavo.json").read_text())
    assert (record["method"], record["drop_share"], record["exact"]) == ("drop", 0.25, False)
    _, out, _ = octavo(capsys, "upcycle", models / "dense", tmp_path / "c", *drop, "--json")
    assert json.loads(out)["exact"] is False and json.loads(out)["proof"]["stored_rms_difference"] > 0.01


def test_options_of_generate_reach_it(models, capsys, monkeypatch) -> None:
    whole = octavo(capsys, "generate", models / "mixture", "The capital", "--max-new-tokens", 12)[1]
    cut = octavo(capsys, "generate", models / "mixture", "The capital", "--max-new-tokens", 12, "--stop", whole[3:6])[1]
    assert cut == whole[: whole.index(whole[3:6])] + "\n"
    asked = []

    def load(model, device, dtype, progress):
        asked.append((device, dtype))
        raise UserError("seen")

    monkeypatch.setattr("octavo.checkpoint.load.load", load)
    refused(octavo(capsys, "generate", "x", "hi", "--device", "meta", "--dtype", "bfloat16"), 1, "seen")
    refused(octavo(capsys, "serve", "x", "--device", "meta", "--port", 0), 1, "seen")
    assert asked == [("meta", torch.bfloat16), ("meta", None)]


def test_a_system_prompt_reaches_the_chat(models, capsys, monkeypatch) -> None:
    seen = []
    original = Engine.stream
    monkeypatch.setattr(Engine, "stream", lambda self, m, p: seen.append(list(m)) or original(self, m, p))
    lines = iter(["hello", "/new", "again", "/exit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    octavo(capsys, "chat", models / "mixture", "--max-new-tokens", 3, "--system", "Be brief.")
    assert [m[0] for m in seen] == [{"role": "system", "content": "Be brief."}] * 2
    assert [len(m) for m in seen] == [2, 2]


def test_chat_answers_streams_and_leaves(models, capsys, monkeypatch) -> None:
    lines = iter(["hello", "/new", "x" * 3000, "again", "/exit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    status, out, err = octavo(capsys, "chat", models / "mixture", "--max-new-tokens", 8, "--temperature", 0)
    assert status == 0 and len(out.strip()) > 0
    assert any("do not fit the context" in line for line in err)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("upcycle", "{}/mixture", "{}/x"), 2, ("mixture of 5 experts already",)),
        (("upcycle", "{}/dense", "{}/x", "--top-k", "9"), 2, ("top-k is 9", "number of experts (8)")),
        (("upcycle", "{}/dense", "{}/x", "--method", "magic"), 2, ("method", "copy")),
        (("upcycle", "{}/dense", "{}/x", "--granularity", "2"), 2, ("granularity is 2", "--method split")),
        (("upcycle", "{}/dense", "{}/x", "--dtype", "int3"), 2, ("--dtype", "bfloat16")),
        (("upcycle", "{}/absent", "{}/x"), 1, ("absent", "no such folder")),
        (("convert", "{}/dense", "{}/mixture"), 2, ("exists already",)),
        (("convert", "{}/dense", "{}/x", "--quant", "int3"), 2, ("--quant is 'int3'", "int4, int8")),
        (("convert", "{}/dense", "{}/x", "--quant", "bf16"), 2, ("--quant is 'bf16'", "use --dtype bfloat16")),
        (("convert", "{}/dense", "{}/x", "--quant", "int4", "--dtype", "float32"), 2, ("--quant int4 and --dtype",)),
        (("generate", "{}/absent", "hi"), 1, ("absent",)),
        (("generate", "{}/mixture", ""), 1, ("prompt is empty",)),
        (("generate", "{}/mixture", "hi", "--max-new-tokens", "600"), 1, ("do not fit the context of 512",)),
        (("generate", "{}/mixture", "hi", "--temperature", "-1"), 2, ("temperature is -1",)),
        (("generate", "{}/mixture", "hi", "--device", "warp"), 2, ("--device is 'warp'",)),
        (("generate", "{}/mixture", "hi", "--seed", "-1"), 2, ("seed is -1",)),
        (("generate", "{}/mixture", "hi", "--regex", ""), 2, ("--regex is empty",)),
        (("generate", "{}/mixture", "hi", "--json-schema", ""), 1, ("--json-schema ''", "cannot be read")),
        (("generate", "{}/mixture", "hi", "--json-schema", "/dev/null"), 1, ("/dev/null", "the file is empty")),
        (("generate", "{}/mixture", "hi", "--regex", "a", "--choice", "b"), 2, ("--regex and --choice",)),
        (("verify", "{}/dense/config.json"), 2, ("is a file",)),
        (("verify", "{}/absent"), 1, ("config.json is missing",)),
        (("generate", "mixtral-8x7b", "Hi"), 1, ("mixtral-8x7b: is a preset, which has no weights",)),
        (("serve", "{}/mixture", "--host", "0.0.0.0"), 2, ("0.0.0.0",)),
        (("quickstart", "--from", "{}/absent"), 1, ("absent",)),
    ],
)
def test_mistakes_are_one_clear_line(models, capsys, monkeypatch, tmp_path, arguments, status, words) -> None:
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "home"))
    before = sorted(models.rglob("*"))
    refused(octavo(capsys, *(a.format(models) for a in arguments)), status, *words)
    assert sorted(models.rglob("*")) == before


def test_usage_errors_of_the_parser_end_with_2(capsys) -> None:
    for arguments in (("upcycle",), ("generate", "a"), ("nonsense",), ("generate", "a", "b", "--max-new-tokens", "x")):
        status, _, err = octavo(capsys, *arguments)
        assert status == 2 and err


def test_missing_tokenizer(models, capsys, tmp_path) -> None:
    import shutil

    shutil.copytree(models / "mixture", tmp_path / "bare")
    (tmp_path / "bare/tokenizer.json").unlink()
    refused(octavo(capsys, "generate", tmp_path / "bare", "hi"), 1, "tokenizer.json")


def test_every_verb_has_help_with_an_example(capsys) -> None:
    status, out, _ = octavo(capsys, "--help")
    assert status == 0
    for verb in ("quickstart", "inspect", "upcycle", "lineage", "convert", "verify", "generate", "chat", "serve"):
        assert verb in out
        status, text, _ = octavo(capsys, verb, "--help")
        assert status == 0 and "Example: octavo " + verb in " ".join(text.split())


def test_a_bug_is_one_line_and_a_traceback_with_debug(models, capsys, monkeypatch) -> None:
    monkeypatch.setattr("octavo.checkpoint.folder.FolderSource.__init__", lambda *a, **k: 1 / 0)
    refused(octavo(capsys, "verify", models / "mixture"), 1, "ZeroDivisionError", "--debug")
    with pytest.raises(ZeroDivisionError):
        main(["--debug", "verify", str(models / "mixture")])


def test_ctrl_c_ends_with_130(models, capsys, monkeypatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("octavo.checkpoint.folder.FolderSource.__init__", interrupt)
    assert octavo(capsys, "verify", models / "mixture")[0] == 130


def test_errors_carry_their_status() -> None:
    from octavo.errors import UsageError

    assert (UserError.exit_code, UsageError.exit_code) == (1, 2) and issubclass(UsageError, UserError)


@pytest.mark.parametrize(
    ("given", "said"), [((), "int8"), *((("--quant", form), form) for form in ("int4", "int8", "bf16"))]
)
def test_quant_reaches_the_core(models, capsys, given, said) -> None:
    status, _, err = octavo(capsys, "generate", models / "mixture", "The", "--max-new-tokens", 2, *given)
    assert status == 0 and any(line.startswith(f"{said} weights on the CPU core") for line in err)
    given = (*given, "--device", "cpu:0")
    assert octavo(capsys, "generate", models / "mixture", "The", "--max-new-tokens", 2, *given)[2][-1] == err[-1]
    refused(octavo(capsys, "generate", models / "mixture", "The", "--quant", "int3"), 2, "int3", "int4, int8, bf16")
    refused(octavo(capsys, "quickstart", "--once", "x", "--quant", "int3"), 2, "int3")
    refused(
        octavo(capsys, "serve", models / "mixture", "--port", 0, "--quant", "int4", "--device", "cuda"), 2, "--device"
    )
