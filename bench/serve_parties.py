"""The servers that bench/serve.py measures: how each is started, what it is told, and what its requests carry."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

THREADS = 2


@dataclass(frozen=True)
class Party:
    """A server: `command` with {port} in it; `fields` go into each body; `environment` is added to ours;
    `ready` answers once it takes requests."""

    name: str
    command: tuple[str, ...]
    fields: Mapping[str, object]
    environment: Mapping[str, str] = field(default_factory=dict)
    ready: str = "/health"

    @property
    def shown(self) -> str:
        """The command for people, without folders."""
        return " ".join(Path(word).name if word.startswith("/") else word for word in self.command)


def octavo(model: Path, quant: str, max_tokens: int, name: str = "octavo") -> Party:
    """Ours, with its defaults."""
    command = (sys.executable, "-c", "from octavo.cli import main; main()", "serve", str(model), "--quant", quant)
    fields = {"model": "m", "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    return Party(
        name, (*command, "--name", "m", "--port", "{port}"), fields | {"stream_options": _USAGE}, ready="/ready"
    )


def llama_server(binary: Path, gguf: Path, clients: int, room: int, max_tokens: int, more: tuple[str, ...]) -> Party:
    """llama.cpp's, with a slot of `room` tokens for each client."""
    command = (str(binary), "-m", str(gguf), "-t", str(THREADS), "-np", str(clients), "-c", str(clients * room))
    more = (*more, "--samplers", "temperature", "--temp", "0", "--port", "{port}")  # greedy without the other samplers
    fields = {"max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "stream_options": _USAGE}
    return Party("llama-server", (*command, *more), fields)


def transformers(model: Path, max_tokens: int, extra_path: str | None) -> Party:
    """transformers' own, in fp32. It refuses fields that it does not know, `stream_options` among them."""
    command = ("transformers", "serve", str(model), "--continuous-batching", "--device", "cpu", "--dtype", "float32")

    own = {"eos_token_id": -1, "max_new_tokens": max_tokens, "do_sample": False}
    fields = {"model": str(model), "max_tokens": max_tokens, "temperature": 0, "generation_config": json.dumps(own)}
    environment = {"PYTHONPATH": extra_path} if extra_path else {}
    return Party("transformers", (*command, "--port", "{port}"), fields, environment)


_USAGE = {"include_usage": True}


@dataclass
class Running:
    """A server that answers."""

    url: str
    pid: int
    ready_seconds: float

    def resident_mib(self) -> float:
        """Memory of its process, MiB."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * 4096 / 2**20

    def cpu_seconds(self) -> float:
        """CPU time that its process has had."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(party: Party, log: Path, timeout: float = 180.0) -> Iterator[Running]:
    """A server on a free port, until the end of the block. Raises RuntimeError, with the end of its log, where it does
    not answer /health in time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [word.format(port=port) if word == "{port}" else word for word in party.command]
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)} | dict(party.environment)
    began = time.perf_counter()
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out, env=environment) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            while not _healthy(url + party.ready):
                if process.poll() is not None or time.perf_counter() - began > timeout:
                    raise RuntimeError(f"{party.name} does not answer: {log.read_text()[-1000:]}")
                time.sleep(0.02)
            yield Running(url, process.pid, time.perf_counter() - began)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False
