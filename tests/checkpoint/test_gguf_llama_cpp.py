"""Files written by octavo in llama.cpp itself: the same logits, answers and token ids, and the same bytes as its own.

Needs llama-cpp-python, in this environment or in that of the interpreter OCTAVO_LLAMA_CPP_PYTHON names.

llama.cpp computes with rounded activations: to fp16 before an f16 matrix, to q8_0 before a q8_0 or q4_0 one. Equality
is therefore tested with octavo's activations rounded in the same way. A deep model amplifies what this rounding moves,
so the plain comparison of quantised answers says little about the file: SmolLM2-8x135M gives 1 of 8 equal answers of 24
tokens at q8_0, and 8 of 8 from the very same weights stored as f32.
"""

import importlib.util
import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import torch.nn.functional as F
from gguf import GGMLQuantizationType as Kind
from torch import Tensor, nn

from octavo.checkpoint.gguf import GGUFFile
from octavo.checkpoint.gguf_convert import TYPES, convert_to_gguf
from octavo.checkpoint.gguf_tokenizer import tokenizer_files
from octavo.checkpoint.load import load_decoder, load_tokenizer
from octavo.checkpoint.save import DecoderSource
from octavo.checkpoint.source import open_source
from octavo.config import RopeConfig
from octavo.models import Decoder
from octavo.ops import experts
from tests.checkpoint.test_gguf_convert import LLAMA3
from tests.checkpoint.test_gguf_tokenizer import TEXTS, write_byte_level
from tests.checkpoint.test_gguf_vocabulary import llama_2, write_pieces
from tests.tiny import tiny_config, tiny_tokenizer_files

pytestmark = pytest.mark.slow
WORKER = Path(__file__).with_name("llama_cpp_worker.py")
PROMPTS = [[5, 100, 200, 17, 42, 7, 300, 12], [1, 330, 2], [64]]
TOKENS = 24
WHOLE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}  # rows of whole blocks
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_embeddings": True, "num_kv_heads": 6, "head_dim": 10}),
    ("llama", {"num_kv_heads": 1, "rope": RopeConfig(theta=5e5, dim=8, scaling=LLAMA3)}),
    ("llama", {"rope": RopeConfig(theta=1e4, dim=8, scaling={"rope_type": "linear", "factor": 2.5})}),
    ("mistral", {"sliding_window": None}),
    ("mixtral", {}),
    ("mixtral", {"tie_embeddings": True, "num_experts": 8, "top_k": 2}),
]


@pytest.fixture(scope="module")
def interpreter() -> str:
    """An interpreter that has llama_cpp."""
    named = os.environ.get("OCTAVO_LLAMA_CPP_PYTHON")
    if named is None and importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("needs llama-cpp-python, here or in the interpreter that OCTAVO_LLAMA_CPP_PYTHON names")
    return named or sys.executable


def ask(interpreter: str, path: Path, **question: Any) -> Any:
    """The worker's answer about the file."""
    request = json.dumps({"path": str(path), "texts": [], "prompts": [], "count": TOKENS} | question)
    done = subprocess.run([interpreter, str(WORKER)], input=request, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout or "null")


def source(family: str, side_files: dict[str, bytes] | None = None, seed: int = 0, **changes: Any) -> DecoderSource:
    """A random model. Its norms are random too: behind norms of 1, rows of a q4_0 embedding lie on borders of q8_0."""
    decoder = Decoder(tiny_config(family, **changes)).initialise(seed).eval()
    draw = torch.Generator().manual_seed(seed + 100)
    for parameter in decoder.parameters():
        if parameter.ndim == 1:
            parameter.data = 0.7 + 0.6 * torch.rand(parameter.shape, generator=draw)
    return DecoderSource(decoder, side_files or tiny_tokenizer_files())


@contextmanager
def rounded_activations(kind: Kind) -> Iterator[Any]:
    """While it runs, octavo rounds what goes into matrices as llama.cpp does; yields the rounding."""

    def rounded(x: Tensor) -> Tensor:
        return torch.from_numpy(gguf.dequantize(gguf.quantize(x.numpy(), kind), kind))

    linear, grouped = nn.Linear.forward, experts.grouped_linear
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Linear, "forward", lambda self, x: F.linear(rounded(x), self.weight))
        patch.setattr(experts, "grouped_linear", lambda x, weight, counts: grouped(rounded(x), weight, counts))
        yield rounded
    assert nn.Linear.forward is linear


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@torch.no_grad()
def answer(decoder: Decoder, prompt: list[int], count: int = TOKENS) -> list[int]:
    """The next ids, greedily, every time from the whole text."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(decoder.logits(decoder(torch.tensor(ids)).hidden[-1:]).argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize(("family", "changes"), SHAPES)
def test_f32(tmp_path: Path, interpreter: str, family: str, changes: dict[str, Any]) -> None:
    """Names, row order, experts, rotary scaling, widths: with them all right, logits and answers are octavo's."""
    path = tmp_path / "m.gguf"
    convert_to_gguf(source(family, **changes), path, "f32")
    decoder, theirs = load_decoder(open_source(path)), ask(interpreter, path, prompts=PROMPTS)
    for prompt, logits, ids in zip(PROMPTS, theirs["logits"], theirs["answers"], strict=True):
        with torch.no_grad():
            ours = decoder.logits(decoder(torch.tensor(prompt)).hidden[-1:])[0]
        assert relative(ours, torch.tensor(logits)) < 2e-5
        assert answer(decoder, prompt) == ids


