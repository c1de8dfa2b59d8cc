"""`octavo serve` as a process: several models, keys, its first sign of life and its end."""

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from octavo.cli import main
from tests.serve.processes import CLI, process
from tests.tiny import write_tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_tiny_model(folder / "mixture", "mixtral")
    write_tiny_model(folder / "dense", "llama", seed=1)
    return folder


def lines_of(server: subprocess.Popen[str]) -> Iterator[str]:
    assert server.stderr
    yield from iter(server.stderr.readline, "")


def address(server: subprocess.Popen[str], said: list[str]) -> str:
    """The chat page's, once it is said; all lines up to there go to `said`."""
    for line in lines_of(server):
        said.append(line)
        if match := re.search(r"chat page +(http\S+?)/$", line.strip()):
            return match[1]
    raise AssertionError(said)


def test_several_models_with_a_key(models: Path, tmp_path: Path) -> None:
    key, filed = "of-the-environment-1", "of-the-file-2"
    (tmp_path / "keys").write_text(filed)
    arguments = ("serve", str(models / "mixture"), str(models / "dense"), "--name", "big", "--name", "lab/small",
                 "--port", "0", "--context", "256", "--log-requests",
                 "--api-key-file", str(tmp_path / "keys"))  # fmt: skip
    said: list[str] = []
    with process(CLI, *arguments, OCTAVO_API_KEY=key, OCTAVO_HOME=str(tmp_path / "home")) as server:
        url = address(server, said)
        assert any("big, lab/small are ready" in line for line in said)
        assert httpx.get(url + "/v1/models").status_code == 401
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
            assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["big", "lab/small"]
            for name in ("big", "lab/small"):
                asked = {"model": name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
                assert client.post("/v1/chat/completions", json=asked).json()["model"] == name
            figures = client.get("/metrics", headers={"Authorization": f"Bearer {filed}"}).text
            for name in ("big", "lab/small"):
                assert f'octavo:generation_tokens_total{{model_name="{name}"}} 3.0' in figures
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
        said += lines_of(server)
    assert any("POST /v1/chat/completions 200" in line for line in said)
    assert key not in "".join(said) and filed not in "".join(said)
    assert any("Authorization: Bearer KEY" in line for line in said)


def test_a_signal_while_it_loads_ends_it(models: Path, tmp_path: Path) -> None:
    slow = "import time, octavo.engine.open as o; o.open_model = lambda *a, **k: time.sleep(60); "
    with process(slow + CLI, "serve", str(models / "mixture"), "--port", "0", OCTAVO_HOME=str(tmp_path)) as server:
        time.sleep(3)
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) in (143, -signal.SIGTERM)
        assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{}/mixture", "{}/dense", "--name", "a"), ("1 times for 2 models",)),
        (("{}/mixture", "{}/dense", "--name", "a", "--name", "a"), ("two models are called 'a'", "--name")),
        (("{}/mixture", "{}/mixture"), ("two models are called 'mixture'", "--name")),
        (("{}/mixture", "--name", ""), ("--name is empty",)),
        (("{}/mixture", "--host", "0.0.0.0"), ("0.0.0.0", "--api-key KEY")),
        (("{}/mixture", "--api-key", ""), ("API key is empty",)),
        (("{}/mixture", "--api-key", "se cret"), ("visible ASCII",)),
    ],
)
def test_mistakes_are_one_clear_line(models: Path, capsys, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", *(argument.format(models) for argument in arguments)])
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert all(word in said.err for word in words) and "se cret" not in said.err


def test_a_missing_file_of_keys(models: Path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(models / "mixture"), "--api-key-file", str(models / "absent")])
    assert ended.value.code == 1 and "cannot be read" in capsys.readouterr().err
