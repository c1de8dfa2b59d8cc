"""Perplexity of a model in fp32, int8, int4 and ggml's Q4_0: the same tokens for all, in the torch decoder.

    OCTAVO_SHARED_DATA=data python bench/perplexity.py MODEL [--tokens 16384 --window 1024 --noise-seed 0 --activations]

Every form quantises every matrix; embedding and head have 8 bits in Q4_0 and int4, too. The text is
$OCTAVO_SHARED_DATA/text_en/*.txt.gz, or --text FILE.gz…. A model shipped as Q4_1 flatters forms with an offset, which
find its values again. So all of it is done twice: with the weights as they are, and with Gaussian noise of the size of
Q4_1's error added, which takes them off any grid. --activations rounds what enters each matrix to 8 bits too (not
under fp32). Prints a Markdown table; the standard errors are of the paired differences, token by token.
"""

import argparse
import gzip
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.checkpoint.load import load_decoder, load_tokenizer
from octavo.checkpoint.names import is_quantized_name, matrix_bits, tensor_table
from octavo.checkpoint.quantized import quantized_bits
from octavo.checkpoint.source import open_source
from octavo.data.tokenizer import Tokenizer
from octavo.models import Decoder
from octavo.ops.quantize import GROUP, Bits, dequantize, quantize, quantize_activations

Form = Callable[[str, Tensor], Tensor]  # canonical name and weight to the weight in that form
_ROWS = 256  # of logits at a time: large enough for malloc to give the memory back
_TEXT_PER_TOKEN = 12  # characters, more than any window needs


def q4_0(name: str, weight: Tensor) -> Tensor:
    """ggml's rule, by the gguf library; embedding and head as Q8_0, like octavo's files of that type. llama.cpp's own
    have them as Q6_K."""
    kind = gguf.GGMLQuantizationType.Q8_0 if matrix_bits(name, 4) == 8 else gguf.GGMLQuantizationType.Q4_0
    return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind))


def ours(bits: Bits) -> Form:
    """There and back in `bits` bits."""
    return lambda name, weight: dequantize(quantize(weight, quantized_bits(name, bits)), weight.shape[-1])


FORMS: dict[str, Form] = {
    "fp32": lambda _, weight: weight, "int8": ours(8), "Q4_0": q4_0, "int4": ours(4),
}  # fmt: skip


def with_noise(weight: Tensor, generator: torch.Generator) -> Tensor:
    """weight [N, K] plus noise with the standard deviation of Q4_1's rounding; its step is (max - min) / 15."""
    groups = weight.reshape(-1, GROUP)
    deviation = (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 15 / math.sqrt(12)
    return (groups + torch.randn(groups.shape, generator=generator) * deviation).view_as(weight)


def windows(texts: list[Path], tokenizer: Tokenizer, tokens: int, width: int) -> list[Tensor]:
    """tokens // width windows of `width` ids, from each text in turn, spread over its middle."""
    found = []
    contents = [gzip.decompress(path.read_bytes()).decode() for path in texts]
    count = tokens // width
    rounds = -(-count // len(texts))
    for number in range(count):
        text = contents[number % len(texts)]
        start = int(len(text) * (0.2 + 0.6 * (number // len(texts)) / rounds))
        ids = tokenizer.encode(text[start : start + _TEXT_PER_TOKEN * width])
        assert len(ids) >= width, f"{texts[number % len(texts)]}: too short"
        found.append(torch.tensor(ids[:width]))
    return found


@torch.no_grad()
def losses(decoder: Decoder, found: list[Tensor]) -> Tensor:
    """Negative log-likelihood of every token but each window's first, fp64."""
    parts = []
    for ids in found:
        hidden = decoder(ids).hidden[:-1]
        for rows, targets in zip(hidden.split(_ROWS), ids[1:].split(_ROWS), strict=True):
            parts.append(F.cross_entropy(decoder.logits(rows), targets, reduction="none"))
    return torch.cat(parts).double()


@torch.no_grad()
def put(decoder: Decoder, weights: Mapping[str, Tensor], form: Form) -> None:
    """Fill the decoder's matrices with `weights` in the form given."""
    table, parameters = tensor_table(decoder.config), dict(decoder.named_parameters())
    for name, weight in weights.items():
        entry = table[name]
        parameters[entry.parameter][entry.index or ...] = form(name, weight)


def round_inputs(decoder: Decoder) -> list[bool]:
    """From now on, while the flag returned is set, inputs of every linear map and of the head go through 8 bits."""
    on, logits = [False], decoder.logits

    def rounded(x: Tensor) -> Tensor:
        q, scales = quantize_activations(x)
        return (q.unflatten(-1, (-1, GROUP)) * scales[..., None]).flatten(-2)[:, : x.shape[-1]]

    for module in decoder.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]),) if on[0] else None)
    decoder.logits = lambda hidden: logits(rounded(hidden) if on[0] else hidden)
    return on


def percent(difference: Tensor) -> str:
    """Mean change of the loss as a change of perplexity, with its standard error."""
    change = math.expm1(difference.mean().item())
    return f"{100 * change:+.2f} ± {100 * (1 + change) * difference.std().item() / math.sqrt(len(difference)):.2f} %"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--text", nargs="*", type=Path)
    for name, default in (("tokens", 16384), ("window", 1024), ("noise-seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--activations", action="store_true")
    options = parser.parse_args()
    texts = options.text or sorted((Path(os.environ["OCTAVO_SHARED_DATA"]) / "text_en").glob("*.txt.gz"))
    source = open_source(options.model)
    decoder = load_decoder(source, dtype=torch.float32)
    rounding = round_inputs(decoder)
    found = windows(texts, load_tokenizer(source), options.tokens, options.window)
    shipped = {name: source.tensor(name).float() for name in tensor_table(source.config) if is_quantized_name(name)}
    generator = torch.Generator().manual_seed(options.noise_seed)
    noisy = {name: with_noise(weight, generator) for name, weight in shipped.items()}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {Path(options.model).name}, "
          f"{sum(len(ids) - 1 for ids in found)} tokens predicted in windows of {options.window}\n")  # fmt: skip
    print("| weights | form | perplexity | against fp32 | against Q4_0 |\n| --- | --- | --- | --- | --- |")
    for case, weights in (("as shipped", shipped), ("with noise", noisy)):
        measured = dict[str, Tensor]()
        for name, form in FORMS.items():
            put(decoder, weights, form)
            rounding[0] = options.activations and name != "fp32"
            measured[name] = losses(decoder, found)
            against = [percent(measured[name] - measured[other]) if other in measured and other != name else ""
                       for other in ("fp32", "Q4_0")]  # fmt: skip
            print(f"| {case} | {name} | {measured[name].mean().exp():.3f} | {against[0]} | {against[1]} |", flush=True)


if __name__ == "__main__":
    main()
