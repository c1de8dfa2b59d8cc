"""Conversions hold one tensor plus a constant: ten times the layers or experts, the same peak."""

import subprocess
import sys
from pathlib import Path

import pytest

# a model of zeros with 10 MB of weights a layer, written, read back, proven and checked in a process of its own
SCRIPT = """
import sys
from pathlib import Path
import torch
from octavo.checkpoint.convert import convert
from octavo.checkpoint.folder import FolderSource
from octavo.checkpoint.gguf_convert import convert_to_gguf
from octavo.checkpoint.names import tensor_table
from octavo.checkpoint.upcycle import UpcycleOptions, upcycle
from octavo.config import LayerSpec, ModelConfig, RopeConfig
from tests.tiny import tiny_tokenizer_files

depth, experts, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])

class Zeros:
    label, dtype, licence = "zeros", torch.float32, None
    config = ModelConfig(family="llama", vocab_size=1000, hidden_size=512, intermediate_size=1024, num_heads=8,
        num_kv_heads=8, head_dim=64, layers=(LayerSpec(),) * depth, rope=RopeConfig(theta=1e4, dim=64),
        max_positions=64, norm_eps=1e-5)
    def check(self, progress): pass
    def side_files(self): return tiny_tokenizer_files()
    def tensor(self, name): return torch.zeros(tensor_table(self.config)[name].shape)

convert(Zeros(), folder / "dense")
upcycle(FolderSource(folder / "dense"), folder / "mixture", UpcycleOptions(experts=experts, top_k=1))
convert_to_gguf(FolderSource(folder / "mixture"), folder / "mixture.gguf", "q8_0")
# not ru_maxrss: that one starts at the resident size of the process that forked this one
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_mib(depth: int, experts: int, folder: Path) -> float:
    folder.mkdir()
    command = [sys.executable, "-c", SCRIPT, str(depth), str(experts), str(folder)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=root)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 1024


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_depth(tmp_path) -> None:
    shallow, deep = peak_mib(3, 2, tmp_path / "shallow"), peak_mib(30, 2, tmp_path / "deep")
    size = sum(path.stat().st_size for path in (tmp_path / "deep").rglob("*.safetensors")) / 2**20
    print(f"peak {shallow:.0f} MiB at 3 layers, {deep:.0f} MiB at 30 (files of {size:.0f} MiB)")
    assert size > 600 and deep - shallow < 50


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_number_of_experts(tmp_path) -> None:
    few, many = peak_mib(2, 2, tmp_path / "few"), peak_mib(2, 40, tmp_path / "many")
    size = sum(path.stat().st_size for path in (tmp_path / "many/mixture").glob("*.safetensors")) / 2**20
    print(f"peak {few:.0f} MiB with 2 experts, {many:.0f} MiB with 40 (file of {size:.0f} MiB)")
    assert size > 450 and many - few < 50
