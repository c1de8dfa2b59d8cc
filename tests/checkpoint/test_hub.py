"""Hub names, against a small hub on loopback: download, cache, and each way it can go wrong."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo.checkpoint.hub import is_hub_name
from tests.tiny import write_tiny_model

SHA = "0" * 39 + "1"


class Hub(http.server.BaseHTTPRequestHandler):
    """The routes huggingface_hub uses to download a repository."""

    models: Path
    served: list[str]

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"] and parts[2] == "acme":
            return self._tree(parts[3]) if "tree" in parts else self._info(parts[3])
        if parts[0] == "acme" and parts[2] == "resolve":
            return self._file(parts[1], "/".join(parts[4:]))
        self._send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _tree(self, name: str) -> None:
        files = [path for path in (self.models / name).iterdir() if path.is_file()]
        tree = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in files]
        self._send(200, json.dumps(tree).encode())

    def _refused(self, name: str) -> bool:
        if name == "gated":
            self._send(403, b'{"error": "gated"}', {"X-Error-Code": "GatedRepo"})
        elif not (self.models / name).is_dir():
            self._send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        return name == "gated" or not (self.models / name).is_dir()

    def _info(self, name: str) -> None:
        if self._refused(name):
            return
        files = [
            str(path.relative_to(self.models / name)) for path in (self.models / name).rglob("*") if path.is_file()
        ]
        info = {"id": f"acme/{name}", "modelId": f"acme/{name}", "sha": SHA, "tags": [], "private": False,
                "siblings": [{"rfilename": file} for file in files]}  # fmt: skip
        self._send(200, json.dumps(info).encode())

    def _file(self, name: str, file: str) -> None:
        if self._refused(name):
            return
        if not (self.models / name / file).is_file():
            return self._send(404, b'{"error": "Entry not found"}', {"X-Error-Code": "EntryNotFound"})
        self.served.append(file)
        content = (self.models / name / file).read_bytes()
        self._send(200, content, {"ETag": f'"{abs(hash(file))}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def hub(tmp_path) -> Iterator[type[Hub]]:
    handler = type("TestHub", (Hub,), {"models": tmp_path / "hub", "served": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        handler.endpoint = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield handler
        server.shutdown()


def convert(name: str, tmp_path: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    return octavo(tmp_path, endpoint, "convert", name, str(tmp_path / "out"))


def octavo(tmp_path: Path, endpoint: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1",
                   "HF_HUB_DISABLE_TELEMETRY": "1"}  # fmt: skip
    code = "from octavo.cli import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_a_model_comes_from_the_hub_without_pickles_or_second_copies(hub, tmp_path) -> None:
    write_tiny_model(tmp_path / "hub/tiny", "mistral")
    (tmp_path / "hub/tiny/pytorch_model.bin").write_bytes(b"never fetched")
    (tmp_path / "hub/tiny/consolidated.safetensors").write_bytes(b"never fetched")
    done = convert("acme/tiny", tmp_path, hub.endpoint)
    assert done.returncode == 0, done.stderr
    ours, theirs = tmp_path / "out", tmp_path / "hub/tiny"
    weights = "model-00001-of-00001.safetensors"
    assert (ours / weights).read_bytes() == (theirs / weights).read_bytes()
    assert (ours / "tokenizer.json").read_bytes() == (theirs / "tokenizer.json").read_bytes()
    assert json.loads((ours / "octavo.json").read_text())["parent"] == "acme/tiny"
    assert weights in hub.served and not {"pytorch_model.bin", "consolidated.safetensors"} & set(hub.served)


@pytest.mark.parametrize(
    ("name", "words"),
    [("acme/absent", "no such model on the hub"), ("acme/gated", "licence"), ("acme", "not a hub name")],
)
def test_names_that_lead_nowhere(hub, tmp_path, name, words) -> None:
    (tmp_path / "hub").mkdir()
    done = convert(name, tmp_path, hub.endpoint)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"octavo: {name}: ") and words in done.stderr
    assert not (tmp_path / "out").exists()


def test_no_network(tmp_path) -> None:
    done = convert("acme/tiny", tmp_path, "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "the hub cannot be reached" in done.stderr.splitlines()[-1]


def test_inspect_fetches_only_the_config(hub, tmp_path) -> None:
    write_tiny_model(tmp_path / "hub/tiny", "mistral")
    done = octavo(tmp_path, hub.endpoint, "inspect", "acme/tiny", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["kind"], found["family"], found["vocab_size"]) == ("hub", "mistral", 331)
    assert set(hub.served) == {"config.json"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("acme/absent", "no such model on the hub"),
        ("acme/gated", "licence"),
        ("acme/bare", "has no config.json"),
        ("acme/damaged", "damaged JSON"),
        ("acme/unknown", "acme/unknown: config.json: model_type 'gpt2' is not supported"),
    ],
)
def test_inspect_says_what_is_wrong(hub, tmp_path, name, words) -> None:
    for model, content in (("bare", None), ("damaged", "{"), ("unknown", '{"model_type": "gpt2"}')):
        (tmp_path / "hub" / model).mkdir(parents=True)
        if content:
            (tmp_path / "hub" / model / "config.json").write_text(content)
    done = octavo(tmp_path, hub.endpoint, "inspect", name)
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr.splitlines()[-1]


def test_inspect_without_a_network(tmp_path) -> None:
    done = octavo(tmp_path, "http://127.0.0.1:9", "inspect", "acme/tiny")
    assert done.returncode == 1
    assert "the hub cannot be reached" in done.stderr.splitlines()[-1]


def test_what_a_hub_name_looks_like() -> None:
    assert all(map(is_hub_name, ("mistralai/Mistral-7B-v0.1", "a/b")))
    assert not any(map(is_hub_name, ("a", "a/b/c", "./a/b", "../a", "/a", "./a", "")))
