"""The parties by name: octavo itself, the machine's limits, and the peers with what they need."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from octavo.bench.measure import pages_needed
from octavo.bench.metrics import CHUNK, Metric
from octavo.bench.party import Party
from octavo.config import ModelConfig
from octavo.errors import UsageError, UserError

PEERS = ("llama.cpp", "transformers")
PEER_PYTHON = "OCTAVO_LLAMA_CPP_PYTHON"
_WORKERS = Path(__file__).parent / "workers"


@dataclass(frozen=True)
class PeerOptions:
    """Which peers, and for llama.cpp: its interpreter, a GGUF file in place of the converted model, the depth to which
    it is measured. Raises UsageError for a name that is none of PEERS, and for what would go unused."""

    names: Sequence[str] = ()
    python: str | None = None
    file: Path | None = None
    deepest: int = 4096

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in PEERS:
                raise UsageError(f"--peer is {name!r}: choose one of {', '.join(PEERS)}")
        if len(set(self.names)) < len(self.names):
            raise UsageError("--peer names a peer twice: once is enough")
        for option, value in (("--peer-file", self.file), ("--peer-python", self.python)):
            if value is not None and "llama.cpp" not in self.names:
                raise UsageError(
                    f"{option} is {value}, which only llama.cpp uses: add --peer llama.cpp, or leave it out"
                )


def own_party(
    model: Path,
    quant: str,
    config: ModelConfig,
    metrics: Sequence[Metric],
    steps: int,
    threads: int,
    name: str = "octavo",
) -> Party:
    """octavo on `model`, a pack too, with memory for the largest of the metrics."""
    warm_up = Metric("prefill", CHUNK)
    pages = max(pages_needed(metric, steps) for metric in (*metrics, warm_up))
    slots = max(metric.sequences for metric in metrics) if config.lightning_layers else 0
    return _module(name, "own", threads, str(model), quant, str(pages), str(slots), str(threads))


def limits_party(threads: int) -> Party:
    """The machine's limits."""
    return _module("the machine's limits", "limits", threads, str(threads))


def llama_cpp_party(gguf: Path, python: str, threads: int, deepest: int) -> Party:
    """llama.cpp on a GGUF file, in the interpreter `python`; it is not measured deeper than `deepest`, where it has to
    compute every token before."""
    command = [python, str(_WORKERS / "llama_cpp_worker.py"), str(gguf), str(threads)]
    return Party("llama.cpp", command, _threads(threads), lambda metric: metric.depth <= deepest)


def transformers_party(model: Path, threads: int) -> Party:
    """transformers on a model folder: at depth 0, prompts of one chunk. Raises UserError where it cannot run."""
    if importlib.util.find_spec("transformers") is None:
        raise UserError("--peer transformers: it is not installed here: pip install transformers")
    if not (model / "config.json").is_file():
        raise UserError(f"--peer transformers: {model} is no Hugging Face folder; `octavo convert` makes one of it")
    party = _module("transformers", "transformers_worker", threads, str(model), str(threads))
    return Party(party.name, party.command, {**party.environment, "HF_HUB_OFFLINE": "1"},
                 lambda metric: metric.depth == 0 and (metric.kind == "decode" or metric.count <= CHUNK))  # fmt: skip


def find_llama_cpp(python: str | None) -> str:
    """The interpreter that has llama_cpp: the one given, $OCTAVO_LLAMA_CPP_PYTHON, or this one.

    Raises UserError, saying how to install it, when it cannot be imported there.
    """
    chosen = python or os.environ.get(PEER_PYTHON) or sys.executable
    try:
        done = subprocess.run([chosen, "-c", "import llama_cpp"], capture_output=True, text=True, timeout=60)
        reason = done.stderr.strip().splitlines()[-1] if done.returncode and done.stderr.strip() else ""
        failed = done.returncode != 0
    except (OSError, subprocess.TimeoutExpired) as error:
        failed, reason = True, str(error)
    if failed:
        raise UserError(
            f"--peer llama.cpp: {chosen} cannot import llama_cpp ({reason}): `pip install llama-cpp-python`, or name "
            f"the interpreter that has it with --peer-python or ${PEER_PYTHON}"
        )
    return chosen


def _module(name: str, module: str, threads: int, *arguments: str) -> Party:
    """A worker in this interpreter, with this copy of octavo."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", f"octavo.bench.workers.{module}", *arguments]
    return Party(name, command, {**_threads(threads), "PYTHONPATH": path})


def _threads(threads: int) -> dict[str, str]:
    return {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
