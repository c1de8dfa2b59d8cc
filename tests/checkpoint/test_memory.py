"""Conversions hold one tensor plus a constant: ten times the layers, the same peak memory."""

import subprocess
import sys
from pathlib import Path

import pytest

# a model of zeros with 10 MB of weights a layer, written, read back, proven and checked in a process of its own
SCRIPT = """
import resource, sys
from pathlib import Path
import torch
from octavo.checkpoint.convert import convert
from octavo.checkpoint.folder import FolderSource
from octavo.checkpoint.names import tensor_table
from octavo.checkpoint.upcycle import UpcycleOptions, upcycle
from octavo.config import LayerSpec, ModelConfig, RopeConfig

depth, folder = int(sys.argv[1]), Path(sys.argv[2])

class Zeros:
    label, dtype, licence = "zeros", torch.float32, None
    config = ModelConfig(family="llama", vocab_size=1000, hidden_size=512, intermediate_size=1024, num_heads=8,
        num_kv_heads=8, head_dim=64, layers=(LayerSpec(),) * depth, rope=RopeConfig(theta=1e4, dim=64),
        max_positions=64, norm_eps=1e-5)
    def check(self, progress): pass
    def side_files(self): return {}
    def tensor(self, name): return torch.zeros(tensor_table(self.config)[name].shape)

convert(Zeros(), folder / "dense")
upcycle(FolderSource(folder / "dense"), folder / "mixture", UpcycleOptions(experts=2, top_k=1))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_mib(depth: int, folder: Path) -> float:
    folder.mkdir()
    command = [sys.executable, "-c", SCRIPT, str(depth), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 1024


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_depth(tmp_path) -> None:
    shallow, deep = peak_mib(3, tmp_path / "shallow"), peak_mib(30, tmp_path / "deep")
    size = sum(path.stat().st_size for path in (tmp_path / "deep").rglob("*.safetensors")) / 2**20
    print(f"peak {shallow:.0f} MiB at 3 layers, {deep:.0f} MiB at 30 (files of {size:.0f} MiB)")
    assert size > 600 and deep - shallow < 50