@torch.no_grad()
def departures(interpreter: str, model: DecoderSource, path: Path, kind: str, activations: Kind) -> tuple[float, float]:
    """How far octavo's logits are from llama.cpp's, with activations rounded as llama.cpp does and without."""
    convert_to_gguf(model, path, kind)
    decoder, ids = load_decoder(open_source(path)), torch.tensor(PROMPTS[0])
    theirs = torch.tensor(ask(interpreter, path, prompts=PROMPTS[:1], count=1)["logits"][0])
    plain = decoder.logits(decoder(ids).hidden[-1:])[0]
    with rounded_activations(activations) as rounded:
        ours = decoder.logits(rounded(decoder(ids).hidden[-1:]))[0]
    return relative(ours, theirs), relative(plain, theirs)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
@pytest.mark.parametrize(("kind", "activations"), [("f16", Kind.F16), ("q8_0", Kind.Q8_0), ("q4_0", Kind.Q8_0)])
def test_narrower(tmp_path: Path, interpreter: str, family: str, kind: str, activations: Kind) -> None:
    """With activations rounded as llama.cpp rounds them the logits agree; with plain ones they do not.

    Best of eight models: where an activation lies within fp32's noise of a border, the two may round it differently,
    and the logits move by 1e-4 or more (f16: in most models). A wrong file would agree in none.
    """
    found = []
    for seed in range(8):
        model = source(family, seed=seed, **WHOLE)
        found.append(departures(interpreter, model, tmp_path / f"{seed}.gguf", kind, activations))
    assert min(ours for ours, _ in found) < 1e-6 and min(plain for _, plain in found) > 1e-4


@pytest.mark.parametrize("family", ["llama", "mixtral"])
@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_bytes_of_llama_cpps_quantiser(tmp_path: Path, interpreter: str, family: str, kind: str) -> None:
    """llama.cpp's own quantisation of our f32 file has the same tensors as our quantised file, byte for byte."""
    model = source(family, **WHOLE)
    convert_to_gguf(model, tmp_path / "f32.gguf", "f32")
    convert_to_gguf(model, tmp_path / "ours.gguf", kind)
    ask(interpreter, tmp_path / "f32.gguf", quantize={"out": str(tmp_path / "theirs.gguf"), "type": TYPES[kind]})
    ours, theirs = ({tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors}
                    for name in ("ours", "theirs"))  # fmt: skip
    assert ours.keys() == theirs.keys() and Kind[kind.upper()] in {tensor.tensor_type for tensor in ours.values()}
    for name, tensor in ours.items():
        assert tensor.tensor_type == theirs[name].tensor_type, name
        assert tensor.data.tobytes() == theirs[name].data.tobytes(), name


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "smaug-bpe", "tekken", "sentencepiece"])
def test_token_ids(tmp_path: Path, interpreter: str, pre: str) -> None:
    vocabulary = tmp_path / "vocabulary.gguf"
    if pre == "sentencepiece":
        files = llama_2(tokenizer_files(GGUFFile(write_pieces(vocabulary))))  # the one whose spaces llama.cpp has
    else:
        files = tokenizer_files(GGUFFile(write_byte_level(vocabulary, pre=pre)))
    size = len(GGUFFile(vocabulary).fields["tokenizer.ggml.tokens"])
    model = source("llama", files, vocab_size=size, bos_token_id=None, eos_token_id=None)
    convert_to_gguf(model, tmp_path / "m.gguf", "f32")
    tokenizer, theirs = load_tokenizer(model), ask(interpreter, tmp_path / "m.gguf", texts=TEXTS)["ids"]
    different = [text for text, ids in zip(TEXTS, theirs, strict=True) if tokenizer.encode(text) != ids]
    if pre == "tekken":  # llama.cpp's form of its rule ends a word before a combining mark
        different = [text for text in different if not any(map(unicodedata.combining, text))]
    assert different == []


def test_smollm2(tmp_path: Path, interpreter: str, smollm2_gguf: Path) -> None:
    """A real model, at f32: the same ids of text and the same 24 greedy tokens."""
    convert_to_gguf(open_source(smollm2_gguf), tmp_path / "m.gguf", "f32")
    written = open_source(tmp_path / "m.gguf")
    tokenizer, decoder = load_tokenizer(open_source(smollm2_gguf)), load_decoder(written)
    prompts = [tokenizer.encode(text) for text in ("The capital of France is", "Water boils at")]
    prompts.append(tokenizer.encode_chat([{"role": "user", "content": "Why is the sky blue?"}]))
    theirs = ask(interpreter, tmp_path / "m.gguf", texts=TEXTS, prompts=prompts)
    assert theirs["ids"] == [tokenizer.encode(text) for text in TEXTS]
    assert theirs["answers"] == [answer(decoder, prompt) for prompt in prompts]
